"""Teachers: each takes a table of series and gives a table of annotations, one row for one row.

A reply that cannot be used is a row with a status and a reason, never an exception.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from tsd.storage.datasets import digest
from tsd.storage.schemas import conform
from tsd.tasks import Parsed, Task


@dataclass(frozen=True)
class Reply:
    """What came back for one series. status: ok, invalid, refused, truncated or error; ok: text is whole."""

    text: str | None
    status: str = "ok"
    reason: str | None = None
    attempts: int = 1
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    latency_ms: float | None = None
    repairs: int = 0
    """How often the teacher was told what is wrong and asked again. Attempts, tokens and dollars are of all."""
    thought: str | None = None
    """What the model thought before it replied. It is no part of `text`, and nothing is trained on it."""
    thinking_tokens: int = 0
    """The part of `output_tokens` that the server says went into thinking."""
    model: str | None = None
    """The model that answered, as the server names it."""
    fingerprint: str | None = None
    """The server's own mark of the configuration that answered, where it gives one."""


def annotations(
    task: Task, name: str, series: pa.Table, keys: Sequence[str], replies: Sequence[Reply]
) -> pa.Table:
    """Lay replies out as a table, with the labels that can be read from them.

    A whole reply whose facets are not all stated becomes `invalid`, with what is missing as its reason.
    """
    schema, rows = task.tables.annotations, []
    for series_id, key, reply in zip(series["series_id"].to_pylist(), keys, replies, strict=True):
        parsed = task.parse(reply.text or "")
        row = {**vars(_judged(reply, parsed)), "labels": parsed.labels}
        del row["repairs"]
        rows.append({**row, "series_id": series_id, "teacher": name, "request_key": key})
    return conform(pa.Table.from_pylist(rows, schema), schema)


def judge(task: Task, reply: Reply) -> Reply:
    """The reply, `invalid` with a reason where it is whole and does not state every facet."""
    return _judged(reply, task.parse(reply.text or ""))


def _judged(reply: Reply, parsed: Parsed) -> Reply:
    if reply.status == "ok" and parsed.reason is not None:
        return replace(reply, status="invalid", reason=parsed.reason)
    return reply


def repairable(reply: Reply, repairs: int) -> bool:
    """Whether the teacher is to be told what is wrong and asked again. repairs: how often it may be."""
    return reply.status in ("invalid", "truncated") and reply.repairs < repairs


def outcome(task: Task, before: Reply | None, tried: Sequence[Reply]) -> Reply:
    """What one row has come to: the last of what was tried, judged; attempts, tokens and dollars are of all.

    before: the reply that was to be mended, None where there was none. It stays where nothing better came.
    """
    last = judge(task, tried[-1])
    if last.status == "error" and before:  # what there was before is more than nothing
        last = before
    whole = summed(last, [before, *tried] if before else tried)
    return replace(whole, repairs=before.repairs + 1 if before else 0)


def summed(last: Reply, tried: Sequence[Reply]) -> Reply:
    """The reply, with the attempts, tokens and dollars of all that was tried."""
    return replace(
        last,
        attempts=sum(reply.attempts for reply in tried),
        input_tokens=sum(reply.input_tokens for reply in tried),
        output_tokens=sum(reply.output_tokens for reply in tried),
        thinking_tokens=sum(reply.thinking_tokens for reply in tried),
        cost_usd=sum(reply.cost_usd for reply in tried),
    )


def request_keys(task: Task, shape: object, series: pa.Table, shown: Sequence[object] | None = None) -> list[str]:
    """A key for each series that changes with anything that shapes its reply.

    shape: what does so for all series, the teacher's settings; shown: what does for each, how its plot looks.
    Anything JSON can hold.
    """
    base = hashlib.sha256(digest([task.version, shape]).encode())
    keys = []
    for i, values in enumerate(series["values"]):
        key = base.copy()
        if shown is not None:
            key.update(digest(shown[i]).encode())
        key.update(values.values.to_numpy().tobytes())
        keys.append(key.hexdigest()[:32])
    return keys
