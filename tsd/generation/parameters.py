"""Parameter solving: choose process parameters that make a series' target classes likely.

Sizes are in value units of a series on 0–99. The actual classes are measured on the integers afterwards.
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
LOW, HIGH = 0, 2  # indices of low and of high noise
COARSE = 16  # points at which a curve is evaluated for its size
FLAT_TAU = (-0.4, 0.5)  # part of the range of log tau used for flat series
LOG_TAU, GRID = (-7.0, 1.5), 100  # range of log(tau / length) and number of the tabulated stationary factors
OWN_FILL = (0.7, 1.0)  # fraction of the range left by noise that a drift fills, with min-max scaling
LEAST_SHOCKS = 0.3  # least fraction of the target residual that shocks contribute


@dataclass(frozen=True)
class Targets:
    """Targets of each series, (batch,) each."""

    trend: npt.NDArray[np.intp]  # index into increasing, decreasing, flat
    noise: npt.NDArray[np.intp]  # index into low, medium, high
    own_range: npt.NDArray[np.bool_]  # min-max scaled to 0–99, rather than on the common scale
    swings: npt.NDArray[np.bool_]  # the curve is added to a linear drift
    room: Floats  # value units for drift and swing; less than all where structure is added beside them


def design(config: SeriesConfig, rng: np.random.Generator, targets: Targets, curve: Array) -> dict[str, Floats]:
    """Solve for the parameters of each series: level, drift, swing, sigma and tau, (batch,) each.

    curve: (length, batch). With t from 0 to 1, the mean is level + drift · (t − ½) + swing · curve if the process
    swings, else level + drift · curve. tau is in points, the others in value units.
    """
    shape = size_up(curve)
    noise = _noise(config, rng, targets, shape.constant, len(curve))
    span = noise.path_range * noise.wanted / noise.per_sigma  # range of the path around the mean
    drift, swing = _mean(config, rng, targets, shape, noise, np.maximum(TOP - span, 0.0))
    # The curve's own residual counts as noise, so the shocks contribute only the rest of the target.
    size = np.where(targets.swings, swing, drift)
    rest = np.maximum(noise.wanted**2 - (shape.residual * size) ** 2, (LEAST_SHOCKS * noise.wanted) ** 2)
    mean = shape.curve * size + shape.line * np.where(targets.swings, drift, 0.0)
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
    """Target residual of each series and properties of its Ornstein-Uhlenbeck path, (batch,) each."""

    wanted: Floats  # target RMS of the residual of a cubic fit, in value units
    most: Floats  # largest RMS that the class allows
    tau: Floats  # mean-reversion time in points
    per_sigma: Floats  # RMS residual of a unit-variance path
    per_spread: Floats  # standard deviation of the difference between the means of its two ends
    path_range: Floats  # maximum minus minimum of a unit-variance path


def _noise(
    config: SeriesConfig,
    rng: np.random.Generator,
    targets: Targets,
    constant: npt.NDArray[np.bool_],
    length: int,
) -> Noise:
    """Choose the target residual and the mean-reversion time of each series.

    constant: (batch,) whether the mean curve is constant. length: points.
    """
    batch, flat = len(targets.trend), SIGNS[targets.trend] == 0
    # With min-max scaling, a series without drift or swing has nothing but shocks, which makes its noise high.
    still = targets.own_range & ~targets.swings & (flat | constant)
    noise = np.where(still, HIGH, targets.noise)
    wanted = np.exp(between(np.log(config.noise_rms), noise, rng.random(batch)))
    # Fast reversion keeps the ends of a flat series together. Processes that swing may revert as fast as any,
    # since the swing determines their extrema.
    speed = rng.random(batch)
    speed = np.where(flat, FLAT_TAU[0] + speed * (FLAT_TAU[1] - FLAT_TAU[0]), speed)
    fastest = np.min(config.tau)
    spans = np.log([*config.tau, *((fastest, slowest) for _, slowest in config.tau)])
    log_share = between(spans, noise + len(config.tau) * targets.swings, speed)
    tau = np.exp(log_share) * length
    per_sigma, per_spread = _expected(log_share, length)
    # Approximate range of a normal path: 2 √(2 ln n) for n independent points.
    path_range = 2 * np.sqrt(2 * np.log1p(length / (2 * tau + 1)))
    # With min-max scaling, only a swing can fill the range of a flat series, and it may where the noise target is
    # above low.
    fills = targets.own_range & (flat | (noise > 0))
    most = np.where(fills, config.noise_rms[HIGH][1], wanted)
    return Noise(wanted, most, tau, per_sigma, per_spread, path_range)


def _mean(
    config: SeriesConfig, rng: np.random.Generator, targets: Targets, shape: "Shape", noise: Noise, room: Floats
) -> tuple[Floats, Floats]:
    """Sizes of drift and swing, (batch,) each, in value units. room: (batch,) range left by the noise."""
    batch, own, sign = len(room), targets.own_range, SIGNS[targets.trend]
    # The drift grows with how far the noise alone moves the two ends apart.
    spread = noise.wanted / noise.per_sigma * noise.per_spread
    drawn = rng.uniform(*config.drift, batch) + config.drift_per_spread * spread
    rise = sign * np.where(own, room * rng.uniform(*config.own_drift, batch), drawn)
    # The part of a curve that a cubic fit does not explain counts as noise, so the noise class limits it.
    energy = rng.uniform(*config.swing_share, batch)
    most = noise.most * np.sqrt(energy) / np.maximum(shape.residual, 1e-6)
    height = np.where(own, room - np.abs(rise) / 2, np.minimum(room, rng.uniform(*config.swing, batch)))
    swing = np.minimum(height / shape.height, most)
    rise = np.where(own, sign * np.maximum(np.abs(rise), room - swing * shape.height), rise)
    carried = np.where(own, room * rng.uniform(*OWN_FILL, batch), drawn) / shape.height
    carried = np.where(shape.constant, 0.0, sign * np.minimum(carried, most))
    # With a swing, the drift compensates for the difference between the swing's two ends.
    drift = np.where(targets.swings, (rise - swing * shape.rise) / shape.line_rise, carried)
    return drift, np.where(targets.swings, swing, 0.0)


@dataclass(frozen=True)
class Shape:
    """Properties of mean curves that determine their scale, (batch,) each except for the curves."""

    curve: Array  # (COARSE, batch)
    line: Array  # (COARSE, 1)
    residual: Array  # RMS residual of a cubic fit
    rise: Array  # difference of the means of the two ends
    height: Array  # maximum minus minimum, 1 for a constant
    constant: npt.NDArray[np.bool_]
    line_rise: float


def size_up(curve: Array) -> Shape:
    """Measure mean curves, (length, batch), on COARSE of their points."""
    # Sums rather than matrix products, whose order of summation depends on the number of threads.
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
    """The stationary factors, interpolated at log(tau / length), (batch,) each."""
    residual, difference = (at_log_tau(log_tau, factor) for factor in stationary_factors(length))
    return residual, difference


def at_log_tau(log_tau: Floats, factor: Floats) -> Floats:
    """A factor, (GRID,) over LOG_TAU, interpolated at log(tau / length), (batch,)."""
    place = (np.clip(log_tau, *LOG_TAU) - LOG_TAU[0]) * ((GRID - 1) / (LOG_TAU[1] - LOG_TAU[0]))
    below = np.minimum(place.astype(np.intp), GRID - 2)
    found: Floats = factor[below] + (place - below) * (factor[below + 1] - factor[below])
    return found


@cache  # fewer than a thousand lengths
def stationary_factors(length: int) -> tuple[Floats, Floats]:
    """Expected measures of a unit-variance OU path as a function of tau.

    Returns (GRID,) RMS residuals of a cubic fit and (GRID,) standard deviations of the difference between the
    means of the two ends, for values of log(tau / length) evenly spaced over LOG_TAU.

    With covariance S_ij = exp(−|i−j|/tau) and the cubic projector P these are √(tr((I − P) S) / length) and √(wᵀ S
    w). Both are sums over lags of exp(−lag/tau) times the sum of P, or of w wᵀ, at that lag.
    """
    tau = np.exp(np.linspace(*LOG_TAU, GRID)) * length
    weights, norms = polynomials(length)
    ends, window = np.zeros(length), end_window(length)
    ends[:window] = -1 / window
    ends[-window:] = 1 / window
    covariance = np.exp(-np.arange(length) / tau[:, None])  # (GRID, lags)
    explained = sum((covariance * autocorrelation(column)).sum(axis=1) for column in (weights / np.sqrt(norms)).T)
    difference = (covariance * autocorrelation(ends)).sum(axis=1)
    return np.sqrt(1 - explained / length), np.sqrt(difference)


def autocorrelation(weights: Floats) -> Floats:
    """Autocorrelation sums: Σ w_i w_j over |i − j| = lag for every lag, (length,)."""
    lags = np.correlate(weights, weights, "full")[len(weights) - 1 :]
    lags[1:] *= 2
    return lags


def between(spans: Floats, which: npt.NDArray[np.intp], share: Floats) -> Floats:
    """Interpolate within one span per row. spans: (spans, 2); which: (batch,) index; share: (batch,) 0–1."""
    lows, widths = spans[:, 0], spans[:, 1] - spans[:, 0]
    between: Floats = lows[which] + widths[which] * share
    return between
