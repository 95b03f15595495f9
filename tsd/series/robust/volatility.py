"""Volatility: whether the noise grows or shrinks."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tsd.series.robust import exact
from tsd.series.robust.noise import memory
from tsd.series.robust.waves import Points

STEADY, GROWING, SHRINKING, BURSTS = 0, 1, 2, 3
PARTS = 32  # of the series, between which changes are looked for; one less of an odd number of points
LEAST_PARTS = 4  # of the louder and of the quieter stretch
LARGEST = 4.0  # sizes above this many medians count as this many: an outlier or an edge is no burst
FLOOR = 0.5  # value units: least median for that
SPREAD = 0.7  # standard deviation of the sizes of normal noise by their mean, cut at four medians
LEAST_Z = 3.8  # standard errors of the largest contrast
WITHIN = 0.85  # weight of a stretch within the series, which has two changes to choose, beside one to its end
LEAST_RATIO = 1.6  # mean size in the louder by that in the quieter stretch
LEAST_HALF = 1.5  # mean size in each half of the louder stretch by that in the quieter one: else it is a burst
LEAST_UNITS = 1.6  # mean size in the louder stretch in value units, of a standard deviation of 2
ROUNDING = 0.25  # value units: mean size of what rounding to integers leaves, the least that counts as noise
UNIT = 2.0**-6  # value units that sizes are multiples of


@dataclass(frozen=True)
class Volatility:
    """The change of volatility of each series, (batch,) each.

    kind: STEADY, GROWING, SHRINKING, or BURSTS if they are looked for. place: index of the first point of the
    louder stretch where it grows and in bursts, of the quieter one where it shrinks; −1 if steady. ratio: standard
    deviation of the louder by that of the quieter stretch, 1 if steady.
    """

    kind: npt.NDArray[np.int8]
    place: npt.NDArray[np.int32]
    ratio: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Contrasts:
    """Stretches of consecutive parts against the rest of the series: to the end, or within it as well.

    first, last (stretches,) parts: first of the stretch and first after it. weights (parts, stretches):
    the mean of the stretch minus the mean of the rest, of sums by parts, by its standard error for unit variance;
    less within the series. factor (stretches,): how much less. inside (stretches,): points of the stretch. starts
    (parts,): first point of each part. parts (points, parts) float32: 1 where a point is in a part, else 0.
    """

    first: npt.NDArray[np.intp]
    last: npt.NDArray[np.intp]
    weights: exact.Weights
    factor: npt.NDArray[np.float64]
    inside: npt.NDArray[np.intp]
    starts: npt.NDArray[np.intp]
    parts: npt.NDArray[np.float32]


def find(rough: Points, medians: npt.NDArray[np.float32], bursts: bool = False) -> Volatility:
    """Search the stretches to the end for the one whose residuals differ most in size from the rest, and judge it.

    rough: (batch, points), of `tsd.series.robust.noise.roughness`. medians: (batch,) of its sizes. bursts: search
    the stretches within the series as well, of which no label depends: `benchmarks/facet_repeats.py` says why.

    A change of variance by cumulative sums, as of squares by Inclán and Tiao (1994), of sizes instead of squares,
    which heavy tails move less; and over both ends of a stretch, circular binary segmentation (Olshen et al.
    2004).
    """
    points = rough.shape[1]
    contrasts = _contrasts(points, bursts)
    sizes = np.abs(rough)
    np.minimum(sizes, (LARGEST * np.maximum(medians, np.float32(FLOOR)))[:, None], out=sizes)
    sizes *= np.float32(1 / UNIT)
    np.rint(sizes, out=sizes)
    sums = sizes @ contrasts.parts  # (batch, parts): of integers, exact in any order
    scores, unit = contrasts.weights.product(sums)  # (batch, stretches)
    best = np.abs(scores).argmax(axis=1)
    rows = np.arange(len(rough))
    score = scores[rows, best] * unit * UNIT
    mean = np.maximum(sums.sum(axis=1, dtype=np.float64) * UNIT / points, 1e-6)
    inside = contrasts.inside[best]
    outside = points - inside
    difference = score / contrasts.factor[best] * np.sqrt(points / (inside * outside))
    stretch, rest = mean + difference * outside / points, mean - difference * inside / points
    loud, quiet = np.maximum(stretch, rest), np.maximum(np.minimum(stretch, rest), ROUNDING)
    held = (np.abs(score) >= LEAST_Z * SPREAD * mean) & (loud >= LEAST_RATIO * quiet) & (loud >= LEAST_UNITS)
    first, last = contrasts.first[best], contrasts.last[best]
    to_end, grows = last == len(contrasts.starts), score > 0
    if not bursts:
        some = np.flatnonzero(held)
        half = _quieter_half(sums[some] * UNIT, contrasts, first[some], grows[some])
        held[some] = half >= LEAST_HALF * quiet[some]
    kind = np.where(to_end, np.where(grows, GROWING, SHRINKING), BURSTS)
    # A quiet stretch within a series leaves two loud ones, of which the second begins where it ends.
    start = np.where(to_end | grows, first, last)
    return Volatility(
        np.where(held, kind, STEADY).astype(np.int8),
        np.where(held, contrasts.starts[start], -1).astype(np.int32),
        np.where(held, loud / quiet, 1.0).astype(np.float32),
    )


def _quieter_half(
    sums: npt.NDArray[np.floating], contrasts: Contrasts, first: npt.NDArray[np.intp], grows: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float64]:
    """The mean size in the quieter half of the louder stretch, (batch,).

    sums: (batch, parts) of sizes. first: (batch,) part in which the stretch to the end begins. grows: (batch,)
    whether that is the louder one; else the louder one is before it.
    """
    parts, rows = sums.shape[1], np.arange(len(sums))
    total = np.zeros((len(sums), parts + 1))
    np.cumsum(sums, axis=1, out=total[:, 1:])
    bounds = np.append(contrasts.starts, len(contrasts.parts))
    start, stop = np.where(grows, first, 0), np.where(grows, parts, first)
    middle = (start + stop + ~grows) // 2  # the same backwards
    halves = [
        (total[rows, right] - total[rows, left]) / (bounds[right] - bounds[left])
        for left, right in ((start, middle), (middle, stop))
    ]
    quieter: npt.NDArray[np.float64] = np.minimum(*halves)
    return quieter


@lru_cache(maxsize=8)  # lengths
def _contrasts(points: int, bursts: bool) -> Contrasts:
    """All stretches of a length to the end of the series; bursts: and those that leave enough on both sides."""
    # An odd number of points has no boundary in the middle: then backwards the parts are the same.
    parts = PARTS - points % 2
    early = np.floor(points * np.arange(parts // 2 + 1) / parts + 0.5).astype(np.intp)
    starts = np.concatenate([early, points - early[: parts - parts // 2][::-1]])
    pairs = [
        (first, last)
        for first in range(LEAST_PARTS, parts)
        for last in range(first + LEAST_PARTS, parts + 1)
        if last == parts or (bursts and last <= parts - LEAST_PARTS)
    ]
    first, last = np.array(pairs, np.intp).T
    inside = starts[last] - starts[first]
    part = np.arange(parts)[:, None]
    within = (part >= first) & (part < last)  # (parts, stretches)
    weights = np.where(within, 1 / inside, -1 / (points - inside)) * np.sqrt(inside * (points - inside) / points)
    # Sizes of normal numbers of correlation ρ have the correlation (√(1 − ρ²) + ρ · asin ρ − 1) / (π/2 − 1).
    rho = memory(points)
    correlation = (np.sqrt(1 - rho**2) + rho * np.arcsin(rho) - 1) / (np.pi / 2 - 1)
    factor = np.where(last == parts, 1.0, WITHIN) / np.sqrt(1 + 2 * correlation.sum())
    point = np.arange(points)[:, None]
    parts_of = (point >= starts[:-1]) & (point < starts[1:])  # (points, parts)
    held = exact.weights(weights * factor)
    return Contrasts(first, last, held, factor, inside, starts[:-1], parts_of.astype(np.float32))
