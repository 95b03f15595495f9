"""Noise: what is left around line, waves, shift and slow bends, as a standard deviation in value units."""

from functools import cache
from math import sqrt

import numpy as np
import numpy.typing as npt
from numpy.polynomial import polynomial

from tsd.series.robust.waves import Column, Points

LOW, MEDIUM, HIGH = 0, 1, 2
LEVELS = (2.0, 10.0)  # standard deviations in value units between the classes
WINDOW = 11  # points of the local polynomial from 128 on; fewer for a shorter series, whose bends are as many
LEAST_WINDOW, DEGREE = 5, 2
KEPT = 0.7  # fraction of the residuals, the smallest in size, from which the deviation is measured
# The mean square of those residuals by that of all, for a normal distribution: 1 − 2qφ(q) / KEPT, q the quantile
# that KEPT of the sizes lie below.
QUANTILE = 1.0364334
TRIMMED = 1 - 2 * QUANTILE * float(np.exp(-(QUANTILE**2) / 2) / np.sqrt(2 * np.pi)) / KEPT


def roughness(residual: Points) -> Points:
    """The residual of a local quadratic, (batch, points), scaled so that white noise keeps its variance.

    Savitzky and Golay 1964, with polynomials of the last points at the ends (Gorry 1990). residual: (batch,
    points), from the waves.
    """
    rest = _residual_weights(window(residual.shape[1]))
    width = len(rest)
    half = width // 2
    middle = rest[half].astype(np.float32)
    # All series in a row, which numpy takes in one run; what they take from their neighbours is replaced below.
    flat, rough = residual.reshape(-1), np.empty(residual.shape, np.float32)
    inner = rough.reshape(-1)[half : flat.size - half]
    np.multiply(flat[half : flat.size - half], middle[half], out=inner)
    both = np.empty_like(inner)
    for lag in range(1, half + 1):
        early, late = flat[half - lag : flat.size - half - lag], flat[half + lag : flat.size - half + lag]
        np.add(early, late, out=both)
        both *= middle[half + lag]
        inner += both
    ends = rest[:half].astype(np.float32)
    rough[:, :half] = np.einsum("bi,ji->bj", residual[:, :width], ends)
    rough[:, : -half - 1 : -1] = np.einsum("bi,ji->bj", residual[:, : -width - 1 : -1], ends)
    return rough


def sizes_of(rough: Points) -> Points:
    """The absolute values of each series, ascending, (batch, points). numpy sorts faster than it selects."""
    sizes = np.abs(rough)
    sizes.sort(axis=1)
    return sizes


def deviation(sizes: Points) -> Column:
    """A trimmed standard deviation of each series, (batch,) in value units, without bias for normal noise.

    Three tenths of the points may be edges or outliers. It is less variable than the median absolute deviation,
    and less biased for noise with short tails (Rousseeuw and Croux 1993 compare such estimators). sizes: (batch,
    points), of `sizes_of`.
    """
    smallest = sizes[:, : round(KEPT * sizes.shape[1])]
    mean = np.vecdot(smallest, smallest) / (smallest.shape[1] * TRIMMED)
    found: Column = np.sqrt(mean).astype(np.float64)
    return found


def level(deviations: Column) -> npt.NDArray[np.int8]:
    """The class of each standard deviation, (batch,): LOW, MEDIUM or HIGH. Exactly 2 and exactly 10 are medium."""
    found: npt.NDArray[np.int8] = (deviations >= LEVELS[0]).astype(np.int8)
    found += deviations > LEVELS[1]
    return found


def window(points: int) -> int:
    """Points of the local polynomial, an odd number: 5 of 32, 7 of 64, 11 of 128 and more."""
    odd = 2 * round((WINDOW * sqrt(points / 128) - 1) / 2) + 1
    return min(max(odd, LEAST_WINDOW), WINDOW)


def weights(points: int) -> npt.NDArray[np.float64]:
    """Weights of a point's roughness within the series, (window,), of unit norm."""
    rest = _residual_weights(window(points))
    middle: npt.NDArray[np.float64] = rest[len(rest) // 2]
    return middle


def memory(points: int) -> npt.NDArray[np.float64]:
    """The autocorrelation that smoothing leaves in the roughness of white noise, from lag 1 to its last."""
    filtered = weights(points)
    remembered: npt.NDArray[np.float64] = np.correlate(filtered, filtered, "full")[len(filtered) :]
    return remembered


@cache  # odd numbers up to `WINDOW`
def _residual_weights(width: int) -> npt.NDArray[np.float64]:
    """Weights of a local polynomial's residual, (width, width): row i at the i-th point, of unit norm."""
    powers = polynomial.polyvander(np.arange(width) - width // 2, DEGREE)
    rest: npt.NDArray[np.float64] = np.eye(width) - powers @ np.linalg.pinv(powers)
    rest /= np.linalg.norm(rest, axis=1, keepdims=True)
    return rest
