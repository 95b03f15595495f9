"""Teachers: each maps a table of series to a table of annotations, row by row.

An unusable response becomes a row with a status and a reason. It never raises an exception.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from tsd.storage.keys import digest
from tsd.storage.schemas import conform
from tsd.tasks import Parsed, Task


@dataclass(frozen=True)
class Reply:
    """The response for one series. status: ok, invalid, refused, truncated or error; ok means the text is
    complete.
    """

    text: str | None
    status: str = "ok"
    reason: str | None = None
    attempts: int = 1
    """Number of requests that may have reached the server. One that found no server there is none."""
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    latency_ms: float | None = None
    repairs: int = 0
    """Number of repair requests sent after an unusable response. Attempts, tokens and cost include all of them."""
    thought: str | None = None
    """Reasoning text of the model. It is not part of `text` and is never used for training."""
    thinking_tokens: int = 0
    """The part of `output_tokens` that the server reports as reasoning tokens."""
    model: str | None = None
    """Name of the model that responded, as reported by the server."""
    fingerprint: str | None = None
    """The server's fingerprint of the serving configuration, if it reports one."""


def annotations(
    task: Task, name: str, series: pa.Table, keys: Sequence[str], replies: Sequence[Reply]
) -> pa.Table:
    """Convert responses to the annotations table, with the labels parsed from each text.

    keys: one request key per series.
    A complete response that does not state every facet gets the status `invalid` and the missing facets as reason.
    Raises ValueError if the numbers of series, keys and replies differ.
    """
    schema, rows = task.tables.annotations, []
    for series_id, key, reply in zip(series["series_id"].to_pylist(), keys, replies, strict=True):
        parsed = task.parse(reply.text or "")
        row = {**vars(_judged(reply, parsed)), "labels": parsed.labels}
        del row["repairs"]
        rows.append({**row, "series_id": series_id, "teacher": name, "request_key": key})
    return conform(pa.Table.from_pylist(rows, schema), schema)


def judge(task: Task, reply: Reply) -> Reply:
    """Return the reply, with status `invalid` and a reason if it is complete but does not state every facet."""
    return _judged(reply, task.parse(reply.text or ""))


def _judged(reply: Reply, parsed: Parsed) -> Reply:
    if reply.status == "ok" and parsed.reason is not None:
        return replace(reply, status="invalid", reason=parsed.reason)
    return reply


def repairable(reply: Reply, repairs: int) -> bool:
    """Whether to send a repair request for this reply. repairs: maximum number of repair requests per row."""
    return reply.status in ("invalid", "truncated") and reply.repairs < repairs


def outcome(task: Task, before: Reply | None, tried: Sequence[Reply]) -> Reply:
    """Return the final reply of one row: the last of `tried`, validated. Attempts, tokens and cost are sums over
    all.

    before: the reply to be repaired, None for the first request. It is kept if every repair request failed.
    """
    last = judge(task, tried[-1])
    if last.status == "error" and before:  # an earlier reply is better than an error
        last = before
    whole = summed(last, [before, *tried] if before else tried)
    return replace(whole, repairs=before.repairs + 1 if before else 0)


def summed(last: Reply, tried: Sequence[Reply]) -> Reply:
    """Return `last` with the attempts, tokens and cost summed over `tried`."""
    return replace(
        last,
        attempts=sum(reply.attempts for reply in tried),
        input_tokens=sum(reply.input_tokens for reply in tried),
        output_tokens=sum(reply.output_tokens for reply in tried),
        thinking_tokens=sum(reply.thinking_tokens for reply in tried),
        cost_usd=sum(reply.cost_usd for reply in tried),
    )


def request_keys(task: Task, shape: object, series: pa.Table, shown: Sequence[object] | None = None) -> list[str]:
    """Compute one request key per series: a hash of everything that can affect the response.

    shape: settings shared by all series. shown: settings per series, such as the plot style.
    Both can be any JSON-serialisable value.
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
