"""Ground truth of series of integers 0–99: measures and labels.

The formulas are those of the code of arXiv 2507.07439, which is for 128 points. For other lengths the windows
scale with the length: 20 of 128 points is a fraction, quarters stay quarters.
"""

from collections.abc import Callable, Sequence
from functools import cache, partial
from math import ceil, floor
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Lengths: TypeAlias = int | npt.NDArray[np.int32]  # points per series: one number, or (batch,)
Places: TypeAlias = tuple[float, float]  # fractions of a series between beginning, middle and end

TOP = 99  # the largest value
CHUNK = 2**17  # points measured at once: their float64 copy fits a core's cache
TREND_MARGIN = 3.0  # value units between the means of the two ends
NOISE_LEVELS = (2.0, 12.0)  # RMS of the residual in value units
WINDOW = 20 / 128  # fraction of the series in the window at either end
# An extremum before the first fraction is at the beginning, after the second at the end.
QUARTERS, THIRDS = (1 / 4, 3 / 4), (1 / 3, 2 / 3)

# glibc returns freed blocks above a threshold to the system, and each new allocation then causes page faults.
# Allocating and freeing one large block, without touching it, raises the threshold permanently (mallopt(3),
# M_MMAP_THRESHOLD).
np.empty(2**24, np.uint8)


def measure(values: npt.NDArray[np.uint8], places: Places = QUARTERS) -> dict[str, npt.NDArray[Any]]:
    """Measure trend and noise of each series by the paper's formulas, and its extrema.

    values: (batch, length) uint8, 0–99. places: fractions of the series between its regions. Returns by name,
    (batch,) each, what `extrema` does, and:

      trend_delta    float32, value units: mean of the last window minus mean of the first
      noise_rms      float32, value units: RMS of the residual of a cubic fit
    """
    return _in_chunks(partial(_measure, places=places), values)


def extrema(values: npt.NDArray[np.uint8], places: Places = QUARTERS) -> dict[str, npt.NDArray[Any]]:
    """Find the extrema of each series.

    values: (batch, length) uint8, 0–99. places: fractions of the series between its regions. Returns by name,
    (batch,) each:

      argmax, argmin int32: index of the first occurrence
      maximum_lead   float32, value units: distance of the extremum to the best value of the other two
      minimum_lead   regions, 0 if these reach it as well
    """
    return _in_chunks(lambda some: _extrema(np.ascontiguousarray(some.T), places), values)


def _in_chunks(
    measured: Callable[[npt.NDArray[np.uint8]], dict[str, npt.NDArray[Any]]], values: npt.NDArray[np.uint8]
) -> dict[str, npt.NDArray[Any]]:
    """What a function returns for all series, called with as many at once as fit a core's cache."""
    rows = max(1, CHUNK // values.shape[1])
    parts = [measured(values[first : first + rows]) for first in range(0, max(1, len(values)), rows)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _measure(values: npt.NDArray[np.uint8], places: Places) -> dict[str, npt.NDArray[Any]]:
    """`measure` for series that fit the cache together. values: (batch, length) uint8."""
    length = values.shape[1]
    weights, norms = _weights(length)
    turned = np.ascontiguousarray(values.T)  # (length, batch): operations are contiguous along the batch
    exact = turned.astype(np.float64)
    # Sums of integer products below 2**53 are exact, in any order and on any number of threads.
    sums = weights @ exact  # (polynomials + 1, batch); the last row is for the two ends
    # The residual is what the orthogonal polynomials of the cubic do not explain, so no fit is needed.
    energy = np.einsum("ij,ij->j", exact, exact) - np.einsum("ij,ij,i->j", sums[:-1], sums[:-1], 1 / norms)
    return {
        "trend_delta": (sums[-1] / end_window(length)).astype(np.float32),
        "noise_rms": np.sqrt(np.maximum(energy, 0.0) / length).astype(np.float32),
        **_extrema(turned, places),
    }


def _extrema(turned: npt.NDArray[np.uint8], places: Places) -> dict[str, npt.NDArray[Any]]:
    """`extrema` for series that fit the cache together. turned: (length, batch) uint8."""
    length, bits = len(turned), len(turned).bit_length()
    # A key holds the value in its high bits and the earliness in its low bits: one maximum finds both. The
    # smallest integers that hold a key.
    keys: npt.NDArray[Any] = turned.astype(np.int16 if length < 256 else np.int32)
    early = np.arange(length - 1, -1, -1, dtype=keys.dtype)[:, None]
    keys <<= bits
    keys += early
    maximum, argmax = _peaks(keys, places)
    np.subtract((TOP << bits) + 2 * early, keys, out=keys)  # of TOP minus the value, as early
    minimum, argmin = _peaks(keys, places)
    return {"argmax": argmax, "argmin": argmin, "maximum_lead": maximum, "minimum_lead": minimum}


def _peaks(keys: npt.NDArray[Any], places: Places) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """Lead of the maximum over the other regions, and its first index, (batch,) each.

    keys: (length, batch), int16 or int32, of `_extrema`.
    """
    length = len(keys)
    bits = length.bit_length()
    first, last = regions(length, places)
    parts = (keys[:first], keys[first:last], keys[last:])  # with four points, the last part is empty
    one, two, three = (part.max(axis=0, initial=-1) for part in parts)
    higher = np.maximum(one, two)
    best, second = np.maximum(higher, three), np.maximum(np.minimum(one, two), np.minimum(higher, three))
    lead = (best >> bits) - (second >> bits)
    return lead.astype(np.float32), (length - 1 - (best & ((1 << bits) - 1))).astype(np.int32)


def levels(values: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
    """Levels of each series by name, (batch,) each in value units. values: (batch, length) uint8.

    start, end: mean of the first and of the last window. maximum, minimum.
    """
    window = end_window(values.shape[1])
    ones = np.ones(window, np.float32)
    first, last = (np.vecdot(some.astype(np.float32), ones) for some in (values[:, :window], values[:, -window:]))
    return {
        "start": first / np.float32(window),  # sums of so small integers are exact
        "end": last / np.float32(window),
        "maximum": values.max(axis=1).astype(np.float32),
        "minimum": values.min(axis=1).astype(np.float32),
    }


def ends(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Mean of the last window minus mean of the first, (batch,) in value units. values: (batch, length)."""
    window = end_window(values.shape[1])
    sums = values[:, -window:].sum(axis=1, dtype=np.int64) - values[:, :window].sum(axis=1, dtype=np.int64)
    delta: npt.NDArray[np.float32] = (sums / window).astype(np.float32)
    return delta


def direction(delta: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """Trend class from the difference of the two ends in value units: 0 increasing, 1 decreasing, 2 flat."""
    return np.where(delta > TREND_MARGIN, 0, np.where(delta < -TREND_MARGIN, 1, 2))


def level(rms: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """Noise class: 0 low, 1 medium, 2 high. Exactly 2 and exactly 12 are medium."""
    found: npt.NDArray[np.intp] = np.where(rms < NOISE_LEVELS[0], 0, 1) + (rms > NOISE_LEVELS[1])
    return found


def place(index: npt.NDArray[np.int32], length: Lengths, places: Places = QUARTERS) -> npt.NDArray[np.intp]:
    """Position class of an index: 0 beginning, 1 middle, 2 end."""
    found: npt.NDArray[np.intp] = np.where(index < places[0] * length, 0, 1) + (index > places[1] * length)
    return found


def distance(measure: npt.NDArray[np.float32], borders: Sequence[float]) -> npt.NDArray[np.float32]:
    """Distance of each measure to the nearest class boundary, (batch,) in its own unit."""
    nearest: npt.NDArray[np.float32] = np.min([np.abs(measure - np.float32(border)) for border in borders], axis=0)
    return nearest


@cache  # fewer than a thousand lengths
def polynomials(length: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Orthogonal polynomials of degree 0 to 3 on `length` points, (length, 4), and their squared norms, (4,).

    Gram polynomials scaled to integers. Up to 2,500 points, their sums with values 0–99 stay below 2**53. With
    fewer than four points there are fewer polynomials.
    """
    u = 2 * np.arange(length) - (length - 1)  # twice the distance from the centre
    stacked = np.stack(
        [np.ones_like(u), u, 3 * u**2 - (length**2 - 1), 5 * u**3 - (3 * length**2 - 7) * u], axis=1
    ).astype(np.float64)
    norms = (stacked**2).sum(axis=0)
    return stacked[:, norms > 0], norms[norms > 0]  # fewer than four points have fewer degrees


def end_window(length: int) -> int:
    """Points in the window at either end."""
    return max(1, round(WINDOW * length))


def regions(length: int, places: Places = QUARTERS) -> tuple[int, int]:
    """First index of the middle region and first index of the end region."""
    return ceil(places[0] * length), floor(places[1] * length) + 1


@cache  # fewer than a thousand lengths
def _weights(length: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Weights, (5, length): the polynomials and the difference of the ends. Also their squared norms, (4,)."""
    columns, norms = polynomials(length)
    ends, window = np.zeros(length), end_window(length)
    ends[-window:] += 1
    ends[:window] -= 1
    return np.vstack([columns.T, ends]), norms
