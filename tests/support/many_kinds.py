"""Series of many kinds, and their robust measures, compared."""

from dataclasses import fields

import numpy as np
import numpy.typing as npt

from tsd.series.robust import Measures, measure


def drawn(seed: int, points: int, count: int = 24) -> npt.NDArray[np.uint8]:
    """Series of many kinds, (count, points), scaled to 0–99 each: noise, paths, waves, ramps, steps and spikes."""
    rng = np.random.default_rng(seed)
    time = np.arange(points) / points
    pick = rng.integers(0, 2, (count, 5))
    cycles, phase, at = rng.uniform(0.5, points / 5, count), rng.uniform(0, 1, count), rng.uniform(0.1, 0.9, count)
    raw = rng.uniform(0, 1, (count, 1)) * rng.standard_normal((count, points))
    raw += pick[:, :1] * rng.standard_normal((count, points)).cumsum(axis=1) / 5
    raw += pick[:, 1:2] * np.sin(2 * np.pi * (cycles[:, None] * time + phase[:, None])) * 2
    raw += pick[:, 2:3] * time * rng.normal(0, 4, (count, 1))
    raw += pick[:, 3:4] * (time >= at[:, None]) * rng.normal(0, 4, (count, 1))
    raw[np.arange(count), rng.integers(0, points, count)] += pick[:, 4] * rng.normal(0, 9, count)
    return scaled(raw)


def scaled(raw: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Scale each series to 0–99 and round. raw: (series, points) or (points,)."""
    low, high = raw.min(axis=-1, keepdims=True), raw.max(axis=-1, keepdims=True)
    return np.rint((raw - low) / np.maximum(high - low, 1e-9) * 99).astype(np.uint8)


def columns(measures: Measures) -> dict[str, npt.NDArray[np.generic]]:
    """The measures by name."""
    return {field.name: getattr(measures, field.name) for field in fields(measures)}


def equal(one: Measures, other: Measures) -> bool:
    """Whether all measures are the same, bit for bit."""
    return all(np.array_equal(column, getattr(other, name)) for name, column in columns(one).items())


def some(measures: Measures, rows: npt.NDArray[np.intp] | slice) -> Measures:
    """The measures of some of the series."""
    return Measures(**{name: column[rows] for name, column in columns(measures).items()})


def one(values: npt.NDArray[np.generic]) -> dict[str, float]:
    """The measures of one series as plain numbers."""
    return {name: column[0].item() for name, column in columns(measure(np.asarray(values)[None])).items()}
