"""Generate blocks of series: parameters, values 0–99 and ground truth, from a study seed and a block index.

A series depends only on (seed, series_id). Series are generated in blocks of `BLOCK` ids, each with its own
counter-based generator (which seeds a faster one for the shocks). Any number of workers and any restart therefore
give the same bytes. Each block generates more candidates than needed and keeps a stratified subsample with
balanced classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from tsd.errors import PluginError, plugin_error, source
from tsd.generation import added, parameters, visible
from tsd.generation.added import Added
from tsd.generation.balancing import STRIDE, balanced, even_out
from tsd.generation.parameters import Targets
from tsd.generation.screening import DIRECTED, WEIGHTS, screened
from tsd.recipe import SeriesConfig
from tsd.rng import SERIES, fast_generator, generator
from tsd.series.processes import (
    PROCESSES,
    SCALED,
    Array,
    Curve,
    Process,
    fault_of,
    ornstein_uhlenbeck,
    own_ranges,
    processes_of,
)
from tsd.series.truth import QUARTERS, TOP, Places
from tsd.tasks import Task

VERSION = "mix-1"  # part of the dataset's key; change it with anything that changes a byte
BLOCK = 1024  # series per generator; part of the definition of a series, not a tuning parameter
STRIP = 64  # points transposed at once
MEASURED = 0.25  # fraction of spare candidates whose robust truth is measured

Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Block:
    """The series of a block, in the order of their ids.

    values      uint8, the points of all series concatenated
    lengths     (batch,) int32
    process     (batch,) index into `processes_of` the mix
    parameters  by name, (batch,) float32, NaN if a process does not have the parameter
    measures    by name, (batch,), as the task measures them
    classes     by facet, (batch,), indices of classes
    """

    values: npt.NDArray[np.uint8]
    lengths: npt.NDArray[np.int32]
    process: npt.NDArray[np.intp]
    parameters: Columns
    measures: Columns
    classes: Columns


def draw_block(task: Task, config: SeriesConfig, seed: int, block: int, stream: int = SERIES) -> Block:
    """Generate the series of one block: generate candidates, measure them, keep `BLOCK` with balanced classes.

    The robust truth costs more than a series: candidates that would hardly be kept are left out before it.

    stream: of the random numbers, one of `tsd.rng`.
    """
    rng = generator(seed, stream, block)
    plans = _plan(task, config, rng, ceil(BLOCK * config.oversampling))
    candidates = [_realise(task, config, rng, plan) for plan in plans]
    if _screens(task) and task.defined:
        share = (1 + MEASURED * (config.oversampling - 1)) / config.oversampling
        candidates = [_screened(drawn, share, task.defined.borders) for drawn in candidates]
    return _keep(task, [_measured(task, drawn) for drawn in candidates])


def _screens(task: Task) -> bool:
    """Whether few of a task's candidates are measured: those of the robust truth, without added structure."""
    robust = task.defined is not None and task.defined.truth == "robust"
    return robust and not task.added and task.classes.keys() >= set(DIRECTED)


@dataclass(frozen=True)
class Plan:
    """Targets of the candidates of one length, in the order of their processes, (batch,) each."""

    length: int
    place: npt.NDArray[np.intp]  # index among all candidates of the block
    process: npt.NDArray[np.intp]  # index into `processes_of` the mix, ascending
    targets: Targets
    added: Added | None  # structure that the task asks about

    def rows(self, these: npt.NDArray[np.intp]) -> "Plan":
        """The plan of some of the candidates."""
        targets = Targets(**{name: column[these] for name, column in vars(self.targets).items()})
        return Plan(
            self.length, self.place[these], self.process[these], targets, self.added and self.added.rows(these)
        )


def _plan(task: Task, config: SeriesConfig, rng: np.random.Generator, count: int) -> list[Plan]:
    """Stratified targets for all candidates of a block: process, length, scaling, classes of trend and noise.

    Beside them, for a task that asks for it, the classes of the structure that is added.
    """
    processes = processes_of(config.mix)
    weights = np.array([config.mix.get(name, 0.0) for name in processes])
    process = stratum(weights, (np.arange(count) + rng.random()) / count)
    # (candidates,) uniform in 0–1, low discrepancy
    lengths, owns, trend, noise, *others = _lattice(rng, count, 4 + len(task.added))
    own = owns < config.own_range
    length = stratum(np.ones(len(config.lengths)), lengths)
    trends = (stratum(np.array(shares), trend) for shares in (config.own_trend_shares, config.trend_shares))
    noises = (stratum(np.array(shares), noise) for shares in (config.own_noise_shares, config.noise_shares))
    swings = np.array([process.swings for process in processes.values()])[process]
    targets = Targets(np.where(own, *trends), np.where(own, *noises), own, swings, np.full(count, float(TOP)))
    place = rng.permutation(count)
    wanted = None
    if task.added:
        drawn = added.draw(dict(zip(task.added, others, strict=True)), count)
        wanted, targets = added.fitted(drawn, rng, targets, np.array(list(processes))[process])
    if len(config.lengths) == 1:
        return [Plan(config.lengths[0], place, process, targets, wanted)]
    return [
        Plan(config.lengths[i], place, process, targets, wanted).rows(np.flatnonzero(length == i))
        for i in np.unique(length)
    ]


def _lattice(rng: np.random.Generator, count: int, dimensions: int) -> npt.NDArray[np.float64]:
    """Low-discrepancy points in the unit cube, (dimensions, count): any contiguous part fills it evenly, too.

    A Kronecker sequence with the generalised golden ratio of Roberts (2018), R_d, with a random shift.
    """
    root = 1.5
    for _ in range(30):
        root = (1 + root) ** (1 / (dimensions + 1))  # fixed-point iteration for x**(d + 1) = x + 1
    steps = root ** -np.arange(1.0, dimensions + 1)
    return np.modf(np.outer(steps, np.arange(count)) + rng.random((dimensions, 1)))[0]


def stratum(shares: npt.NDArray[np.float64], uniform: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """The class of each uniform number, for adjacent classes as wide as their shares: inverse-CDF sampling."""
    return np.searchsorted(np.cumsum(shares)[:-1] / shares.sum(), uniform, side="right")


@dataclass(frozen=True)
class Drawn:
    """Generated candidates of one length. values: (batch, length) uint8; parameters: (batch,) each."""

    plan: Plan
    values: npt.NDArray[np.uint8]
    parameters: Columns


@dataclass(frozen=True)
class Group(Drawn):
    """Candidates with their measures and classes, (batch,) each."""

    measures: Columns
    classes: Columns


def _realise(task: Task, config: SeriesConfig, rng: np.random.Generator, plan: Plan) -> Drawn:
    """Generate the parameters and points of the candidates."""
    length, batch = plan.length, len(plan.place)
    own, swings = plan.targets.own_range, plan.targets.swings
    time = np.linspace(0, 1, length, dtype=np.float32)[:, None]  # (length, 1)
    fast = fast_generator(rng)
    shocks = fast.standard_normal((length, batch), np.float32)  # (length, batch) of unit variance
    curve, special = _curves(config, fast, plan.process, time, shocks)
    papers = task.defined is not None and task.defined.truth == "paper"
    design = parameters.design if papers else visible.design
    sizes = design(config, rng, plan.targets, curve)
    path = added.modulate(plan.added, rng, shocks, time, sizes) if plan.added else None
    sizes = {name: size.astype(np.float32) for name, size in sizes.items()}
    points = ornstein_uhlenbeck(shocks, sizes["tau"], sizes["sigma"])
    curve *= np.where(swings, sizes["swing"], sizes["drift"])
    points += curve
    if swings.any():
        points += np.multiply(time - np.float32(0.5), np.where(swings, sizes["drift"], np.float32(0)), out=curve)
    low, scale = -sizes["level"], np.ones(batch, np.float32)  # value mapped to 0, scale factor
    if plan.added and path:
        added.add(plan.added, rng, points, time, path, own, task.defined.borders if task.defined else QUARTERS)
        bottom, top = points.min(axis=0), points.max(axis=0)
        own = own | (top - bottom > TOP)
        low = np.clip(low, top - TOP, bottom, out=low)
        sizes["level"] = -low
    if own.any():
        low = np.where(own, points.min(axis=0), low)
        scale = np.where(own, TOP / (points.max(axis=0) - low), scale)
    # Adding half a unit before truncation rounds to the nearest integer.
    points -= low - np.float32(0.5) / scale
    points *= scale
    np.clip(points, np.float32(0), np.float32(TOP + 0.5), out=points)
    values = points.astype(np.uint8)  # (length, batch)
    sizes["level"] = np.where(own, -low, sizes["level"])
    for name in SCALED:
        sizes[name] = sizes[name] * scale
    sizes["swing"] = np.where(swings, sizes["swing"], np.float32(np.nan))
    return Drawn(plan, values.T, {**sizes, **special})


def _screened(drawn: Drawn, share: float, places: Places) -> Drawn:
    """A share of the candidates, see `tsd.generation.screening`."""
    kept = screened(drawn.values, drawn.plan.targets.noise, share, places)
    parameters = {name: column[kept] for name, column in drawn.parameters.items()}
    return Drawn(drawn.plan.rows(kept), drawn.values.T[:, kept].T, parameters)  # point after point, as it was


def _measured(task: Task, drawn: Drawn) -> Group:
    """Measure candidates."""
    measures = task.measure(drawn.values)
    classes = task.classify(measures, drawn.plan.length)
    return Group(drawn.plan, _by_series(drawn.values), drawn.parameters, measures, classes)


def _by_series(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The values, (batch, length), series after series: transposed in strips of points, which a cache holds."""
    if values.flags.c_contiguous:
        return values
    turned = np.empty(values.shape, np.uint8)
    for first in range(0, values.shape[1], STRIP):
        turned[:, first : first + STRIP] = values[:, first : first + STRIP]
    return turned


def _curves(
    config: SeriesConfig, rng: np.random.Generator, process: npt.NDArray[np.intp], time: Array, shocks: Array
) -> tuple[Array, Columns]:
    """The mean curve of each series, (length, batch), and the parameters of its process. May change the shocks."""
    curve, processes = np.empty_like(shocks), processes_of(config.mix)
    names = own_ranges(processes)
    special = dict(zip(names, np.full((len(names), len(process)), np.nan, np.float32), strict=True))
    bounds = np.searchsorted(process, np.arange(len(processes) + 1))
    for (title, kind), span in zip(processes.items(), pairwise(bounds), strict=True):
        these = slice(*span)
        if these.start == these.stop:
            continue
        for name, range_ in kind.ranges.items():
            special[name][these] = rng.uniform(*config.ranges.get(name, range_[:2]), these.stop - these.start)
        own = {name: special[name][these] for name in kind.ranges}
        draw: Curve = kind.curve if title in PROCESSES else partial(_checked, title, kind)
        curve[:, these] = draw(own, time, shocks[:, these], rng)
    return curve, special


def _checked(
    name: str, process: Process, own: Mapping[str, Array], time: Array, shocks: Array, rng: np.random.Generator
) -> Array:
    """The curve of a process from a plugin, which may change the shocks in place and nothing else.

    Raises PluginError, with the parameters of a series, if it fails or returns anything but finite floats.
    """
    try:
        curve = process.curve({key: _read_only(each) for key, each in own.items()}, _read_only(time), shocks, rng)
        fault = fault_of(curve, own, shocks)
    except Exception as error:  # whatever code from outside raises
        raise plugin_error(f"the process {name}", process.curve, error) from error
    if fault:
        raise PluginError(f"the process {name}, in {source(process.curve)}, {fault}")
    return curve


def _read_only(values: Array) -> Array:
    view = values.view()
    view.flags.writeable = False
    return view


def _keep(task: Task, groups: list[Group]) -> Block:
    """Stratified subsampling: keep `BLOCK` candidates with balanced classes and few near ties, in order."""
    order = np.argsort(np.concatenate([group.plan.place for group in groups]))
    kept = order
    if len(order) > BLOCK:
        classes = {name: np.concatenate([each.classes[name] for each in groups])[order] for name in task.names}
        counts = {name: len(names) for name, names in task.classes.items()}
        ties = np.concatenate([task.near_ties(group.measures) for group in groups])[order]
    if len(order) > BLOCK and task.added:
        kept = order[balanced(classes, counts, ties, BLOCK)]
    elif len(order) > BLOCK:
        cells = np.ravel_multi_index(list(classes.values()), list(counts.values()))
        # Near ties are dropped first. The order of the others is unrelated to their index; otherwise the end of a
        # block would be less balanced.
        preferred = np.lexsort((np.arange(len(order)) * STRIDE % len(order), ties))
        weights = WEIGHTS[tuple(classes[name][preferred] for name in DIRECTED)] if _screens(task) else None
        kept = order[np.sort(preferred[even_out(cells[preferred], BLOCK, weights)])]

    def together(columns: list[Columns]) -> Columns:
        return {name: _joined([each[name] for each in columns])[kept] for name in columns[0]}

    lengths = np.concatenate([np.full(len(group.values), group.plan.length, np.int32) for group in groups])[kept]
    longest = max(group.plan.length for group in groups)
    values = _joined([_padded(group.values, longest) for group in groups])[kept]
    return Block(
        values=values.reshape(-1) if len(groups) == 1 else values[np.arange(longest) < lengths[:, None]],
        lengths=lengths,
        process=np.concatenate([group.plan.process for group in groups])[kept],
        parameters=together([group.parameters for group in groups]),
        measures=together([group.measures for group in groups]),
        classes=together([group.classes for group in groups]),
    )


def _joined(parts: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """The parts one after another; a single one, as with one length, is not copied."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _padded(values: npt.NDArray[np.uint8], length: int) -> npt.NDArray[np.uint8]:
    """Pad (batch, points) with zeros to (batch, length)."""
    missing = length - values.shape[1]
    return np.pad(values, ((0, 0), (0, missing))) if missing else values
