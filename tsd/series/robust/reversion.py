"""Reversion: how fast a series returns to its mean, which is what trend, cycles, season and shift leave."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tsd.series.robust.waves import Column, Points, sum_of_squares

FAST, SLOW = 0, 1
BORDER = 0.5  # autocorrelation at lag 1 from which on it is slow: that of an AR(1) with a half-life of one point
TIE = 0.1  # distance of the autocorrelation to the border below which a series is a near tie
LARGEST = 4.0  # noise deviations: distances above this many count as this many, so that edges and outliers do not
FLOOR = 0.5  # value units: least deviation for that
ROUNDING = 1 / 12  # variance that rounding to integers adds (Sheppard 1898)
OF_LINE, OF_WAVE = 2, 3  # fitted parameters of a line, and of each wave


@dataclass(frozen=True)
class Reversion:
    """The reversion of each series, (batch,) each.

    speed: FAST or SLOW. memory: autocorrelation at lag 1, 0–1: the share of a distance to the mean that is left a
    point later.
    """

    speed: npt.NDArray[np.int8]
    memory: npt.NDArray[np.float32]


def find(residual: Points, noise: Column, fitted: npt.NDArray[np.intp]) -> Reversion:
    """Judge how much of its distance to the mean a series keeps from point to point.

    residual: (batch, points), from line, waves, season and shift. noise: (batch,) standard deviation. fitted:
    (batch,) waves that were taken off.

    The coefficient of an AR(1) by least squares, without the variance of rounding, which is that of an ARMA(1, 1)
    with a known moving-average part; corrected for the parameters that were fitted (Kendall 1954, Tanaka 1984).
    Distances are cut at a multiple of the noise as in Huber's estimator (1964). The variance counts as that of
    rounding if it is less, and what is no larger than rounding has no memory.
    """
    points = residual.shape[1]
    most = (LARGEST * np.maximum(noise, FLOOR)).astype(np.float32)[:, None]
    near = np.minimum(residual, most)
    np.maximum(near, -most, out=near)  # with bounds by series, faster than clip
    rounded = ROUNDING * points
    energy = sum_of_squares(near) - rounded
    raw = np.vecdot(near[:, 1:], near[:, :-1]).astype(np.float64) / np.maximum(energy, rounded)
    used = OF_LINE + OF_WAVE * fitted
    corrected = np.clip((points * raw + used) / (points - 2 * used), 0.0, 1.0)
    memory = np.where(energy > 0, corrected, 0.0).astype(np.float32)
    return Reversion(np.where(memory < BORDER, FAST, SLOW).astype(np.int8), memory)
