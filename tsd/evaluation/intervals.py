"""Estimates with their 95 % intervals: a share of rows, as every accuracy here, and means over seeds and rows."""

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """The row of `tsd.storage.schemas.INTERVAL`."""
        return asdict(self)


def proportion(hits: int, rows: int) -> Interval:
    """The share of hits with its Wilson 95 % interval (Wilson 1927, which holds near 0 and 1 too).

    Raises ValueError where there is no row to judge by.
    """
    from scipy.stats import binomtest  # a second that a worker which only counts need not spend

    if rows == 0:
        raise ValueError("an accuracy needs at least one row, got none")
    ends = binomtest(hits, rows).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(hits / rows, float(ends.low), float(ends.high))


def small_mean(values: npt.NDArray[np.float64]) -> Interval:
    """The mean of a few normal values, (values,) of at least two, such as one a seed (Student 1908)."""
    return _around(float(values.mean()), float(values.var(ddof=1)) / len(values), len(values) - 1)


def crossed_mean(values: npt.NDArray[np.float64]) -> Interval:
    """The mean of values for each seed and each row, as it would be over other seeds and other rows.

    values: (seeds, rows), at least two rows; all seeds share the rows. Both are random effects: the variance of
    the mean is made up of mean squares (Clark 1973), its degrees of freedom are Satterthwaite's (1946). A single
    seed tells nothing of others: the interval then holds for it alone.
    """
    seeds, rows = values.shape
    mean = float(values.mean())
    by_seed, by_row = values.mean(1, keepdims=True), values.mean(0, keepdims=True)
    row_square = seeds * float(by_row.var(ddof=1))
    if seeds == 1:
        return _around(mean, row_square / rows, rows - 1)
    seed_square = rows * float(by_seed.var(ddof=1))
    both = (seeds - 1) * (rows - 1)
    rest = float(((values - by_seed - by_row + mean) ** 2).sum()) / both
    # What is left of each after the other holds the rest twice; no effect has a negative variance.
    square = max(seed_square + row_square - rest, seed_square, row_square)
    parts = seed_square**2 / (seeds - 1) + row_square**2 / (rows - 1) + rest**2 / both
    return _around(mean, square / values.size, square**2 / parts if parts else 1.0)


def _around(mean: float, variance: float, freedom: float) -> Interval:
    from scipy.stats import t as students_t

    reach = float(students_t.ppf((1 + CONFIDENCE) / 2, freedom)) * variance**0.5
    return Interval(mean, mean - reach, mean + reach)
