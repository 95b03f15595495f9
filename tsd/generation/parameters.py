"""From what a series is meant to be to the sizes that make it likely: wishes and curves in, parameters out.

All sizes are in value units of a series on 0–99. What a series then is, is measured on its integers.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from tsd.recipe import SeriesConfig
from tsd.series.processes import Array
from tsd.series.truth import TOP, end_window, polynomials

Floats = npt.NDArray[np.float64]
SIGNS = np.array([1.0, -1.0, 0.0])  # of an increasing, a decreasing and a flat series
HIGH = 2  # the index of high noise
COARSE = 16  # points by which a curve is sized up
FLAT_TAU = (-0.4, 0.5)  # part of the logarithmic range of tau that flat series are drawn from
LOG_TAU, GRID = (-7.0, 1.5), 100  # where the stationary factors are tabulated
OWN_FILL = (0.7, 1.0)  # share of what noise leaves of its own range that a drift fills
LEAST_SHOCKS = 0.3  # share of the wanted residual that shocks make at the least


@dataclass(frozen=True)
class Wishes:
    """What each series is meant to be, (batch,) each."""

    trend: npt.NDArray[np.intp]  # index into increasing, decreasing, flat
    noise: npt.NDArray[np.intp]  # index into low, medium, high
    own_range: npt.NDArray[np.bool_]  # mapped onto 0–99 by its own minimum and maximum
    swings: npt.NDArray[np.bool_]  # its curve comes on top of a linear drift


def design(config: SeriesConfig, rng: np.random.Generator, wishes: Wishes, curve: Array) -> dict[str, Floats]:
    """Choose the sizes of each series: level, drift, swing, sigma and tau, (batch,) each.

    curve: (length, batch). The mean is level + drift · (t − ½) + swing · curve, t from 0 to 1, where the
    process swings; level + drift · curve where it does not. tau is in points.
    """
    shape = _size_up(curve)
    noise = _noise(config, rng, wishes, shape.constant, len(curve))
    span = noise.path_range * noise.wanted / noise.per_sigma  # of what wanders around the mean
    drift, swing = _mean(config, rng, wishes, shape, noise, np.maximum(TOP - span, 0.0))
    # The curve's own residual counts as noise: the shocks make the rest of what was wanted.
    size = np.where(wishes.swings, swing, drift)
    rest = np.maximum(noise.wanted**2 - (shape.residual * size) ** 2, (LEAST_SHOCKS * noise.wanted) ** 2)
    mean = shape.curve * size + shape.line * np.where(wishes.swings, drift, 0.0)
    low, high = mean.min(axis=0), mean.max(axis=0)
    free = np.clip((TOP - (high - low) - span) / 2, 0.0, config.off_centre)
    return {
        "level": TOP / 2 - (low + high) / 2 + free * rng.uniform(-1, 1, len(free)),
        "drift": drift,
        "swing": swing,
        "sigma": np.sqrt(rest) / noise.per_sigma,
        "tau": noise.tau,
    }


@dataclass(frozen=True)
class Noise:
    """The residual that is wanted of each series and what wanders to make it, (batch,) each."""

    wanted: Floats  # root mean square of the residual of a cubic fit, in value units
    most: Floats  # the most of it that the class allows
    tau: Floats  # points
    per_sigma: Floats  # residual of a path of unit variance
    per_spread: Floats  # standard deviation of the difference between the means of its two ends
    path_range: Floats  # its maximum minus its minimum


def _noise(
    config: SeriesConfig,
    rng: np.random.Generator,
    wishes: Wishes,
    constant: npt.NDArray[np.bool_],
    length: int,
) -> Noise:
    batch, flat = len(wishes.trend), SIGNS[wishes.trend] == 0
    # Where nothing but shocks can fill a series' own range, they are what high noise is made of.
    still = wishes.own_range & ~wishes.swings & (flat | constant)
    noise = np.where(still, HIGH, wishes.noise)
    wanted = np.exp(_between(np.log(config.noise_rms), noise, rng.random(batch)))
    # The faster the reversion, the less the ends of a flat series drift apart. What swings may be as fast as
    # any: its extrema lie where the swing has them, not where the path wanders.
    speed = rng.random(batch)
    speed = np.where(flat, FLAT_TAU[0] + speed * (FLAT_TAU[1] - FLAT_TAU[0]), speed)
    fastest = np.min(config.tau)
    spans = np.log([*config.tau, *((fastest, slowest) for _, slowest in config.tau)])
    log_share = _between(spans, noise + len(config.tau) * wishes.swings, speed)
    tau = np.exp(log_share) * length
    per_sigma, per_spread = _expected(log_share, length)
    # As far as normals of so many independent points reach (2 √(2 ln n)): within a tenth of what paths do.
    path_range = 2 * np.sqrt(2 * np.log1p(length / (2 * tau + 1)))
    # Only a swing can fill the range of a flat series, and where more noise was wished for it may as well.
    fills = wishes.own_range & (flat | (noise > 0))
    most = np.where(fills, config.noise_rms[HIGH][1], wanted)
    return Noise(wanted, most, tau, per_sigma, per_spread, path_range)


def _mean(
    config: SeriesConfig, rng: np.random.Generator, wishes: Wishes, shape: "Shape", noise: Noise, room: Floats
) -> tuple[Floats, Floats]:
    """The sizes of drift and swing, (batch,) each; room: what the noise leaves of 0–99."""
    batch, own, sign = len(room), wishes.own_range, SIGNS[wishes.trend]
    # Drift is measured against how far the noise alone moves the two ends apart.
    spread = noise.wanted / noise.per_sigma * noise.per_spread
    drawn = rng.uniform(*config.drift, batch) + config.drift_per_spread * spread
    rise = sign * np.where(own, room * rng.uniform(*config.own_drift, batch), drawn)
    # A curve that no cubic fits is part of the noise, and no larger than the noise may be.
    energy = rng.uniform(*config.swing_share, batch)
    most = noise.most * np.sqrt(energy) / np.maximum(shape.residual, 1e-6)
    height = np.where(own, room - np.abs(rise) / 2, np.minimum(room, rng.uniform(*config.swing, batch)))
    swing = np.minimum(height / shape.height, most)
    rise = np.where(own, sign * np.maximum(np.abs(rise), room - swing * shape.height), rise)
    carried = np.where(own, room * rng.uniform(*OWN_FILL, batch), drawn) / shape.height
    carried = np.where(shape.constant, 0.0, sign * np.minimum(carried, most))
    # Where there is a swing, the drift makes up for what its two ends differ by.
    drift = np.where(wishes.swings, (rise - swing * shape.rise) / shape.line_rise, carried)
    return drift, np.where(wishes.swings, swing, 0.0)


@dataclass(frozen=True)
class Shape:
    """What matters of curves for their size; (batch,) each but for the curves."""

    curve: Array  # (COARSE, batch)
    line: Array  # (COARSE, 1)
    residual: Array  # root mean square of the residual of a cubic fit
    rise: Array  # difference of the means of the two ends
    height: Array  # maximum minus minimum, 1 for a constant
    constant: npt.NDArray[np.bool_]
    line_rise: float


def _size_up(curve: Array) -> Shape:
    # Plain sums, not matrix products: those may add in another order on more threads.
    at = np.linspace(0, len(curve) - 1, COARSE).astype(int)
    coarse = curve[at]
    weights, norms = polynomials(COARSE)
    basis = (weights / np.sqrt(norms)).astype(np.float32)
    explained = (np.einsum("lk,lb->kb", basis, coarse) ** 2).sum(axis=0)
    window = end_window(len(curve))
    line = np.linspace(-0.5, 0.5, COARSE, dtype=np.float32)[:, None]
    height = coarse.max(axis=0) - coarse.min(axis=0)
    return Shape(
        coarse,
        line,
        np.sqrt(np.maximum(np.einsum("lb,lb->b", coarse, coarse) - explained, 0.0) / COARSE),
        (curve[-window:].sum(axis=0) - curve[:window].sum(axis=0)) / window,
        np.where(height > 0, height, 1.0),
        height == 0,
        (len(curve) - window) / (len(curve) - 1),
    )


def _expected(log_tau: Floats, length: int) -> tuple[Floats, Floats]:
    """The stationary factors at the logarithm of tau as a share of the length, (batch,) each."""
    place = (np.clip(log_tau, *LOG_TAU) - LOG_TAU[0]) * ((GRID - 1) / (LOG_TAU[1] - LOG_TAU[0]))
    below = np.minimum(place.astype(np.intp), GRID - 2)
    residual, difference = (
        factor[below] + (place - below) * (factor[below + 1] - factor[below])
        for factor in stationary_factors(length)
    )
    return residual, difference


@cache  # there are under a thousand lengths
def stationary_factors(length: int) -> tuple[Floats, Floats]:
    """How a unit-variance OU path measures, in expectation, as a function of tau.

    Returns, for GRID values of tau whose logarithms lie evenly within LOG_TAU, the root mean square of the
    residual of a cubic fit and the standard deviation of the difference between the means of the two ends.
    With covariance S_ij = exp(−|i−j|/tau) and the cubic projector P: tr((I − P) S) / length, and wᵀ S w; both
    are sums over lags of exp(−lag/tau) times how much of P, or of w wᵀ, lies at that lag.
    """
    tau = np.exp(np.linspace(*LOG_TAU, GRID)) * length
    weights, norms = polynomials(length)
    ends, window = np.zeros(length), end_window(length)
    ends[:window] = -1 / window
    ends[-window:] = 1 / window
    covariance = np.exp(-np.arange(length) / tau[:, None])  # (GRID, lag)
    explained = sum((covariance * _lags(column)).sum(axis=1) for column in (weights / np.sqrt(norms)).T)
    difference = (covariance * _lags(ends)).sum(axis=1)
    return np.sqrt(1 - explained / length), np.sqrt(difference)


def _lags(weights: Floats) -> Floats:
    """The sums of w_i w_j over |i − j| = lag, for every lag, (length,)."""
    lags = np.correlate(weights, weights, "full")[len(weights) - 1 :]
    lags[1:] *= 2
    return lags


def _between(spans: Floats, which: npt.NDArray[np.intp], share: Floats) -> Floats:
    """The point that lies a share of the way through the span of each row; spans: (spans, 2)."""
    lows, widths = spans[:, 0], spans[:, 1] - spans[:, 0]
    between: Floats = lows[which] + widths[which] * share
    return between
