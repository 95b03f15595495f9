"""The lines of a journal: which are whole, the seal of a compressed one, the account they add up to."""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from tsd.errors import StorageError
from tsd.teachers import Reply
from tsd.teachers.api.account import WINDOW_SECONDS, Cost, Earlier

VERSION = 2  # of a line; lines without version are of the first
SEALED = 3  # archive version with a checksum; version 2 has none
NAMES = {each.name for each in fields(Reply)}


@dataclass
class History:
    """Content of a part's journal."""

    replies: dict[str, Reply] = field(default_factory=dict)
    """Reply to each request, by request key; the last repair if there are several."""
    failed: dict[str, Reply] = field(default_factory=dict)
    """Rows of a finished part with status `error`, by request key."""
    account: Earlier = field(default_factory=Earlier)
    """Total cost."""


def whole_lines(lines: Sequence[bytes], path: str) -> list[dict[str, Any]]:
    """Parse the complete lines. Empty lines and lines cut off by a kill are skipped."""
    entries = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(entry, dict):
            continue
        if entry.get("v", 1) > VERSION:
            raise StorageError(
                f"{path} line {number} was written by a newer version of tsd: use that version, or name another "
                "folder with --out"
            )
        entries.append(entry)
    return entries


def seal_of(content: bytes) -> dict[str, Any]:
    """Return an archive's checksum line: zstd has no checksum as pyarrow writes it."""
    return {"lines": content.count(b"\n") + 1, "sha256": hashlib.sha256(content).hexdigest()}


def without_seal(content: bytes) -> list[dict[str, Any]]:
    """Parse an archive into its head and entries. Raises ValueError if the checksum or format does not match."""
    before, _, last = content.rpartition(b"\n")
    seal = json.loads(last)
    sealed = isinstance(seal, dict) and "sha256" in seal
    if sealed and seal != seal_of(before):
        raise ValueError("it does not hold what was written")
    entries = [json.loads(line) for line in (before if sealed else content).split(b"\n")]
    if not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("it has lines that are none of its own")
    if not sealed and entries[0].get("v", 1) >= SEALED:
        raise ValueError("its end is missing")
    return entries


def reply_of(entry: Mapping[str, Any]) -> Reply:
    """Parse the reply of a line. Fields of other versions are ignored."""
    return Reply(**({"text": None} | {name: value for name, value in entry.items() if name in NAMES}))


def account_of(entries: Iterable[Mapping[str, Any]]) -> Earlier:
    """Sum the bills of all ended requests, and collect the bounds of those that are still open."""
    account, sent = Earlier(), dict[str, tuple[Cost, int, float]]()
    for entry in entries:
        if "sent" in entry:
            sent[entry["sent"]] = Cost(*entry["bound"]), entry["estimate"], entry["at"]
        if "ended" in entry and entry["ended"] not in account.ended:  # a batch may be collected twice
            billed = Cost(*entry["billed"])
            _, estimate, at = sent.pop(entry["ended"], (Cost(), 0, entry["at"]))
            account.ended.add(entry["ended"])
            account.billed += billed
            if entry["known"]:
                account.replies += 1
                account.estimator = account.estimator.after(billed, estimate)
            account.recent.append((max(at, entry["at"]), billed.tokens))
            if entry.get("model"):
                account.models[entry["model"]] += 1
    for request, (bound, _, at) in sent.items():
        account.open[request] = bound
        account.recent.append((at, bound.tokens))
    now = time.time()
    account.recent = [(at, tokens) for at, tokens in account.recent if 0 <= now - at < WINDOW_SECONDS]
    return account
