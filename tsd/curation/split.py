"""Verdicts -> tables of examples and rejects, and their counts."""

import pyarrow as pa

from tsd.curation.corpus import Settled
from tsd.curation.counts import Counts, tally
from tsd.storage.schemas import EXAMPLES, REJECTS, conform
from tsd.tasks import Task


def sort_out(
    task: Task, annotations: pa.Table, series: pa.Table, verdicts: pa.Table, settled: Settled
) -> tuple[pa.Table, pa.Table, Counts]:
    """Split annotations into examples and rejects. Every row ends in exactly one of them.

    annotations, series, verdicts: the same series in the same order. Returns tables of the `EXAMPLES` and
    `REJECTS` schemas, and their counts.
    """
    said, known, judged = annotations.to_pylist(), series.to_pylist(), verdicts.to_pylist()
    objections = settled.reasons_for(verdicts["series_id"].to_numpy())
    reasons = [row["reason"] or objection for row, objection in zip(judged, objections, strict=True)]
    examples, rejects, trained = [], [], []
    for reply, one, verdict, reason in zip(said, known, judged, reasons, strict=True):
        shared = {"series_id": reply["series_id"], "teacher": reply["teacher"]}
        if reason is not None:
            rejects.append({**shared, "reason": reason, "text": reply["text"]})
            continue
        corrected = verdict["corrected"]
        completion = reply["text"] if corrected is None else corrected
        prompt = task.student_prompt(one["values"])
        examples.append({**shared, "split": one["split"], "prompt": prompt, "completion": completion})
        if one["split"] == "train":
            trained.append(
                {"truth": one["truth"], "labels": verdict["labels"], "corrected": corrected is not None}
            )
    return (
        conform(pa.Table.from_pylist(examples, EXAMPLES), EXAMPLES),
        conform(pa.Table.from_pylist(rejects, REJECTS), REJECTS),
        tally(task, said, [one["truth"] for one in known], reasons, trained),
    )
