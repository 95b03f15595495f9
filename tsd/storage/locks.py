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
import uuid
from collections.abc import Iterator
from configparser import ConfigParser
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from tsd.errors import StorageError

try:
    import fcntl
except ImportError:  # Windows has no flock: only the record counts
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
BEAT = 10.0  # seconds between two renewals
STALE = 60.0  # seconds without renewal after which a lock may be taken over
GRACE = 0.5  # seconds in which a command may notice by itself that it lost its lock
LEAVE = 60.0  # seconds for a command to exit after it lost its lock; then the process is ended
S3_SCHEMES = ("s3", "s3a")
OBJECT_STORES = (*S3_SCHEMES, "gs", "gcs", "az", "abfs", "abfss")


@dataclass(frozen=True)
class Owner:
    """Owner of a lock. boot: the machine's boot id, which its containers share."""

    command: str
    since: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    user: str = field(default_factory=lambda: _user())
    boot: str = field(default_factory=lambda: _boot())
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __str__(self) -> str:
        return f"`{self.command}` (pid {self.pid} of {self.user} on {self.host}, since {self.since})"


class _Place(Protocol):
    """Storage of a lock's record. A tag identifies one version of the record."""

    def create(self, content: bytes) -> Any:
        """Write the record if there is none. Returns its tag, or None if there is one."""

    def replace(self, content: bytes, tag: Any) -> Any:
        """Replace the version with this tag. Returns the new tag, or None if the version differs."""

    def read(self) -> tuple[bytes, Any] | None:
        """Return the record and its tag; None if there is none."""

    def age(self) -> float:
        """Seconds since the record was written, by the clock of the storage."""

    def release(self, tag: Any) -> None:
        """Release what `create` acquired, and delete the record if it has this tag. None matches no record."""

    @property
    def held_by_system(self) -> bool | None:
        """Whether this process holds the operating system's lock; None if there is no such lock."""


class Held:
    """A lock held by this process, and the thread that renews it."""

    def __init__(self, folder: str, owner: Owner, place: _Place, tag: Any) -> None:
        self.folder, self.owner = folder, owner
        self.lost: str | None = None  # the owner that took it over
        self._place, self._tag = place, tag
        self._renewed = _now()
        self._over = threading.Event()
        self._leaving = False
        self._one = threading.Lock()
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)

    def require(self) -> None:
        """Raise StorageError if the lock was lost. Renews it first if the last renewal is old."""
        if self.lost is None and _now() - self._renewed > STALE / 2:
            with _one_line(self.folder):
                self.beat()
        if self.lost is not None:
            raise StorageError(
                f"{self.folder} was taken over by {self.lost} while this command stood still for more than "
                f"{STALE:.0f} s: nothing more was written; wait for it, or name another folder with --out"
            )

    def beat(self) -> None:
        """Renew the lock, or record that it was lost. Raises the storage's errors."""
        with self._one:
            if self.lost is not None or self._over.is_set():
                return
            content = _record(self.owner)
            tag = self._place.replace(content, self._tag)
            if tag is None:  # another owner's, or our own after a lost response
                found = self._place.read()
                if found is not None and _owner(found[0]).token == self.owner.token:
                    tag = self._place.replace(content, found[1])
            if tag is None:
                found = self._place.read()
                self.lost = str(_owner(found[0])) if found else "a command that deleted its lock"
            else:
                self._tag, self._renewed = tag, _now()

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


class TakenOverError(StorageError):
    """Another command now holds the lock."""


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


def _take(place: _Place, folder: str, owner: Owner) -> Any:
    """Acquire a free or expired lock. Returns its tag. Raises StorageError if another command holds it."""
    for _ in range(3):  # it may be released or acquired between two checks
        tag = place.create(_record(owner))
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
        tag = place.replace(_record(owner), found[1])
        if tag is not None:
            return tag
    refusal = _refusal(place, folder)
    place.release(None)
    raise StorageError(refusal)


def _is_free(place: _Place, other: Owner) -> bool:
    """Whether an existing record no longer has a live owner."""
    if place.held_by_system is False:
        return False
    if other.boot == _boot() and (place.held_by_system or not _is_alive(other)):
        return True
    return place.age() > STALE


def _refusal(place: _Place, folder: str) -> str:
    """Format the message for a lock that another command holds."""
    found = place.read()
    for _ in range(20):
        if found is None or found[0]:
            break
        time.sleep(0.05)  # the other command holds the file and is about to write its record
        found = place.read()
    if found is None:
        return f"{folder} is being taken by another command: start this one again"
    other, age = _owner(found[0]), place.age()
    ends = (
        "wait for it, end it"
        if place.held_by_system is False
        else f"its last sign of life is {age:.0f} s old, and after {STALE:.0f} s the folder is free: wait"
    )
    return f"{folder} is in use by {other}: {ends}, or name another folder with --out"


def _record(owner: Owner) -> bytes:
    return json.dumps({**asdict(owner), "renewed": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f} UTC"}).encode()


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


def _user() -> str:
    return os.environ.get("USER") or os.environ.get("USERNAME") or str(getattr(os, "getuid", lambda: "unknown")())


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{uuid.getnode():x}"


def _now() -> float:
    """Monotonic seconds, including time in which the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


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


def _place(folder: str) -> _Place:
    parts = urlsplit(folder)
    if "://" not in folder or parts.scheme == "file":
        return _Disk(parts.path if parts.scheme == "file" else os.path.abspath(folder))
    if parts.scheme in OBJECT_STORES:
        return _Objects(folder)
    raise StorageError(
        f"{folder} cannot be locked: studies lie on a disk or in one of {', '.join(OBJECT_STORES)}; "
        "name another folder with --out"
    )


class _Disk:
    """Record in a file that the operating system locks while this process lives. Its tag is its content."""

    def __init__(self, folder: str) -> None:
        self.path = Path(folder, NAME)
        self.held_by_system: bool | None = None
        self._file: int | None = None

    def create(self, content: bytes) -> Any:
        self._lock()
        if self.held_by_system is False:
            return None
        if self.held_by_system is None:
            try:
                with open(self.path, "xb") as file:
                    file.write(content)
                return content
            except FileExistsError:
                return None
        return None if self.path.stat().st_size else self._write(content)

    def replace(self, content: bytes, tag: Any) -> Any:
        found = self.read()
        return self._write(content) if found is not None and found[1] == tag else None

    def read(self) -> tuple[bytes, Any] | None:
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        return content, content

    def age(self) -> float:
        probe = self.path.with_name(f"{NAME}-{uuid.uuid4().hex}")
        try:
            probe.touch()  # the clock of a file server may differ from this machine's
            return probe.stat().st_mtime - self.path.stat().st_mtime
        except FileNotFoundError:
            return 0.0
        finally:
            probe.unlink(missing_ok=True)

    def release(self, tag: Any) -> None:
        found = self.read()
        if found is not None and found[1] == tag:
            self.path.unlink(missing_ok=True)
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, content: bytes) -> Any:
        """Write in place, since the system's lock belongs to the file, not to its name."""
        with open(self.path, "r+b") as file:
            file.write(content)
            file.truncate()
        return content

    def _lock(self) -> None:
        """Acquire the system's lock of the file, if the file system supports it."""
        while self._file is None and fcntl is not None:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                same = os.fstat(file).st_ino == self.path.stat().st_ino
            except BlockingIOError:
                os.close(file)
                self.held_by_system = False
                return
            except FileNotFoundError:  # released and deleted between opening and locking
                same = False
            except OSError:  # no lock support: only the record and its age count
                os.close(file)
                if self.path.stat().st_size == 0:
                    self.path.unlink(missing_ok=True)
                return
            if same:
                self._file, self.held_by_system = file, True
            else:
                os.close(file)


class _Objects:
    """Record in an object store, written conditionally. Its tag is the store's version."""

    held_by_system = None

    def __init__(self, folder: str) -> None:
        from obstore.store import from_url

        parts = urlsplit(folder)
        retries: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}
        address = f"{parts.scheme}://{parts.netloc}{parts.path}"
        self._store = from_url(address, retry_config=retries, **_access(folder))

    def create(self, content: bytes) -> Any:
        return self._put(content, "create")

    def replace(self, content: bytes, tag: Any) -> Any:
        return self._put(content, tag)

    def read(self) -> tuple[bytes, Any] | None:
        import obstore

        try:
            found = obstore.get(self._store, NAME)
        except FileNotFoundError:
            return None
        return bytes(found.bytes()), _tag(found.meta)

    def age(self) -> float:
        import obstore

        probe = f"{NAME}-{uuid.uuid4().hex}"
        try:
            obstore.put(self._store, probe, b"now")  # the store's clock may differ from this machine's
            now = obstore.head(self._store, probe)["last_modified"]
            return (now - obstore.head(self._store, NAME)["last_modified"]).total_seconds()
        except FileNotFoundError:
            return 0.0
        finally:
            with contextlib.suppress(FileNotFoundError):
                obstore.delete(self._store, probe)

    def release(self, tag: Any) -> None:
        import obstore

        found = self.read()
        if found is not None and tag is not None and found[1]["e_tag"] == tag["e_tag"]:
            obstore.delete(self._store, NAME)

    def _put(self, content: bytes, mode: Any) -> Any:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            return _tag(obstore.put(self._store, NAME, content, mode=mode, use_multipart=False))
        except (AlreadyExistsError, PreconditionError):
            return None
        except FileNotFoundError:  # deleted meanwhile, or there is no bucket
            if mode == "create":
                raise
            return None


def _tag(written: Any) -> dict[str, str]:
    """Return the ETag of an object, and its version if the bucket is versioned."""
    return {name: written[name] for name in ("e_tag", "version") if written[name] is not None}


def _access(folder: str) -> dict[str, Any]:
    """Return obstore options that make it access the same storage as pyarrow.

    obstore reads the AWS_… variables, but neither an endpoint in the URI nor the files of `aws configure`.
    """
    parts = urlsplit(folder)
    if parts.scheme not in S3_SCHEMES:
        return {}
    from pyarrow import fs

    asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
    endpoint = asked.get("endpoint_override") or os.environ.get(
        "AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL")
    )
    access: dict[str, Any] = {"region": fs.FileSystem.from_uri(folder)[0].region or "us-east-1"}
    if endpoint:
        whole = endpoint if "://" in endpoint else f"{asked.get('scheme', 'https')}://{endpoint}"
        access |= {"endpoint": whole, "client_options": {"allow_http": whole.startswith("http://")}}
    if "AWS_ACCESS_KEY_ID" not in os.environ:
        access |= _keys_of_profile()
    return access


def _keys_of_profile() -> dict[str, str]:
    """Return the keys that `aws configure` wrote; empty if there are none."""
    path = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
    profiles = ConfigParser(interpolation=None)
    profiles.read(path)
    profile = os.environ.get("AWS_PROFILE", "default")
    if not profiles.has_option(profile, "aws_access_key_id"):
        return {}
    names = {"aws_access_key_id": "access_key_id", "aws_secret_access_key": "secret_access_key"}
    names["aws_session_token"] = "session_token"
    return {ours: profiles[profile][theirs] for theirs, ours in names.items() if theirs in profiles[profile]}
