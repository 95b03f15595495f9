"""Teachers: each takes a table of series and gives a table of annotations, one row for one row.

A reply that cannot be used is a row with a status and a reason, never an exception.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from tsd.recipe import Recipe, RulesTeacher
from tsd.schema import conform
from tsd.store import digest
from tsd.tasks import Task


class Teacher(Protocol):
    """What the annotation stage asks of a teacher."""

    def annotate(self, series: pa.Table) -> pa.Table:
        """series: the task's series table. Returns its annotations table, the same rows in the same order."""
        ...


@dataclass(frozen=True)
class Reply:
    """What came back for one series. status: ok, refused, truncated or error; ok means that text is whole."""

    text: str | None
    status: str = "ok"
    reason: str | None = None
    attempts: int = 1
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    latency_ms: float | None = None


def make_teacher(recipe: Recipe) -> Teacher:
    """The teacher that a recipe names."""
    config = recipe.teacher
    if isinstance(config, RulesTeacher):
        from tsd.teachers.rules import Rules

        return Rules(config, recipe.asks, recipe.seed)
    from tsd.teachers.openai_api import OpenAIApi

    return OpenAIApi(config, recipe.asks, recipe.plots, recipe.seed)


def annotations(
    task: Task, name: str, series: pa.Table, keys: Sequence[str], replies: Sequence[Reply]
) -> pa.Table:
    """Lay replies out as a table, with the labels that can be read from them.

    A whole reply whose facets are not all stated becomes `invalid`, with what is missing as its reason.
    """
    schema, rows = task.tables.annotations, []
    for series_id, key, reply in zip(series["series_id"].to_pylist(), keys, replies, strict=True):
        parsed = task.parse(reply.text or "")
        unreadable = reply.status == "ok" and parsed.reason is not None
        rows.append(
            {
                **vars(reply),
                "series_id": series_id,
                "teacher": name,
                "request_key": key,
                "status": "invalid" if unreadable else reply.status,
                "reason": parsed.reason if unreadable else reply.reason,
                "labels": parsed.labels,
            }
        )
    return conform(pa.Table.from_pylist(rows, schema), schema)


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
