"""From what a series is meant to be to the sizes that make it likely: wishes and curves in, parameters out.

All sizes are in value units of a series on 0–99. What a series then is, is measured on its integers.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from tsd.recipe import SeriesConfig
from tsd.series.processes import Array
from tsd.series.truth import TOP, end_window, polynomials

Floats = npt.NDArray[np.float64]
SIGNS = np.array([1.0, -1.0, 0.0])  # of an increasing, a decreasing and a flat series
COARSE = 16  # points by which a curve is sized up
FLAT_TAU = (-0.4, 0.5)  # of the logarithmic range of tau, where flat series are drawn from
SMALLEST = 0.3  # share of the wanted residual that shocks make at the least


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
    length, batch = curve.shape
    own = wishes.own_range
    sign = SIGNS[wishes.trend]
    shape = _size_up(curve)
    still = ~wishes.swings & ((sign == 0) | shape.constant)
    # Where nothing but shocks can fill a series' own range, they are what high noise is made of.
    noise = np.where(own & still, 2, wishes.noise)
    wanted = _log_uniform(np.array(config.noise_rms)[noise], rng.random(batch))
    # The faster the reversion, the less the ends of a flat series drift apart. What swings may be as fast as
    # any: its extrema lie where the swing has them, not where the path wanders.
    bounds = np.array(config.tau)[noise]
    bounds[wishes.swings, 0] = np.min(config.tau)
    slow = rng.random(batch)
    tau = _log_uniform(bounds, np.where(sign == 0, np.interp(slow, (0, 1), FLAT_TAU), slow)) * length
    grid, residual, ends = stationary_factors(length)
    per_sigma = np.interp(tau, grid, residual)
    sigma = wanted / per_sigma
    reach = path_range(tau, length)
    room = np.maximum(TOP - reach * sigma, 0.0)  # what an own range leaves for the mean
    # Drift is measured against how far the noise alone moves the two ends apart.
    small = rng.uniform(*config.drift, batch) + config.drift_per_spread * sigma * np.interp(tau, grid, ends)
    rise = sign * np.where(own, room * rng.uniform(*config.own_drift, batch), small)
    # A curve that no cubic fits counts as noise: it takes a share of the residual that was wanted, and where a
    # series fills its range, as much as high noise has.
    energy = rng.uniform(*config.swing_share, batch)
    most = np.where(own, config.noise_rms[2][1], wanted) * np.sqrt(energy)
    height = np.where(own, room - np.abs(rise) / 2, np.minimum(room, rng.uniform(*config.swing, batch)))
    limit = most / np.maximum(shape.residual, 1e-6)
    swing = np.where(wishes.swings, np.minimum(height / shape.height, limit), 0.0)
    carried = np.minimum(np.where(own, np.abs(sign) * room * rng.uniform(0.6, 1, batch), np.abs(rise)) / shape.height, limit)
    drift = np.where(
        wishes.swings, (rise - swing * shape.rise) / shape.line_rise, sign * carried
    )
    curved = shape.residual * np.where(wishes.swings, swing, carried)
    sigma = np.sqrt(np.maximum(wanted**2 - curved**2, (SMALLEST * wanted) ** 2)) / per_sigma
    coarse = shape.curve * np.where(wishes.swings, swing, drift)
    coarse += shape.line * np.where(wishes.swings, drift, 0)
    low, high = coarse.min(axis=0), coarse.max(axis=0)
    margin = np.minimum((high - low + reach * sigma) / 2, TOP / 2)
    free = np.minimum(TOP / 2 - margin, config.off_centre)
    level = TOP / 2 - (low + high) / 2 + free * rng.uniform(-1, 1, batch)
    return {"level": level, "drift": drift, "swing": swing, "sigma": sigma, "tau": tau}


@dataclass(frozen=True)
class Shape:
    """What matters of curves for their size; (batch,) each but for the curves."""

    curve: Floats  # (COARSE, batch)
    line: Floats  # (COARSE, 1)
    residual: Floats  # root mean square of the residual of a cubic fit
    rise: Floats  # difference of the means of the two ends
    height: Floats  # maximum minus minimum, 1 for a constant
    constant: npt.NDArray[np.bool_]
    line_rise: float


def _size_up(curve: Array) -> Shape:
    # Plain sums, not matrix products: those may add in another order on more threads.
    at = np.linspace(0, len(curve) - 1, COARSE).astype(int)
    coarse = curve[at].astype(np.float64)
    weights, norms = polynomials(COARSE)
    explained = np.einsum("kb,k->b", np.einsum("lk,lb->kb", weights, coarse) ** 2, 1 / norms)
    window = end_window(len(curve))
    line = np.linspace(-0.5, 0.5, COARSE)[:, None]
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


@lru_cache(maxsize=64)
def stationary_factors(length: int) -> tuple[Floats, Floats, Floats]:
    """How a unit-variance OU path measures, in expectation, as a function of tau.

    Returns a grid of tau in points, the root mean square of the residual of a cubic fit, and the standard
    deviation of the difference between the means of the two ends; (grid,) each. With covariance
    S_ij = exp(−|i−j|/tau) and the cubic projector P: tr((I − P) S) / length, and wᵀ S w; both are sums over
    lags of exp(−lag/tau) times how much of P, or of w wᵀ, lies at that lag.
    """
    grid = np.geomspace(0.001, 4.0, 80) * length
    weights, norms = polynomials(length)
    ends, window = np.zeros(length), end_window(length)
    ends[:window] = -1 / window
    ends[-window:] = 1 / window
    covariance = np.exp(-np.arange(length) / grid[:, None])  # (grid, lag)
    explained = sum((covariance * _lags(column)).sum(axis=1) for column in (weights / np.sqrt(norms)).T)
    difference = (covariance * _lags(ends)).sum(axis=1)
    return grid, np.sqrt(1 - explained / length), np.sqrt(difference)


def _lags(weights: Floats) -> Floats:
    """The sums of w_i w_j over |i − j| = lag, for every lag, (length,)."""
    lags = np.correlate(weights, weights, "full")[len(weights) - 1 :]
    lags[1:] *= 2
    return lags


def path_range(tau: Floats, length: int) -> Floats:
    """About how far the maximum of a unit-variance OU path lies above its minimum: a fit to simulated paths."""
    return 2 * np.sqrt(2 * np.log1p(length / (2 * tau + 1)))


def _log_uniform(bounds: Floats, uniform: Floats) -> Floats:
    """bounds: (batch, 2), both positive."""
    drawn: Floats = bounds[:, 0] * (bounds[:, 1] / bounds[:, 0]) ** uniform
    return drawn
