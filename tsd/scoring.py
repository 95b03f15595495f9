"""Predictions and truth in, accuracies with 95 % intervals out, and the baselines they must beat.

In: rows with a `labels` and a `truth` struct (`tsd.schema.LABELS`). Out: plain floats by score.
It does not read text: what a reply says was turned into labels before it came here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from scipy.stats import binomtest

from tsd.schema import FACETS, SCORES

CONFIDENCE = 0.95

Truth: TypeAlias = pa.Table | Sequence[Mapping[str, str | None]]


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """The row of `tsd.schema.INTERVAL`."""
        return asdict(self)


def score(predictions: pa.Table) -> dict[str, Interval]:
    """Every score of `tsd.schema.SCORES`, over all rows of the table.

    predictions: has the struct columns `labels` and `truth` of `tsd.schema.PREDICTIONS`.
    A label that was not stated (null) counts as wrong, so an unreadable reply can never raise a score.
    `valid` is the share of replies that state all four labels, right or wrong.
    """
    frame = pl.DataFrame(predictions.select(["labels", "truth"]))
    hits = frame.select(
        *(_hit(facet).alias(facet) for facet in FACETS),
        pl.all_horizontal(_hit(facet) for facet in FACETS).alias("all_four"),
        pl.all_horizontal(_label(facet).is_not_null() for facet in FACETS).alias("valid"),
    )
    return {name: accuracy(hits[name].to_numpy()) for name in SCORES}


def _label(facet: str) -> pl.Expr:
    return pl.col("labels").struct.field(facet)


def _hit(facet: str) -> pl.Expr:
    return (_label(facet) == pl.col("truth").struct.field(facet)).fill_null(False)


def accuracy(hits: npt.NDArray[np.bool_]) -> Interval:
    """The share of hits with its Wilson 95 % interval (Wilson 1927, which holds near 0 and 1 too).

    hits: (rows,) bool. Raises ValueError where there is no row to judge by.
    """
    if len(hits) == 0:
        raise ValueError("an accuracy needs at least one row, got none")
    right = int(np.count_nonzero(hits))
    ends = binomtest(right, len(hits)).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(right / len(hits), float(ends.low), float(ends.high))


def baselines(truth: Truth) -> dict[str, dict[str, float]]:
    """What one would score without reading the series: by facet, and for `all_four` at once.

    truth: a table with a `truth` struct column, or the structs themselves.
    Returns, by facet,
      `chance`             one over the number of classes;
      `majority`           always the most frequent class (for `all_four`: the most frequent cell);
      `place_given_trend`  maximum and minimum only: the most frequent place for the series' true trend,
                           since a rising series tends to peak at its end.
    `majority` and `place_given_trend` are chosen on the very rows that they are compared with: they are
    the best that such a guess could do, which is generous to the baseline and hard on the student.
    """
    frame = _truth_frame(truth)
    found = {
        facet: {"chance": 1 / len(classes), "majority": _best_guess(frame, facet)}
        for facet, classes in FACETS.items()
    }
    for place in ("maximum", "minimum"):
        found[place]["place_given_trend"] = _best_guess(frame, place, given="trend")
    chance = 1 / prod(len(classes) for classes in FACETS.values())
    found["all_four"] = {"chance": chance, "majority": _best_guess(frame, *FACETS)}
    return found


def class_table(truth: Truth) -> dict[str, dict[str, float]]:
    """The share of every class of every facet, 0 for a class that no row has.

    truth: a table with a `truth` struct column, or the structs themselves.
    """
    frame = _truth_frame(truth)
    return {
        facet: {name: int((frame[facet] == name).sum()) / frame.height for name in classes}
        for facet, classes in FACETS.items()
    }


def _truth_frame(truth: Truth) -> pl.DataFrame:
    """One string column a facet. Raises ValueError for no rows, and for a class that the facet lacks."""
    if isinstance(truth, pa.Table):
        frame = pl.DataFrame(truth.select(["truth"])).unnest("truth")
    else:
        frame = pl.DataFrame([dict(row) for row in truth], schema=dict.fromkeys(FACETS, pl.String))
    if frame.is_empty():
        raise ValueError("baselines and class shares need at least one row of truth, got none")
    for facet, classes in FACETS.items():
        strange = set(frame[facet].unique()) - set(classes)
        if strange:
            raise ValueError(f"truth.{facet} has {sorted(map(str, strange))}, expected one of {classes}")
    return frame


def _best_guess(frame: pl.DataFrame, *asked: str, given: str | None = None) -> float:
    """The accuracy of the most frequent answer to `asked`, chosen anew for each class of `given`."""
    cells = frame.group_by(*asked, *([given] if given else [])).len()
    best = cells.group_by(given).agg(pl.col("len").max()) if given else cells.select(pl.col("len").max())
    return int(best["len"].sum()) / frame.height
