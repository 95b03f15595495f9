"""Series of the task `rich` twice: the same signals, each time with other noise. Used by `facet_repeats.py`.

Beside the processes of tsd there are three for classes that `rich` does not ask for: trends that accelerate or
bend, and noise in bursts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from tsd.generation import blocks
from tsd.generation.balancing import balanced
from tsd.recipe import SeriesConfig
from tsd.recipe.series import OF_RICH
from tsd.rng import SERIES, generator
from tsd.series import processes
from tsd.series.processes import PROCESSES, Array, Own, Process, Span, student_t
from tsd.tasks import RICH, Task

SEED = 20261130
MORE = {"accelerating": 0.75, "bent": 0.75, "bursts": 1.0}  # weights beside those of the mix of `rich`


@dataclass(frozen=True)
class Twice:
    """Series of `rich` with their noise drawn twice, both (series, points) uint8.

    classes: of the first and of the second ones, by facet, (series,). ties: by facet with a margin, (series,) of
    the first ones. steady: (series,) whether no change of volatility was added. half_life: (series,) of the paths,
    in points.
    """

    first: npt.NDArray[np.uint8]
    second: npt.NDArray[np.uint8]
    classes: tuple[Mapping[str, npt.NDArray[np.intp]], Mapping[str, npt.NDArray[np.intp]]]
    ties: Mapping[str, npt.NDArray[np.bool_]]
    steady: npt.NDArray[np.bool_]
    half_life: npt.NDArray[np.float64]


def twice(count: int, more: bool = False, designed: bool = False) -> Twice:
    """Blocks of series of `rich` as they are kept with their first noise.

    more: with the processes of `MORE`. designed: with mean-reversion times as designed, of any length.
    """
    task = replace(RICH, added=RICH.added[:-1]) if designed else RICH
    assert RICH.added[-1] == "reversion"
    config = SeriesConfig.model_validate(OF_RICH)
    if more:
        _add_processes()
        config = config.model_copy(update={"mix": {**config.mix, **MORE}})
    parts = [_block(task, config, block) for block in range(ceil(count / blocks.BLOCK))]

    def joined(columns: list[Any]) -> Any:
        if isinstance(columns[0], Mapping):
            return {name: np.concatenate([each[name] for each in columns]) for name in columns[0]}
        return np.concatenate(columns)

    both = (joined([part.classes[i] for part in parts]) for i in (0, 1))
    others = {name: joined([vars(part)[name] for part in parts]) for name in vars(parts[0]) if name != "classes"}
    return Twice(classes=tuple(both), **others)


def _block(task: Task, config: SeriesConfig, block: int) -> Twice:
    """The kept series of one block, with their noise drawn twice."""
    first, second = (_candidates(task, config, block, draw) for draw in (0, 1))
    counts = {name: len(names) for name, names in RICH.classes.items()}
    kept = balanced(first.classes, counts, RICH.near_ties(first.measures), blocks.BLOCK)
    added = first.plan.added
    assert added is not None
    classes = tuple({name: each[kept] for name, each in group.classes.items()} for group in (first, second))
    return Twice(
        first.values[kept],
        second.values[kept],
        (classes[0], classes[1]),
        {each.name: each.margin(first.measures)[kept] < each.tie for each in RICH.facets if each.margin},
        added.volatility[kept] == 0,
        np.log(2) * first.parameters["tau"][kept].astype(np.float64),
    )


class _NoiseApart(np.random.Generator):
    """A generator for curves, with one of its own for the shocks."""

    def __init__(self, bits: np.random.BitGenerator, noise: np.random.Generator) -> None:
        super().__init__(bits)
        self.noise = noise

    def standard_normal(self, *arguments: Any, **named: Any) -> Any:
        """Shocks, of the generator for noise."""
        return self.noise.standard_normal(*arguments, **named)


def _candidates(task: Task, config: SeriesConfig, block: int, draw: int) -> blocks.Group:
    """The candidates of a block. Parameters and curves are the same for each `draw`, shocks are not.

    What the generator adds to a series is as large as the range of its path asks for, so that it may differ a
    little between draws.
    """
    rng = generator(SEED, SERIES, block)
    (plan,) = blocks._plan(task, config, rng, ceil(blocks.BLOCK * config.oversampling))
    noise = np.random.default_rng([SEED, block, draw])

    def apart(seeding: np.random.Generator) -> np.random.Generator:
        return _NoiseApart(np.random.SFC64(seeding.integers(2**63, size=4).tolist()), noise)

    def heavy(own: Own, time: Array, shocks: Array, rng: np.random.Generator) -> Array:
        return student_t(own, time, shocks, noise)  # its shocks are not normal ones

    tails = {"student_t": replace(PROCESSES["student_t"], curve=heavy)}
    with patch.object(blocks, "fast_generator", apart), patch.dict(PROCESSES, tails):
        return blocks._measured(task, blocks._realise(task, config, rng, plan))


# ---- Processes of classes that are left out


def accelerating(own: Own, time: Array, shocks: Array, rng: np.random.Generator) -> Array:
    """A saturating curve backwards."""
    rate = 1 / own["growth_time"]
    return np.asarray(np.expm1(rate * time) / np.expm1(rate) - 0.5, np.float32)


def bent(own: Own, time: Array, shocks: Array, rng: np.random.Generator) -> Array:
    """Two straight lines in one direction, of which one is at least three times as steep as the other."""
    at, flat = own["bend_at"], own["bend_slope"]
    early = own["bend_early"] > 0  # the steep line comes first
    before = np.minimum(time, at)
    after = np.maximum(time - at, 0)
    rise = np.where(early, before + flat * after, flat * before + after)
    return np.asarray(rise / rise[-1] - 0.5, np.float32)


def bursts(own: Own, time: Array, shocks: Array, rng: np.random.Generator) -> Array:
    """A straight line with a stretch within the series in which its shocks are several times as loud."""
    start, width, ratio = own["burst_at"], own["burst_width"], own["burst_ratio"]
    within = (time >= start) & (time < start + width)
    loud = np.where(within, ratio, np.float32(1))
    shocks *= loud / np.sqrt((loud**2).mean(axis=0))
    return time - np.float32(0.5)


ADDED: Mapping[str, tuple[Callable[..., Array], Mapping[str, Span]]] = {
    "accelerating": (accelerating, {"growth_time": Span(0.15, 0.5, 0.01, 10)}),
    "bent": (
        bent,
        {
            "bend_at": Span(0.3, 0.7, 0.1, 0.9),
            "bend_slope": Span(0, 0.3, 0, 1),
            "bend_early": Span(-1, 1, -1, 1),
        },
    ),
    "bursts": (
        bursts,
        {
            "burst_at": Span(0.16, 0.6, 0, 1),
            "burst_width": Span(0.16, 0.26, 0, 1),
            "burst_ratio": Span(4, 7, 1, 20),
        },
    ),
}


def _add_processes() -> None:
    """Add the three as a plugin does."""
    for name, (curve, ranges) in ADDED.items():
        processes.add(name, Process(curve, ranges))
