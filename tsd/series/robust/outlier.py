"""Outlier: a point, or two beside each other, far off what is around it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tsd.series.robust.waves import Column, Points

SIDE = 4  # points on either side, of which the medians are taken
SAME_AROUND = 0.5  # largest difference of the two medians, by the size of the outlier: else it is an edge
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


def find(residual: Points, noise: Column, extent: Column) -> Outlier:
    """Find the point that is farthest from its surroundings, and judge it.

    residual: (batch, points), from line, waves and shift. noise: (batch,) standard deviation. extent: (batch,)
    range of the series.

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
        chosen, many = _judge(distance[candidates], _gaps(medians[candidates]), least[candidates])
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


def _judge(distance: Points, gap: Points, least: Column) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int8]]:
    """The index of the largest outlier of each series, and how many there are like it, 0 if none. (batch,)."""
    size = np.abs(distance)
    middle = np.sort(size, axis=1)[:, size.shape[1] // 2].astype(np.float64)
    gate = np.maximum(LEAST_DEVIATIONS * np.maximum(1.4826 * middle, FLOOR), least)
    # A point beside an edge is far from the mean of two different surroundings: it is none.
    size *= gap <= SAME_AROUND * size
    place = size.argmax(axis=1)
    top = size[np.arange(len(size)), place]
    many = np.zeros(len(size), np.int8)
    rows = np.flatnonzero(top >= gate)
    top, distance = top[rows], distance[rows]
    signed = np.copysign(size[rows], distance)
    signed *= np.sign(distance[np.arange(len(rows)), place[rows]])[:, None]
    alike = signed >= (ALIKE * top)[:, None]
    begins = alike.copy()
    begins[:, 1:] &= ~alike[:, :-1]  # neighbours count once
    starts = np.bincount(np.nonzero(begins)[0], minlength=len(rows))
    same = signed.min(axis=1) > -ALIKE * top
    many[rows] = np.where(same, np.minimum(starts, 127), 0)
    return place, many
