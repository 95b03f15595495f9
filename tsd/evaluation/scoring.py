"""Score predictions: accuracies with 95 % intervals, and baselines.

In: rows with a `labels` and a `truth` struct, one field per facet of the task. Out: intervals or floats by score.
Responses have been parsed to labels before.
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
from tsd.storage.schemas import ALL_RIGHT, CLOSE, STATED, VALID, score_names
from tsd.tasks import Number, Task

CELL = "/"  # separates the classes of a combination
NEAR = 0.05  # of a series' range, of its length, or of its cycles, within which a number is close
LEAST_RANGE = 12.0  # value units: a smaller range counts as this one, as in `tsd.series.robust`

Truth: TypeAlias = pa.Table | Sequence[Mapping[str, str | None]]
Tally: TypeAlias = dict[str, Any]  # see `tally`; JSON types only


def answers(task: Task, series: pa.Table, texts: Sequence[str]) -> dict[str, pa.Array]:
    """The columns of a predictions table that responses give: labels and numbers, stated and true.

    series: rows of the series table, one for each text.
    """
    found = {
        "labels": pa.array([task.parse(text).labels for text in texts], task.tables.labels),
        "truth": series["truth"],
    }
    if not task.numbers:
        return found
    kind = task.tables.predictions.field("numbers").type
    true = [pa.array(column, pa.float32()) for column in task.true_numbers(series).values()]
    return {
        **found,
        "numbers": pa.array([task.numbers_in(text) for text in texts], kind),
        "true_numbers": pa.StructArray.from_arrays(true, fields=list(kind)),
    }


def score(predictions: pa.Table, task: Task | None = None) -> dict[str, Interval]:
    """All scores of `tsd.storage.schemas.score_names`, over all rows.

    predictions: with struct columns `labels` and `truth`, and `numbers` and `true_numbers` if the task, which is
    needed then, states numbers. A label that is not stated (null) is wrong, so an unparsable response never raises
    a score. `valid` is the fraction of responses with all labels, right or wrong. `numbers_close` is the fraction
    of the stated numbers within `NEAR` of the series' range, of its length for points, or of their number for
    cycles; `numbers_stated` the fraction of responses with at least one. Raises ValueError for no rows.
    """
    facets = [field.name for field in predictions.schema.field("truth").type]
    frame = pl.DataFrame(predictions.select(["labels", "truth"]))
    hits = frame.select(
        *(_hit(facet).alias(facet) for facet in facets),
        pl.all_horizontal(_hit(facet) for facet in facets).alias(ALL_RIGHT),
        pl.all_horizontal(_label(facet).is_not_null() for facet in facets).alias(VALID),
    )
    found = {name: accuracy(hits[name].to_numpy()) for name in score_names(facets)}
    return {**found, **_numbers(predictions, task)} if task and task.numbers else found


def _numbers(predictions: pa.Table, task: Task) -> dict[str, Interval]:
    """The scores of the numbers that a task's responses state."""
    said, true = (pl.DataFrame(predictions.select([name])).unnest(name) for name in ("numbers", "true_numbers"))
    scored = [number for number in task.numbers if number.read]
    extent = np.maximum((true["maximum"] - true["minimum"]).to_numpy(), LEAST_RANGE)
    points = true["length"].to_numpy()

    def whole(number: Number) -> npt.NDArray[np.floating]:
        """What an error is measured by, (rows,). Of no cycles, any number is far off."""
        cycles = np.maximum(true[number.name].to_numpy(), 1.0)
        found: npt.NDArray[np.floating] = {"value": extent, "point": points, "cycles": cycles}[number.unit]
        return found

    off = np.stack(
        [np.abs(said[number.name].to_numpy() - true[number.name].to_numpy()) / whole(number) for number in scored],
        axis=1,
    )  # (rows, numbers), NaN if not stated
    stated = ~np.isnan(off)
    close = off[stated] <= NEAR
    near = accuracy(close) if len(close) else proportion(0, len(off))  # who states no number states none closely
    return {CLOSE: near, STATED: accuracy(stated.any(axis=1))}


def recalls(task: Task, predictions: pa.Table) -> dict[str, dict[str, Interval]]:
    """Recall of each class of each facet. Classes without series are left out. predictions: as for `score`."""
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
    """Correctness of each facet of each series, (series, facets) bool, in the order of series ids."""
    facets = [field.name for field in predictions.schema.field("truth").type]
    frame = pl.DataFrame(predictions.select(["series_id", "labels", "truth"])).sort("series_id")
    return frame.select(_hit(facet).alias(facet) for facet in facets).to_numpy().astype(np.bool_)


@dataclass(frozen=True)
class Clear:
    """A facet without its near ties: their fraction of the rows, and the accuracy on the others."""

    ties: float
    accuracy: Interval | None
    """None if every row is a near tie."""


def without_ties(task: Task, predictions: pa.Table, margins: pa.Table) -> dict[str, Clear]:
    """Accuracy of each facet without near ties; see `Facet.margin` and `Facet.tie`.

    predictions: with `series_id`, `labels` and `truth`. margins: with `series_id` and `margins`, for the same
    series in any order. Facets without a margin are left out.
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
    """Comparison of a student with its teacher on the same series."""

    teacher: Interval
    student: Interval
    agreement: Interval
    """Fraction of series with the same label, right or wrong."""
    teacher_only: int
    """Series on which only the teacher is right."""
    student_only: int
    """Series on which only the student is right."""

    @property
    def p(self) -> float:
        """Two-sided p value of the difference: exact McNemar test."""
        from scipy.stats import binomtest  # slow import that workers which only count do not need

        differ = self.teacher_only + self.student_only
        return float(binomtest(self.student_only, differ).pvalue) if differ else 1.0


def beside_teacher(predictions: pa.Table, annotations: pa.Table) -> dict[str, Beside]:
    """Compare a student with its teacher, for each facet and for the exact match of all facets.

    predictions: with `series_id`, `labels` and `truth`. annotations: with `series_id` and `labels` for these
    series, and any others, in any order. A label that is not stated is wrong and agrees with nothing.
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
    """Exact match: whether all facets of each row are right, (rows,) bool."""
    return rows.select(pl.all_horizontal(_hit(facet, said, wanted) for facet in facets)).to_series().to_numpy()


def _label(facet: str, said: str = "labels") -> pl.Expr:
    """The label of a facet as a polars expression."""
    return pl.col(said).struct.field(facet)


def _hit(facet: str, said: str = "labels", wanted: str = "truth") -> pl.Expr:
    """Whether the label of a facet is right, as a polars expression; false if it is not stated."""
    return (_label(facet, said) == _label(facet, wanted)).fill_null(False)


def accuracy(hits: npt.NDArray[np.bool_]) -> Interval:
    """Accuracy with its 95 % interval. hits: (rows,) bool."""
    return proportion(int(np.count_nonzero(hits)), len(hits))


def tally(task: Task, series: pa.Table) -> Tally:
    """Count the classes of all rows, and the combinations of classes in the test split.

    series: with columns `split` and `truth`. Counts of several tables can be added, see `add`, so that class
    frequencies and baselines of a large dataset do not need another pass over it.
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
    """The counts of all tables together."""
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
    """Metadata of a series dataset: class frequencies, and baselines of its test split."""
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
    """Accuracies without reading the series: by facet, and for the exact match of all facets.

    truth: a table with a `truth` struct column, or the structs themselves. Returns by facet

      `chance`    one over the number of classes
      `majority`  the most frequent class (for the exact match: the most frequent combination)
      `given`     if the task names a facet that predicts this one: the most frequent class given the true class of
                  that facet, as a rising series tends to have its maximum at the end

    `majority` and `given` are chosen on the rows that they are scored on. They are upper bounds of such baselines.
    """
    return _baselines(task, _truth_frame(task, truth).group_by(task.names).len())


def _baselines(task: Task, cells: pl.DataFrame) -> dict[str, dict[str, float]]:
    """Baselines from counts. cells: one column per facet, and `len`, the rows with these classes."""
    found: dict[str, dict[str, float]] = {}
    for facet in task.facets:
        found[facet.name] = {"chance": 1 / len(facet.classes), "majority": _best_guess(cells, facet.name)}
        if facet.given:
            found[facet.name]["given"] = _best_guess(cells, facet.name, given=facet.given)
    chance = 1 / prod(len(facet.classes) for facet in task.facets)
    found[ALL_RIGHT] = {"chance": chance, "majority": _best_guess(cells, *task.names)}
    return found


def class_table(task: Task, truth: Truth) -> dict[str, dict[str, float]]:
    """Relative frequency of every class of every facet, 0 for classes without rows.

    truth: a table with a `truth` struct column, or the structs themselves.
    """
    frame = _truth_frame(task, truth)
    return {
        facet.name: {name: int((frame[facet.name] == name).sum()) / frame.height for name in facet.classes}
        for facet in task.facets
    }


def _truth_frame(task: Task, truth: Truth) -> pl.DataFrame:
    """One string column per facet. Raises ValueError for no rows or an unknown class."""
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
    """Accuracy of the most frequent combination of `asked`, chosen for each class of `given`."""
    answers = cells.group_by(*asked, *([given] if given else [])).agg(pl.col("len").sum())
    best = answers.group_by(given).agg(pl.col("len").max()) if given else answers.select(pl.col("len").max())
    return int(best["len"].sum()) / int(cells["len"].sum())
