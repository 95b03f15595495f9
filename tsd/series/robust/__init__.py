"""Robust truth of series: trend, noise, season, level shift, outlier, volatility, reversion; numbers and codes.

`measure` takes millions of series of one length in blocks that a core's cache holds. Within a block, one table of
waves and its residuals serve all facets. What disturbs a measure is taken off before it: the season before the
shift is looked for, the shift before the outlier, and waves, season and shift before the noise.

The numbers of a series depend on nothing but its values: not on the other series, their order or their type.
"""

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tsd.series.robust import noise, outlier, phase, reversion, season, shift, trend, volatility, waves

__all__ = ["Measures", "columns", "measure"]

Columns: TypeAlias = dict[str, npt.NDArray[Any]]  # measures by name, (batch,) each

BLOCK = 2**18  # points measured at once: with fewer, the calls of numpy cost more than caches save
LEAST_ROWS = 64  # series in a block; a multiple of what matrix kernels compute at once
SHORTEST = 32  # points
TOP = 99.0  # the largest value
LEAST_RANGE = 12.0  # value units: on the fixed scale a smaller range counts as this one, whose quarter is 3 units


@dataclass(frozen=True)
class Measures:
    """The truth of each series, (batch,) each. Sizes are in value units, places are indices of points.

    trend              int8: −1 falling, 0 flat, +1 rising
    trend_strength     float32: factor by which all thresholds could grow until the series is flat, signed
    trend_change       float32: change of the line by the range of the series, signed
    noise              float32: standard deviation around all that follows
    noise_level        int8: 0 low, 1 medium, 2 high; from 2 and above 10 units
    season             int8: 0 none, 1 weak, 2 strong
    season_cycles      float32: cycles in the series, 0 without a season
    season_height      float32: from trough to crest
    shift              int8: −1 down, 0 none, +1 up
    shift_place        int32: first point after the shift, −1 without one
    shift_size         float32: second level minus first
    outlier            int8: −1 a dip, 0 none, +1 a spike
    outlier_place      int32: the largest one, −1 without one
    outlier_size       float32: distance from what is around it
    outlier_count      int8: how many there are of like size
    volatility         int8: 0 steady, 1 growing, 2 shrinking
    volatility_place   int32: first point of the stretch to the end that differs, −1 if steady
    volatility_ratio   float32: standard deviation of the louder by that of the quieter stretch, 1 if steady
    reversion          int8: 0 fast, 1 slow
    reversion_memory   float32: autocorrelation at lag 1 around all that, 0–1; from .5 on it is slow
    """

    trend: npt.NDArray[np.int8]
    trend_strength: npt.NDArray[np.float32]
    trend_change: npt.NDArray[np.float32]
    noise: npt.NDArray[np.float32]
    noise_level: npt.NDArray[np.int8]
    season: npt.NDArray[np.int8]
    season_cycles: npt.NDArray[np.float32]
    season_height: npt.NDArray[np.float32]
    shift: npt.NDArray[np.int8]
    shift_place: npt.NDArray[np.int32]
    shift_size: npt.NDArray[np.float32]
    outlier: npt.NDArray[np.int8]
    outlier_place: npt.NDArray[np.int32]
    outlier_size: npt.NDArray[np.float32]
    outlier_count: npt.NDArray[np.int8]
    volatility: npt.NDArray[np.int8]
    volatility_place: npt.NDArray[np.int32]
    volatility_ratio: npt.NDArray[np.float32]
    reversion: npt.NDArray[np.int8]
    reversion_memory: npt.NDArray[np.float32]

    @property
    def trend_near_tie(self) -> npt.NDArray[np.bool_]:
        """Whether a series is neither clearly directed nor clearly flat, (batch,)."""
        return trend.near_tie(self.trend_strength)


NAMES = tuple(field.name for field in fields(Measures))


def measure(values: npt.NDArray[np.uint8] | npt.NDArray[np.floating]) -> Measures:
    """Measure each series.

    values: (batch, points), 0–99, of at least 32 points. Raises ValueError for another shape, for numbers that are
    not real or not finite, and for values below 0 or above 99: noise levels and least sizes are on this scale.
    """
    return Measures(**columns(values, NAMES))


def columns(values: npt.NDArray[np.uint8] | npt.NDArray[np.floating], names: Collection[str]) -> Columns:
    """The measures of these names, as `measure`; it spends no time on facets of which none is named."""
    if values.ndim != 2 or values.shape[1] < SHORTEST:
        raise ValueError(f"series must be (batch, points) with {SHORTEST} points or more, and are {values.shape}")
    if values.dtype.kind not in "buif":
        raise ValueError(f"series must be real numbers, and are {values.dtype}: convert them first")
    batch, points = values.shape
    rows = block_rows(points)
    parts = []
    for first in range(0, max(1, batch), rows):
        some = values[first : first + rows]
        # Whole numbers of what kernels compute at once: else the last rows might be rounded in another way.
        block = np.empty((max(1, -(-len(some) // LEAST_ROWS)) * LEAST_ROWS, points), np.float32)
        with np.errstate(over="ignore"):  # to infinity, which is refused
            block[: len(some)], block[len(some) :] = some, 0
        measured = _measure(block, names)
        parts.append({name: measured[name][: len(some)] for name in names})
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def block_rows(points: int) -> int:
    """The most series in a block: 2,048 at 128 points."""
    return max(LEAST_ROWS, BLOCK // points // LEAST_ROWS * LEAST_ROWS)


def _measure(values: waves.Points, names: Collection[str]) -> Columns:
    """`columns` for one block. values: (rows, points) float32; changed."""
    rows = np.arange(len(values))
    low, high = values[rows, values.argmin(axis=1)], values[rows, values.argmax(axis=1)]  # faster than min and max
    _check(low.min(), high.max())
    # Half the sum is exact for integers: on one scale a series and the same series higher up become equal.
    values -= ((low + high) * np.float32(0.5))[:, None]
    extent = np.maximum(high - low, LEAST_RANGE).astype(np.float64)
    found, rest = _structure(values, extent)
    return found if found.keys() >= set(names) else {**found, **_left(rest, extent, names)}


def _check(lowest: np.float32, highest: np.float32) -> None:
    """Raise ValueError unless all values are on the scale. Both are NaN if one of them is."""
    if lowest >= 0 and highest <= TOP:
        return
    if not np.isfinite([lowest, highest]).all():
        raise ValueError("series must be finite, and some values are not: fill or leave out missing ones first")
    raise ValueError(f"series must be 0–99, and values are from {lowest:g} to {highest:g}: scale them first")


@dataclass(frozen=True)
class Rest:
    """What is left around line, waves, season and shift.

    residual: (rows, points). fitted: (rows,) how many waves were taken off. shift: of each row. cycles: rows whose
    season is more than a sine.
    """

    residual: waves.Points
    fitted: npt.NDArray[np.intp]
    shift: shift.Shift
    cycles: phase.Cycles


def _structure(values: waves.Points, extent: waves.Column) -> tuple[Columns, Rest]:
    """Trend, season and shift, and what is left.

    values: (rows, points) float32; changed. extent: (rows,) range of the series.
    """
    points = values.shape[1]
    line, around_line = trend.fit_line(values)
    around = waves.moments(around_line, line.energy)
    first = waves.take_strongest(around_line, line.energy)
    around_wave = around_line  # in place
    once = waves.sum_of_squares(around_wave)
    # Where no first wave enters there is no second one: the strongest would be the same.
    entered = np.flatnonzero(first.entered)
    without = around_wave[entered]
    second = waves.take_strongest(without, once[entered]).among(len(values), entered)
    rest, twice = around_wave.copy(), once.copy()
    rest[entered], twice[entered] = without, waves.sum_of_squares(without)
    seasons = season.find((around_wave, rest), line.slope, (first, second), (line.energy, once))
    seasonal = seasons.found > season.NONE
    # The trend is that of the series without its season, so the wave beside its line is the other one.
    beside = second.where(seasonal & ~seasons.second, first)
    around_beside = waves.moments(around_wave, once)
    around = around_beside.where(seasonal, around)
    these, swapped = np.flatnonzero(seasonal), np.flatnonzero(seasons.second)
    around_beside.put(these, waves.moments(rest[these], twice[these]))
    around.put(swapped, waves.moments(rest[swapped] + waves.curve(first.rows(swapped), points, straightened=True)))
    shifts, around_levels = shift.find(values, seasons, extent, np.where(seasonal, twice, once))
    size = shifts.size.astype(np.float64)
    trends = trend.find(
        values, line.slope - seasons.wave.tilt, seasons.wave, around, beside, around_beside, size, extent
    )
    shifted = np.flatnonzero(shifts.direction)
    rest[shifted] = around_levels
    fitted = first.entered.astype(np.intp) + second.entered
    fitted[shifted] = seasonal[shifted]
    faster = (beside.frequency > seasons.wave.frequency) & (shifts.direction == 0)
    cycles = season.take_off_shape(rest, seasons, beside.energy * faster)
    _put_back(cycles, seasons.wave, np.ones_like(faster))
    _put_back(cycles, beside, faster)
    return (
        {
            "trend": trends.direction,
            "trend_strength": trends.strength,
            "trend_change": trends.change,
            "season": seasons.found,
            "season_cycles": np.where(seasonal, seasons.wave.frequency, 0.0).astype(np.float32),
            "season_height": seasons.wave.height.astype(np.float32),
            "shift": shifts.direction,
            "shift_place": shifts.place,
            "shift_size": shifts.size,
        },
        Rest(rest, fitted, shifts, cycles),
    )


def _put_back(cycles: phase.Cycles, wave: waves.Wave, which: npt.NDArray[np.bool_]) -> None:
    """Add a wave to the cycles that it is a part of, in place, for the rows of the block where `which` holds."""
    some = np.flatnonzero(which[cycles.rows])
    if len(some):
        cycles.values[some] += waves.curve(wave.rows(cycles.rows[some]), cycles.values.shape[1])


def _left(rest: Rest, extent: waves.Column, names: Collection[str]) -> Columns:
    """Noise, and of outliers, volatility and reversion what is named. rest, extent: of `_structure`."""
    rough = noise.roughness(rest.residual)
    sizes = noise.sizes_of(rough)
    deviation = noise.deviation(sizes)
    beside_shape = phase.beside_shape(deviation, rest.cycles)
    found: Columns = {"noise": beside_shape.astype(np.float32), "noise_level": noise.level(beside_shape)}
    if any(name.startswith("outlier") for name in names):
        outliers = outlier.find(rest.residual, deviation, rest.shift, extent)
        found |= {
            "outlier": outliers.direction,
            "outlier_place": outliers.place,
            "outlier_size": outliers.size,
            "outlier_count": outliers.count,
        }
    if any(name.startswith("volatility") for name in names):
        changes = volatility.find(rough, sizes[:, rough.shape[1] // 2])
        found |= {
            "volatility": changes.kind,
            "volatility_place": changes.place,
            "volatility_ratio": changes.ratio,
        }
    if any(name.startswith("reversion") for name in names):
        returns = reversion.find(rest.residual, deviation, rest.fitted)
        found |= {"reversion": returns.speed, "reversion_memory": returns.memory}
    return found
