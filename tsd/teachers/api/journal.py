"""Write-ahead log of requests and responses: no response is paid for twice, and no cost is lost.

A part's journal consists of JSON lines. One line is written before a request is sent, with its cost bound. Another
is written when it has ended, with the bill and the reply. A request without the second line was sent by a process
that no longer exists, or timed out. It may have been billed and counts at its bound.

`journal_files` writes the lines to a disk or an object store. When its part is written, a journal is compressed
into one file (`journal_archive`).
"""

import json
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from tsd.errors import StorageError
from tsd.storage import folders
from tsd.teachers import Reply
from tsd.teachers.api.account import Cost, Earlier
from tsd.teachers.api.journal_archive import ARCHIVE, Archive
from tsd.teachers.api.journal_files import LineWriter, line_files, open_writer
from tsd.teachers.api.journal_lines import VERSION, History, account_of, reply_of, whole_lines

FOLDER = "replies"  # inside the annotations folder
ADDRESSES = "addresses.json"  # beside the journals: server addresses of the replies


class Journal:
    """Stores the replies of one part, of earlier starts and of this one. One writer at a time."""

    def __init__(self, annotations: str, part: int) -> None:
        """annotations: folder of the dataset that contains the part."""
        self._name = f"part-{part:08d}"
        self.folder = f"{annotations}/{FOLDER}/{self._name}"
        """Folder of the replies while the part is in progress, and of other files that are deleted with them."""
        self._files, self._root = folders.filesystem(self.folder)
        self.archive = Archive(f"{self.folder}{ARCHIVE}", self._files, f"{self._root}{ARCHIVE}")
        """What is kept of the journal when the part is finished."""
        self._writer: LineWriter | None = None  # None outside the context: the journal is only read

    def __enter__(self) -> Self:
        self._writer = open_writer(self._files, self._root)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._writer
        try:
            self._writer.flush()
        finally:
            self._writer.close()

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
        archive = self.archive.read()
        covered: Mapping[str, int] = {}
        if archive:
            head, entries = archive
            covered = head["files"]
            history.account = Earlier.from_dict(head["account"], f"{self._name} of earlier starts")
            history.failed = {one["key"]: reply_of(one) for one in entries if one["status"] == "error"}
            entries = [one for one in entries if one["status"] != "error"]
        for path in line_files(self._files, self._root):
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
        self._append({"sent": request, "bound": bound.as_list(), "estimate": estimate})

    def ended(
        self, request: str, billed: Cost, key: str | None = None, reply: Reply | None = None, known: bool = True
    ) -> None:
        """Record the bill of a request, and its row's reply if there is one.

        key: the row's request key. known: whether the server reported the usage.
        """
        entry: dict[str, Any] = {"ended": request, "billed": billed.as_list(), "known": known}
        self._append(entry | ({"key": key, **vars(reply)} if key and reply else {}))

    def add(self, key: str, reply: Reply) -> None:
        """Store a reply without a request of its own. Raises StorageError if it cannot be stored."""
        self._append({"key": key, **vars(reply)})

    async def stored(self) -> None:
        """Wait until all added lines survive the end of this process.

        Raises StorageError if they cannot be stored.
        """
        assert self._writer
        await self._writer.stored()

    def flush(self) -> None:
        """Make all added lines durable against power loss. Raises StorageError if they cannot be stored."""
        if self._writer:
            self._writer.flush()

    def keep(self, annotations: pa.Table) -> Earlier:
        """Compress the journal into its archive. annotations: the complete part, about to be written.

        Rows with status `error` are included, so that the same part can be restored. `delete` removes the folder
        once the part is written. Returns the part's billing.
        """
        self.flush()
        history = self.read()
        errors = annotations.filter(pc.field("status") == "error").to_pylist()
        failed = {row["request_key"]: reply_of(row) for row in errors}
        paths = line_files(self._files, self._root)
        covered = {Path(path).name: self._files.get_file_info(path).size for path in paths}
        self.archive.write(history.account, covered, failed | history.replies)
        return history.account

    def delete(self) -> None:
        """Delete the line files: their part is written, and the archive holds their content."""
        if self._files.get_file_info(self._root).type == fs.FileType.Directory:
            self._files.delete_dir(self._root)

    def _append(self, entry: Mapping[str, Any]) -> None:
        assert self._writer
        # The leading newline ends an incomplete line that a killed writer left.
        self._writer.append(b"\n" + json.dumps({"v": VERSION, "at": time.time(), **entry}).encode() + b"\n")


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
