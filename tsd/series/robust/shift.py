"""Level shift: the series has two levels, and goes from one to the other at once."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tsd.series.robust.season import NONE, Season
from tsd.series.robust.waves import (
    NOTHING,
    Column,
    Points,
    curve,
    moments,
    persistence,
    spread,
    sum_of_squares,
    wave_table,
)

EDGE = 1 / 32  # fraction of the series at either end in which no shift is looked for
LEAST_EDGE = 4  # points; also the window of the medians for a shift near an end
WINDOW, LARGEST_WINDOW = 1 / 16, 8  # fraction of the series, and points, of the medians on either side
LEAST_SIZE = 0.2  # of the series' range
BETTER_THAN_LINE = 0.8  # largest sum of squares around two levels, by that around a line
ABRUPT = (0.7, 1.6)  # medians right after minus right before, by the difference of the levels
LEAST_Z = 5.0  # standard errors of the difference, for autocorrelated noise
MEANS = 2  # fitted parameters
GROUP = 8  # points


@dataclass(frozen=True)
class Shift:
    """The level shift of each series, (batch,) each.

    direction: −1 down, 0 none, +1 up. place: index of the first point after it, −1 without one. size: difference
    of the two levels in value units, 0 without one.
    """

    direction: npt.NDArray[np.int8]
    place: npt.NDArray[np.int32]
    size: npt.NDArray[np.float32]


def find(values: Points, season: Season, extent: Column, around_wave: Column) -> tuple[Shift, Points]:
    """Search the best split into two levels, and judge it.

    values: (batch, points), of mean zero. extent: (batch,) range of the series. around_wave: (batch,) sum of
    squares around the line and the waves that the split competes with. Returns the shift, and
    what is left of the series that have one around the two levels, (shifts, points), without season.

    The split is the maximum of the CUSUM statistic, the least-squares estimate of one change in the mean (Hawkins
    1977; the first split of binary segmentation, Scott and Knott 1974). It must explain more than a line and than
    waves do, it must be abrupt, and it must be significant for AR(1) noise.
    """
    points = values.shape[1]
    level = values.copy()
    seasonal = np.flatnonzero(season.found > NONE)
    if len(seasonal):
        some = level[seasonal]
        some -= curve(season.wave.rows(seasonal), points)
        some -= some.mean(axis=1, keepdims=True)
        level[seasonal] = some
    energy = sum_of_squares(level)
    cusum = _cusum(level)
    most = np.maximum(cusum.max(axis=(0, 1)), -cusum.min(axis=(0, 1)))
    explained = most.astype(np.float64) ** 2
    slope = np.vecdot(level, wave_table(points).time).astype(np.float64)
    around_line = energy - slope**2 / spread(points)
    rest = energy - explained
    candidates = np.flatnonzero(
        (explained > NOTHING * points) & (rest <= BETTER_THAN_LINE * around_line) & (rest < around_wave)
    )
    score, first = _best_split(cusum[:, :, candidates])
    inner = _inner(level, candidates, score, first)
    candidates, score, first = candidates[inner], score[inner], first[inner]
    size = -score * np.sqrt(points / (first * (points - first)))
    near = np.flatnonzero(np.abs(size) >= LEAST_SIZE * extent[candidates])
    near = near[_abrupt(level[candidates[near]], first[near], size[near])]
    around = level[candidates[near]]
    around -= levels(first[near], size[near], points)
    significant = _significant(around, first[near], size[near])
    near, around = near[significant], around[significant]
    held = candidates[near]
    direction, place = np.zeros(len(values), np.int8), np.full(len(values), -1, np.int32)
    kept = np.zeros(len(values), np.float32)
    direction[held], place[held], kept[held] = np.sign(size[near]), first[near], size[near]
    return Shift(direction, place, kept), around


def levels(places: npt.NDArray[np.integer], size: Column, points: int) -> Points:
    """The two means of each series of mean zero, (batch, points).

    places: (batch,) first index of the second level. size: (batch,) second minus first.
    """
    late = (size * places / points).astype(np.float32)
    after = np.arange(points) >= places[:, None]
    both: Points = after * size.astype(np.float32)[:, None]
    both += (late - size.astype(np.float32))[:, None]
    return both


def edge(points: int) -> int:
    """Points at either end in which no shift is looked for: 4 of 128."""
    return max(LEAST_EDGE, round(EDGE * points))


def _inner(
    level: Points, candidates: npt.NDArray[np.intp], score: Column, first: npt.NDArray[np.intp]
) -> npt.NDArray[np.bool_]:
    """Whether no split still nearer to the end explains more than the best one, (candidates,).

    Else the best one only borders on an end segment, and its two levels are not those of the series. level:
    (batch, points) of mean zero. score, first: (candidates,), of `_best_split`.
    """
    points = level.shape[1]
    least = edge(points)
    held = np.ones(len(candidates), np.bool_)
    count = np.arange(1, least)
    for at, outer in ((least, level[:, : least - 1]), (points - least, level[:, : points - least : -1])):
        rows = np.flatnonzero(first == at)
        if not len(rows):
            continue
        beyond = outer[candidates[rows]].cumsum(axis=1, dtype=np.float64) * np.sqrt(
            points / (count * (points - count))
        )
        held[rows] &= np.abs(beyond).max(axis=1, initial=0) <= np.abs(score[rows])
    return held


def _cusum(level: Points) -> Points:
    """The CUSUM statistic of each split, (GROUP, groups, batch): of that before point `GROUP` · group + place + 1.

    level: (batch, points) of mean zero. The statistic is the root of the sum of squares that the split explains,
    with the sign of the mean before it; 0 near the ends. Points are added in groups, each time for all series at
    once: `cumsum` waits for one sum after another.
    """
    batch, points = level.shape
    weights = _split_weights(points)
    groups, whole = weights.shape[1], points // GROUP
    sums = np.zeros((GROUP, groups, batch), np.float32)
    by_series = sums.transpose(2, 1, 0)
    by_series[:, :whole] = level[:, : whole * GROUP].reshape(batch, whole, GROUP)
    by_series[:, whole:, : points % GROUP] = level[:, None, whole * GROUP :]
    for before, now in pairwise(sums):
        now += before
    totals = sums[-1]
    for before, now in pairwise(totals):
        now += before
    sums[:-1, 1:] += totals[:-1]
    sums *= weights
    return sums


def _best_split(cusum: Points) -> tuple[Column, npt.NDArray[np.intp]]:
    """The statistic of the split that explains most, and the first index after it. (batch,) each."""
    scores = cusum.transpose(2, 1, 0).reshape(cusum.shape[2], cusum.shape[0] * cusum.shape[1])  # (batch, points)
    best = np.abs(scores).argmax(axis=1)
    return scores[np.arange(len(scores)), best].astype(np.float64), best + 1


@lru_cache(maxsize=64)  # lengths
def _split_weights(points: int) -> npt.NDArray[np.float32]:
    """One by the standard error of the sum before each split, (GROUP, groups, 1); 0 near the ends."""
    groups = -(-points // GROUP)
    weights = np.zeros(groups * GROUP, np.float32)
    before = np.arange(edge(points), points - edge(points) + 1)
    weights[before - 1] = np.sqrt(points / (before * (points - before)))
    return np.ascontiguousarray(weights.reshape(groups, GROUP).T)[:, :, None]


def _abrupt(level: Points, first: npt.NDArray[np.intp], size: Column) -> npt.NDArray[np.bool_]:
    """Whether the medians right before and right after differ by about the whole size. (batch,)."""
    points = level.shape[1]
    widest = min(LARGEST_WINDOW, max(LEAST_EDGE, round(WINDOW * points)))
    room = np.minimum(first, points - first) >= widest
    held = np.zeros(len(level), np.bool_)
    for rows, window in ((np.flatnonzero(room), widest), (np.flatnonzero(~room), LEAST_EDGE)):
        if not len(rows):
            continue
        part = _difference_of_medians(level[rows], first[rows], window) / size[rows]
        held[rows] = (part >= ABRUPT[0]) & (part <= ABRUPT[1])
    return held


def _difference_of_medians(level: Points, first: npt.NDArray[np.intp], window: int) -> Column:
    """The median of the points right after the split minus that of those right before, (batch,)."""
    near = first[:, None] + np.arange(-window, window)  # (batch, 2 · window)
    sides = np.take_along_axis(level, near, axis=1).reshape(len(level), 2, window)
    sides.sort(axis=2)
    middle = slice((window - 1) // 2, window // 2 + 1)  # one point, or two of an even number
    before, after = sides[:, :, middle].mean(axis=2).T
    difference: Column = (after - before).astype(np.float64)
    return difference


def _significant(rest: Points, first: npt.NDArray[np.intp], size: Column) -> npt.NDArray[np.bool_]:
    """Whether two means differ for autocorrelated noise: the variance of a mean is inflated. (batch,).

    rest: (batch, points), around the two means.
    """
    points = rest.shape[1]
    sums = moments(rest)
    rho = persistence(sums, MEANS)
    variance = np.maximum(sums.energy / (points - MEANS), NOTHING) * (1 + rho) / (1 - rho)
    error = np.sqrt(variance * points / (first * (points - first)))
    held: npt.NDArray[np.bool_] = np.abs(size) >= LEAST_Z * error
    return held
