"""Structure that is added to series of any process: seasons, shifts, spikes and dips, volatility, reversion.

In: wanted classes of each series, and its path around its mean. Out: points with the structure, in value units.
The actual classes are measured on the integers afterwards. Random numbers come from the block's generator.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tsd.generation.parameters import HIGH, Floats, Targets
from tsd.generation.reversion import AS_DESIGNED, FAST, retimed
from tsd.generation.visible import noise_of
from tsd.series.processes import Array
from tsd.series.truth import TOP, Places

SHARES = {  # of candidates, by class; a process may have some structure of its own, and noise hides some
    "season": (0.28, 0.36, 0.36),  # none, weak, strong
    "shift": (0.08, 0.46, 0.46),  # none, up, down
    "outlier": (0.04, 0.48, 0.48),  # none, spike, dip
    "volatility": (0.08, 0.46, 0.46),  # steady, growing, shrinking
    "reversion": (0.0, 0.40, 0.60),  # as designed, fast, slow
}
NONE, WEAK, UP, SPIKE = 0, 1, 1, 1
STEADY, GROWING, SHRINKING = 0, 1, 2
ABRUPT = ("piecewise", "switching", "shift")  # processes whose bends and jumps hide a further shift
FLAT = 2  # index of a trend

CYCLES, POINTS_A_CYCLE = (3.0, 16.0), 8  # log-uniform between; the shortest cycle in points
WEAK_SHARE, STRONG_SHARE = (
    (0.32, 0.45),
    (0.57, 0.68),
)  # of the variance around the line; a strong one may have more
LEAST_HEIGHT = 6.0  # value units of a season, from trough to crest
SHIFT_AT = (0.14, 0.86)  # fraction of the series
LEAST_SHIFT = 8.0  # standard errors of the difference between the levels
LEAST_STEP = 3.5  # standard deviations of the path
LEAST_PART = 0.27  # of the series' range, that a shift or an outlier has
LEAST_OUTLIER = 6.5  # standard deviations of the noise; more where the noise is louder in places
LOUDER, LEAST_LOUDER = (2.4, 4.5), 2.0  # ratio of standard deviations
USUAL = 128  # points for which these are
LOUDEST = 30.0  # value units of noise in the louder stretch, unless the ratio would be less than the least
LEAST_LOUD, LEAST_QUIET = 2.7, 0.8  # value units of noise in the louder stretch, and anywhere if there is one
FILL = (0.2, 0.8)  # part of the free range that structure takes on the common scale
BODY, BESIDE_SHIFT = 0.55, 0.25  # of the range for drift and swing, if anything is added beside, or a shift is
LONE, STILL, WEAKER, NERVOUS = (
    0.73,
    0.3,
    0.75,
    0.8,
)  # fractions of series of high noise that get no outlier, steady noise, at most a weak season, fast reversion
ALONG = 0.12  # fraction of series with a shift that drift in its direction as well


@dataclass(frozen=True)
class Added:
    """Wanted classes of each series, (batch,) each: indices into the classes of the facets, but for reversion."""

    season: npt.NDArray[np.intp]
    shift: npt.NDArray[np.intp]
    outlier: npt.NDArray[np.intp]
    volatility: npt.NDArray[np.intp]
    reversion: npt.NDArray[np.intp]

    def rows(self, these: npt.NDArray[np.intp]) -> "Added":
        """Those of some series."""
        return Added(**{name: column[these] for name, column in vars(self).items()})


def draw(uniform: Mapping[str, Floats], count: int) -> Added:
    """Wanted classes with the shares of candidates that `SHARES` gives; none of kinds that are not named.

    uniform: (count,) numbers in 0–1 for each kind of structure.
    """
    found = {kind: np.zeros(count, np.intp) for kind in SHARES}
    for kind, numbers in uniform.items():
        found[kind] = np.searchsorted(np.cumsum(SHARES[kind])[:-1], numbers, side="right")
    return Added(**found)


def fitted(
    added: Added, rng: np.random.Generator, targets: Targets, names: npt.NDArray[np.str_]
) -> tuple[Added, Targets]:
    """Wanted classes and targets that one series can have together.

    names: (batch,) of processes. A series whose process jumps or bends gets no shift. One with a shift drifts in
    its direction or not at all, since a shift is a trend as well. High noise fills the range: it leaves little
    room for outliers, louder stretches, large seasons and slow paths.
    """
    along, lone, still, weaker, nervous = rng.random((5, len(names)))
    full = targets.noise == HIGH
    outlier = np.where(full & (lone < LONE), NONE, added.outlier)
    volatility = np.where(full & (still < STILL), STEADY, added.volatility)
    season = np.where(full & (weaker < WEAKER), np.minimum(added.season, WEAK), added.season)
    asked = added.reversion > AS_DESIGNED
    reversion = np.where(full & asked & (nervous < NERVOUS), FAST, added.reversion)
    shift = np.where(np.isin(names, ABRUPT), NONE, added.shift)
    trend = np.where(shift > NONE, np.where(along < ALONG, shift - 1, FLAT), targets.trend)
    more = (season > WEAK) | (shift > NONE) | (outlier > NONE)
    room = TOP * np.where(shift > NONE, BESIDE_SHIFT, np.where(more, BODY, 1.0))
    return Added(season, shift, outlier, volatility, reversion), replace(targets, trend=trend, room=room)


@dataclass(frozen=True)
class Path:
    """A path around the mean curve, (batch,) each."""

    deviation: Floats  # standard deviation in value units
    loud: Floats  # noise of the loudest part in value units, see `tsd.generation.visible.roughness`
    tau: Floats  # mean-reversion time in points


def modulate(added: Added, rng: np.random.Generator, shocks: Array, time: Array, sizes: dict[str, Floats]) -> Path:
    """Make shocks louder in a part of each series that is not steady, in place.

    shocks: (length, batch). time: (length, 1) from 0 to 1. sizes: parameters by name, (batch,) each; tau becomes
    that of the wanted reversion, and sigma larger where the path would be too quiet for its changes to be seen.
    """
    kind, batch = added.volatility, len(added.volatility)
    sizes |= retimed(added.reversion, rng, sizes, len(shocks))
    noise = noise_of(sizes["sigma"], sizes["tau"], len(shocks))
    changes = kind != STEADY
    factor = np.where(changes, np.maximum(LEAST_QUIET / noise, 1.0), 1.0)
    noise = noise * factor
    more = max(1.0, np.sqrt(USUAL / len(shocks)))  # a change of fewer points is seen if it is larger
    ratio = np.maximum(more * rng.uniform(*LOUDER, batch), LEAST_LOUD / noise)
    ratio = np.minimum(ratio, np.maximum(more * LEAST_LOUDER, LOUDEST / noise))
    width = rng.uniform(0.01, 0.4, batch)
    first, last = rng.uniform(0.36, 0.68, (2, batch))
    start = np.where(kind == GROWING, first, -1.0)
    end = np.where(kind == SHRINKING, 1 - last, 2.0)
    quiet = ratio**-0.35  # so that the level of noise is about that of steady shocks
    rise, fall = ((at - width / 2) / width for at in (start, end))
    speed = (1 / width).astype(np.float32) * time  # (length, batch)
    profile = np.clip(speed - rise.astype(np.float32), np.float32(0), np.float32(1))
    profile -= np.clip(speed - fall.astype(np.float32), np.float32(0), np.float32(1))
    profile *= np.where(changes, quiet * (ratio - 1), 0.0).astype(np.float32)
    profile += np.where(changes, quiet, 1.0).astype(np.float32)
    shocks *= profile
    sizes["sigma"] = sizes["sigma"] * factor
    loud = noise * np.where(changes, quiet * ratio, 1.0)
    return Path(sizes["sigma"], loud, sizes["tau"])


def add(
    added: Added,
    rng: np.random.Generator,
    points: Array,
    time: Array,
    path: Path,
    own: npt.NDArray[np.bool_],
    places: Places,
) -> None:
    """Add shifts, seasons, spikes and dips to points, (length, batch), in place.

    time: (length, 1) from 0 to 1. path: what the points have around their mean. own: (batch,) min-max scaled
    afterwards. places: between the parts of a series, in which outliers are equally frequent.
    """
    length, batch = len(points), len(own)
    extent = np.ptp(points, axis=0).astype(np.float64)
    free: Floats = np.maximum(TOP - extent, 0.0) * np.where(own, 1.0, rng.uniform(*FILL, batch))
    there = np.array([added.shift > NONE, added.season > WEAK, added.outlier > NONE])
    weights = there * rng.uniform(0.5, 1.0, there.shape)
    budget: Floats = free * weights / np.maximum(weights.sum(axis=0), 1e-6)
    at = SHIFT_AT[0] + (SHIFT_AT[1] - SHIFT_AT[0]) * rng.random(batch)
    # coth(1 / 2 tau) is (1 + ρ) / (1 − ρ), by which the memory of AR(1) noise inflates the variance of a mean
    error = path.deviation * np.sqrt(1 / np.tanh(0.5 / path.tau) / (length * at * (1 - at)))
    least = np.maximum(LEAST_SHIFT * error, LEAST_STEP * path.deviation)
    least = np.maximum(least, LEAST_PART / (1 - LEAST_PART) * (extent + budget[1] + budget[2]))
    signs = np.where(added.shift == UP, 1, -1) * (added.shift > NONE)
    rise: Floats = signs * np.maximum(budget[0], least)
    points += rise.astype(np.float32) * (time >= at.astype(np.float32))
    _add_season(added.season, rng, points, time, budget[1])
    least = np.maximum(LEAST_OUTLIER * path.loud, LEAST_PART * np.ptp(points, axis=0))
    signs = np.where(added.outlier == SPIKE, 1, -1) * (added.outlier > NONE)
    spike: Floats = signs * np.maximum(budget[2], least)
    borders = np.array([0.0, *places, 1.0])
    part = rng.integers(3, size=batch)
    place = borders[part] + rng.random(batch) * (borders[part + 1] - borders[part])
    points[np.minimum((place * length).astype(np.intp), length - 1), np.arange(batch)] += spike.astype(np.float32)


def _add_season(
    season: npt.NDArray[np.intp], rng: np.random.Generator, points: Array, time: Array, height: Floats
) -> None:
    """Add a cosine to points, (length, batch), in place, as large as its share of the variance around a line says.

    season: (batch,) wanted classes. height: (batch,) from trough to crest, the least of a strong one.
    """
    length, batch = len(points), len(season)
    centred = time - np.float32(0.5)
    mean = points.sum(axis=0) / np.float32(length)
    slope = np.einsum("lo,lb->b", centred, points) / np.float32((centred**2).sum())
    energy = np.einsum("lb,lb->b", points, points) / np.float32(length)
    variance = np.maximum(energy - mean**2 - slope**2 * np.float32((centred**2).mean()), 0.0)
    low, high = np.array([(0.0, 0.0), WEAK_SHARE, STRONG_SHARE])[season].T
    share = low + (high - low) * rng.random(batch)
    wanted = 2 * np.sqrt(2 * variance * share / (1 - share))
    size = np.where(season > WEAK, np.maximum(wanted, height), wanted)
    size = np.where(season > NONE, np.maximum(size, LEAST_HEIGHT), 0.0)
    fastest = min(CYCLES[1], length / POINTS_A_CYCLE)
    cycles = CYCLES[0] * (fastest / CYCLES[0]) ** rng.random(batch) * 2 * np.pi
    wave = time * cycles.astype(np.float32)  # (length, batch)
    wave += (rng.random(batch) * 2 * np.pi).astype(np.float32)
    np.cos(wave, out=wave)
    wave *= (size / 2).astype(np.float32)
    points += wave
