"""Choose the candidates whose robust truth is measured, by what can be seen of a series at little cost.

In: the integers of candidates and the noise that was wanted. Out: indices of those that are measured.
"""

from math import ceil

import numpy as np
import numpy.typing as npt

from tsd.generation.balancing import STRIDE, even_out
from tsd.series.robust.trend import BIG, BIG_ENDS, ENDS
from tsd.series.truth import Places, regions

LOOKED_AT = 64  # points of each series that decide whether it seems to have a trend
CLEAR = (0.45, 1.5)  # size of a trend below which a series seems flat, and from which it seems to have a direction
RISING, FALLING, FLAT, UNCLEAR = range(4)
DIRECTED = ("trend", "maximum", "minimum")  # facets
# Inverse levels to which strata are filled, by kind, or class of trend, and by the places of maximum and minimum.
WEIGHTS = np.full((4, 3, 3), 4, np.uint16)
WEIGHTS[RISING, 2, 0] = WEIGHTS[FALLING, 0, 2] = 17  # the extrema lie where the trend says
WEIGHTS[FLAT] = 26  # such series have more strata than others
WEIGHTS[UNCLEAR] = 10


def screened(
    values: npt.NDArray[np.uint8], noise: npt.NDArray[np.intp], share: float, places: Places
) -> npt.NDArray[np.intp]:
    """Choose a share of the candidates, the same from each stratum as far as there are as many.

    Strata are the noise that was wanted, the places of the extrema, and the direction that a series seems to have.
    Candidates that seem neither flat nor directed are one stratum for each noise: a few of them stay.

    values: (batch, length) uint8. noise: (batch,) wanted classes. Returns indices, ascending.
    """
    batch, length = values.shape
    parts = np.split(values, regions(length, places), axis=1)
    high, low = np.array([(part.max(axis=1), part.min(axis=1)) for part in parts]).swapaxes(
        0, 1
    )  # (3, batch) each
    highest, lowest = high.argmax(axis=0), low.argmin(axis=0)  # of equal ones the first
    kind = seeming(values, low.min(axis=0), high.max(axis=0))
    unclear = kind == UNCLEAR
    highest, lowest = np.where(unclear, 0, highest), np.where(unclear, 0, lowest)
    cells = np.ravel_multi_index([kind, noise, highest, lowest], (4, 3, 3, 3))
    preferred = np.argsort(np.arange(batch) * STRIDE % batch, kind="stable")
    weights = WEIGHTS[kind, highest, lowest][preferred]
    return np.sort(preferred[even_out(cells[preferred], ceil(share * batch), weights)])


def seeming(
    values: npt.NDArray[np.uint8], low: npt.NDArray[np.uint8], high: npt.NDArray[np.uint8]
) -> npt.NDArray[np.intp]:
    """RISING, FALLING, FLAT or UNCLEAR, (batch,), by the size of the line and the difference of the two ends.

    Both are taken of about LOOKED_AT points, and by the thresholds of `tsd.series.robust.trend`. Whether a change
    is significant, and whether a wave explains it, is left to the truth.

    values: (batch, length). low, high: (batch,), the extrema.
    """
    some = values.T[:: max(1, values.shape[1] // LOOKED_AT)].astype(np.float32)  # (points, batch)
    points = len(some)
    time = np.arange(1 - points, points, 2, dtype=np.float32)  # whole numbers: every sum of products is exact
    window = max(1, round(ENDS * points))
    ends = np.zeros(points, np.float32)
    ends[:window], ends[-window:] = -1, 1
    line, apart = np.stack([time, ends]) @ some  # (batch,) each
    extent = np.maximum(high.astype(np.float32) - low, 1)
    change = line * np.float32(2 * (points - 1) / np.square(time).sum() / BIG) / extent
    apart *= np.float32(1 / (window * BIG_ENDS)) / extent
    size = np.where(change * apart > 0, np.minimum(np.abs(change), np.abs(apart)), 0)
    directed = np.where(change > 0, RISING, FALLING)
    return np.where(size < CLEAR[0], FLAT, np.where(size < CLEAR[1], UNCLEAR, directed))
