"""Outlier: a point, or two beside each other, far off what is around it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tsd.series.robust.shift import Shift
from tsd.series.robust.waves import Column, Points

SIDE = 4  # points on either side, of which the medians are taken
SAME_AROUND = 0.5  # largest difference of the two medians, by the size of the outlier: else it is an edge
RETURNS = (
    0.5  # of its size, that the series leaves and comes back on both sides: else it is a point of a rise or fall
)
WITHIN = 2  # points, in which it does
LEAST_SIZE = 0.2  # of the series' range
LEAST_UNITS = 3.0  # value units
LEAST_DEVIATIONS = 5.0  # times 1.4826 · the median absolute value of all distances
FLOOR = 1.0  # value units: the rounding of a smooth series
CANDIDATE = 4.0  # noise deviations, which are less than those of the distances: most series end here
ALIKE = 0.7  # size of a further one by the largest: then there are several
SEVERAL = 3  # the most that are still outliers; more are the way that the series is


@dataclass(frozen=True)
class Outlier:
    """The outlier of each series, (batch,) each.

    direction: +1 a spike, −1 a dip, 0 none. place: index of the largest one, −1 without one. size: its distance
    from what is around it in value units. count: how many there are of like size and in the same direction.
    """

    direction: npt.NDArray[np.int8]
    place: npt.NDArray[np.int32]
    size: npt.NDArray[np.float32]
    count: npt.NDArray[np.int8]


def find(residual: Points, noise: Column, shift: Shift, extent: Column) -> Outlier:
    """Find the point that is farthest from its surroundings, and judge it.

    residual: (batch, points), from line, waves and shift. noise: (batch,) standard deviation. shift: what was
    taken off. extent: (batch,) range of the series.

    The Hampel identifier (Hampel 1974; Pearson 2002) with the point's own neighbourhood left out: the distance of
    each point to the mean of the medians left and right of it, in units of the median of all distances.
    """
    batch = len(residual)
    distance, medians = _distances(residual)
    rows, size = np.arange(batch), np.abs(distance)
    largest = size[rows, size.argmax(axis=1)].astype(np.float64)  # faster than max
    least = np.maximum(LEAST_SIZE * extent, LEAST_UNITS)
    candidates = np.flatnonzero((largest >= least) & (largest >= CANDIDATE * noise))
    direction, place = np.zeros(batch, np.int8), np.full(batch, -1, np.int32)
    sizes, count = np.zeros(batch, np.float32), np.zeros(batch, np.int8)
    if len(candidates):
        size, gate = _sizes(size[candidates], _gaps(medians[candidates]), least[candidates])
        chosen, top = _largest(size)
        far = np.flatnonzero(top >= gate)
        candidates, gate, chosen, top = candidates[far], gate[far], chosen[far], top[far]
        off = np.copysign(size[far], distance[candidates])
        around = _with_shift(residual, shift, candidates, chosen[:, None])
        again = np.flatnonzero(~_returns(around, off[np.arange(len(off)), chosen][:, None])[:, 0])
        if len(again):
            off[again], chosen[again], top[again] = _next(residual, shift, candidates[again], off[again])
        many = _count(off, chosen, top, gate)
        held = (many > 0) & (many <= SEVERAL)
        rows = candidates[held]
        place[rows], count[rows] = chosen[held], many[held]
        found = distance[rows, chosen[held]]
        direction[rows], sizes[rows] = np.sign(found), np.abs(found)
    return Outlier(direction, place, sizes, count)


def _distances(residual: Points) -> tuple[Points, Points]:
    """Distance of each point to the mean of the medians on either side, (batch, points), and these medians.

    The medians, (batch, points + SIDE + 1), are doubled, each of `SIDE` points from one on, the first of
    which are mirrored before the series.
    """
    batch, points = residual.shape
    wide = np.empty((batch, points + 2 * SIDE), np.float32)
    wide[:, SIDE:-SIDE] = residual
    wide[:, :SIDE] = residual[:, SIDE:0:-1]
    wide[:, -SIDE:] = residual[:, -2 : -SIDE - 2 : -1]
    # All series in a row, which numpy takes in one run; no median that is used has points of two of them.
    flat, medians = wide.reshape(-1), np.empty_like(wide)
    # The median of four is the mean of the larger minimum and the smaller maximum of its two pairs.
    low, high = np.minimum(flat[:-1], flat[1:]), np.maximum(flat[:-1], flat[1:])
    inner = medians.reshape(-1)[:-3]
    np.maximum(low[:-2], low[2:], out=inner)
    inner += np.minimum(high[:-2], high[2:], out=high[:-2])
    around = np.add(medians[:, :points], medians[:, SIDE + 1 : points + SIDE + 1])
    around *= np.float32(0.25)
    return np.subtract(residual, around, out=around), medians[:, : points + SIDE + 1]


def _gaps(medians: Points) -> Points:
    """How far the medians on both sides of each point are apart, (batch, points). medians: of `_distances`."""
    points = medians.shape[1] - SIDE - 1
    gaps: Points = medians[:, SIDE + 1 :] - medians[:, :points]
    gaps *= np.float32(0.5)
    np.abs(gaps, out=gaps)
    return gaps


def _sizes(size: Points, gap: Points, least: Column) -> tuple[Points, Column]:
    """The sizes of distances, (batch, points), 0 beside edges; and the least of an outlier, (batch,)."""
    middle = np.sort(size, axis=1)[:, size.shape[1] // 2].astype(np.float64)
    gate = np.maximum(LEAST_DEVIATIONS * np.maximum(1.4826 * middle, FLOOR), least)
    # A point beside an edge is far from the mean of two different surroundings: it is none.
    return size * (gap <= SAME_AROUND * size), gate


def _largest(size: Points) -> tuple[npt.NDArray[np.intp], Points]:
    """Index and size of the largest of each row, (batch,) each."""
    place = size.argmax(axis=1)
    return place, size[np.arange(len(size)), place]


def _with_shift(
    residual: Points, shift: Shift, rows: npt.NDArray[np.intp], places: npt.NDArray[np.intp]
) -> Points:
    """Points of some series and those around them, with the level shift put back.

    places: (rows, some), or (1, some) of all of them. Returns (2 · WITHIN + 1, rows, some); before the first point
    the series is mirrored, and after the last.
    """
    last = residual.shape[1] - 1
    near = places + np.arange(-WITHIN, WITHIN + 1)[:, None, None]
    near = last - np.abs(last - np.abs(near))
    after = near >= shift.place[rows][:, None]
    level: Points = residual[rows[:, None], near] + shift.size[rows][:, None] * after
    return level


def _returns(around: Points, distance: Points) -> npt.NDArray[np.bool_]:
    """Whether the series was elsewhere soon before each point and is back there soon after it, (rows, some).

    around: of `_with_shift`. distance: (rows, some) of the point from what is around it. A point halfway between
    two levels is far from one of them, but from there the series goes on to the other.
    """
    before, here, after = around[:WITHIN], around[WITHIN], around[WITHIN + 1 :]
    rise = here - np.maximum(before.min(axis=0), after.min(axis=0))
    fall = np.minimum(before.max(axis=0), after.max(axis=0)) - here
    back: npt.NDArray[np.bool_] = np.where(distance > 0, rise, fall) >= RETURNS * np.abs(distance)
    return back


def _next(
    residual: Points, shift: Shift, rows: npt.NDArray[np.intp], off: Points
) -> tuple[Points, npt.NDArray[np.intp], Points]:
    """The distances that count, (rows, points), and index and size of the largest from which the series is back.

    off: (rows, points), of series whose largest distance is on the way from one level to another. The shift
    explains all such points; without one, they say how the series is.
    """
    back = _returns(_with_shift(residual, shift, rows, np.arange(off.shape[1])[None]), off)
    place, top = _largest(np.abs(off) * back)
    return off * (back | (shift.direction[rows] == 0)[:, None]), place, top


def _count(off: Points, place: npt.NDArray[np.intp], top: Points, gate: Column) -> npt.NDArray[np.int8]:
    """How many outliers like the largest there are, (batch,): 0 if none.

    off: (batch, points) distances. place, top: (batch,) index and size of the largest. gate: (batch,) least size.
    """
    many = np.zeros(len(off), np.int8)
    rows = np.flatnonzero(top >= gate)
    top, signed = top[rows], off[rows]
    signed *= np.sign(signed[np.arange(len(rows)), place[rows]])[:, None]
    alike = signed >= (ALIKE * top)[:, None]
    begins = alike.copy()
    begins[:, 1:] &= ~alike[:, :-1]  # neighbours count once
    starts = np.bincount(np.nonzero(begins)[0], minlength=len(rows))
    same = signed.min(axis=1) > -ALIKE * top
    many[rows] = np.where(same, np.minimum(starts, 127), 0)
    return many
