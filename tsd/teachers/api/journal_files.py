"""The line files of a journal: list them, and append lines durably. One writer at a time.

On a local disk, each line is written at once and synced to disk every few seconds. An object store has no
appendable files. There, a background thread gathers the lines of a short interval into one object, and `stored`
waits for it.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import threading
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Protocol

from pyarrow import fs
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from tsd.errors import StorageError
from tsd.storage import folders

ENDING = ".jsonl"
SECONDS = 2.0  # between two fsync calls
GATHER_SECONDS = 0.1  # interval in which lines are gathered into an object
PUT_TRIES, PUT_WAIT = 4, 1.0  # of an object; seconds before the second try, doubled before each later one
LOCK_SECONDS = 60.0  # within which workers of a killed process must end


class LineWriter(Protocol):
    """Appends lines to the files of one start. Every method raises StorageError if they cannot be stored."""

    def append(self, line: bytes) -> None:
        """Add a line, which ends with a newline."""

    async def stored(self) -> None:
        """Wait until all added lines survive the end of this process."""

    def flush(self) -> None:
        """Make all added lines durable against power loss."""

    def close(self) -> None:
        """End the background thread, and release the lock if there is one."""


def open_writer(files: fs.FileSystem, root: str) -> LineWriter:
    """Return a writer for a new start, and wait for the lock on a disk.

    root: path of the folder on `files`. Raises StorageError if another process keeps the lock.
    """
    return DiskWriter(files, root) if isinstance(files, fs.LocalFileSystem) else ObjectWriter(files, root)


def line_files(files: fs.FileSystem, root: str) -> list[str]:
    """Return the line files in the order they were written; files of the first version come first."""
    found = files.get_file_info(fs.FileSelector(root, allow_not_found=True))
    paths = [info.path for info in found if info.path.endswith(ENDING)]
    return sorted(paths, key=lambda path: (_start_of(path), Path(path).name))


class DiskWriter:
    """Appends to one file of a folder on a disk. A thread calls fsync at intervals. A lock excludes others."""

    def __init__(self, files: fs.FileSystem, root: str) -> None:
        self._root = root
        with folders.storage_errors(root):
            Path(root).mkdir(parents=True, exist_ok=True)
            self._lock = _take_lock(root)
        self._start = _next_start(files, root)
        self._file: IO[bytes] | None = None  # created for the first line
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._sync, daemon=True)
        self._thread.start()

    def append(self, line: bytes) -> None:
        """Write a line at once."""
        with folders.storage_errors(self._root):
            if self._file is None:
                name = f"{self._start:06d}-{uuid.uuid4().hex[:8]}{ENDING}"
                self._file = open(f"{self._root}/{name}", "ab", buffering=0)  # noqa: SIM115 # closed at the end
            whole = len(line)
            while line:  # a full disk may accept only the beginning
                taken = self._file.write(line)
                line = line[taken:]
                if not taken:
                    raise OSError(errno.ENOSPC, f"{whole - len(line)} of {whole} bytes were written")

    async def stored(self) -> None:
        """Return at once: the system writes each line, even if this process is killed."""

    def flush(self) -> None:
        """Call fsync."""
        if self._file:
            with folders.storage_errors(self._root):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """End the thread, close the file and release the lock."""
        self._closed.set()
        self._thread.join(30)
        for file in (self._file, self._lock):
            if file:
                file.close()

    def _sync(self) -> None:
        """Body of the thread."""
        while not self._closed.wait(SECONDS):
            if self._file:
                with contextlib.suppress(OSError, ValueError):  # closed, or the next write reports the cause
                    os.fsync(self._file.fileno())


class ObjectWriter:
    """Gathers lines into objects of a store. A thread writes them, so that `append` does not wait."""

    def __init__(self, files: fs.FileSystem, root: str) -> None:
        self._files, self._root = files, root
        self._start, self._objects = _next_start(files, root), 0
        self._waiting: list[bytes] = []
        self._added = self._stored = 0  # number of lines
        self._error: StorageError | None = None
        self._wake = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def append(self, line: bytes) -> None:
        """Queue a line for the thread. Raises the error of an earlier line."""
        if self._error:
            raise self._error
        with self._wake:
            self._waiting.append(line)
            self._added += 1
            self._wake.notify_all()

    async def stored(self) -> None:
        """Wait until the thread has written all queued lines."""
        wanted = self._added
        while self._stored < wanted and not self._error:
            await asyncio.sleep(0.01)
        if self._error:
            raise self._error

    def flush(self) -> None:
        """Wait as `stored` does, outside an event loop."""
        wanted = self._added
        with self._wake:
            while self._stored < wanted and not self._error and self._thread.is_alive():
                self._wake.wait(1.0)
        if self._error:
            raise self._error

    def close(self) -> None:
        """End the thread once it has written all queued lines."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()
        self._thread.join(30)

    def _write(self) -> None:
        """Body of the thread: writes the queued lines of each interval as one object. Ends at the first error."""
        while not self._closed or self._waiting:
            with self._wake:
                self._wake.wait_for(lambda: self._closed or self._waiting)
            if not self._closed:
                time.sleep(GATHER_SECONDS)
            with self._wake:
                waiting, self._waiting = self._waiting, []
            try:
                self._put(waiting)
            except StorageError as error:
                self._error = error
            except Exception as error:  # report the error to waiting callers, which would otherwise wait forever
                self._error = StorageError(f"{self._root} cannot be written: {error}")
            with self._wake:
                if self._error is None:
                    self._stored += len(waiting)
                self._wake.notify_all()
            if self._error:
                return

    def _put(self, lines: Sequence[bytes]) -> None:
        """Write lines as one object, with retries: their content may have been paid for."""
        if not lines:
            return
        self._objects += 1
        name = f"{self._start:06d}-{self._objects:06d}-{uuid.uuid4().hex[:8]}{ENDING}"
        retrying = Retrying(
            stop=stop_after_attempt(PUT_TRIES),
            wait=wait_exponential(PUT_WAIT),
            retry=retry_if_exception_type(StorageError),
            reraise=True,
        )
        for attempt in retrying:
            with (
                attempt,
                folders.storage_errors(self._root),
                self._files.open_output_stream(f"{self._root}/{name}") as sink,
            ):
                sink.write(b"".join(lines))


def _start_of(path: str) -> int:
    """Return the number of the start that wrote a file; 0 for a file of the first version."""
    first = Path(path).name.partition("-")[0]
    return int(first) if first.isdigit() else 0


def _next_start(files: fs.FileSystem, root: str) -> int:
    return 1 + max((_start_of(path) for path in line_files(files, root)), default=0)


def _take_lock(root: str) -> IO[bytes]:
    """Return the locked lock file; closing it releases the lock."""
    file = open(f"{root}/lock", "ab")  # noqa: SIM115 # open as long as the lock is held
    for _ in range(int(LOCK_SECONDS * 10)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except BlockingIOError:
            time.sleep(0.1)
    file.close()
    raise StorageError(f"{root} is being written by another process: wait for it, or stop it")
