"""Draw mean-reverting series: a study seed and a range of ids in, parameters and integers 0–99 out.

A series depends on (seed, series_id) alone: ids are drawn in blocks of `BLOCK`, each block from its own
counter-based generator, so any number of workers and any restart give the same bytes.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tsd.draws import SERIES as SERIES_STREAM
from tsd.draws import generator
from tsd.recipe import SeriesConfig
from tsd.schema import SPLITS, conform
from tsd.series.processes import TOP
from tsd.series.truth import WINDOW, cubic_basis
from tsd.tasks import Task

VERSION = "ou-1"  # part of the dataset's key: change it with anything that changes a byte
BLOCK = 1024  # ids drawn from one generator; part of what a series is, never a tuning knob

TREND_SIGNS = np.array([1.0, -1.0, 0.0])
CENTRE = (35.0, 65.0)  # where the mean lies half way, in value units: leaves room for drift and noise


def draw_table(task: Task, config: SeriesConfig, seed: int, first: int, count: int) -> pa.Table:
    """Draw the series with ids `first` to `first + count - 1` as a table with its schema."""
    blocks = [draw_block(config, seed, block) for block in range(first // BLOCK, -(-(first + count) // BLOCK))]
    parameters = {
        name: np.concatenate([block.parameters[name] for block in blocks]) for name in blocks[0].parameters
    }
    values = np.concatenate([block.values for block in blocks])
    skipped = first % BLOCK
    kept = slice(skipped, skipped + count)
    values = values[kept]
    ids = np.arange(first, first + count, dtype=np.int64)
    schema, measures = task.tables.series, task.measure(values)
    table = pa.table(
        {
            "series_id": ids,
            "split": pa.array(np.array(SPLITS)[split_of(ids, config.split)], pa.string()),
            "process": pa.repeat(pa.scalar("ou"), count),
            "parameters": pa.StructArray.from_arrays(
                [pa.array(column[kept], pa.float32()) for column in parameters.values()],
                fields=list(schema.field("parameters").type),
            ),
            "values": _lists(values),
            "truth": task.truth(measures, config.length),
            "margins": task.margins(measures),
            "measures": pa.StructArray.from_arrays(
                [pa.array(column) for column in measures.values()],
                fields=list(schema.field("measures").type),
            ),
        }
    )
    return conform(table, schema)


@dataclass(frozen=True)
class Block:
    """`BLOCK` series: parameters (BLOCK,) float32 each; values (BLOCK, length) uint8."""

    parameters: dict[str, npt.NDArray[np.float32]]
    values: npt.NDArray[np.uint8]


def draw_block(config: SeriesConfig, seed: int, block: int) -> Block:
    """Draw one block of Ornstein–Uhlenbeck series around a linear mean.

    A noise class and a trend class are drawn first, then the parameters that make them likely; the class that
    counts is measured afterwards, on the integers.
    """
    rng = generator(seed, SERIES_STREAM, block)
    noise = rng.choice(3, BLOCK, p=config.noise_shares)  # index into low, medium, high
    trend = rng.choice(3, BLOCK, p=config.trend_shares)  # index into increasing, decreasing, flat
    wanted_rms = _log_uniform(rng, np.array(config.noise_rms)[noise])  # (BLOCK,) value units
    tau = _log_uniform(rng, np.array(config.tau)[noise]) * config.length  # (BLOCK,) points
    grid, residual, end_difference = stationary_factors(config.length)
    sigma = wanted_rms / np.interp(tau, grid, residual)  # (BLOCK,) stationary standard deviation
    # Drift is measured against how far the noise alone moves the two ends apart.
    spread = sigma * np.interp(tau, grid, end_difference)
    size = rng.uniform(*config.drift, BLOCK) + config.drift_per_spread * spread
    drift = TREND_SIGNS[trend] * size  # (BLOCK,) value units from first point to last
    level = rng.uniform(*CENTRE, BLOCK)
    mean = level[:, None] + drift[:, None] * np.linspace(-0.5, 0.5, config.length)
    shocks = rng.standard_normal((BLOCK, config.length))
    values = np.clip(np.rint(mean + sigma[:, None] * ornstein_uhlenbeck(shocks, tau)), 0, TOP)
    parameters = {"level": level, "drift": drift, "sigma": sigma, "tau": tau}
    return Block({name: column.astype(np.float32) for name, column in parameters.items()}, values.astype(np.uint8))


def ornstein_uhlenbeck(shocks: npt.NDArray[np.float64], tau: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """A stationary path of unit variance for each row of standard normals, by the exact transition.

    shocks: (batch, length); tau: (batch,) mean-reversion time in points.
    """
    decay = np.exp(-1.0 / tau)
    fresh = np.sqrt(1.0 - decay**2)
    path = np.empty_like(shocks)
    path[:, 0] = shocks[:, 0]
    for i in range(1, shocks.shape[1]):
        path[:, i] = decay * path[:, i - 1] + fresh * shocks[:, i]
    return path


@lru_cache(maxsize=16)
def stationary_factors(length: int) -> tuple[npt.NDArray[np.float64], ...]:
    """How a unit-variance OU path measures, in expectation, as a function of tau.

    Returns a grid of tau in points, the root mean square of the residual of a cubic fit, and the standard
    deviation of the difference between the means of the two ends; (grid,) each. With covariance
    S_ij = exp(−|i−j|/tau) and the cubic projector P: tr((I − P) S) / length, and wᵀ S w.
    """
    grid = np.geomspace(0.001, 2.0, 80) * length
    lag = np.abs(np.subtract.outer(np.arange(length), np.arange(length)))
    basis = cubic_basis(length)
    left_over = np.eye(length) - basis @ basis.T
    window = max(1, round(WINDOW * length))
    weights = np.zeros(length)
    weights[:window] -= 1 / window
    weights[-window:] += 1 / window
    residual, difference = [], []
    for tau in grid:
        covariance = np.exp(-lag / tau)
        residual.append(np.sqrt((left_over * covariance).sum() / length))
        difference.append(np.sqrt(weights @ covariance @ weights))
    return grid, np.array(residual), np.array(difference)


def split_of(ids: npt.NDArray[np.int64], shares: tuple[float, float, float]) -> npt.NDArray[np.intp]:
    """The split of each id as an index into `SPLITS`: a hash of the id, the same in every study.

    The hash is the finaliser of SplitMix64 (Steele, Lea and Flood 2014).
    """
    with np.errstate(over="ignore"):
        z = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    uniform = (z >> np.uint64(11)).astype(np.float64) / 2.0**53
    return np.searchsorted(np.cumsum(shares)[:2], uniform, side="right")


def _log_uniform(rng: np.random.Generator, bounds: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """bounds: (batch, 2), both positive."""
    low, high = bounds[:, 0], bounds[:, 1]
    drawn: npt.NDArray[np.float64] = low * (high / low) ** rng.random(len(bounds))
    return drawn


def _lists(values: npt.NDArray[np.uint8]) -> pa.ListArray:
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(values).reshape(-1)))
