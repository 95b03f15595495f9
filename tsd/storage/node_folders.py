"""Folders on a machine's own disk that its processes share: one for each user and purpose, in TMPDIR."""

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tsd.errors import InputError


def shared_folder(purpose: str) -> Path:
    """Return this user's private folder for a purpose. Raises InputError if it is another user's, or a link."""
    folder = Path(tempfile.gettempdir(), f"tsd-{purpose}-{os.getuid()}")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()  # not of what a link leads to: another user could put other content there
    if found.st_uid != os.getuid() or not stat.S_ISDIR(found.st_mode):
        raise InputError(f"{folder} belongs to another user, or is no folder: set TMPDIR to a folder that you own")
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)
    return folder


@contextmanager
def alone(place: Path) -> Iterator[int]:
    """Hold the lock of a file or folder, for the processes of this machine. Yields the lock's file descriptor.

    It is released when its process ends.
    """
    with open(place.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock.fileno()
