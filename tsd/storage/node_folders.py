"""Folders on a machine's own disk that its processes share: one for each user and purpose, in TMPDIR."""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tsd.errors import InputError


def shared_folder(purpose: str) -> Path:
    """Return this user's folder for a purpose. Raises InputError if another user owns it."""
    folder = Path(tempfile.gettempdir(), f"tsd-{purpose}-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():  # another user could put other content there
        raise InputError(f"{folder} belongs to another user: set TMPDIR to a folder that you own")
    return folder


@contextmanager
def alone(place: Path) -> Iterator[int]:
    """Hold the lock of a file or folder, for the processes of this machine. Yields the lock's file descriptor.

    It is released when its process ends.
    """
    with open(place.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()
