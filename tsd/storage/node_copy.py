"""A dataset's columns as flat files on a machine's own disk, which its processes map into memory.

The first process of a machine that opens a dataset copies its parts, and the others wait for it. The last one that
closes it deletes the copy. A copy grows by further parts while others use it. A copy that was left behind is used
only if its files have the bytes that were written.

Temporary folders are cleaned by others, so files of a copy may vanish at any time. Its locks are files of its
folder that are made with it and never again. A folder that lacks one is replaced by a new one. Who uses the former
keeps it open: all files are opened relative to the folder itself, and what is mapped stays readable. One more
lock, beside the copies, is held while one is put there or taken out: nobody takes out another than the one meant.
"""

import errno
import fcntl
import json
import os
import shutil
import tempfile
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tsd.errors import StorageError
from tsd.storage.datasets import Dataset
from tsd.storage.node_folders import shared_folder

INDEX = "index.json"  # written last: parts, and bytes, type and CRC-32 of each file
LOCK, USED = "lock", "used"  # exclusive while the copy changes; shared while it is used
MOVING = "moving.lock"  # beside the copies: exclusive while one is put there or taken out
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
ATTEMPTS = 5
BLOCK = 1 << 22  # bytes read at once

Arrays = Mapping[str, npt.NDArray[Any]]
Flatten = Callable[[pa.Table], Arrays]


@contextmanager
def mapped(dataset: Dataset, parts: int, flatten: Flatten) -> Iterator[Arrays]:
    """Map the first parts of a dataset into memory. Yields at least their rows: read-only arrays, by name.

    flatten: maps the table of one part to arrays, (values,) each. The arrays of all parts follow one another.
    Raises DataError if a part is damaged, StorageError if the machine's temporary directory is full. Other errors
    of the dataset's storage are raised as they are: they may pass.
    """
    with ExitStack() as held:
        with _disk_errors():
            arrays = None
            for _ in range(ATTEMPTS):
                copy = held.enter_context(_Copy.of(dataset))
                arrays = copy.arrays(dataset, parts, flatten)
                if arrays is not None:
                    break
        if arrays is None:
            raise StorageError(
                f"the tokens in {copy.place.parent} are deleted by another program again and again: "
                "exclude that folder from it, or set TMPDIR to another one"
            )
        yield arrays


@contextmanager
def in_use(dataset: Dataset) -> Iterator[None]:
    """Keep the copy of a dataset on this machine while this context lasts, if there is one."""
    with _disk_errors():
        copy = _Copy.of(dataset)
    with copy:
        yield


def _place(dataset: Dataset) -> Path:
    return shared_folder("tokens") / dataset.digest


class _Copy:
    """A copy's folder, opened and locked as used. A context manager that deletes it if this was the last user."""

    def __init__(self, place: Path) -> None:
        """Open an existing folder. Raises FileNotFoundError if it, or one of its locks, is missing."""
        self.place = place
        with ExitStack() as held:
            self.folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
            held.callback(os.close, self.folder)
            self.lock, self.used = (held.enter_context(self._open(name, "r+b")) for name in (LOCK, USED))
            self.held = held.pop_all()

    @classmethod
    def of(cls, dataset: Dataset) -> Self:
        """Open the copy of a dataset, made empty if there is none, and mark it as used.

        If nobody uses it, it was left behind: it is replaced if its files do not have the bytes that were written.
        """
        while True:
            place = _place(dataset)
            _delete_unused(but=place)
            try:
                copy = cls(place)
            except FileNotFoundError:
                _delete_broken(place)
                _make(place)
                continue
            with copy._alone():
                if copy._is_current():
                    if not _lock(copy.used) or copy._is_whole(copy._read_index(), read=True):
                        fcntl.flock(copy.used, fcntl.LOCK_SH)
                        return copy
                    copy._delete()
            copy.held.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with self.held, self._alone():
            if _lock(self.used):
                self._delete()

    def arrays(self, dataset: Dataset, parts: int, flatten: Flatten) -> dict[str, npt.NDArray[Any]] | None:
        """Append the parts that the copy lacks, and map all. None if it was deleted or damaged meanwhile."""
        with self._alone():
            if not self._is_current():
                return None
            try:
                index = self._read_index()  # once: what it does not know would be overwritten
                if self._is_whole(index):
                    return self._map(self._extend(index or {"parts": 0, "arrays": {}}, dataset, parts, flatten))
            except FileNotFoundError:  # deleted just now
                pass
            self._delete()
        return None

    def _delete(self) -> None:
        """Delete the copy, unless another one has taken its place."""
        _take_out(self.place, self._is_current)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self.lock, fcntl.LOCK_UN)

    def _is_current(self) -> bool:
        """Whether the folder still is where it was opened."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.stat(self.place), os.fstat(self.folder))
        return False

    def _open(self, name: str, mode: str) -> FileIO:
        return FileIO(name, mode, opener=partial(os.open, mode=0o600, dir_fd=self.folder))

    def _is_whole(self, index: dict[str, Any] | None, read: bool = False) -> bool:
        """Whether each file is as long as the index says. A copy without files is whole. The lock must be held.

        read: compare the checksums too.
        """
        if index is None:
            return set(os.listdir(self.folder)) <= {LOCK, USED}
        for name, known in index["arrays"].items():
            try:
                with self._open(name, "rb") as file:
                    size = os.fstat(file.fileno()).st_size  # longer if a process was killed while it appended
                    if size < known["bytes"] or (read and _checksum(file, known["bytes"]) != known["crc32"]):
                        return False
            except FileNotFoundError:
                return False
        return True

    def _extend(self, index: dict[str, Any], dataset: Dataset, parts: int, flatten: Flatten) -> dict[str, Any]:
        """Append the parts that the copy lacks, and return its new index. The lock must be held.

        After an error the copy is as before.
        """
        if index["parts"] >= parts:
            return index
        try:
            with ExitStack() as files:
                opened: dict[str, FileIO] = {}
                for part in range(index["parts"], parts):
                    for name, array in _read(dataset, part, flatten).items():
                        known = index["arrays"].setdefault(
                            name, {"bytes": 0, "dtype": array.dtype.str, "crc32": 0}
                        )
                        if name not in opened:
                            opened[name] = files.enter_context(self._open(name, "ab"))
                            _cut(opened[name], known["bytes"])
                        content = _bytes(np.ascontiguousarray(array, known["dtype"]))
                        _write_all(opened[name], content)
                        known["bytes"] += len(content)
                        known["crc32"] = zlib.crc32(content, known["crc32"])
                for file in opened.values():
                    os.fsync(file.fileno())
            index["parts"] = parts
            self._write_index(index)
        except BaseException:
            self._shrink()
            raise
        return index

    def _shrink(self) -> None:
        """Free the space of what was appended after the index was written."""
        known = (self._read_index() or {"arrays": {}})["arrays"]
        for name in set(os.listdir(self.folder)) - {LOCK, USED, INDEX}:
            with suppress(FileNotFoundError):
                if name not in known:
                    os.unlink(name, dir_fd=self.folder)
                    continue
                with self._open(name, "r+b") as file:
                    _cut(file, known[name]["bytes"])

    def _read_index(self) -> dict[str, Any] | None:
        """The index; None if there is no complete one."""
        try:
            with self._open(INDEX, "rb") as file:
                index: dict[str, Any] = json.loads(file.read())
        except (FileNotFoundError, ValueError):
            return None
        return index

    def _write_index(self, index: dict[str, Any]) -> None:
        with self._open(f".{INDEX}", "wb") as file:
            _write_all(file, memoryview(json.dumps(index).encode()))
            os.fsync(file.fileno())
        os.replace(f".{INDEX}", INDEX, src_dir_fd=self.folder, dst_dir_fd=self.folder)

    def _map(self, index: dict[str, Any]) -> dict[str, npt.NDArray[Any]]:
        arrays = dict[str, npt.NDArray[Any]]()
        for name, known in index["arrays"].items():
            dtype = np.dtype(known["dtype"])
            count = known["bytes"] // dtype.itemsize
            with self._open(name, "rb") as file:
                # An empty file cannot be mapped. A plain array, since slices of np.memmap are slow.
                whole = np.memmap(file, dtype, mode="r", shape=(count,)) if count else np.empty(0, dtype)
            arrays[name] = whole.view(np.ndarray)
        return arrays


def _make(place: Path) -> None:
    """Make the folder of a copy with its locks at once. Another process may be first."""
    unfinished = Path(tempfile.mkdtemp(prefix="tsd-tokens-"))
    try:
        for name in (LOCK, USED):
            (unfinished / name).touch(mode=0o600)
        with _moving(place.parent):
            os.rename(unfinished, place)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _delete_broken(place: Path) -> None:
    """Delete a folder that lacks a lock, unless another process has replaced it by a copy meanwhile."""

    def is_broken() -> bool:
        try:
            _Copy(place).held.close()
        except FileNotFoundError:
            return True
        return False

    _take_out(place, is_broken)


def _take_out(place: Path, is_meant: Callable[[], bool]) -> None:
    """Delete a folder if it is the one that is meant. Whoever still maps its files can read them on."""
    gone = place.with_suffix(f".{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):  # another process was first
        with _moving(place.parent):
            if not is_meant():
                return
            os.rename(place, gone)
        shutil.rmtree(gone, ignore_errors=True)


@contextmanager
def _moving(folder: Path) -> Iterator[None]:
    """Exclude the other processes that put copies into this folder or take them out.

    Held for one rename, and always taken last: whoever holds it waits for nothing.
    """
    with FileIO(folder / MOVING, "wb", opener=partial(os.open, mode=0o600)) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)


def _delete_unused(but: Path) -> None:
    """Delete the copies of other datasets whose users were killed, and those that lost their locks."""
    for place in but.parent.iterdir():
        if place != but and place.is_dir():
            with suppress(FileNotFoundError):
                try:
                    copy = _Copy(place)
                except FileNotFoundError:
                    _delete_broken(place)
                    continue
                with copy.held:
                    if _lock(copy.lock) and _lock(copy.used):
                        copy._delete()


def _lock(file: FileIO) -> bool:
    """Take an exclusive lock, if no other process has any. Returns whether it was taken."""
    with suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _checksum(file: FileIO, count: int) -> int:
    """The CRC-32 of the first bytes of a file."""
    found = 0
    while count and (content := file.read(min(BLOCK, count))):
        found, count = zlib.crc32(content, found), count - len(content)
    return found


def _cut(file: FileIO, count: int) -> None:
    """Cut off what a file has after its first bytes. Raises FileNotFoundError if it is a new, shorter one."""
    if os.fstat(file.fileno()).st_size < count:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file.name)
    file.truncate(count)


def _bytes(array: npt.NDArray[Any]) -> memoryview:
    return array.data.cast("B") if array.size else memoryview(b"")


def _write_all(file: FileIO, content: memoryview) -> None:
    """Write to an unbuffered file, which may take it in pieces."""
    while len(content):
        content = content[file.write(content) :]


class _DatasetError(Exception):
    """Carries an OSError of the dataset's storage past the handlers of those of the copy's files."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


def _read(dataset: Dataset, part: int, flatten: Flatten) -> Arrays:
    """The arrays of one part. Raises _DatasetError if the dataset's storage does not answer."""
    try:
        table = dataset.read_part(part)
    except OSError as error:
        raise _DatasetError(error) from error
    return flatten(table)


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Turn an error of the machine's disk into a StorageError of one line with the fix."""
    try:
        yield
    except _DatasetError as raised:
        raise raised.error from None
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        fix = "a folder with more space" if error.errno in FULL else "another folder"
        raise StorageError(
            f"the tokens cannot be copied to {_temporary()}: {reason}; set TMPDIR to {fix}"
        ) from error


def _temporary() -> str:
    try:
        return tempfile.gettempdir()
    except FileNotFoundError:  # no folder can be written to
        return "a temporary directory"
