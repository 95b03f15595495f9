"""Ray session of a command: joins a cluster if there is one, else starts and stops a local Ray."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from tsd.errors import ClusterError

# Ray reads these at import and passes them to its processes. A study prints its own progress only. Small students
# start and end every few seconds, so Ray polls them more often than its default.
for name, value in {
    "LOG_NAME_UPDATE_INTERVAL_S": "60",  # Ray lists log files to print their lines, which tsd does not ask for
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its errors reach Python as exceptions; set it to see more
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",  # also while there are few, instead of ten times a second
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "86400",  # a trial may wait that long for its machines
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_task_oom_retries": "4",  # of a process that Ray ended for its memory; its default is forever
    "RAY_worker_maximum_startup_concurrency": "8",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_FUNCTION_THREAD_TIMEOUT_S": "120",  # for a stopped trial to end before its process takes the next one
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}.items():
    os.environ.setdefault(name, value)

import ray  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

QUIET = ("ray", "ray.data", "ray.train", "ray.tune")
ATTEMPTS = 3  # to start a local Ray: its 30 s timeout for a node to register is short on a busy machine


@contextmanager
def session() -> Iterator[None]:
    """Connect to Ray inside this context.

    Inside `ray job submit`, or if RAY_ADDRESS is set, it joins that cluster. Otherwise it starts a local Ray that
    ends with the context. TSD_CPUS overrides the number of CPUs. Raises ClusterError if a local Ray does not
    start.
    """
    if ray.is_initialized():
        yield
        return
    if own_ray():  # one process less per trial: a local machine is never preempted
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        start()
    else:
        _init(os.environ["RAY_ADDRESS"])
    context = ray.data.DataContext.get_current()
    calm()  # after Ray Data is loaded, which configures its logger
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    try:
        yield
    finally:
        ray.shutdown()


def own_ray() -> bool:
    """Whether this process has or would start a local Ray, rather than join a cluster."""
    return not os.environ.get("RAY_ADDRESS")


def on_driver() -> dict[str, Any]:
    """Return options of a small actor that a whole stage depends on, for `Actor.options(**on_driver())`.

    It runs on the driver's node, without which the stage cannot run either. It takes no CPU. If its process dies
    it is restarted, and calls wait for it. Its state must be expendable, or restored by `__init__`.
    """
    here = ray.get_runtime_context().get_node_id()
    return {
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": -1,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False),
    }


def calm() -> None:
    """Limit Ray's loggers to errors, and Ray Data's to none: it raises what it logs, in many lines."""
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL if name == "ray.data" else logging.ERROR)


def start() -> None:
    """Start a local Ray, with retries if its processes start too slowly.

    Raises ClusterError if all attempts fail.
    """
    asked = os.environ.get("TSD_CPUS")
    cpus = int(asked) if asked else None
    me = psutil.Process()
    before = set(me.children())
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _init("local", num_cpus=cpus, include_dashboard=False)
            return
        except Exception as error:  # Ray raises no specific type
            for process in set(me.children()) - before:  # Ray does not stop the processes of a failed start
                with suppress(psutil.Error):
                    process.kill()
                    process.wait(10)
            if attempt == ATTEMPTS:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise ClusterError(
                    f"Ray does not start on this machine, {ATTEMPTS} attempts failed: {reason.rstrip('.')}; if "
                    "the machine is busy, try later; Ray's logs are usually in /tmp/ray/session_latest/logs"
                ) from error


def _init(address: str, **local: Any) -> None:
    with _silent_stderr():
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **local)


@contextmanager
def _silent_stderr() -> Iterator[None]:
    """Redirect stderr's file descriptor: Ray's C++ code prints to it directly. Failures still raise."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
