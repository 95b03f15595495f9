"""Season: a wave that keeps its frequency and phase through the series, and stands out of the noise around it."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from tsd.series.robust.phase import Cycles
from tsd.series.robust.waves import (
    NOTHING,
    Column,
    Points,
    Wave,
    fold,
    half_turns,
    halves,
    moments,
    persistence,
    unfold,
    wave_table,
)

NONE, WEAK, STRONG = 0, 1, 2
LEAST_CYCLES = 2.75  # fewer are a bend
LEAST_SHARE = 0.25  # of the variance around the line
SECOND_SHARE = 0.4  # of the variance around line and first wave, for the second one: it was chosen from more
STRONG_SHARE = 0.5  # of the same: a season as large as all that it is mixed with
ABOVE_BACKGROUND = 12.0  # times the power that autocorrelated noise has at this frequency
SECOND_ABOVE = 30.0  # the same for the second wave
LEAST_HEIGHT = 5.0  # value units from crest to trough: the rounding of a clean ramp has waves of one unit
IN_PHASE = 0.9  # cosine between the two halves; also |sum| by sum of sizes for the three thirds
LEAST_BALANCE = 0.15  # amplitude of the smaller half by that of the larger
REVERSES = 2.3  # steepest slope of the season by that of the line; the teeth of a monotone staircase have 2
WAVE_PARAMETERS = 8  # of a line and a wave whose frequency was searched for
HARMONICS = (2, 3, 4, 5)
FASTEST = 0.5  # cycles per point of a harmonic
SHAPED = 4.0  # mean square that each part of the harmonics explains, by that of what is left


@dataclass(frozen=True)
class Season:
    """The season of each series, (batch,) each.

    found: NONE, WEAK or STRONG. wave: its fundamental, zero where there is none. second: whether it is the second
    wave that was taken off.
    """

    found: npt.NDArray[np.int8]
    wave: Wave
    second: npt.NDArray[np.bool_]


def find(
    residuals: tuple[Points, Points], slope: Column, waves: tuple[Wave, Wave], energies: tuple[Column, Column]
) -> Season:
    """Judge the stronger of the two waves that has enough cycles.

    residuals: (batch, points) each, around line and first wave, and around line and both. slope: (batch,) of the
    line. energies: sums of squares around the line, and around line and first wave.

    A harmonic test in the way of Fisher (1929) and Siegel (1980), against the spectrum of an AR(1) instead of a
    flat one, as is usual for climate series (Mann and Lees 1996). The amplitudes of halves and thirds must agree
    in phase, which waves of noise and quasi-cycles do not. And the season must go against the trend: a staircase
    has none.
    """
    first, other = waves
    batch, points = residuals[0].shape
    slow = (first.frequency < LEAST_CYCLES) | ~first.entered
    second = other.entered & (other.frequency >= LEAST_CYCLES) & (slow | (other.energy > first.energy))
    wave = other.where(second, first)
    # Around the second wave the first one is off, around the first one only the line is.
    around = np.where(second, energies[1], energies[0])
    share = wave.energy / np.maximum(around, NOTHING * points)
    height = wave.height
    steepest = np.pi / points * wave.frequency * height
    candidates = np.flatnonzero(
        wave.entered
        & (wave.frequency >= LEAST_CYCLES)
        & (share >= np.where(second, SECOND_SHARE, LEAST_SHARE))
        & (height >= LEAST_HEIGHT)
        & (steepest >= REVERSES * np.abs(slope - wave.tilt))
    )
    found = np.zeros(batch, np.int8)
    if len(candidates):
        chosen = wave.rows(candidates)
        rest, twice = residuals[0][candidates], np.flatnonzero(second[candidates])
        rest[twice] = residuals[1][candidates[twice]]
        above = np.where(second[candidates], SECOND_ABOVE, ABOVE_BACKGROUND)
        held = np.flatnonzero(chosen.energy >= above * _background(rest, chosen))
        held = held[_in_phase(rest[held], chosen.rows(held))]
        strong = share[candidates[held]] >= STRONG_SHARE
        found[candidates[held]] = np.where(strong, STRONG, WEAK)
    there = found > NONE
    return Season(found, _kept(wave, there), second & there)


def take_off_shape(residual: Points, season: Season, faster: Column) -> Cycles:
    """Take off, in place, what a season has beside its sine: growth in time and harmonics.

    residual: (batch, points), from line and waves. faster: (batch,) sum of squares that a faster wave explained.
    Returns the series in which these and the harmonics explain more than noise would, with what was left of them
    around line and waves. This is the periodic component of a harmonic regression; STL
    (Cleveland et al. 1990) smooths it from cycle to cycle instead, which needs a whole number of points a cycle.
    """
    points = residual.shape[1]
    rows = np.flatnonzero(season.found > NONE)
    rest, frequency = residual[rows], season.wave.frequency[rows]
    parts = fold(rest)  # (2, seasonal, half)
    time = wave_table(points).time[-parts.shape[2] :]
    turns = half_turns(frequency, points)
    _take_off_parts(parts, turns[::-1] * time, 1.0, points)
    smooth = np.vecdot(parts, parts).sum(axis=0)
    # cos kx is 2 cos x · cos (k − 1)x − cos (k − 2)x, and sin kx alike.
    twice, before = 2 * turns[0], np.zeros_like(turns)
    before[0] = 1
    for times in HARMONICS:
        before, turns = turns, np.subtract(twice * turns, before, out=before)
        _take_off_parts(parts, turns, times * frequency < FASTEST * points, points)
    left = np.vecdot(parts, parts).sum(axis=0)
    residual[rows] = unfold(parts[0], parts[1], points)
    free = 2 * len(HARMONICS)
    # The parts have half the sum of squares of the series.
    explained = smooth - left + faster[rows] / 2
    shaped = np.flatnonzero(explained * (points - free) >= SHAPED * free * left)
    return Cycles(rows[shaped], rest[shaped], frequency[shaped])


def _take_off_parts(parts: Points, waves: Points, there: npt.NDArray[np.bool_] | float, points: int) -> None:
    """Take a wave off the even and one off the odd part of each series in place, as large as least squares say.

    parts, waves: (2, batch, half), of `fold`. there: (batch,) 1 for series that have such waves, else 0. Level and
    slope of a wave do not matter to what is local, and stay.
    """
    product, norm = np.vecdot(parts, waves), np.vecdot(waves, waves)
    if points % 2:  # the first point is that in the centre, which counts once
        product -= np.float32(0.5) * parts[..., 0] * waves[..., 0]
        norm -= np.float32(0.5) * waves[..., 0] ** 2
    # Near two points a cycle one of the two is hardly there.
    amplitude = product / np.maximum(norm, np.float32(0.02 * waves.shape[2]))
    parts -= waves * (amplitude * there)[..., None]


def _background(rest: Points, wave: Wave) -> Column:
    """The power that an AR(1) like the rest, in variance and persistence, has at the frequency. (batch,)."""
    points = rest.shape[1]
    sums = moments(rest)
    rho = persistence(sums, WAVE_PARAMETERS)
    omega = 2 * np.pi / points * wave.frequency
    variance = sums.energy / (points - WAVE_PARAMETERS)
    density: Column = variance * (1 - rho**2) / (1 - 2 * rho * np.cos(omega) + rho**2)
    return 2 * density  # of cosine and sine together


def _in_phase(rest: Points, wave: Wave) -> npt.NDArray[np.bool_]:
    """Whether halves and thirds of the series have the wave in one phase and in like amplitude. (batch,)."""
    points = rest.shape[1]
    turns = half_turns(wave.frequency, points)
    even, odd = turns * wave.columns[1:3, :, None].astype(np.float32)
    late, early = halves(rest)
    whole = np.stack([early + even, late + even])  # (2, batch, half): rest and wave
    whole[0] -= odd
    whole[1] += odd
    # Three parts of each half, from the centre on: the point in the middle of an odd number is left out.
    cuts = turns.shape[2] - np.round(points // 2 / 3 * np.arange(3, -1, -1)).astype(np.intp)
    parts = np.empty((3, 2, len(rest)), np.complex64)
    for part, cut in zip(parts, pairwise(cuts), strict=True):
        span = np.s_[..., slice(*cut)]
        part.real, part.imag = np.vecdot(turns[:, None][span], whole[span])
    parts[:, 0].imag *= -1  # a sine is negative before the centre
    early, late = parts.sum(axis=0)
    small, large = np.sort(np.abs([early, late]), axis=0)
    agreement = (early * late.conj()).real
    inner, middle, outer = parts
    thirds = np.array([outer[0] + middle[0], inner[0] + inner[1], middle[1] + outer[1]])
    together, apart = np.abs(thirds.sum(axis=0)), np.abs(thirds).sum(axis=0)
    held: npt.NDArray[np.bool_] = (
        (agreement >= IN_PHASE * small * large) & (small >= LEAST_BALANCE * large) & (together >= IN_PHASE * apart)
    )
    return held


def _kept(wave: Wave, there: npt.NDArray[np.bool_]) -> Wave:
    """The wave where it is a season, zero elsewhere."""
    columns = wave.columns * there
    columns[0] = wave.frequency
    return Wave(columns)
