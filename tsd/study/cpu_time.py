"""CPU seconds of this process and of all that it starts, such as a local Ray and its workers."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import psutil

INTERVAL = 1.0  # seconds between readings; what a process does after its last one is not counted


@contextmanager
def metered(interval: float = INTERVAL) -> Iterator[Callable[[], float]]:
    """Count CPU seconds within the context. Yields a function that returns those so far, user and system.

    Linux keeps the time of a process only while it runs, so a thread reads all of them at an interval. Workers of
    a Ray cluster that this process did not start are not counted.
    """
    before, latest, done = _read(), {}, threading.Event()

    def total() -> float:
        latest.update(_read())
        return sum(seconds - before.get(process, 0.0) for process, seconds in latest.items())

    def watch() -> None:
        while not done.wait(interval):
            latest.update(_read())

    thread = threading.Thread(target=watch, name="cpu time", daemon=True)
    thread.start()
    try:
        yield total
    finally:
        done.set()
        thread.join()


def _read() -> dict[tuple[int, float], float]:
    """CPU seconds of this process and its descendants, by process id and time of birth."""
    found = {}
    here = psutil.Process()
    for process in (here, *here.children(recursive=True)):
        with suppress(psutil.Error):
            spent = process.cpu_times()
            found[process.pid, process.create_time()] = spent.user + spent.system
    return found
