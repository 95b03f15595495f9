"""The log of an engine on this machine, in a folder that only this user can read, write to or redirect.

The log is for people. Whatever happens to its file or folder, the engine starts and runs on.
"""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from tsd.errors import InputError
from tsd.storage.node_folders import shared_folder

PURPOSE = "engines"  # in the folder's name
LOGS = 50  # latest logs that are kept on a machine
MOST_READ = 1 << 20  # bytes


def log_folder() -> Path:
    """This user's folder of engine logs on each machine, whether it is there or not."""
    return Path(tempfile.gettempdir(), f"tsd-{PURPOSE}-{os.getuid()}")


class EngineLog:
    """The log of all starts of one engine."""

    def __init__(self, port: int) -> None:
        """port: of the engine's server."""
        self._name = f"engine-{os.getpid()}-{port}.log"
        self.path = Path(os.devnull)
        """Where it is now. It is /dev/null where no file can be written."""
        with suppress(OSError):
            self.path = log_folder() / self._name

    def open(self) -> BinaryIO:
        """Open it for appending, and create it if it is not there. `read_since` reads from the same file."""
        with suppress(OSError, InputError):
            return self._open(shared_folder(PURPOSE))
        with suppress(OSError):  # another user's folder, a link, a file that is not ours
            return self._open(Path(tempfile.mkdtemp(prefix=f"tsd-{PURPOSE}-{os.getuid()}-")))
        self.path = Path(os.devnull)
        return open(self.path, "ab", buffering=0)

    def _open(self, folder: Path) -> BinaryIO:
        """Open it in a folder of this user. Raises OSError if no file can be written there."""
        how = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(folder / self._name, how, 0o600)
        self.path = folder / self._name
        _delete_oldest(folder)
        return open(file, "ab", buffering=0)


def read_since(log: BinaryIO, since: int) -> str:
    """Return what was written to an open log since a position in bytes, even if its file was deleted meanwhile.

    Returns the end of it if that is more than `MOST_READ`, and "" if it cannot be read.
    """
    with suppress(OSError):
        end = os.fstat(log.fileno()).st_size
        return os.pread(log.fileno(), MOST_READ, max(since, end - MOST_READ)).decode(errors="replace")
    return ""


def _delete_oldest(folder: Path) -> None:
    """Delete all logs but the latest ones."""
    changed: dict[Path, float] = {}
    for log in folder.glob("*.log"):
        with suppress(OSError):  # another engine of this machine deletes them, too
            changed[log] = log.lstat().st_mtime
    for log in sorted(changed, key=changed.__getitem__)[:-LOGS]:
        with suppress(OSError):
            log.unlink()
