"""What is measurably true of a series of integers 0–99: values in, labels and the measures behind them out.

The formulas are those of the code that accompanies arXiv 2507.07439, which reads 128 points. For another
length the windows scale: 20 of 128 points are a fraction, quarters stay quarters.
"""

from collections.abc import Sequence
from functools import cache
from math import ceil, floor
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Lengths: TypeAlias = int | npt.NDArray[np.int32]  # points in a series: of all, or of each, (batch,)

TOP = 99  # the largest value
CHUNK = 2**17  # points measured at once: their float64 stay in a core's cache
TREND_MARGIN = 3.0  # value units between the means of the two ends
NOISE_LEVELS = (2.0, 12.0)  # value units of the residual's root mean square
WINDOW = 20 / 128  # share of the series that each end's mean is taken over
PLACES = (
    32 / 128,
    96 / 128,
)  # an extremum before the first lies at the beginning, past the second at the end

# glibc hands memory of more than a threshold back to the system at once, and every page of it is paid for again
# when it is next asked for: that took longer than the measuring. One large block, freed untouched, raises the
# threshold for good (mallopt(3), M_MMAP_THRESHOLD).
np.empty(2**24, np.uint8)


def measure(values: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
    """Measure each series.

    values: (batch, length) uint8, 0–99.
    Returns, (batch,) each: trend_delta (mean of the last window minus mean of the first) and noise_rms (root
    mean square of the residual of a cubic fit), float32 in value units; argmax and argmin (first occurrence),
    int32 indices; maximum_lead and minimum_lead, float32 in value units: how far the extremum lies beyond the
    best value of the two regions that it is not in, 0 where these reach it too.
    """
    rows = max(1, CHUNK // values.shape[1])
    parts = [_measure(values[first : first + rows]) for first in range(0, max(1, len(values)), rows)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _measure(values: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
    length = values.shape[1]
    weights, norms = _weights(length)
    turned = np.ascontiguousarray(values.T)  # time-major: each operation runs along the batch
    exact = turned.astype(np.float64)
    # Integers times integers below 2**53: every sum is exact, in whatever order and on however many threads.
    sums = weights @ exact  # (one a polynomial and one for the ends, batch)
    # The cubic's residual is what its orthogonal polynomials do not explain: no fit per series.
    energy = np.einsum("ij,ij->j", exact, exact) - np.einsum("ij,ij,i->j", sums[:-1], sums[:-1], 1 / norms)
    # In the smallest integers that hold a value and an index.
    small = turned.astype(np.int16 if length < 256 else np.int32)
    maximum, argmax = _peaks(small)
    minimum, argmin = _peaks(TOP - small)
    return {
        "trend_delta": (sums[-1] / end_window(length)).astype(np.float32),
        "noise_rms": np.sqrt(np.maximum(energy, 0.0) / length).astype(np.float32),
        "argmax": argmax,
        "argmin": argmin,
        "maximum_lead": maximum,
        "minimum_lead": minimum,
    }


def _peaks(values: npt.NDArray[Any]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int32]]:
    """How far the maximum stands above the other regions, and where it is first reached, (batch,) each.

    values: (length, batch), int16 or int32.
    """
    length = len(values)
    bits = length.bit_length()
    # One number holds a value and, below it, how early it comes: its maximum finds both at once.
    keys = (values << bits) + np.arange(length - 1, -1, -1, dtype=values.dtype)[:, None]
    first, last = regions(length)
    parts = (keys[:first], keys[first:last], keys[last:])  # of four points, none is in the last
    one, two, three = (part.max(axis=0, initial=-1) for part in parts)
    higher = np.maximum(one, two)
    best, second = np.maximum(higher, three), np.maximum(np.minimum(one, two), np.minimum(higher, three))
    lead = (best >> bits) - (second >> bits)
    return lead.astype(np.float32), (length - 1 - (best & ((1 << bits) - 1))).astype(np.int32)


def ends(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Mean of the last window minus mean of the first, (batch,) in value units; values: (batch, length)."""
    window = end_window(values.shape[1])
    sums = values[:, -window:].sum(axis=1, dtype=np.int64) - values[:, :window].sum(axis=1, dtype=np.int64)
    delta: npt.NDArray[np.float32] = (sums / window).astype(np.float32)
    return delta


def direction(delta: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """0 increasing, 1 decreasing, 2 flat, from the difference of the two ends in value units."""
    return np.where(delta > TREND_MARGIN, 0, np.where(delta < -TREND_MARGIN, 1, 2))


def level(rms: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """0 low, 1 medium, 2 high noise; exactly 2 and exactly 12 are still medium."""
    found: npt.NDArray[np.intp] = np.where(rms < NOISE_LEVELS[0], 0, 1) + (rms > NOISE_LEVELS[1])
    return found


def place(index: npt.NDArray[np.int32], length: Lengths) -> npt.NDArray[np.intp]:
    """0 beginning, 1 middle, 2 end."""
    found: npt.NDArray[np.intp] = np.where(index < PLACES[0] * length, 0, 1) + (index > PLACES[1] * length)
    return found


def distance(measure: npt.NDArray[np.float32], borders: Sequence[float]) -> npt.NDArray[np.float32]:
    """How far each measure is from the nearest border between two classes, (batch,) in its own unit."""
    nearest: npt.NDArray[np.float32] = np.min([np.abs(measure - np.float32(border)) for border in borders], axis=0)
    return nearest


@cache  # there are under a thousand lengths
def polynomials(length: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The orthogonal polynomials of degree 0 to 3 on `length` points, (length, 4), and their squared norms, (4,).

    Gram's polynomials, scaled to integers: up to 2,500 points their sums with values of 0–99 stay below 2**53.
    """
    u = 2 * np.arange(length) - (length - 1)  # twice the distance from the centre
    stacked = np.stack(
        [np.ones_like(u), u, 3 * u**2 - (length**2 - 1), 5 * u**3 - (3 * length**2 - 7) * u], axis=1
    ).astype(np.float64)
    norms = (stacked**2).sum(axis=0)
    return stacked[:, norms > 0], norms[norms > 0]  # fewer than four points carry fewer degrees


def end_window(length: int) -> int:
    """How many points each end's mean is taken over."""
    return max(1, round(WINDOW * length))


def regions(length: int) -> tuple[int, int]:
    """The first index of the middle and the first index of the end."""
    return ceil(PLACES[0] * length), floor(PLACES[1] * length) + 1


@cache  # there are under a thousand lengths
def _weights(length: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The polynomials and, last, the ends' windows, as rows, (5, length); the polynomials' squared norms."""
    columns, norms = polynomials(length)
    ends, window = np.zeros(length), end_window(length)
    ends[-window:] += 1
    ends[:window] -= 1
    return np.vstack([columns.T, ends]), norms
