"""Classes that `rich` does not ask for: no reversion, and the shape of a trend. Used by `facet_repeats.py`.

Each depends on the values of a series alone. `facet_repeats.py` shows how often noise drawn again changes them.
"""

from functools import cache

import numpy as np
import numpy.typing as npt

from tsd.series.robust import Measures, measure, shift, trend, waves
from tsd.series.robust.waves import Column, Points

STRAIGHT, SATURATING, ACCELERATING, BENT, NO_TREND = range(5)
SHAPES = ("straight", "saturating", "accelerating", "bent", "no trend")
RATES = (0.08, 0.12, 0.18, 0.27, 0.4, 0.6, 1.0)  # time constants of exponentials, as fractions of the length
KNOTS = np.arange(0.15, 0.86, 0.05)  # of a line with one bend
LEAST_T = 4.0  # standard errors of what a curve explains beside the line: the largest of many is looked for
LEAST_BEND = 0.06  # of the range: from the lowest to the highest point of the curve around its line
PARAMETERS = 4  # of a line, and a curve that was searched for
# MacKinnon 2010, table 2: the 5 % quantile of Dickey and Fuller's t with a constant and a trend.
CRITICAL = (-3.41049, -4.3904, -9.036, -45.374)


def around_line(values: npt.NDArray[np.uint8], measures: Measures) -> Points:
    """What line, season and level shift leave, (series, points)."""
    level = _without_season(values, measures)
    shifted = np.flatnonzero(measures.shift)
    size = measures.shift_size[shifted].astype(np.float64)
    level[shifted] -= shift.levels(measures.shift_place[shifted], size, values.shape[1])
    return trend.fit_line(level)[1]


def _without_season(values: npt.NDArray[np.uint8], measures: Measures) -> Points:
    """Centred series without the wave that is their season, (series, points) float32."""
    level = values.astype(np.float32)
    level -= level.mean(axis=1, keepdims=True)
    rows = np.flatnonzero(measures.season)
    if len(rows):
        around = trend.fit_line(level[rows])[1]
        cycles = measures.season_cycles[rows].astype(np.float64)
        level[rows] -= around - waves.take_off(around, waves.sum_of_squares(around), cycles, least=0.0)[1]
    return level


def unit_root_t(residual: Points) -> Column:
    """The t of Dickey and Fuller (1979) with one lag of the differences (Said and Dickey 1984), (series,).

    residual: (series, points), around a line; its two parameters are counted.
    """
    change = np.diff(residual.astype(np.float64), axis=1)
    level, before, now = residual[:, 1:-1].astype(np.float64), change[:, :-1], change[:, 1:]
    squares, lagged, both = (level**2).sum(axis=1), (before**2).sum(axis=1), (level * before).sum(axis=1)
    of_level, of_lagged = (level * now).sum(axis=1), (before * now).sum(axis=1)
    determinant = np.maximum(squares * lagged - both**2, 1e-9)
    slope = (lagged * of_level - both * of_lagged) / determinant
    memory = (squares * of_lagged - both * of_level) / determinant
    rest = ((now - slope[:, None] * level - memory[:, None] * before) ** 2).sum(axis=1)
    variance = np.maximum(rest / (now.shape[1] - 4), 1e-9)
    t: Column = slope / np.sqrt(variance * lagged / determinant)
    return t


def returns(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Whether a series has a mean to return to: a unit root is rejected at 5 %. (series,)."""
    points = values.shape[1]
    critical = sum(each / points**power for power, each in enumerate(CRITICAL))
    found: npt.NDArray[np.bool_] = unit_root_t(around_line(values, measure(values))) < critical
    return found


def shapes(values: npt.NDArray[np.uint8], coarse: bool = False) -> npt.NDArray[np.intp]:
    """The shape of each trend, (series,): index into `SHAPES`; no trend if it is flat or a level shift.

    Beside the line stand exponentials that level off or steepen (Lawton and Sylvestre 1971, on a grid of rates)
    and a line with one bend (Quandt 1958, Hinkley 1971). The one that explains most is the shape, if it is large
    enough to be seen, and significant by an F test of nested models with the variance of AR(1) noise. coarse: a
    bend counts as the exponential that it resembles.
    """
    measures = measure(values)
    rest = trend.fit_line(_without_season(values, measures))[1]
    curves, kinds = _curves(values.shape[1])
    products = rest.astype(np.float64) @ curves.T  # (series, curves)
    best = (products**2).argmax(axis=1)
    rows = np.arange(len(values))
    size = products[rows, best]
    left = rest - (size[:, None] * curves[best]).astype(np.float32)
    sums = waves.moments(left)
    rho = waves.persistence(sums, PARAMETERS)
    variance = np.maximum(sums.energy / (values.shape[1] - PARAMETERS), 0.1) * (1 + rho) / (1 - rho)
    extent = np.maximum(np.ptp(values, axis=1).astype(np.float64), 12.0)
    seen = np.abs(size) * np.ptp(curves, axis=1)[best] >= LEAST_BEND * extent
    curved = seen & (np.abs(size) >= LEAST_T * np.sqrt(variance))
    # Saturating curves and early bends lie above their line where the series rises.
    above = np.where(kinds[best] == SATURATING, 1, -1) * size * measures.trend > 0
    exponential = np.where(above, SATURATING, ACCELERATING)
    found = np.where((kinds[best] == BENT) & (not coarse), BENT, exponential)
    found = np.where(curved, found, STRAIGHT)
    return np.where((measures.trend == 0) | (measures.shift != 0), NO_TREND, found)


@cache  # one length
def _curves(points: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    """Curves without their lines, (curves, points) of unit norm, and their kinds, (curves,)."""
    time = np.arange(points) / (points - 1)
    saturating = [1 - np.exp(-time / rate) for rate in RATES]
    accelerating = [np.exp((time - 1) / rate) for rate in RATES]
    bent = [np.maximum(time - knot, 0) for knot in KNOTS]
    line = np.stack([np.ones(points), time])
    curves = np.array(saturating + accelerating + bent)
    curves -= curves @ np.linalg.pinv(line) @ line
    curves /= np.linalg.norm(curves, axis=1, keepdims=True)
    kinds = np.repeat([SATURATING, ACCELERATING, BENT], [len(saturating), len(accelerating), len(bent)])
    return curves, kinds
