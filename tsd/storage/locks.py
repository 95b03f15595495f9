"""One writer at a time in a study's folder: a lock on a disk or in an object store.

The lock is the file `.lock` in the folder. It names its owner and is renewed every `BEAT` seconds. On a disk the
operating system also holds it (flock), so `kill -9` frees it at once. In an object store it is created and renewed
by conditional writes. A process that finds it not renewed for `STALE` seconds takes it over. A process that lost
the lock stops before its next write: each write calls `require`.
"""

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tsd.errors import StorageError
from tsd.storage.lock_files import (
    OBJECT_STORES,
    DiskLockFile,
    LockFile,
    ObjectLockFile,
    Owner,
    TakenOverError,
    boot_id,
    encode,
    seconds_awake,
)

try:
    import fcntl
except ImportError:  # Windows has no flock: only the record counts
    fcntl = None  # type: ignore[assignment]

BEAT = 10.0  # seconds between two renewals
STALE = 60.0  # seconds without renewal after which a lock may be taken over
GRACE = 0.5  # seconds in which a command may notice by itself that it lost its lock
LEAVE = 60.0  # seconds for a command to exit after it lost its lock; then the process is ended


class Held:
    """A lock held by this process, and the thread that renews it."""

    def __init__(self, folder: str, owner: Owner, place: LockFile, tag: Any) -> None:
        self.folder, self.owner = folder, owner
        self.lost: str | None = None  # the owner that took it over
        self._place, self._tag = place, tag
        self._renewed = seconds_awake()
        self._over = threading.Event()
        self._leaving = False
        self._one = threading.Lock()
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)

    def require(self) -> None:
        """Raise StorageError if the lock was lost. Renews it first if the last renewal is old."""
        if self.lost is None and seconds_awake() - self._renewed > STALE / 2:
            with _one_line(self.folder):
                self.beat()
        if self.lost is not None:
            raise StorageError(
                f"{self.folder} was taken over by {self.lost} while this command was suspended for more than "
                f"{STALE:.0f} s: nothing more was written; wait for it, or name another folder with --out"
            )

    def beat(self) -> None:
        """Renew the lock, or record that it was lost. Raises the storage's errors."""
        with self._one:
            if self.lost is not None or self._over.is_set():
                return
            content = encode(self.owner)
            tag = self._place.replace(content, self._tag)
            if tag is None:  # another owner's, or our own after a lost response
                found = self._place.read()
                if found is not None and _owner(found[0]).token == self.owner.token:
                    tag = self._place.replace(content, found[1])
            if tag is None:
                found = self._place.read()
                self.lost = str(_owner(found[0])) if found else "a command that deleted its lock"
            else:
                self._tag, self._renewed = tag, seconds_awake()

    def start(self) -> None:
        """Start the renewal thread."""
        self._thread.start()

    def leave(self) -> None:
        """Record that the command is ending, so that it needs no interrupt."""
        with self._one:
            self._leaving = True

    def close(self) -> None:
        """Stop the renewal and release the lock."""
        self._over.set()
        self._thread.join(BEAT)
        with self._one:
            if self.lost is None:
                with contextlib.suppress(Exception):  # on failure it expires soon
                    self._place.release(self._tag)

    def _renew(self) -> None:
        while not self._over.wait(BEAT):
            with contextlib.suppress(Exception):  # storage unavailable: the next renewal retries
                self.beat()
            if self.lost is not None:
                self._stop_the_command()
                return

    def _stop_the_command(self) -> None:
        """Interrupt the main thread, which may block, unless it ends by itself; finally end the process."""
        if self._over.wait(GRACE):
            return
        with self._one:
            if not self._leaving:
                stop = signal.SIGTERM if callable(signal.getsignal(signal.SIGTERM)) else signal.SIGINT
                signal.pthread_kill(threading.main_thread().ident or 0, stop)
        if not self._over.wait(LEAVE):
            print(f"tsd: {self.folder} was taken over by {self.lost}", file=sys.stderr, flush=True)
            os._exit(2)


_held: dict[str, Held] = {}  # by folder


@contextlib.contextmanager
def hold(folder: str, command: str) -> Iterator[Held]:
    """Hold the lock of a study's folder inside this context. The folder must exist.

    command: name of the owner. Raises StorageError if another command holds the lock, or took it over because this
    process was suspended for too long.
    """
    owner = Owner(command)
    with _one_line(folder):
        place = _place(folder)
        tag = _take(place, folder, owner)
    held = Held(folder, owner, place, tag)
    _held[folder] = held
    held.start()
    try:
        try:
            yield held
        finally:
            held.leave()
    except BaseException:
        if held.lost is not None:
            held.require()  # raises the reason
        raise
    finally:
        del _held[folder]
        held.close()


def require(folder: str) -> None:
    """Raise StorageError if this process has lost the lock of the folder or of a parent folder."""
    for locked, held in list(_held.items()):
        if folder == locked or folder.startswith(f"{locked}/"):
            held.require()


@dataclass(frozen=True)
class Claim:
    """Token of a driver's lock, with which a worker in another process can check it."""

    folder: str
    token: str

    def require(self) -> None:
        """Raise TakenOverError if another command now holds the lock. Reads the record."""
        with _one_line(self.folder):
            found = _place(self.folder).read()
        if found is None or _owner(found[0]).token != self.token:
            raise TakenOverError(
                f"{self.folder} was taken over by {_owner(found[0]) if found else 'another command'}"
            )


def claim(folder: str) -> Claim | None:
    """Return the claim of this process's lock on the folder or a parent folder; None if there is none."""
    for locked, held in _held.items():
        if folder == locked or folder.startswith(f"{locked}/"):
            return Claim(locked, held.owner.token)
    return None


def _take(place: LockFile, folder: str, owner: Owner) -> Any:
    """Acquire a free or expired lock. Returns its tag.

    Raises StorageError if another command holds it, or if the storage could not keep another command from it.
    """
    tag = _acquire(place, folder, owner)
    place.require_replace(encode(owner), tag)
    return tag


def _acquire(place: LockFile, folder: str, owner: Owner) -> Any:
    """Write the record of a free or expired lock. Returns its tag."""
    for _ in range(3):  # it may be released or acquired between two checks
        tag = place.create(encode(owner))
        if tag is not None:
            return tag
        found = place.read()
        if found is None:
            continue
        other = _owner(found[0])
        if other.token == owner.token:  # created, but the response was lost
            return found[1]
        if not _is_free(place, other):
            break
        tag = place.replace(encode(owner), found[1])
        if tag is not None:
            return tag
    refusal = _refusal(place, folder)
    place.release(None)
    raise StorageError(refusal)


def _is_free(place: LockFile, other: Owner) -> bool:
    """Whether an existing record no longer has a live owner."""
    if place.held_by_system is False:
        return False
    if other.boot == boot_id() and (place.held_by_system or not _is_alive(other)):
        return True
    return place.age() > STALE


def _refusal(place: LockFile, folder: str) -> str:
    """Format the message for a lock that another command holds."""
    found = place.read()
    for _ in range(20):
        if found is None or found[0]:
            break
        time.sleep(0.05)  # the other command holds the file and is about to write its record
        found = place.read()
    if found is None:
        return f"{folder} is being locked by another command: start this one again"
    other, age = _owner(found[0]), place.age()
    ends = (
        "wait for it, end it"
        if place.held_by_system is False
        else f"its last renewal is {age:.0f} s old, and the folder is free after {STALE:.0f} s: wait"
    )
    return f"{folder} is in use by {other}: {ends}, or name another folder with --out"


def _owner(content: bytes) -> Owner:
    """Parse the owner of a record. A truncated record has an unknown owner, and the age of its file."""
    try:
        fields = json.loads(content)
        return Owner(**{name: fields[name] for name in Owner.__dataclass_fields__})
    except (ValueError, KeyError, TypeError):
        return Owner("an unknown command", "an unknown time", "an unknown host", 0, "an unknown user", "", "")


def _is_alive(owner: Owner) -> bool:
    """Whether an owner's process is alive. Processes of other hosts or containers count as alive."""
    if owner.host != socket.gethostname():
        return True
    try:
        os.kill(owner.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def _one_line(folder: str) -> Iterator[None]:
    """Convert errors of the operating system or object store to a StorageError with the folder and the fix."""
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] != "obstore":
            raise
        number = getattr(error, "errno", None)
        reason = os.strerror(number).lower() if number else str(error).strip().splitlines()[0][:300]
        raise StorageError(f"cannot lock {folder}: {reason}; name another folder with --out") from error


def _place(folder: str) -> LockFile:
    parts = urlsplit(folder)
    if "://" not in folder or parts.scheme == "file":
        return DiskLockFile(parts.path if parts.scheme == "file" else os.path.abspath(folder))
    if parts.scheme in OBJECT_STORES:
        return ObjectLockFile(folder)
    raise StorageError(
        f"{folder} cannot be locked: a study must be on a disk or in one of {', '.join(OBJECT_STORES)}; "
        "name another folder with --out"
    )
