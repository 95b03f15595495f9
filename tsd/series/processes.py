"""Mean-reverting stochastic processes in numpy: the mean curve and the shocks of each series.

Arrays of points are time-major, (length, batch) float32, so that each time step is one contiguous operation over
the batch. `tsd.generation.parameters.design` chooses the scale of curves and shocks.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float32]
Own: TypeAlias = Mapping[str, Array]  # parameters of one process by name, (batch,) each
# Arguments: parameters, time (length, 1) from 0 to 1, shocks (length, batch) of unit variance, generator. Returns
# the mean curve, (length, batch) or (length, 1), of size about 1. May change the shocks in place but keeps their
# variance.
Curve: TypeAlias = Callable[[Own, Array, Array, np.random.Generator], Array]


class Span(NamedTuple):
    """Range of a uniformly distributed parameter. A recipe may set low and high within least and most."""

    low: float
    high: float
    least: float
    most: float


@dataclass(frozen=True)
class Process:
    """A kind of series: its mean curve and the ranges of the curve's parameters."""

    curve: Curve
    ranges: Mapping[str, Span] = field(default_factory=dict)
    weight: float = 1.0
    """Relative frequency, unless a recipe sets `mix`."""
    swings: bool = False
    """Whether the curve is added to a linear drift with its own scale. Otherwise the curve is the drift."""
    version: str = ""
    """Of a process that a plugin adds: part of the key of its series. Change it with the curve."""


def linear(own: Own, time: Array, shocks: Array, rng: np.random.Generator) -> Array:
    """A straight line, as in the paper (arXiv 2507.07439)."""
    return time - np.float32(0.5)


def fixed(own: Own, time: Array, shocks: Array, rng: np.random.Generator) -> Array:
    """No drift: the trend results from the path alone."""
    return np.zeros_like(time)


def saturating(own: Own, time: Array, shocks: Array, rng: np.random.Generator) -> Array:
    """Exponential saturation: 1 − exp(−t / saturation_time)."""
    rate = -1 / own["saturation_time"]
    curve = np.exp(rate * time)
    curve -= 1
    curve /= np.expm1(rate)
    curve -= np.float32(0.5)
    return curve


def piecewise(own: Own, time: Array, shocks: Array, rng: np.random.Generator) -> Array:
    """Piecewise linear with two knots, from 0 to 0."""
    first, second = own["knot_first"], own["knot_second"]
    up, down = own["bend_first"], own["bend_second"]
    slopes = (up / first, (down - up) / (second - first), -down / (1 - second))
    curve = slopes[0] * time
    curve += (slopes[1] - slopes[0]) * np.maximum(time - first, 0)
    curve += (slopes[2] - slopes[1]) * np.maximum(time - second, 0)
    return curve


def switching(own: Own, time: Array, shocks: Array, rng: np.random.Generator) -> Array:
    """Two levels with random switches at a constant rate (a telegraph process)."""
    switched = rng.random(shocks.shape, np.float32) < own["switches"] / np.float32(len(time))
    switched[0] = rng.random(shocks.shape[1], np.float32) < 0.5  # initial level
    odd = np.bitwise_xor.accumulate(switched, axis=0)
    return odd.astype(np.float32) - np.float32(0.5)


def shift(own: Own, time: Array, shocks: Array, rng: np.random.Generator) -> Array:
    """A level shift at `shift_at`."""
    return (time >= own["shift_at"]).astype(np.float32) - np.float32(0.5)


def season(own: Own, time: Array, shocks: Array, rng: np.random.Generator) -> Array:
    """A cosine. The period is a fraction of the length, the phase a fraction of the period."""
    turn = np.float32(2 * np.pi)
    curve: Array = np.cos(turn * (time / own["season_period"] - own["season_phase"])) / np.float32(2)
    return curve


def student_t(own: Own, time: Array, shocks: Array, rng: np.random.Generator) -> Array:
    """A straight line with Student's t shocks, by the polar method of Bailey (1994, eq. 3)."""
    freedom = own["tail_freedom"]
    radius = 1 - rng.random(shocks.shape, np.float32)  # in (0, 1], so that the logarithm is finite
    np.log(radius, out=radius)
    radius *= -2 / freedom
    np.exp(radius, out=radius)
    radius -= 1
    radius *= freedom - 2  # ν divided by the variance ν / (ν − 2)
    np.sqrt(radius, out=radius)
    angle = rng.random(shocks.shape, np.float32)
    angle *= np.float32(2 * np.pi)
    np.multiply(radius, np.cos(angle, out=angle), out=shocks)
    return linear(own, time, shocks, rng)


def volatile(own: Own, time: Array, shocks: Array, rng: np.random.Generator) -> Array:
    """A straight line with GARCH(1, 1) shocks of unit variance (Bollerslev 1986)."""
    reaction = own["volatility_reaction"]
    floor = 1 - own["volatility_memory"]
    # A shock is √variance · z with z standard normal, so the next variance is floor + variance · (reaction · z² +
    # memory − reaction).
    variance = np.square(shocks)
    variance *= reaction
    variance += own["volatility_memory"] - reaction
    before = np.ones_like(floor)
    for growth in variance:
        growth *= before
        growth += floor
        before = growth
    shocks[1:] *= np.sqrt(variance[:-1], out=variance[:-1])
    return linear(own, time, shocks, rng)


SCALED = ("level", "drift", "swing", "sigma")  # parameters that all processes have, in value units
PROCESSES: dict[str, Process] = {
    "linear": Process(linear),
    "fixed": Process(fixed, weight=0.5),
    "saturating": Process(saturating, {"saturation_time": Span(0.15, 0.8, 0.01, 10)}, 0.75),
    "piecewise": Process(
        piecewise,
        {
            "knot_first": Span(0.05, 0.35, 0.01, 0.49),
            "knot_second": Span(0.7, 0.96, 0.51, 0.99),
            "bend_first": Span(-0.8, 0.8, -1, 1),
            "bend_second": Span(-1, 1, -1, 1),
        },
        weight=1.5,
        swings=True,
    ),
    "switching": Process(switching, {"switches": Span(1.5, 5, 0, 100)}, swings=True),
    "shift": Process(shift, {"shift_at": Span(0.2, 0.95, 0.01, 0.99)}, 0.75),
    "season": Process(
        season,
        {"season_period": Span(0.2, 2, 0.01, 10), "season_phase": Span(0, 1, 0, 1)},
        weight=1.5,
        swings=True,
    ),
    "student_t": Process(student_t, {"tail_freedom": Span(3, 8, 2.1, 1000)}, 0.75),
    "volatile": Process(
        volatile,
        {"volatility_reaction": Span(0.1, 0.3, 0, 0.5), "volatility_memory": Span(0.85, 0.97, 0.5, 0.999)},
        0.75,
    ),
}


ADDED: dict[str, Process] = {}  # by plugins; a series can only be of those that its recipe's mix names


def add(name: str, process: Process) -> None:
    """Add a process of a plugin, so that a recipe's mix can name it.

    Raises ValueError if its name or one of its parameters is taken, or if its curve cannot be used.
    """
    if not re.fullmatch("[a-z][a-z0-9_]*", name):
        raise ValueError(f"the process {name!r} must be called by small letters, digits and _, a letter first")
    if name in PROCESSES:
        raise ValueError(f"there is a built-in process {name!r}: give yours another name")
    before = ADDED.get(name)
    owner = sys.modules.get(before.curve.__module__) if before else None  # None if that module failed to load
    if before and owner and before.curve.__module__ != process.curve.__module__:
        file = getattr(owner, "__file__", owner.__name__)
        raise ValueError(f"{file} adds a process {name!r} as well: give yours another name")
    others = {**PROCESSES, **{other: found for other, found in ADDED.items() if other != name}}
    taken = {*SCALED, "tau", *own_ranges(others)}
    if both := sorted(taken & process.ranges.keys()):
        raise ValueError(f"the process {name!r}: another one has a parameter {both[0]!r}: rename yours")
    _require_usable(name, process)
    ADDED[name] = process


def known() -> dict[str, Process]:
    """All processes, built-in and added."""
    return {**PROCESSES, **ADDED}


def added(mix: Iterable[str]) -> dict[str, Process]:
    """The processes of plugins that a mix names, in alphabetical order."""
    return {name: ADDED[name] for name in sorted(mix) if name in ADDED}


def processes_of(mix: Iterable[str]) -> dict[str, Process]:
    """The processes of which series of a mix may be: all built-in ones, and those of plugins that it names."""
    return {**PROCESSES, **added(mix)}


def own_ranges(processes: Mapping[str, Process] = PROCESSES) -> dict[str, Span]:
    """The parameters that only some processes have, with default ranges."""
    return {name: span for process in processes.values() for name, span in process.ranges.items()}


def _require_usable(name: str, process: Process) -> None:
    """Raise ValueError unless the curve of a process can be drawn from its ranges. Draws it once, at 64 points."""
    try:
        inspect.signature(process.curve).bind("own", "time", "shocks", "rng")
    except TypeError as error:
        raise ValueError(f"the process {name!r} must be a function of (own, time, shocks, rng): {error}") from None
    for key, span in process.ranges.items():
        if not span.least <= span.low <= span.high <= span.most:
            raise ValueError(f"the process {name!r}: {key} is {span}, and must be least ≤ low ≤ high ≤ most")
    rng = np.random.default_rng(0)
    own = {key: np.full(2, (span.low + span.high) / 2, np.float32) for key, span in process.ranges.items()}
    time = np.linspace(0, 1, 64, dtype=np.float32)[:, None]
    for fixed in (time, *own.values()):
        fixed.flags.writeable = False
    shocks = rng.standard_normal((64, 2), np.float32)
    if fault := fault_of(process.curve(own, time, shocks, rng), own, shocks):
        raise ValueError(f"the process {name!r} {fault}")


def fault_of(curve: object, own: Own, shocks: Array) -> str | None:
    """What is wrong with the curve that a process returned, or with the shocks that it left; None if nothing is.

    own, shocks: (batch,) each and (length, batch), as the process was given them. The text names the
    parameters of the first wrong series.
    """
    length, batch = shocks.shape
    if curve is None:
        return "returned None: return finite floats, (length, batch) or (length, 1)"
    found = np.asarray(curve)
    if found.dtype.kind != "f" or found.shape not in ((length, 1), (length, batch)):
        spans = "".join(f", {key} from {column.min():.6g} to {column.max():.6g}" for key, column in own.items())
        return (
            f"returned {found.dtype} of shape {found.shape} for {length} points of {batch} series{spans}: return "
            "finite floats, (length, batch) or (length, 1)"
        )
    with np.errstate(over="ignore"):
        single = found.astype(np.float32, copy=False)  # as the tables have it
    for what, values in (("returned", single), ("left shocks with", shocks)):
        finite = np.isfinite(values)
        if not finite.all():
            wrong = np.flatnonzero(~finite.all(axis=0))
            first = wrong[0]
            given = "".join(f", {key} {column[first]:.6g}" for key, column in own.items())
            return (
                f"{what} {values[~finite[:, first], first][0]} for {length} points{given} ({len(wrong)} of "
                f"{values.shape[1]} series): return finite floats"
            )
    return None


def ornstein_uhlenbeck(
    shocks: Array, tau: npt.NDArray[np.floating], sigma: npt.NDArray[np.floating] | float = 1.0
) -> Array:
    """Filter unit-variance shocks into stationary Ornstein-Uhlenbeck paths, in place, by the exact transition.

    shocks: (length, batch) float32. tau: (batch,) mean-reversion time in points. sigma: standard deviation of the
    paths. Per point, the distance to the mean decays by exp(−1 / tau) and the variance gains (1 − exp(−2 / tau)) ·
    sigma² (Gillespie 1996, eq. 1.9).
    """
    decay = np.exp(-1 / tau.astype(np.float64))
    shocks[0] *= sigma
    shocks[1:] *= (sigma * np.sqrt(1 - decay**2)).astype(np.float32)
    decay, kept = decay.astype(np.float32), np.empty_like(shocks[0])
    before = shocks[0]
    for now in shocks[1:]:
        np.multiply(before, decay, out=kept)
        now += kept
        before = now
    return shocks
