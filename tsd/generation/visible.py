"""Parameter solving for the robust truth: drifts that a reader sees, noise as what is left around all structure.

Sizes are in value units of a series on 0–99. The actual classes are measured on the integers afterwards.
"""

from functools import cache

import numpy as np
import numpy.typing as npt

from tsd.generation.parameters import (
    GRID,
    HIGH,
    LOG_TAU,
    LOW,
    OWN_FILL,
    SIGNS,
    Floats,
    Shape,
    Targets,
    at_log_tau,
    autocorrelation,
    between,
    size_up,
)
from tsd.recipe import SeriesConfig
from tsd.series.processes import Array
from tsd.series.robust import noise
from tsd.series.truth import TOP

HALF = 0.5  # of a swing's height, by which it widens the range of a series that drifts
USUAL = 128  # points; of longer series, high noise reverts faster, so that it still fits the range
FASTER = 1.5  # power of the length by which it does
# Part of the range of log tau used for flat series. A path that reverts within a few tenths of the series has
# extrema at its ends without a slope between them.
FLAT_TAU = (-1.2, 0.2)
FAST = (-0.4, 0.4)  # that for noisy series that drift
CLEAN, LITTLE = 0.15, 0.05  # share of the series of low noise that have only a little of it: rounded, none
FASTEST = (-1.0, 0.1)  # that for series of high noise: the longer the memory, the wider the range of as much noise


def design(config: SeriesConfig, rng: np.random.Generator, targets: Targets, curve: Array) -> dict[str, Floats]:
    """Solve for the parameters of each series: level, drift, swing, sigma and tau, (batch,) each.

    As `tsd.generation.parameters.design`, whose arguments it takes.
    """
    length, batch = len(curve), len(targets.trend)
    shape, own = size_up(curve), targets.own_range
    # Without a curve only the path could have a trend, and one that wanders is seldom clear.
    sign = np.where(shape.constant, 0.0, SIGNS[targets.trend])
    still = ~targets.swings & ((sign == 0) | shape.constant) & (targets.room == TOP)  # nothing but the path moves
    level = np.where(own & still, HIGH, targets.noise)
    wanted = np.exp(between(np.log(config.noise_rms), level, rng.random(batch)))
    wanted[(level == LOW) & ~still & (rng.random(batch) < CLEAN)] *= LITTLE
    part = np.abs(sign) * rng.uniform(*config.own_drift, batch)  # of the range, that the drift covers
    log_share = _log_tau(config, rng, level, sign == 0, length)
    tau = np.exp(log_share) * length
    # Approximate range of a normal path: 2 √(2 ln n) for n independent points, which white noise stays below.
    memory = 2 * tau + 1
    per_sigma = 2 * np.sqrt(2 * np.log1p(length / memory)) - 1 / memory
    sigma = np.minimum(wanted / at_log_tau(log_share, roughness(length)), TOP * (1 - part) / per_sigma)
    span = per_sigma * sigma
    drift, swing = _structure(config, rng, targets, shape, sign, span, part)
    mean = shape.curve * np.where(targets.swings, swing, drift) + shape.line * np.where(targets.swings, drift, 0.0)
    low, high = mean.min(axis=0), mean.max(axis=0)
    free = np.clip((TOP - (high - low) - span) / 2, 0.0, config.off_centre)
    return {
        "level": TOP / 2 - (low + high) / 2 + free * rng.uniform(-1, 1, batch),
        "drift": drift,
        "swing": swing,
        "sigma": sigma,
        "tau": tau,
    }


def _log_tau(
    config: SeriesConfig,
    rng: np.random.Generator,
    level: npt.NDArray[np.intp],
    flat: npt.NDArray[np.bool_],
    length: int,
) -> Floats:
    """The logarithm of the mean-reversion time by the length, (batch,).

    level: (batch,) of the noise. flat: (batch,) series revert faster, so that the path does not wander.
    """
    fraction = rng.random(len(level))
    speed = np.where(flat, FLAT_TAU[0] + fraction * (FLAT_TAU[1] - FLAT_TAU[0]), fraction)
    speed = np.where(~flat & (level > 0), FAST[0] + fraction * (FAST[1] - FAST[0]), speed)
    speed = np.where(level == HIGH, FASTEST[0] + fraction * (FASTEST[1] - FASTEST[0]), speed)
    longer = max(0.0, np.log(length / USUAL))
    return between(np.log(config.tau), level, speed) - np.where(level == HIGH, FASTER * longer, 0.0)


def _structure(
    config: SeriesConfig,
    rng: np.random.Generator,
    targets: Targets,
    shape: Shape,
    sign: Floats,
    span: Floats,
    part: Floats,
) -> tuple[Floats, Floats]:
    """Sizes of drift and swing, (batch,) each, in value units.

    span: (batch,) range of the path around the mean. part: (batch,) of the series' range, that the drift covers.
    """
    batch, own = len(span), targets.own_range
    room = np.maximum(targets.room - span, 0.0)
    height = np.where(own, room, np.minimum(room, rng.uniform(*config.swing, batch)))
    height = np.where(targets.swings, height, 0.0)
    beside = span + HALF * height
    # A swing that fills the range widens it by HALF of the drift.
    filling = TOP * part / (1 - HALF * part)
    rise = np.where(own, filling, np.maximum(part / (1 - part) * beside, rng.uniform(*config.drift, batch)))
    rise = np.abs(sign) * np.minimum(rise, room)
    height = np.minimum(height, room - HALF * rise)
    swing = height / shape.height
    filled = np.where(own, np.maximum(room * rng.uniform(*OWN_FILL, batch), TOP * part), rise) / shape.height
    # With a swing, the drift compensates for the difference between the swing's two ends.
    drift = np.where(
        targets.swings,
        (sign * rise - swing * shape.rise) / shape.line_rise,
        np.where(shape.constant, 0.0, sign * filled),
    )
    return drift, np.where(targets.swings, swing, 0.0)


def noise_of(sigma: Floats, tau: Floats, length: int) -> Floats:
    """Expected noise of OU paths in value units, (batch,), see `roughness`. tau: (batch,) in points."""
    found: Floats = sigma * at_log_tau(np.log(tau / length), roughness(length))
    return found


@cache  # fewer than a thousand lengths
def roughness(length: int) -> Floats:
    """Expected noise of a unit-variance OU path, (GRID,), for values of log(tau / length) evenly over LOG_TAU.

    That is its standard deviation around a local quadratic, see `tsd.series.robust.noise`: the root of the
    filter's autocorrelation sums times exp(−lag / tau). What waves take off is left out.
    """
    tau = np.exp(np.linspace(*LOG_TAU, GRID)) * length
    lags = autocorrelation(noise.weights(length))
    found: Floats = np.sqrt((np.exp(-np.arange(len(lags)) / tau[:, None]) * lags).sum(axis=1))
    return found
