"""Runs in order: what the report and its picture both ask of the runs table."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any, TypeAlias

import pyarrow as pa

Run: TypeAlias = dict[str, Any]  # a row of a task's runs table


def in_order(runs: pa.Table) -> list[Run]:
    """The rows, by size, then volume, then seed."""
    rows: list[Run] = runs.to_pylist()
    return sorted(rows, key=lambda run: (size_of(run), run["student"], run["examples"], run["seed"]))


def size_of(run: Run) -> int:
    """Parameters without embeddings."""
    return int(run["parameters_without_embeddings"])


def students_of(runs: Sequence[Run]) -> list[str]:
    """The students by size."""
    return list(dict.fromkeys(run["student"] for run in runs))


def mean_curve(runs: Sequence[Run], student: str, value: Callable[[Run], float | None]) -> dict[int, float]:
    """A student's mean over seeds, by volume; a volume without the value is left out."""
    found: dict[int, list[float]] = {}
    for run in runs:
        if run["student"] == student and (measured := value(run)) is not None:
            found.setdefault(run["examples"], []).append(measured)
    return {examples: fmean(values) for examples, values in found.items()}


def loss_of(run: Run) -> float:
    """The held-out loss."""
    return float(run["validation_loss"])


def accuracy_of(facet: str) -> Callable[[Run], float | None]:
    """A function from a run to its accuracy on the facet, None where it was not scored."""
    return lambda run: run[facet]["value"] if run[facet] else None
