"""Counts of what a teacher said and what became of it, which add up over the parts of a dataset."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from tsd.tasks import Task

NOT_STATED = "not stated"
MOST_SHOWN = 3  # rejected replies that are shown for each reason
MOST_REASONS = 40  # a real teacher fails in hundreds of ways, most of them once
MOST_LETTERS = 500  # of a reply that is shown

Counts: TypeAlias = dict[str, Any]  # see `tally`; in JSON's types
Row: TypeAlias = Mapping[str, Any]


def tally(
    task: Task, replies: Sequence[Row], truth: Sequence[Row], reasons: Sequence[str | None], kept: Sequence[Row]
) -> Counts:
    """Count the annotations of one table.

    replies: rows of annotations; truth: of their series; reasons: why each was rejected, None if it was not;
    kept: the truth and the labels of each training example.
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
    """How often each true class was stated as each class, or not stated, by facet."""
    counted = Counter(
        (facet, known[facet], said[facet] or NOT_STATED) for known, said in pairs for facet in task.names
    )
    return {
        facet: {true: {said: counted[facet, true, said] for said in (*classes, NOT_STATED)} for true in classes}
        for facet, classes in task.classes.items()
    }


def add(counts: Iterable[Counts]) -> Counts:
    """The counts of all tables together; of the rejected replies, the first are shown."""
    total: Counts = {}
    for one in counts:
        total = _sum(total, one) if total else one
    return total


def _sum(one: Any, other: Any) -> Any:
    if isinstance(one, dict):
        return {
            key: _sum(one[key], other[key]) if key in one and key in other else one.get(key, other.get(key))
            for key in [*one, *(key for key in other if key not in one)]
        }
    return (one + other)[:MOST_SHOWN] if isinstance(one, list) else one + other


def about(counts: Counts) -> Counts:
    """What goes with a dataset of examples: the counts, frequent reasons first and the rare ones summed."""
    ranked = sorted(counts["rejects"].items(), key=lambda item: (-item[1]["rows"], item[0]))
    rare = [found["rows"] for _, found in ranked[MOST_REASONS:]]
    return {
        **counts,
        "rejects": [{"reason": reason, **found} for reason, found in ranked[:MOST_REASONS]],
        "rare": {"reasons": len(rare), "rows": sum(rare)},
    }
