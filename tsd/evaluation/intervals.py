"""Estimates with 95 % intervals: proportions of rows, and means over seeds and rows."""

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and the bounds of its 95 % interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """As a row of `tsd.storage.schemas.INTERVAL`."""
        return asdict(self)


def proportion(hits: int, rows: int) -> Interval:
    """A proportion with its Wilson 95 % interval (Wilson 1927), which is valid near 0 and 1 as well.

    Raises ValueError for no rows.
    """
    from scipy.stats import binomtest  # slow import that workers which only count do not need

    if rows == 0:
        raise ValueError("an accuracy needs at least one row, got none")
    ends = binomtest(hits, rows).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(hits / rows, float(ends.low), float(ends.high))


def small_mean(values: npt.NDArray[np.float64]) -> Interval:
    """The mean of a few normal values with its t interval (Student 1908). values: (n,), n ≥ 2."""
    return _around(float(values.mean()), float(values.var(ddof=1)) / len(values), len(values) - 1)


def crossed_mean(values: npt.NDArray[np.float64]) -> Interval:
    """The mean over seeds and rows with its interval over other seeds and other rows.

    values: (seeds, rows), at least two rows, the same rows for all seeds. Both are crossed random effects: the
    variance of the mean is a combination of mean squares (Clark 1973), with Satterthwaite's (1946) degrees of
    freedom. With a single seed, the interval is for that seed only.
    """
    seeds, rows = values.shape
    mean = float(values.mean())
    by_seed, by_row = values.mean(1, keepdims=True), values.mean(0, keepdims=True)  # (seeds, 1), (1, rows)
    row_square = seeds * float(by_row.var(ddof=1))
    if seeds == 1:
        return _around(mean, row_square / rows, rows - 1)
    seed_square = rows * float(by_seed.var(ddof=1))
    both = (seeds - 1) * (rows - 1)
    rest = float(((values - by_seed - by_row + mean) ** 2).sum()) / both
    # Each effect's mean square contains the residual, which the sum would count twice. Variances are not negative.
    square = max(seed_square + row_square - rest, seed_square, row_square)
    parts = seed_square**2 / (seeds - 1) + row_square**2 / (rows - 1) + rest**2 / both
    return _around(mean, square / values.size, square**2 / parts if parts else 1.0)


def _around(mean: float, variance: float, freedom: float) -> Interval:
    """A t interval around a mean with this variance of the mean."""
    from scipy.stats import t as students_t

    reach = float(students_t.ppf((1 + CONFIDENCE) / 2, freedom)) * variance**0.5
    return Interval(mean, mean - reach, mean + reach)
