"""Predictions and truth in, accuracies with 95 % intervals out, and the baselines they must beat.

In: rows with a `labels` and a `truth` struct, one field a facet of the task. Out: plain floats by score.
It does not read text: what a reply says was turned into labels before it came here.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from tsd.evaluation.intervals import Interval, proportion
from tsd.storage.schemas import ALL_RIGHT, VALID, score_names
from tsd.tasks import Task

CELL = "/"  # between the classes of one combination

Truth: TypeAlias = pa.Table | Sequence[Mapping[str, str | None]]
Tally: TypeAlias = dict[str, Any]  # see `tally`; in JSON's types


def score(predictions: pa.Table) -> dict[str, Interval]:
    """Every score of `tsd.storage.schemas.score_names`, over all rows of the table.

    predictions: has the struct columns `labels` and `truth` of a task's predictions table.
    A label that was not stated (null) counts as wrong, so an unreadable reply can never raise a score.
    `valid` is the share of replies that state every label, right or wrong.
    """
    facets = [field.name for field in predictions.schema.field("truth").type]
    frame = pl.DataFrame(predictions.select(["labels", "truth"]))
    hits = frame.select(
        *(_hit(facet).alias(facet) for facet in facets),
        pl.all_horizontal(_hit(facet) for facet in facets).alias(ALL_RIGHT),
        pl.all_horizontal(_label(facet).is_not_null() for facet in facets).alias(VALID),
    )
    return {name: accuracy(hits[name].to_numpy()) for name in score_names(facets)}


def recalls(task: Task, predictions: pa.Table) -> dict[str, dict[str, Interval]]:
    """Of the series of each class of each facet, the share whose label is right; a class without any is left out.

    predictions: as for `score`.
    """
    frame = pl.DataFrame(predictions.select(["labels", "truth"]))
    found: dict[str, dict[str, Interval]] = {}
    for facet in task.facets:
        hits = {
            name: frame.filter(_label(facet.name, "truth") == name).select(_hit(facet.name)).to_series().to_numpy()
            for name in facet.classes
        }
        found[facet.name] = {name: accuracy(each) for name, each in hits.items() if len(each)}
    return found


def right(predictions: pa.Table) -> npt.NDArray[np.bool_]:
    """Which facets of which series are right, (series, facets), in the order of the series' ids."""
    facets = [field.name for field in predictions.schema.field("truth").type]
    frame = pl.DataFrame(predictions.select(["series_id", "labels", "truth"])).sort("series_id")
    return frame.select(_hit(facet).alias(facet) for facet in facets).to_numpy().astype(np.bool_)


@dataclass(frozen=True)
class Clear:
    """A facet without its near ties: their share of all rows, and the accuracy on the others."""

    ties: float
    accuracy: Interval | None
    """None where every row is a near tie."""


def without_ties(task: Task, predictions: pa.Table, margins: pa.Table) -> dict[str, Clear]:
    """Each facet's accuracy on the rows that are no near tie; see `Facet.margin` and `Facet.tie`.

    predictions: has `series_id`, `labels` and `truth`. margins: has `series_id` and `margins`, of the same series
    in any order. A facet without a margin is left out.
    """
    frame = pl.DataFrame(predictions.select(["series_id", "labels", "truth"]))
    rows = frame.join(pl.DataFrame(margins.select(["series_id", "margins"])), on="series_id", how="inner")
    if rows.height != frame.height:
        raise ValueError(f"{frame.height - rows.height} predictions have no margins")
    found = {}
    for facet in task.facets:
        if facet.margin is None:
            continue
        clear = rows.filter(pl.col("margins").struct.field(facet.name) >= facet.tie)
        hits = clear.select(_hit(facet.name)).to_series().to_numpy()
        found[facet.name] = Clear(1 - clear.height / rows.height, accuracy(hits) if clear.height else None)
    return found


@dataclass(frozen=True)
class Beside:
    """A student beside its teacher, on the same series."""

    teacher: Interval
    student: Interval
    agreement: Interval
    """How often the student states what the teacher states, right or wrong."""
    teacher_only: int
    """Series on which the teacher alone is right."""
    student_only: int
    """Series on which the student alone is right."""

    @property
    def p(self) -> float:
        """How likely a difference as large as this one is, were both as good (McNemar's test, exact)."""
        from scipy.stats import binomtest  # a second that a worker which only counts need not spend

        differ = self.teacher_only + self.student_only
        return float(binomtest(self.student_only, differ).pvalue) if differ else 1.0


def beside_teacher(predictions: pa.Table, annotations: pa.Table) -> dict[str, Beside]:
    """Each facet, and all of them at once, on the series of the predictions.

    predictions: has `series_id`, `labels` and `truth`. annotations: has `series_id` and `labels`, of these series
    and any others, in any order. What is not stated is wrong, and agrees with nothing.
    """
    facets = [field.name for field in predictions.schema.field("truth").type]
    taught = pl.DataFrame(annotations.select(["series_id", "labels"])).rename({"labels": "taught"})
    frame = pl.DataFrame(predictions.select(["series_id", "labels", "truth"]))
    rows = frame.join(taught, on="series_id", how="inner")
    if rows.height != frame.height:
        raise ValueError(f"{frame.height - rows.height} predictions have no annotation")
    return {
        name: Beside(
            teacher=accuracy(teacher),
            student=accuracy(student),
            agreement=accuracy(_all_hit(rows, asked, "labels", "taught")),
            teacher_only=int(np.count_nonzero(teacher & ~student)),
            student_only=int(np.count_nonzero(student & ~teacher)),
        )
        for name, asked in (*((facet, [facet]) for facet in facets), (ALL_RIGHT, facets))
        for teacher, student in [[_all_hit(rows, asked, said, "truth") for said in ("taught", "labels")]]
    }


def _all_hit(rows: pl.DataFrame, facets: Sequence[str], said: str, wanted: str) -> npt.NDArray[np.bool_]:
    return rows.select(pl.all_horizontal(_hit(facet, said, wanted) for facet in facets)).to_series().to_numpy()


def _label(facet: str, said: str = "labels") -> pl.Expr:
    return pl.col(said).struct.field(facet)


def _hit(facet: str, said: str = "labels", wanted: str = "truth") -> pl.Expr:
    return (_label(facet, said) == _label(facet, wanted)).fill_null(False)


def accuracy(hits: npt.NDArray[np.bool_]) -> Interval:
    """The share of hits with its 95 % interval. hits: (rows,) bool."""
    return proportion(int(np.count_nonzero(hits)), len(hits))


def tally(task: Task, series: pa.Table) -> Tally:
    """Count the classes of all rows, and of the test split how often each combination of classes stands.

    series: columns `split` and `truth`. Tallies of several tables add up, see `add`: nobody has to read all of
    a large dataset again to know its classes and baselines.
    """
    frame = _truth_frame(task, series)
    test = frame.filter(pl.Series(series["split"].to_numpy(zero_copy_only=False) == "test"))
    cells = test.group_by(task.names).len().sort(task.names)
    return {
        "classes": {
            facet.name: {name: int((frame[facet.name] == name).sum()) for name in facet.classes}
            for facet in task.facets
        },
        "test": {CELL.join(cell): count for *cell, count in cells.iter_rows()},
    }


def add(tallies: Iterable[Tally]) -> Tally:
    """The tally of all rows together."""
    classes: dict[str, Counter[str]] = defaultdict(Counter)
    test: Counter[str] = Counter()
    for one in tallies:
        for facet, counts in one["classes"].items():
            classes[facet].update(counts)
        test.update(one["test"])
    return {
        "classes": {facet: dict(counts) for facet, counts in classes.items()},
        "test": dict(sorted(test.items())),
    }


def about(task: Task, counted: Tally) -> dict[str, Any]:
    """What goes with a dataset of series: the share of every class, and the baselines of its test split."""
    shares = {
        facet: {name: count / max(1, sum(counts.values())) for name, count in counts.items()}
        for facet, counts in counted["classes"].items()
    }
    cells = [
        (dict(zip(task.names, cell.split(CELL), strict=True)), count) for cell, count in counted["test"].items()
    ]
    frame = pl.DataFrame(
        [{**cell, "len": count} for cell, count in cells],
        schema={**dict.fromkeys(task.names, pl.String), "len": pl.Int64},
    )
    return {"classes": shares, "baselines": _baselines(task, frame) if cells else None}


def baselines(task: Task, truth: Truth) -> dict[str, dict[str, float]]:
    """What one would score without reading the series: by facet, and for all of them at once.

    truth: a table with a `truth` struct column, or the structs themselves.
    Returns, by facet,
      `chance`             one over the number of classes;
      `majority`           always the most frequent class (for all of them: the most frequent cell);
      `given`              where the task names a facet that gives this one away: the most frequent class for
                           the true class of that one, since a rising series tends to peak at its end.
    `majority` and `given` are chosen on the very rows that they are compared with: they are
    the best that such a guess could do, which is generous to the baseline and hard on the student.
    """
    return _baselines(task, _truth_frame(task, truth).group_by(task.names).len())


def _baselines(task: Task, cells: pl.DataFrame) -> dict[str, dict[str, float]]:
    """cells: a column a facet and `len`, how many rows have these classes."""
    found: dict[str, dict[str, float]] = {}
    for facet in task.facets:
        found[facet.name] = {"chance": 1 / len(facet.classes), "majority": _best_guess(cells, facet.name)}
        if facet.given:
            found[facet.name]["given"] = _best_guess(cells, facet.name, given=facet.given)
    chance = 1 / prod(len(facet.classes) for facet in task.facets)
    found[ALL_RIGHT] = {"chance": chance, "majority": _best_guess(cells, *task.names)}
    return found


def class_table(task: Task, truth: Truth) -> dict[str, dict[str, float]]:
    """The share of every class of every facet, 0 for a class that no row has.

    truth: a table with a `truth` struct column, or the structs themselves.
    """
    frame = _truth_frame(task, truth)
    return {
        facet.name: {name: int((frame[facet.name] == name).sum()) / frame.height for name in facet.classes}
        for facet in task.facets
    }


def _truth_frame(task: Task, truth: Truth) -> pl.DataFrame:
    """One string column a facet. Raises ValueError for no rows, and for a class that the facet lacks."""
    if isinstance(truth, pa.Table):
        frame = pl.DataFrame(truth.select(["truth"])).unnest("truth")
    else:
        frame = pl.DataFrame([dict(row) for row in truth], schema=dict.fromkeys(task.names, pl.String))
    if frame.is_empty():
        raise ValueError("baselines and class shares need at least one row of truth, got none")
    for facet in task.facets:
        strange = set(frame[facet.name].unique()) - set(facet.classes)
        if strange:
            raise ValueError(
                f"truth.{facet.name} has {sorted(map(str, strange))}, expected one of {facet.classes}"
            )
    return frame


def _best_guess(cells: pl.DataFrame, *asked: str, given: str | None = None) -> float:
    """The accuracy of the most frequent answer to `asked`, chosen anew for each class of `given`."""
    answers = cells.group_by(*asked, *([given] if given else [])).agg(pl.col("len").sum())
    best = answers.group_by(given).agg(pl.col("len").max()) if given else answers.select(pl.col("len").max())
    return int(best["len"].sum()) / int(cells["len"].sum())
