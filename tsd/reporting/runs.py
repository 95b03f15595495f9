"""Order, group and average the rows of the runs table, for the report and its figure."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, TypeAlias

import pyarrow as pa

Run: TypeAlias = dict[str, Any]  # a row of a task's runs table
ALIKE = 0.03  # relative difference in parameters below which two students have the same size


def in_order(runs: pa.Table) -> list[Run]:
    """The rows by size, then training examples, then seed."""
    rows: list[Run] = runs.to_pylist()
    return sorted(rows, key=lambda run: (size_of(run), run["student"], run["examples"], run["seed"]))


def size_of(run: Run) -> int:
    """Parameters without embeddings."""
    return int(run["parameters_without_embeddings"])


def sees_images(run: Run) -> bool:
    """Whether a run's student is a vision student."""
    return bool(run["modality"] == "image")


def text_counterparts(runs: Sequence[Run]) -> dict[str, str]:
    """For each vision student, the text student of the same size, if there is one."""
    sizes = {run["student"]: size_of(run) for run in runs}
    text_students = [
        student for student in students_of(runs) if not any(sees_images(run) for run in runs_of(runs, student))
    ]
    found = {}
    for student in dict.fromkeys(run["student"] for run in runs if sees_images(run)):
        apart = {text_student: abs(sizes[text_student] / sizes[student] - 1) for text_student in text_students}
        nearest = min(apart, key=apart.__getitem__, default=None)
        if nearest is not None and apart[nearest] < ALIKE:
            found[student] = nearest
    return found


def students_of(runs: Sequence[Run]) -> list[str]:
    """The students' names in the order of the runs."""
    return list(dict.fromkeys(run["student"] for run in runs))


def runs_of(runs: Sequence[Run], student: str) -> list[Run]:
    """The runs of one student."""
    return [run for run in runs if run["student"] == student]


def mean_curve(runs: Sequence[Run], student: str, value: Callable[[Run], float | None]) -> dict[int, float]:
    """A student's mean over seeds by number of training examples. Runs without the value are left out."""
    found: dict[int, list[float]] = {}
    for run in runs_of(runs, student):
        if (measured := value(run)) is not None:
            found.setdefault(run["examples"], []).append(measured)
    return {examples: fmean(values) for examples, values in found.items()}


def loss_of(run: Run) -> float:
    """The held-out loss in nats."""
    return float(run["validation_loss"])


def accuracy_of(facet: str) -> Callable[[Run], float | None]:
    """A function from a run to its accuracy on the facet; None if it was not scored."""
    return lambda run: run[facet]["value"] if run[facet] else None
