"""Counts of a teacher's responses and their curation, additive over the parts of a dataset."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from tsd.tasks import Task

NOT_STATED = "not stated"
MOST_SHOWN = 3  # rejected responses shown per reason
MOST_REASONS = 40  # teachers fail in many ways, most of them rare
MOST_LETTERS = 500  # shown of a response, in characters

Counts: TypeAlias = dict[str, Any]  # see `tally`; JSON types only
Row: TypeAlias = Mapping[str, Any]


def tally(
    task: Task, replies: Sequence[Row], truth: Sequence[Row], reasons: Sequence[str | None], kept: Sequence[Row]
) -> Counts:
    """Count the annotations of one table.

    replies: rows of annotations. truth: labels of their series. reasons: of rejection, None if kept. kept: truth,
    labels and `corrected` of each training example.
    """
    rejects: dict[str, Counts] = {}
    for reply, known, reason in zip(replies, truth, reasons, strict=True):
        if reason is not None:
            found = rejects.setdefault(reason, {"rows": 0, "examples": []})
            found["rows"] += 1
            if len(found["examples"]) < MOST_SHOWN:
                text = (reply["text"] or "")[:MOST_LETTERS]
                found["examples"].append({"series_id": reply["series_id"], "truth": known, "text": text})
    return {
        "replies": len(replies),
        "statuses": dict(Counter(reply["status"] for reply in replies)),
        "kept": reasons.count(None),
        "input_tokens": sum(reply["input_tokens"] for reply in replies),
        "output_tokens": sum(reply["output_tokens"] for reply in replies),
        "cost_usd": sum(reply["cost_usd"] for reply in replies),
        "said": _confusion(task, zip(truth, (reply["labels"] for reply in replies), strict=True)),
        "taught": _confusion(task, ((row["truth"], row["labels"]) for row in kept)),
        "corrected": sum(row["corrected"] for row in kept),
        "rejects": rejects,
    }


def _confusion(task: Task, pairs: Iterable[tuple[Row, Row]]) -> dict[str, dict[str, dict[str, int]]]:
    """Confusion matrix per facet: counts by true class and stated class, or NOT_STATED."""
    counted = Counter(
        (facet, known[facet], said[facet] or NOT_STATED) for known, said in pairs for facet in task.names
    )
    return {
        facet: {true: {said: counted[facet, true, said] for said in (*classes, NOT_STATED)} for true in classes}
        for facet, classes in task.classes.items()
    }


def add(counts: Iterable[Counts]) -> Counts:
    """Add up the counts of several tables. Only the first rejected responses are kept as samples."""
    total: Counts = {}
    for one in counts:
        total = _sum(total, one) if total else one
    return total


def _sum(one: Any, other: Any) -> Any:
    """Add numbers, dicts by key, and lists up to MOST_SHOWN entries."""
    if isinstance(one, dict):
        return {
            key: _sum(one[key], other[key]) if key in one and key in other else one.get(key, other.get(key))
            for key in [*one, *(key for key in other if key not in one)]
        }
    return (one + other)[:MOST_SHOWN] if isinstance(one, list) else one + other


def about(counts: Counts) -> Counts:
    """Metadata for a dataset of examples: the counts, with frequent reasons first and rare ones summed up."""
    ranked = sorted(counts["rejects"].items(), key=lambda item: (-item[1]["rows"], item[0]))
    rare = [found["rows"] for _, found in ranked[MOST_REASONS:]]
    return {
        **counts,
        "rejects": [{"reason": reason, **found} for reason, found in ranked[:MOST_REASONS]],
        "rare": {"reasons": len(rare), "rows": sum(rare)},
    }
