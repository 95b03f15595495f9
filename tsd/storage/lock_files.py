"""The file that names a folder's holder, on a disk or in an object store; each changes only if nobody else did."""

import contextlib
import json
import os
import socket
import time
import uuid
from configparser import ConfigParser
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn, Protocol
from urllib.parse import parse_qs, urlsplit

from tsd.errors import StorageError

try:
    import fcntl
except ImportError:  # Windows has no flock: only the record counts
    fcntl = None  # type: ignore[assignment]


NAME = ".lock"
S3_SCHEMES = ("s3", "s3a")
OBJECT_STORES = (*S3_SCHEMES, "gs", "gcs", "az", "abfs", "abfss")
OTHERS = str.maketrans("0123456789", "1234567890")  # makes another tag of a tag, of the same form


@dataclass(frozen=True)
class Owner:
    """Owner of a lock. boot: the machine's boot id, which its containers share."""

    command: str
    since: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)
    user: str = field(default_factory=lambda: _user())
    boot: str = field(default_factory=lambda: boot_id())
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __str__(self) -> str:
        return f"`{self.command}` (pid {self.pid} of {self.user} on {self.host}, since {self.since})"


class LockFile(Protocol):
    """Storage of a lock's record. A tag identifies one version of the record."""

    def create(self, content: bytes) -> Any:
        """Write the record if there is none. Returns its tag, or None if there is one."""

    def replace(self, content: bytes, tag: Any) -> Any:
        """Replace the version with this tag. Returns the new tag, or None if the version differs."""

    def require_replace(self, content: bytes, tag: Any) -> None:
        """Delete the record and raise StorageError if `replace` ignores tags. tag: of the record just written."""

    def read(self) -> tuple[bytes, Any] | None:
        """Return the record and its tag; None if there is none."""

    def age(self) -> float:
        """Seconds since the record was written, by the clock of the storage."""

    def release(self, tag: Any) -> None:
        """Release what `create` acquired, and delete the record if it has this tag. None matches no record."""

    @property
    def held_by_system(self) -> bool | None:
        """Whether this process holds the operating system's lock; None if there is no such lock."""


class TakenOverError(StorageError):
    """Another command now holds the lock."""


def encode(owner: Owner) -> bytes:
    return json.dumps({**asdict(owner), "renewed": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f} UTC"}).encode()


def _user() -> str:
    return os.environ.get("USER") or os.environ.get("USERNAME") or str(getattr(os, "getuid", lambda: "unknown")())


def boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"{uuid.getnode():x}"


def seconds_awake() -> float:
    """Monotonic seconds, including time in which the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class DiskLockFile:
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

    def require_replace(self, content: bytes, tag: Any) -> None:
        """Nothing to check: `replace` compares the content."""

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


class ObjectLockFile:
    """Record in an object store, written conditionally. Its tag is the store's version."""

    held_by_system = None

    def __init__(self, folder: str) -> None:
        from obstore.store import from_url

        parts = urlsplit(folder)
        self._folder = folder
        retries: Any = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}
        address = f"{parts.scheme}://{parts.netloc}{parts.path}"
        self._store = from_url(address, retry_config=retries, **_access(folder))

    def create(self, content: bytes) -> Any:
        """Write the record if there is none. Raises StorageError if the store ignores the condition of a write."""
        tag = self._put(content, "create")
        if tag is not None and self._put(content, "create") is not None:
            self._refuse("If-None-Match")
        return tag

    def replace(self, content: bytes, tag: Any) -> Any:
        return self._put(content, tag)

    def require_replace(self, content: bytes, tag: Any) -> None:
        if self._put(content, {name: value.translate(OTHERS) for name, value in tag.items()}) is not None:
            self._refuse("If-Match")

    def _refuse(self, condition: str) -> NoReturn:
        import obstore

        obstore.delete(self._store, NAME)
        raise StorageError(
            f"{self._folder} cannot be locked: its store ignores the condition of a write ({condition}), so "
            "two commands could write at once; name a folder on a disk or in another store with --out"
        )

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
