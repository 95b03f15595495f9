"""Noise around a season of any shape: that of the points in the order of their phase.

Edges, teeth and pulses that repeat are as rough as noise from point to point. In the order of phase they are one
cycle, and most neighbours are points of the same height.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tsd.series.robust.noise import KEPT, LEVELS, deviation, sizes_of
from tsd.series.robust.waves import Column, Points

TIED = 1e-3  # value units: differences of whole numbers that are equal but for rounding
SNAP = 64  # the number of cycles is a multiple of 1 / SNAP, so that points of one phase are known as such


@dataclass(frozen=True)
class Cycles:
    """Series that are more than their sine from cycle to cycle.

    rows: (some,) their indices. values: (some, points), without line, shift and slower wave. frequency: (some,)
    cycles in the series.
    """

    rows: npt.NDArray[np.intp]
    values: Points
    frequency: Column

    def among(self, which: npt.NDArray[np.bool_]) -> "Cycles":
        """Those of the series for which `which`, (batch,), holds."""
        held = which[self.rows]
        return Cycles(self.rows[held], self.values[held], self.frequency[held])


def beside_shape(noise: Column, cycles: Cycles) -> Column:
    """The noise of each series, around the shape of its season where that is less, (batch,) in value units.

    noise: (batch,) from point to point, which is kept where it is low already.
    """
    cycles = cycles.among(noise >= LEVELS[0])
    found = noise.copy()
    if len(cycles.rows):
        found[cycles.rows] = np.minimum(noise[cycles.rows], noise_of(cycles))
    return found


def noise_of(cycles: Cycles) -> Column:
    """The standard deviation around the mean shape of a cycle, (some,) in value units.

    That of the differences of neighbours in phase (von Neumann 1941, Rice 1984), trimmed as the noise from point
    to point. No shape is fitted, so that white noise keeps its deviation, and edges are trimmed.

    What remains of a line is taken off the differences by least squares (Yatchew 1997), edges left out: a line
    that was fitted beside a sine follows the shape.
    """
    points = cycles.values.shape[1]
    time = np.arange(points) - (points - 1) / 2
    turns = (np.rint(cycles.frequency * SNAP) / (SNAP * points))[:, None] * time
    turns -= np.rint(turns)  # −½ to ½, odd in time: backwards the order is the reverse
    order = turns.argsort(axis=1, kind="stable")
    ordered = np.take_along_axis(cycles.values, order, axis=1)
    rise, run = np.diff(ordered, axis=1), np.diff(order, axis=1).astype(np.float32)
    size = np.abs(rise)
    level = np.sort(size, axis=1)[:, round(KEPT * size.shape[1]), None]
    run_inside = run * (size <= level + TIED)
    slope = np.vecdot(rise, run_inside) / np.vecdot(run, run_inside)
    rise -= slope[:, None] * run
    found: Column = deviation(sizes_of(rise)) * 0.5**0.5
    return found
