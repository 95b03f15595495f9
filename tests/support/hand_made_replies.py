"""Replies made by hand, with series of a given truth, and what curation does with them."""

import json
from typing import Any

import pyarrow as pa

from tsd.curation import curate
from tsd.recipe import CurationConfig
from tsd.tasks import SINGLE
from tsd.teachers import Reply
from tsd.teachers import annotations as lay_out

TRUTH = {"trend": "flat", "noise": "low", "maximum": "end", "minimum": "middle"}
RIGHT = {
    "trend": "The series is flat.",
    "noise": "There is low noise.",
    "extrema": "The maximum is at the end, the minimum in the middle.",
}
DROP, KEEP = CurationConfig(), CurationConfig.model_validate({"against_truth": "keep"})
CORRECT = CurationConfig.model_validate({"against_truth": "correct"})
STATUSES = ("ok", "invalid", "refused", "truncated", "error")
CLASSES = SINGLE.classes


def config(**fields: Any) -> CurationConfig:
    return CurationConfig.model_validate(fields)


def hand_made(
    replies: list[str | Reply],
    truth: dict[str, str] | list[dict[str, str]] = TRUTH,
    splits: list[str] | None = None,
    values: list[list[int]] | None = None,
) -> tuple[pa.Table, pa.Table]:
    """Annotations with these replies, and series of this truth: each has its own values unless they are given."""
    rows = len(replies)
    truths = truth if isinstance(truth, list) else [truth] * rows
    series = pa.table(
        {
            "series_id": pa.array(range(rows), pa.int64()),
            "split": splits or ["train"] * rows,
            "values": pa.array(
                values or [[number // 100, number % 100] for number in range(rows)], pa.list_(pa.uint8())
            ),
            "truth": pa.array(truths, SINGLE.tables.labels),
        }
    )
    said = [reply if isinstance(reply, Reply) else Reply(reply) for reply in replies]
    keys = [f"{number:032x}" for number in range(rows)]
    return lay_out(SINGLE, "someone", series, keys, said), series


def fate(reply: str | Reply, policy: CurationConfig) -> tuple[str | None, str | None]:
    """What is learned from one reply, and why it is rejected: one of them is None."""
    examples, rejects, _ = curate(SINGLE, *hand_made([reply]), policy)
    return (
        examples["completion"].to_pylist()[0] if len(examples) else None,
        rejects["reason"].to_pylist()[0] if len(rejects) else None,
    )


def saying(**topics: str) -> str:
    return json.dumps(RIGHT | topics)
