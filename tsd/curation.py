"""Annotations -> training pairs that are kept, and the rest with the reason why not."""

import pyarrow as pa

from tsd.recipe import CurationConfig
from tsd.schema import EXAMPLES, REJECTS, conform
from tsd.tasks import Labels, Task


def curate(
    task: Task, annotations: pa.Table, series: pa.Table, config: CurationConfig
) -> tuple[pa.Table, pa.Table]:
    """Sort annotations into examples and rejects; every row ends in exactly one of the two.

    annotations, series: the same series in the same order. Returns tables of the `EXAMPLES` and the
    `REJECTS` schema.
    """
    examples, rejects = [], []
    for row, known in zip(annotations.to_pylist(), series.to_pylist(), strict=True):
        reason = reject_reason(row["status"], row["reason"], row["labels"], known["truth"], config)
        shared = {"series_id": row["series_id"], "teacher": row["teacher"]}
        if reason is None:
            prompt = task.student_prompt(known["values"])
            examples.append({**shared, "split": known["split"], "prompt": prompt, "completion": row["text"]})
        else:
            rejects.append({**shared, "reason": reason, "text": row["text"]})
    return (
        conform(pa.Table.from_pylist(examples, EXAMPLES), EXAMPLES),
        conform(pa.Table.from_pylist(rejects, REJECTS), REJECTS),
    )


def reject_reason(
    status: str, reason: str | None, labels: Labels, truth: Labels, config: CurationConfig
) -> str | None:
    """Why an annotation is not kept, in words that can be counted; None when it is."""
    if status != "ok":
        return f"{status}: {reason}" if reason else status
    if config.against_truth == "drop":
        wrong = [facet for facet, label in truth.items() if labels[facet] != label]
        if wrong:
            return f"contradicts the measured {', '.join(wrong)}"
    return None
