"""Write-ahead log of requests and responses: no response is paid for twice, and no cost is lost.

A part's journal consists of JSON lines. One line is written before a request is sent, with its cost bound. Another
is written when it has ended, with the bill and the reply. A request without the second line was sent by a process
that no longer exists, or timed out. It may have been billed and counts at its bound.

On a local disk, each line is written at once and synced to disk every few seconds. An object store has no
appendable files. There, a background thread gathers the lines of a short interval into one object, and `stored`
waits for it.

When its part is written, a journal is compressed into one archive file beside the folder. The part can be restored
from it without any request. The user may delete it.
"""

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, Self

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from tsd.errors import StorageError
from tsd.storage import folders
from tsd.teachers import Reply
from tsd.teachers.api.account import Cost, Earlier, total
from tsd.teachers.api.journal_lines import (
    SEALED,
    VERSION,
    History,
    account_of,
    reply_of,
    seal_of,
    start_of,
    whole_lines,
    without_seal,
)

FOLDER, ENDING, ARCHIVE = "replies", ".jsonl", ".jsonl.zst"  # inside the annotations folder
ADDRESSES = "addresses.json"  # beside the journals: server addresses of the replies
SECONDS = 2.0  # between two fsync calls
GATHER_SECONDS = 0.1  # interval in which lines are gathered into an object
PUT_TRIES, PUT_WAIT = 4, 1.0  # of an object; seconds before the second try, doubled before each later one
LOCK_SECONDS = 60.0  # within which workers of a killed process must end


class Journal:
    """Stores the replies of one part, of earlier starts and of this one. One writer at a time."""

    def __init__(self, annotations: str, part: int) -> None:
        """annotations: folder of the dataset that contains the part."""
        self.part = part
        self.folder = f"{annotations}/{FOLDER}/{_name(part)}"
        """Folder of the replies while the part is in progress, and of other files that are deleted with them."""
        self._parent = f"{annotations}/{FOLDER}"
        self._files, self._root = folders.filesystem(self.folder)
        self._on_disk = isinstance(self._files, fs.LocalFileSystem)
        self._file: IO[bytes] | None = None
        self._lock: IO[bytes] | None = None
        self._start, self._objects = 0, 0
        self._waiting: list[bytes] = []
        self._added = self._stored = 0  # number of lines
        self._error: StorageError | None = None
        self._wake = threading.Condition()
        self._closed = False
        self._writer: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._on_disk:
            with folders.storage_errors(self._root):
                Path(self._root).mkdir(parents=True, exist_ok=True)
                self._lock = open(f"{self._root}/lock", "ab")
                self._take_lock()
        self._start = 1 + max((start_of(path) for path in self._paths()), default=0)
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()
        finally:
            with self._wake:
                self._closed = True
                self._wake.notify_all()
            if self._writer:
                self._writer.join(30)
            for file in (self._file, self._lock):
                if file:
                    file.close()

    # ---- Read

    def read(self) -> History:
        """Read the journal, of earlier starts and of this one.

        Raises StorageError for a line of another version.
        """
        try:
            return self._read()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StorageError(
                f"{self.folder}: lines that this version of tsd cannot read ({type(error).__name__}: {error}): "
                "use the version that wrote them, or move the folder away to ask, and pay for, its rows again"
            ) from None

    def _read(self) -> History:
        """Merge the archive and the line files that it does not cover.

        For several replies to one request, the one with the highest repair number is kept.
        """
        history = History()
        entries: list[dict[str, Any]] = []
        archive = self._archive()
        covered: Mapping[str, int] = {}
        if archive:
            head, entries = archive
            covered = head["files"]
            history.account = Earlier.from_dict(head["account"], f"{_name(self.part)} of earlier starts")
            history.failed = {one["key"]: reply_of(one) for one in entries if one["status"] == "error"}
            entries = [one for one in entries if one["status"] != "error"]
        for path in self._paths():
            with self._files.open_input_stream(path) as source:
                content = source.read()
            rest = content[covered.get(Path(path).name, 0) :]
            entries += whole_lines(rest.split(b"\n"), path)
        history.account.add(account_of(entries))
        found: dict[str, Reply] = {}
        for entry in entries:
            if "key" not in entry:
                continue
            reply, before = reply_of(entry), found.get(entry["key"])
            if before is None or reply.repairs >= before.repairs:
                found[entry["key"]] = reply
        # Lines of the first version record a row's total cost so far, not each request.
        old = {entry["key"]: reply_of(entry) for entry in entries if "v" not in entry and "at" in entry}
        for one in old.values():
            spent = Cost(one.input_tokens, one.output_tokens, one.cost_usd)
            history.account.add(Earlier(billed=spent, replies=1))
        history.replies = found
        for key in found:
            history.failed.pop(key, None)
        return history

    def replies(self) -> dict[str, Reply]:
        """Return the replies by request key; of several replies to one request, the last."""
        return self.read().replies

    # ---- Write

    def sent(self, request: str, bound: Cost, estimate: int) -> None:
        """Record that a request is about to be sent. estimate: approximate tokens of its prompt.

        Raises StorageError if it cannot be stored.
        """
        self._append([{"sent": request, "bound": bound.as_list(), "estimate": estimate}])

    def ended(
        self, request: str, billed: Cost, key: str | None = None, reply: Reply | None = None, known: bool = True
    ) -> None:
        """Record the bill of a request, and its row's reply if there is one.

        key: the row's request key. known: whether the server reported the usage.
        """
        entry: dict[str, Any] = {"ended": request, "billed": billed.as_list(), "known": known}
        self._append([entry | ({"key": key, **vars(reply)} if key and reply else {})])

    def add(self, key: str, reply: Reply) -> None:
        """Store a reply without a request of its own. Raises StorageError if it cannot be stored."""
        self._append([{"key": key, **vars(reply)}])

    async def stored(self) -> None:
        """Wait until all added lines survive the end of this process.

        Raises StorageError if they cannot be stored.
        """
        if self._on_disk:
            return
        wanted = self._added
        while self._stored < wanted and not self._error:
            await asyncio.sleep(0.01)
        if self._error:
            raise self._error

    def flush(self) -> None:
        """Make all added lines durable against power loss. Raises StorageError if they cannot be stored."""
        if self._file:
            with folders.storage_errors(self._root):
                os.fsync(self._file.fileno())
            return
        wanted = self._added
        with self._wake:
            self._wake.notify_all()
            while self._stored < wanted and not self._error and self._writer and self._writer.is_alive():
                self._wake.wait(1.0)
        if self._error:
            raise self._error

    def keep(self, annotations: pa.Table) -> Earlier:
        """Compress the journal into its archive. annotations: the complete part, about to be written.

        Rows with status `error` are included, so that the same part can be restored. `delete` removes the folder
        once the part is written. Returns the part's billing.
        """
        self.flush()
        history = self.read()
        errors = annotations.filter(pc.field("status") == "error").to_pylist()
        failed = {row["request_key"]: reply_of(row) for row in errors}
        head = {
            "account": history.account.as_dict(),
            "files": {Path(path).name: self._files.get_file_info(path).size for path in self._paths()},
        }
        self._write_archive(head, failed | history.replies)
        return history.account

    def reopen(self) -> int:
        """Remove the rows with status `error` from the archive, so that they are requested again.

        Returns their number.
        """
        archive = self._archive()
        if archive is None:
            return 0
        head, entries = archive
        kept = {one["key"]: reply_of(one) for one in entries if one["status"] != "error"}
        self._write_archive(head, kept)
        return len(entries) - len(kept)

    def restore(self, annotations: pa.Table) -> None:
        """Rewrite the archive from the rows of the finished part, if the user has deleted it."""
        rows = annotations.to_pylist()
        found = {row["request_key"]: reply_of(row) for row in rows}
        costs = (Cost(one.input_tokens, one.output_tokens, one.cost_usd) for one in found.values())
        account = Earlier(billed=total(costs), replies=len(found))
        self._write_archive({"account": account.as_dict(), "files": {}}, found)

    def delete(self) -> None:
        """Delete the line files: their part is written, and the archive holds their content."""
        if self._files.get_file_info(self._root).type == fs.FileType.Directory:
            self._files.delete_dir(self._root)

    # ---- Internals

    def _archive(self) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        """Return the archive's head and replies; None if there is none. Raises StorageError if it is damaged."""
        path, named = f"{self._root}{ARCHIVE}", f"{self._parent}/{_name(self.part)}{ARCHIVE}"
        if self._files.get_file_info(path).type == fs.FileType.NotFound:
            return None
        try:
            with self._files.open_input_stream(path, compression="zstd") as source:
                head, *entries = without_seal(source.read())
        except folders.UNREADABLE as error:
            if not folders.is_damage(error):
                raise
            raise StorageError(
                f"{named} is damaged ({str(error).splitlines()[0]}): restore it from a copy; without it, a "
                "part that is lost is paid for again"
            ) from None
        if head.get("v", 1) > SEALED:
            raise StorageError(
                f"{named} was written by a newer version of tsd: use that version, or name another folder "
                "with --out"
            )
        return head, entries

    def _write_archive(self, head: Mapping[str, Any], replies: Mapping[str, Reply]) -> None:
        entries = [{**head, "v": SEALED}, *({"key": key, **vars(one)} for key, one in replies.items())]
        content = "\n".join(map(json.dumps, entries)).encode()
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as packed:
            packed.write(content + b"\n" + json.dumps(seal_of(content)).encode())
        folders.write_bytes(self._parent, f"{_name(self.part)}{ARCHIVE}", sink.getvalue())

    def _append(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Write lines to the file of this start, or queue them for the writer thread on an object store.

        Raises StorageError if they cannot be written.
        """
        # The leading newline ends an incomplete line that a killed writer left.
        lines = b"".join(
            b"\n" + json.dumps({"v": VERSION, "at": time.time(), **entry}).encode() + b"\n" for entry in entries
        )
        if self._error:
            raise self._error
        if self._on_disk:
            with folders.storage_errors(self._root):
                if self._file is None:
                    name = f"{self._start:06d}-{uuid.uuid4().hex[:8]}{ENDING}"
                    self._file = open(f"{self._root}/{name}", "ab", buffering=0)  # noqa: SIM115 # closed at the end
                whole = len(lines)
                while lines:  # a full disk may accept only the beginning
                    taken = self._file.write(lines)
                    lines = lines[taken:]
                    if not taken:
                        raise OSError(errno.ENOSPC, f"{whole - len(lines)} of {whole} bytes were written")
            return
        with self._wake:
            self._waiting.append(lines)
            self._added += 1
            self._wake.notify_all()

    def _write(self) -> None:
        """Body of the writer thread: writes queued lines as objects and calls fsync on disk files at intervals."""
        while not self._closed or self._waiting:
            with self._wake:
                self._wake.wait_for(lambda: self._closed or self._waiting, SECONDS)
            if self._file:
                with contextlib.suppress(OSError, ValueError):  # closed, or the next write reports the cause
                    os.fsync(self._file.fileno())
            if self._waiting and not self._closed:
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

    def _paths(self) -> list[str]:
        """Return the line files in the order they were written; files of the first version come first."""
        found = self._files.get_file_info(fs.FileSelector(self._root, allow_not_found=True))
        paths = [info.path for info in found if info.path.endswith(ENDING)]
        return sorted(paths, key=lambda path: (start_of(path), Path(path).name))

    def _take_lock(self) -> None:
        assert self._lock
        for _ in range(int(LOCK_SECONDS * 10)):
            try:
                return fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.1)
        raise StorageError(f"{self._root} is being written by another process: wait for it, or stop it")


def parts_with_journals(annotations: str) -> list[int]:
    """Return the indices of parts that have a journal, complete or in progress."""
    files, root = folders.filesystem(f"{annotations}/{FOLDER}")
    found = files.get_file_info(fs.FileSelector(root, allow_not_found=True))
    names = {Path(info.path).name.partition(".")[0] for info in found}
    return sorted(int(name.removeprefix("part-")) for name in names if name.startswith("part-"))


def read_all(annotations: str, parts: Iterable[int]) -> dict[int, History]:
    """Read the journals of some parts concurrently."""
    wanted = list(parts)
    with ThreadPoolExecutor(folders.READERS) as pool:
        return dict(zip(wanted, pool.map(lambda part: Journal(annotations, part).read(), wanted), strict=True))


def _name(part: int) -> str:
    return f"part-{part:08d}"
