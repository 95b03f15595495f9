"""A Ray session for as long as a command needs one: joined where there is a cluster, else started and stopped."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import psutil

from tsd.errors import ClusterError

# Read by Ray when it is imported, and handed on to what it starts. A study prints its own progress and nothing
# else; students from scratch start and end every few seconds, so Ray looks after them more often than every 2 s.
for name, value in {
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # its errors reach Python as exceptions; set it to see more
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "86400",  # a trial may wait that long for its machines
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_worker_maximum_startup_concurrency": "8",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}.items():
    os.environ.setdefault(name, value)

import ray  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

QUIET = ("ray", "ray.data", "ray.train", "ray.tune")
ATTEMPTS = 3  # to start a local Ray: it gives its node 30 s to register, which is short on a busy machine


@contextmanager
def session() -> Iterator[None]:
    """Be connected to Ray inside this context.

    Inside `ray job submit`, or where RAY_ADDRESS is set, that is the cluster; otherwise a local Ray of this
    process alone, which ends with it and counts the machine's CPUs, or as many as TSD_CPUS says. Raises
    ClusterError where a local Ray does not start.
    """
    if ray.is_initialized():
        yield
        return
    if own_ray():  # a trial has a process that watches for it, and nobody takes one's own machine away
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        start()
    else:
        _init(os.environ["RAY_ADDRESS"])
    context = ray.data.DataContext.get_current()
    calm()  # once Ray Data is loaded, which sets up its logger
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    try:
        yield
    finally:
        ray.shutdown()


def own_ray() -> bool:
    """Whether this process has a local Ray of its own, or would start one, rather than join a cluster."""
    return not os.environ.get("RAY_ADDRESS")


def on_driver() -> dict[str, Any]:
    """Options of a small actor that a whole stage depends on, such as `Actor.options(**on_driver())`.

    It runs on the driver's node, without which there is no stage either, takes no CPU, and is started again when
    its process dies; calls wait for it. Its state must be one that can be lost, or that `__init__` restores.
    """
    here = ray.get_runtime_context().get_node_id()
    return {
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": -1,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(here, soft=False),
    }


def calm() -> None:
    """Have Ray's loggers tell of errors alone."""
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)


def start() -> None:
    """Start a local Ray, again where its processes were not up in time."""
    asked = os.environ.get("TSD_CPUS")
    cpus = int(asked) if asked else None
    me = psutil.Process()
    before = set(me.children())
    for attempt in range(1, ATTEMPTS + 1):
        try:
            _init("local", num_cpus=cpus, include_dashboard=False)
            return
        except Exception as error:  # Ray raises no kind of its own
            for process in set(me.children()) - before:  # of a start that failed, Ray leaves what did start
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
    """Ray's C++ part greets with its log level on the file descriptor itself; failures still raise."""
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
