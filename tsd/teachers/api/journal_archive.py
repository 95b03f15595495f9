"""The archive of a finished part: its journal, compressed into one file beside the folder of line files.

The part can be restored from it without any request. The user may delete it.
"""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from pyarrow import fs

from tsd.errors import StorageError
from tsd.storage import folders
from tsd.teachers import Reply
from tsd.teachers.api.account import Cost, Earlier, total
from tsd.teachers.api.journal_lines import SEALED, reply_of, seal_of, without_seal

ARCHIVE = ".jsonl.zst"  # ending, after the name of the part


class Archive:
    """Replies, billing and errors of a finished part. A head is followed by one line for each reply."""

    def __init__(self, address: str, files: fs.FileSystem, path: str) -> None:
        """address: the file as the user names it. path: the same file on `files`."""
        self._address, self._files, self._path = address, files, path

    def read(self) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
        """Return the archive's head and replies; None if there is none. Raises StorageError if it is damaged."""
        if self._files.get_file_info(self._path).type == fs.FileType.NotFound:
            return None
        try:
            with self._files.open_input_stream(self._path, compression="zstd") as source:
                head, *entries = without_seal(source.read())
        except folders.UNREADABLE as error:
            if not folders.is_damage(error):
                raise
            raise StorageError(
                f"{self._address} is damaged ({str(error).splitlines()[0]}): restore it from a copy; without it, "
                "a part that is lost is paid for again"
            ) from None
        if head.get("v", 1) > SEALED:
            raise StorageError(
                f"{self._address} was written by a newer version of tsd: use that version, or name another "
                "folder with --out"
            )
        return head, entries

    def write(self, account: Earlier, covered: Mapping[str, int], replies: Mapping[str, Reply]) -> None:
        """Write the archive. covered: bytes that it holds of each line file, by name. replies: by request key."""
        self._write({"account": account.as_dict(), "files": covered}, replies)

    def restore(self, annotations: pa.Table) -> None:
        """Write it again from the rows of the finished part, if the user has deleted it."""
        found = {row["request_key"]: reply_of(row) for row in annotations.to_pylist()}
        costs = (Cost(one.input_tokens, one.output_tokens, one.cost_usd) for one in found.values())
        self.write(Earlier(billed=total(costs), replies=len(found)), {}, found)

    def reopen(self) -> int:
        """Remove the rows with status `error`, so that they are requested again. Returns their number."""
        archive = self.read()
        if archive is None:
            return 0
        head, entries = archive
        kept = {one["key"]: reply_of(one) for one in entries if one["status"] != "error"}
        self._write(head, kept)
        return len(entries) - len(kept)

    def _write(self, head: Mapping[str, Any], replies: Mapping[str, Reply]) -> None:
        entries = [{**head, "v": SEALED}, *({"key": key, **vars(one)} for key, one in replies.items())]
        content = "\n".join(map(json.dumps, entries)).encode()
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as packed:
            packed.write(content + b"\n" + json.dumps(seal_of(content)).encode())
        folder, _, name = self._address.rpartition("/")
        folders.write_bytes(folder, name, sink.getvalue())
