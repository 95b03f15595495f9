"""Series of known kinds for `truth.py`: each with the size, place and frequency of what it has.

"10 % noise" is normal noise with a standard deviation of a tenth of the signal's height from trough to crest,
added before the series is scaled to 0–99 by its own range and rounded.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Signal = Callable[[np.random.Generator, int, int], Array]  # generator, series, points; height 1, (series, points)


@dataclass(frozen=True)
class Known:
    """Series as they are measured, and what was put into them.

    values: (series, points) uint8. scale: (series,) value units per unit before scaling. what: (series,) the
    number that a case is about, a place or a frequency; 0 where there is none. sign: (series,) its direction.
    """

    values: npt.NDArray[np.uint8]
    scale: Array
    what: Array
    sign: Array


def scaled(raw: Array, what: Array | float = 0.0, sign: Array | float = 1.0) -> Known:
    """Scale each series to 0–99 by its own range, and round. raw: (series, points)."""
    low, high = raw.min(axis=1, keepdims=True), raw.max(axis=1, keepdims=True)
    scale = 99 / np.maximum(high - low, 1e-12)
    values = np.rint((raw - low) * scale).astype(np.uint8)
    each = np.ones(len(raw))
    return Known(values, scale[:, 0], what * each, sign * each)


def clock(points: int) -> Array:
    """Time from 0 to just below 1, (points,)."""
    return np.arange(points) / points


def signs(rng: np.random.Generator, count: int) -> Array:
    """−1 or +1, (series, 1)."""
    return rng.choice([-1.0, 1.0], (count, 1))


def white(rng: np.random.Generator, count: int, points: int) -> Array:
    """Normal noise of unit variance."""
    return rng.standard_normal((count, points))


def uniform(rng: np.random.Generator, count: int, points: int) -> Array:
    """Uniform noise of unit variance."""
    return rng.uniform(-(3**0.5), 3**0.5, (count, points))


def autoregressive(rho: float) -> Signal:
    """A stationary AR(1) of unit variance; with rho = 1, a random walk."""

    def draw(rng: np.random.Generator, count: int, points: int) -> Array:
        values = white(rng, count, points)
        if rho < 1:
            values[:, 1:] *= np.sqrt(1 - rho**2)
        for i in range(1, points):
            values[:, i] += rho * values[:, i - 1]
        return values

    return draw


def sine(least: float, most: float) -> Signal:
    """A sine of any phase, with a frequency between two numbers of cycles."""

    def draw(rng: np.random.Generator, count: int, points: int) -> Array:
        return waves(rng, rng.uniform(least, most, count), points)

    return draw


def waves(rng: np.random.Generator, cycles: Array, points: int) -> Array:
    """Sines of given numbers of cycles, (series,), with any phase."""
    phase = rng.uniform(0, 1, (len(cycles), 1))
    return np.sin(2 * np.pi * (cycles[:, None] * clock(points) + phase)) / 2


def ramp(rng: np.random.Generator, count: int, points: int) -> Array:
    """A straight rise or fall."""
    return signs(rng, count) * clock(points)


def step(rng: np.random.Generator, count: int, points: int) -> Array:
    """A level shift between a fifth and four fifths of the length."""
    at = rng.uniform(0.2, 0.8, (count, 1))
    return signs(rng, count) * (clock(points) >= at)


def saturating(rng: np.random.Generator, count: int, points: int) -> Array:
    """Exponential saturation."""
    curve: Array = 1 - np.exp(-clock(points) / rng.uniform(0.15, 0.5, (count, 1)))
    found: Array = signs(rng, count) * curve / curve[:, -1:]
    return found


def large_step(rng: np.random.Generator, count: int, points: int) -> Array:
    """A level shift of ten, for noise of unit variance."""
    return 10 * step(rng, count, points)


def step_and_season(rng: np.random.Generator, count: int, points: int) -> Array:
    """A level shift, a season of six cycles of its height, and a little noise."""
    both = step(rng, count, points) + waves(rng, np.full(count, 6.0), points)
    return both + 0.05 * white(rng, count, points)


def ramp_and_waves(rng: np.random.Generator, count: int, points: int) -> Array:
    """A ramp and two waves of half its height."""
    both = waves(rng, np.full(count, 7.0), points) + waves(rng, np.full(count, 2.3), points)
    return ramp(rng, count, points) + both / 2


def staircase(rng: np.random.Generator, count: int, points: int) -> Array:
    """Four steps in one direction, with a little noise."""
    stairs = np.floor(4 * clock(points)) / 3
    return signs(rng, count) * stairs + 0.05 * white(rng, count, points)


def pulse(rng: np.random.Generator, count: int, points: int) -> Array:
    """A shift and, a quarter of the length later, the shift back, with a little noise."""
    at = rng.uniform(0.2, 0.5, (count, 1))
    time = clock(points)
    return signs(rng, count) * ((time >= at) & (time < at + 0.25)) + 0.05 * white(rng, count, points)


def square(rng: np.random.Generator, count: int, points: int) -> Array:
    """Two levels in turn, 3 to 12 cycles of any phase."""
    return (_phases(rng, count, points) < 0.5).astype(np.float64)


def sawtooth(rng: np.random.Generator, count: int, points: int) -> Array:
    """A slow rise or fall and a jump back, 3 to 12 cycles of any phase."""
    return signs(rng, count) * _phases(rng, count, points)


def pulses(rng: np.random.Generator, count: int, points: int) -> Array:
    """A tenth of each cycle higher than the rest, 3 to 12 cycles of any phase."""
    return (_phases(rng, count, points) < 0.1).astype(np.float64)


def _phases(rng: np.random.Generator, count: int, points: int) -> Array:
    """The fraction of its cycle that each point is at, for 3 to 12 cycles."""
    phases: Array = (rng.uniform(3, 12, (count, 1)) * clock(points) + rng.uniform(0, 1, (count, 1))) % 1
    return phases


def ramp_and_season(rng: np.random.Generator, count: int, points: int) -> Array:
    """A ramp and a season of three cycles, a third higher than the ramp."""
    return ramp(rng, count, points) + waves(rng, np.full(count, 3.0), points) * 4 / 3


def transition(over: int) -> Signal:
    """A step that takes `over` points, in the middle fifth, with a little noise."""

    def draw(rng: np.random.Generator, count: int, points: int) -> Array:
        at = rng.integers(round(0.4 * points), round(0.6 * points), (count, 1))
        rise = np.clip((np.arange(points) - at) / (over + 1), 0, 1)
        return signs(rng, count) * rise + 0.06 * white(rng, count, points)

    return draw


def late_step(points_after: int) -> Signal:
    """A step so many points before the end, or after the beginning, with a little noise."""

    def draw(rng: np.random.Generator, count: int, points: int) -> Array:
        near_end = np.arange(points) >= points - points_after
        either = np.where(rng.random((count, 1)) < 0.5, near_end, near_end[::-1])
        return signs(rng, count) * either + 0.06 * white(rng, count, points)

    return draw


def nothing(rng: np.random.Generator, count: int, points: int) -> Array:
    """No signal: with noise, white noise."""
    return np.zeros((count, points))


def noisy(signal: Signal, share: float) -> Signal:
    """A signal of height 1 with normal noise of `share` as its standard deviation."""

    def draw(rng: np.random.Generator, count: int, points: int) -> Array:
        return signal(rng, count, points) + share * white(rng, count, points)

    return draw


def directed(rng: np.random.Generator, count: int, points: int, signal: Signal, share: float) -> Known:
    """A ramp or a step with noise, and its direction, which is that of its end."""
    clean = signal(rng, count, points)
    raw = clean + share * white(rng, count, points)
    return scaled(raw, sign=np.sign(clean[:, -1] - clean[:, 0]))


def shifted(rng: np.random.Generator, count: int, points: int, size: float) -> Known:
    """White noise with a level shift of `size` standard deviations between a fifth and four fifths."""
    at = rng.integers(round(0.2 * points), round(0.8 * points) + 1, count)
    sign = signs(rng, count)
    raw = white(rng, count, points) + size * sign * (np.arange(points) >= at[:, None])
    return scaled(raw, at.astype(np.float64), sign[:, 0])


def spiked(rng: np.random.Generator, count: int, points: int, size: float, below: Signal = nothing) -> Known:
    """White noise, on a signal, with one point `size` standard deviations off."""
    at = rng.integers(0, points, count)
    sign = signs(rng, count)
    raw = white(rng, count, points) + below(rng, count, points)
    raw[np.arange(count), at] += size * sign[:, 0]
    return scaled(raw, at.astype(np.float64), sign[:, 0])


def louder(rng: np.random.Generator, count: int, points: int, times: float, at: float) -> Known:
    """White noise whose standard deviation is `times` as large from a fraction of the length on."""
    raw = white(rng, count, points) * np.where(clock(points) >= at, times, 1.0)
    return scaled(raw, at * points)
