"""Annotations -> training pairs that are kept, and the rest with the reason why not.

judge     one annotation at a time: the policies that need no other row
settle    the whole corpus: duplicates and caps, from a few numbers a row
sort_out  the tables that come of it, and the counts that a report is made of
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
    """Sort the annotations of a whole corpus into examples and rejects; every row ends in exactly one of the two.

    annotations, series: the same series in the same order. Returns tables of the `EXAMPLES` and the `REJECTS`
    schema, and their counts.
    """
    verdicts = judge(task, annotations, series, config, contradictions)
    return sort_out(task, annotations, series, verdicts, settle(task, verdicts, config))
