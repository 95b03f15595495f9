"""Trend: whether the series as a whole rises or falls, for a reader and beyond what noise and waves would do."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tsd.series.robust.waves import (
    NOTHING,
    Column,
    Moments,
    Points,
    Wave,
    persistence,
    spread,
    sum_of_squares,
    wave_table,
)

ENDS = 20 / 128  # fraction of the series in the window at either end
SHIFT = 0.25  # of the range: a level shift of this size is a direction
BIG, BIG_ENDS = (
    0.25,
    0.125,
)  # of the range: change, and difference of the ends, of a trend that must be significant
PLAIN, PLAIN_ENDS = 0.35, 0.3  # of the range: change and ends that any reader calls a trend
LEAST_T = 3.0  # of the slope beside the wave, for AR(1) noise
LEAST_UNIT_ROOT_T = 2.5  # of Perron and Yabu's statistic
TIE = 0.1  # distance of the strength to 1 below which a series is a near tie
LINE_PARAMETERS, WAVE_PARAMETERS = 2, 8  # with a wave, whose frequency was searched for as well


@dataclass(frozen=True)
class Trend:
    """The trend of each series, (batch,) each.

    strength: the factor by which all thresholds could grow until the series is flat, signed as the direction: from
    1 in size it has one. change: of the line from the first to the last point by the range of the series, signed.
    """

    strength: npt.NDArray[np.float32]
    change: npt.NDArray[np.float32]

    @property
    def direction(self) -> npt.NDArray[np.int8]:
        """−1 falling, 0 flat, +1 rising, (batch,)."""
        return direction(self.strength)


@dataclass(frozen=True)
class Line:
    """The least-squares line of each series: slope per point, and sum of squares around it, (batch,) each."""

    slope: Column
    energy: Column


def fit_line(values: Points) -> tuple[Line, Points]:
    """The line of each series, and its residual (batch, points). values: (batch, points), get the mean zero."""
    points = values.shape[1]
    time = wave_table(points).time
    slope = np.vecdot(values, time) / np.float32(spread(points))
    values -= (np.vecdot(values, np.ones(points, np.float32)) / np.float32(points))[:, None]
    residual = slope[:, None] * time
    np.subtract(values, residual, out=residual)
    return Line(slope.astype(np.float64), sum_of_squares(residual)), residual


def find(
    values: Points,
    alone: Column,
    season: Wave,
    around_line: Moments,
    wave: Wave,
    around_wave: Moments,
    shift: Column,
    extent: Column,
) -> Trend:
    """Judge the direction of each series.

    values: (batch, points), centred. alone: (batch,) slope of the line without a wave,
    of the series without its season. season: its wave, zero without one. around_line, around_wave: sums of the
    residuals of this line, and of line and wave. shift: (batch,) size of a level shift, signed. extent: (batch,)
    range of the series.

    A direction is a level shift of a quarter of the range; or a change of a quarter that is significant, by the t
    of the slope with the variance of AR(1) noise, a wave fitted beside it, or by the test of Perron and Yabu
    (2009), which holds for noise with a unit root as well; or a change of a third of the range between the ends.
    The change is the smaller one of the lines with and without the wave, and none if they disagree: a cycle is no
    trend.
    """
    points = values.shape[1]
    beside = alone - wave.tilt
    agree = alone * beside > 0
    slope = np.where(agree, np.where(np.abs(beside) < np.abs(alone), beside, alone), 0.0)
    change = slope * (points - 1) / extent
    ends = _ends(values, season) / extent
    agree &= change * ends > 0
    size, apart = np.where(agree, np.abs(change), 0.0), np.where(agree, np.abs(ends), 0.0)
    t = np.abs(_slope_t(beside, wave, around_wave))
    unit_root_t = np.abs(perron_yabu(alone, around_line))
    step = np.abs(shift) / extent / SHIFT
    significant = np.maximum(t / LEAST_T, unit_root_t / LEAST_UNIT_ROOT_T)
    big = np.minimum(np.minimum(size / BIG, apart / BIG_ENDS), significant)
    plain = np.minimum(size / PLAIN, apart / PLAIN_ENDS)
    sloped = np.maximum(big, plain)
    strength = np.copysign(np.maximum(sloped, step), np.where(step >= np.minimum(sloped, 1), shift, change))
    return Trend(strength.astype(np.float32), np.where(agree, change, 0.0).astype(np.float32))


def direction(strength: npt.NDArray[np.float32]) -> npt.NDArray[np.int8]:
    """−1 falling, 0 flat, +1 rising. strength: (batch,), of `Trend`."""
    return (np.sign(strength) * (np.abs(strength) >= 1)).astype(np.int8)


def near_tie(strength: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Neither clearly directed nor clearly flat. strength: (batch,), of `Trend`."""
    found: npt.NDArray[np.bool_] = np.abs(np.abs(strength) - 1) < TIE
    return found


def perron_yabu(slope: Column, residual: Moments) -> Column:
    """The t of the slope by quasi-differences, (batch,): normal for stationary noise and for a unit root.

    Perron and Yabu 2009: ρ is set to 1 where its estimate is within 1 / √points of it. The first point is kept as
    it is, which would tell the two directions of time apart: this is the mean of both. slope: (batch,) of the line
    by least squares. residual: from that line.
    """
    points = residual.points
    rho = persistence(residual, LINE_PARAMETERS)
    rho = np.where(rho > 1 - 1 / np.sqrt(points), 1.0, rho)
    # Each series twice, (2, batch): as it is, and backwards, where first and last point change places.
    both = Moments(points, np.stack([residual.sums, residual.sums[[0, 1, 3, 2]]], axis=1))
    forward, backward = _quasi_differenced_t(np.stack([slope, -slope]), rho, both)
    t: Column = (forward - backward) / 2
    return t


def _quasi_differenced_t(line: Column, rho: Column, residual: Moments) -> Column:
    """The t of the slope after quasi-differences, (2, batch). The sums are closed, as a line leaves no slope.

    line: (2, batch), the slope by least squares. rho: (batch,), the factor. residual: of (2, batch).
    """
    points, first, last = residual.points, residual.first, residual.last
    start, end = -(points - 1) / 2, (points - 1) / 2  # centred time of the two
    left = 1 - rho  # the constant after differencing
    # Regressors: left and left · t + rho for each point after the first, 1 and start for the first one.
    ones = 1 + (points - 1) * left**2
    mixed = start + left * (rho * (points - 1) - left * start)
    times = start**2 + left**2 * (spread(points) - start**2) - 2 * left * rho * start + (points - 1) * rho**2
    level = first + left * (rho * last - first)
    moved = start * first + left * (rho * (end + 1) * last - start * first) + rho * (rho * last - first)
    energy = residual.energy - 2 * rho * residual.lagged + rho**2 * (residual.energy - last**2)
    determinant = ones * times - mixed**2
    slope = (ones * moved - mixed * level) / determinant
    constant = (times * level - mixed * moved) / determinant
    rest = np.maximum(energy - constant * level - slope * moved, NOTHING * points)
    error = np.sqrt(rest / (points - LINE_PARAMETERS) * ones / determinant)
    t: Column = (line + slope) / error
    return t


def _slope_t(slope: Column, wave: Wave, residual: Moments) -> Column:
    """The t of the slope beside the wave, its variance inflated for AR(1) noise, (batch,)."""
    points = residual.points
    used = np.where(wave.entered, WAVE_PARAMETERS, LINE_PARAMETERS)
    rho = persistence(residual, used)
    variance = np.maximum(residual.energy / (points - used), NOTHING) * (1 + rho) / (1 - rho)
    t: Column = slope / np.sqrt(variance * (1 / spread(points) + wave.tilt_variance))
    return t


def _ends(values: Points, season: Wave) -> Column:
    """Mean of the last window minus mean of the first, without the season, (batch,) in value units."""
    points = values.shape[1]
    window = max(1, round(ENDS * points))
    weights = np.zeros(points, np.float32)
    weights[-window:] = 1
    weights[:window] -= 1
    ends: Column = np.vecdot(values, weights).astype(np.float64) / window
    # Only the sine differs between the ends. Its sum over a window is its value at the centre times a kernel.
    rows = np.flatnonzero(season.odd)
    half = np.pi / points * season.frequency[rows]
    mean = np.sin((points - window) * half) * np.sin(window * half) / (window * np.sin(half))
    ends[rows] -= 2 * season.odd[rows] * mean
    return ends
