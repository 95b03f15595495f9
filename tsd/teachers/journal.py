"""Replies that came, on disk before their part is whole: what was answered is not paid for again.

A line of JSON a reply, by request key. On a disk each line is written as its reply comes, and outlasts a power cut
some seconds later; an object store has no files that grow, so there the lines of some seconds become an object.
"""

import fcntl
import json
import os
import time
import uuid
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Self

from pyarrow import fs

from tsd import store
from tsd.errors import StorageError
from tsd.teachers import Reply

FOLDER, ENDING = "replies", ".jsonl"  # inside the folder of the annotations
SECONDS = 2.0  # between two objects, or two times that the disk is waited for
LOCK_SECONDS = 60.0  # that a killed start's workers may take to be gone


class Journal:
    """The replies of one part: those of earlier starts, and those that come. One writer at a time."""

    def __init__(self, annotations: str, part: int) -> None:
        """annotations: the folder of the dataset that the part belongs to."""
        self.folder = f"{annotations}/{FOLDER}/part-{part:08d}"
        """Where the replies are, and what else is to be forgotten with them."""
        self._files, self._folder = store.filesystem(self.folder)
        self._on_disk = isinstance(self._files, fs.LocalFileSystem)
        self._file: IO[bytes] | None = None
        self._waiting: list[bytes] = []
        self._written = time.monotonic()

    def __enter__(self) -> Self:
        if self._on_disk:
            with store.storage_errors(self._folder):
                Path(self._folder).mkdir(parents=True, exist_ok=True)
                self._file = open(f"{self._folder}/replies{ENDING}", "ab", buffering=0)
                self._lock()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()
        finally:
            if self._file:
                self._file.close()

    def replies(self) -> dict[str, Reply]:
        """What is there, by request key: of several replies to one request, the last."""
        found = self._files.get_file_info(fs.FileSelector(self._folder, allow_not_found=True))
        entries: list[dict[str, Any]] = []
        for info in sorted((one for one in found if one.path.endswith(ENDING)), key=lambda info: info.path):
            with self._files.open_input_stream(info.path) as source:
                entries += _whole(source.read().split(b"\n"))
        return {entry.pop("key"): Reply(**entry) for entry in sorted(entries, key=lambda entry: entry.pop("at"))}

    def add(self, key: str, reply: Reply) -> None:
        """Keep one reply. Raises StorageError where it cannot be kept."""
        # A line that a killed writer left half written ends where the next one begins.
        line = b"\n" + json.dumps({"key": key, "at": time.time(), **asdict(reply)}).encode() + b"\n"
        if self._file:
            with store.storage_errors(self._folder):
                self._file.write(line)
        else:
            self._waiting.append(line)
        if time.monotonic() - self._written > SECONDS:
            self.flush()

    def flush(self) -> None:
        """Have what was added outlast a power cut. Raises StorageError where it cannot be kept."""
        with store.storage_errors(self._folder):
            if self._file:
                os.fsync(self._file.fileno())
            if self._waiting:
                with self._files.open_output_stream(f"{self._folder}/{uuid.uuid4().hex}{ENDING}") as sink:
                    sink.write(b"".join(self._waiting))
        self._waiting, self._written = [], time.monotonic()

    def delete(self) -> None:
        """Forget the replies: their part is written."""
        if self._files.get_file_info(self._folder).type == fs.FileType.Directory:
            self._files.delete_dir(self._folder)

    def _lock(self) -> None:
        assert self._file
        for _ in range(int(LOCK_SECONDS * 10)):
            try:
                return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.1)
        raise StorageError(f"{self._folder} is being written by another process: wait for it, or stop it")


def _whole(lines: Iterable[bytes]) -> Iterable[dict[str, Any]]:
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:  # empty, or cut off by a kill
            continue
        if isinstance(entry, dict):
            yield entry
