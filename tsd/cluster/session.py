"""A Ray session for as long as a command needs one: joined where there is a cluster, else started and stopped."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

# Read by Ray when it is imported, and handed on to what it starts. A study prints its own progress and nothing
# else; students from scratch start and end every few seconds, so Ray looks after them more often than every 2 s.
for name, value in {
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "86400",  # a trial may wait that long for its machines
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_worker_maximum_startup_concurrency": "8",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}.items():
    os.environ.setdefault(name, value)

import ray

QUIET = ("ray", "ray.data", "ray.train", "ray.tune")


@contextmanager
def session(cpus: int | None = None) -> Iterator[None]:
    """Be connected to Ray inside this context.

    Inside `ray job submit`, or where RAY_ADDRESS is set, that is the cluster; otherwise a local Ray of this
    process alone, which ends with it. cpus: logical CPUs of a local Ray; those of the machine if left out.
    """
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    local = {} if address else {"num_cpus": cpus, "include_dashboard": False}
    ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    try:
        yield
    finally:
        ray.shutdown()
