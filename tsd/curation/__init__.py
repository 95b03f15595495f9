"""Curation: annotations -> training examples, and rejects with the reason for each.

judge     per-annotation policies
settle    corpus-level filter: duplicates and caps
sort_out  split into tables of examples and rejects, with counts for reports
curate    all three, for a corpus that fits into one table
"""

import pyarrow as pa

from tsd.curation.corpus import Settled, needed, settle
from tsd.curation.counts import Counts, about, add
from tsd.curation.policies import Contradictions, judge
from tsd.curation.split import sort_out
from tsd.recipe import CurationConfig
from tsd.tasks import Task

VERSION = "curation-1"  # changes with anything that changes a verdict; part of every key

__all__ = [
    "VERSION",
    "Contradictions",
    "Counts",
    "Settled",
    "about",
    "add",
    "curate",
    "judge",
    "needed",
    "settle",
    "sort_out",
]


def curate(
    task: Task,
    annotations: pa.Table,
    series: pa.Table,
    config: CurationConfig,
    contradictions: Contradictions | None = None,
) -> tuple[pa.Table, pa.Table, Counts]:
    """Split the annotations of a whole corpus into examples and rejects. Every row ends in exactly one of them.

    annotations, series: the same series in the same order. contradictions: an NLI model, if the recipe asks for
    one. Returns tables of the `EXAMPLES` and `REJECTS` schemas, and their counts. Raises InputError if caps leave
    nothing to train on.
    """
    verdicts = judge(task, annotations, series, config, contradictions)
    return sort_out(task, annotations, series, verdicts, settle(task, verdicts, config))
