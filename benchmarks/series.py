"""How fast series are drawn with their truth, and how even their classes are, on the laptop recipe.

Rates are for one core, by CPU time, as medians of one run in which the works take turns, beside the rate at which
numpy alone draws as many normals: of the paper's truth, and of the robust truth for the tasks `single` and `rich`.
Balance is that of 100,000 series with the paper's truth, and of 20,480 with the robust truth of either task; of
these, it also prints how many directed series change by less than two standard errors from end to end. Writes
series.json beside itself. A minute.

    OMP_NUM_THREADS=1 python benchmarks/series.py
"""

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from measured import Bound, finish, medians, parser, show

from tsd.evaluation.scoring import baselines, class_table
from tsd.generation.blocks import draw_block
from tsd.generation.generator import BLOCK, draw_table
from tsd.recipe import SeriesConfig, load
from tsd.series.truth import NOISE_LEVELS, TREND_MARGIN
from tsd.tasks import PAPER, RICH, SINGLE, Task, single

PAPERS, ROBUST = single(PAPER), {"single": SINGLE, "rich": RICH}
BLOCKS, REPEATS, LENGTH = 8, 15, 128
BALANCED, ROBUSTLY = 100_000, 20_480
ENDS, CUBIC = 20, 3  # points in the window at either end; degree of the curve around which the error is taken
# The shares of near ties that the generator with one process had, on 20,480 series of the laptop recipe.
TIES_BEFORE = {"trend": 0.1348, "noise at 2": 0.0250, "noise at 12": 0.0743, "maximum": 0.3052, "minimum": 0.3037}


def main() -> None:
    """Measure both and write the tables."""
    options = parser(__doc__).parse_args()
    config = load("laptop", ["truth=paper"]).series
    rates = measure_rates(config)
    normals, plain = rates["numpy's normals"], rates["OU process, no candidates to spare"]
    show("Rates", [{"work": name, "series/s": rate, "of normals": rate / normals} for name, rate in rates.items()])
    table = draw_table(PAPERS, config, 0, 0, BALANCED)
    balance = measure_balance(table)
    shares = [share for facet in balance["classes"].values() for share in facet.values()]
    given = max(balance["place given trend"].values())
    robust = {name: robust_balance(name) for name in ROBUST}
    finish(
        __file__,
        {"rates": rates, "balance": balance, "robust": robust},
        [
            Bound("OU process without spare candidates, of the rate of normals", plain / normals, least=0.4),
            Bound("default mix, of the rate of normals", rates["default mix"] / normals, least=0.25),
            Bound("truth alone, series/s", rates["truth alone"], least=1e6),
            *(
                Bound(
                    f"robust truth, task {name}, of the rate of normals", rates[f"robust, {name}"] / normals, 0.1
                )
                for name in ROBUST
            ),
            Bound("smallest class", min(shares), least=0.25),
            Bound("largest class", max(shares), most=0.42),
            Bound("place given trend", given, most=0.55),
            *(
                Bound(f"near ties, {name}", share, most=TIES_BEFORE[name])
                for name, share in balance["near ties"].items()
            ),
            *(bound for name, found in robust.items() for bound in _robust_bounds(name, found)),
        ],
        options.check,
    )


def measure_rates(config: SeriesConfig) -> dict[str, float]:
    """Series a second of each work."""
    count = BLOCKS * BLOCK
    ou = config.model_copy(update={"mix": {"linear": 1.0}, "own_range": 0.0})
    values = np.random.default_rng(1).integers(0, 100, (count, LENGTH), dtype=np.uint8)
    generator = np.random.default_rng(0)
    recipes = {name: load("laptop", [f"task={name}"]).series for name in ROBUST}
    works: dict[str, Callable[[], object]] = {
        "numpy's normals": lambda: generator.standard_normal((count, LENGTH), dtype=np.float32),
        "OU process": partial(_draw, PAPERS, ou, BLOCKS),
        "OU process, no candidates to spare": partial(
            _draw, PAPERS, ou.model_copy(update={"oversampling": 1.0}), BLOCKS
        ),
        "default mix": partial(_draw, PAPERS, config, BLOCKS),
        "OU process, as a table": lambda: draw_table(PAPERS, ou, 0, 0, count),
        "default mix, as a table": lambda: draw_table(PAPERS, config, 0, 0, count),
        "truth alone": lambda: PAPERS.classify(PAPERS.measure(values), LENGTH),
        **{f"robust, {name}": partial(_draw, task, recipes[name], BLOCKS) for name, task in ROBUST.items()},
    }
    return {name: count / seconds for name, seconds in medians(works, REPEATS, time.process_time).items()}


def _draw(task: Task, config: SeriesConfig, blocks: int) -> None:
    """Draw the first blocks."""
    for block in range(blocks):
        draw_block(task, config, 0, block)


def measure_balance(table: pa.Table) -> dict[str, Any]:
    """Classes, their joint tables, what the trend gives away, and how many series lie close to a boundary."""
    truth = table["truth"].combine_chunks()
    classes = {
        facet: np.select([np.asarray(truth.field(facet)) == name for name in names], range(len(names)))
        for facet, names in PAPERS.classes.items()
    }
    found = baselines(PAPERS, table)
    given = {place: found[place]["given"] for place in ("maximum", "minimum")}
    trend, noise = classes["trend"], classes["noise"]
    joint = {
        name: {PAPERS.classes["noise"][k]: float(((trend == i) & (noise == k)).mean()) for k in range(3)}
        for i, name in enumerate(PAPERS.classes["trend"])
    }
    places = {
        name: np.histogram2d(classes["maximum"][trend == i], classes["minimum"][trend == i], [[0, 1, 2, 3]] * 2)[0]
        for i, name in enumerate(PAPERS.classes["trend"])
    }
    show("Classes", [{"facet": facet, **_shares(row)} for facet, row in class_table(PAPERS, table).items()])
    show("Trend × noise", [{"trend": name, **row} for name, row in joint.items()])
    show(
        "Maximum × minimum given the trend",
        [
            {
                "trend": name,
                "maximum": place,
                **dict(zip(PAPERS.classes["minimum"], row / cells.sum(), strict=True)),
            }
            for name, cells in places.items()
            for place, row in zip(PAPERS.classes["maximum"], cells, strict=True)
        ],
    )
    return {
        "series": len(table),
        "classes": class_table(PAPERS, table),
        "place given trend": given,
        "trend and noise": joint,
        "maximum and minimum given the trend": {
            name: (cells / cells.sum()).round(4).tolist() for name, cells in places.items()
        },
        "near ties": near_ties(table),
    }


def robust_balance(name: str) -> dict[str, Any]:
    """Classes, what the trend gives away, near ties, and directed series within two standard errors."""
    recipe = load("laptop", [f"task={name}"])
    table = draw_table(recipe.asks, recipe.series, 0, 0, ROBUSTLY)
    classes, found = class_table(recipe.asks, table), baselines(recipe.asks, table)
    show(f"Robust truth, task {name}", [{"facet": facet, **_shares(row)} for facet, row in classes.items()])
    measures = {measure: column.to_numpy() for measure, column in zip(*_columns(table), strict=True)}
    values = np.stack(table["values"].to_numpy()).astype(np.float64)
    directed = np.asarray(table["truth"].combine_chunks().field("trend")) != "flat"
    return {
        "series": len(table),
        "classes": classes,
        "place given trend": {place: found[place]["given"] for place in ("maximum", "minimum")},
        "near ties": {
            facet.name: float((facet.margin(measures) < facet.tie).mean())
            for facet in recipe.asks.facets
            if facet.margin
        },
        "directed, within two standard errors": {
            kind: float((apart[directed] < 2).mean()) for kind, apart in _errors_apart(values).items()
        },
    }


def _errors_apart(values: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    """The difference between the means of the ends by its standard error around a cubic, (series,).

    The error is that of independent noise, or that of AR(1) noise.
    """
    basis = np.polynomial.legendre.legvander(np.linspace(-1, 1, values.shape[1]), CUBIC)
    around = values - (values @ np.linalg.pinv(basis).T) @ basis.T
    energy = (around**2).sum(axis=1)
    rho = (around[:, 1:] * around[:, :-1]).sum(axis=1) / energy
    error = np.sqrt(energy / (values.shape[1] - CUBIC - 1) * 2 / ENDS)
    apart = np.abs(values[:, -ENDS:].mean(axis=1) - values[:, :ENDS].mean(axis=1)) / error
    return {"independent": apart, "AR(1)": apart / np.sqrt((1 + rho) / (1 - rho))}


def _robust_bounds(name: str, found: dict[str, Any]) -> Iterator[Bound]:
    """What the corpus of the default recipe promises, for three classes and for fewer."""
    for facet, shares in found["classes"].items():
        least, most = (0.3, 0.7) if len(shares) == 2 else (0.2, 0.45)
        yield Bound(f"{name}: smallest class of {facet}", min(shares.values()), least=least)
        yield Bound(f"{name}: largest class of {facet}", max(shares.values()), most=most)
    yield Bound(f"{name}: place given trend", max(found["place given trend"].values()), most=0.55)
    yield Bound(f"{name}: near ties of the trend", found["near ties"]["trend"], most=0.1)
    within = found["directed, within two standard errors"]["independent"]
    yield Bound(f"{name}: directed within two standard errors", within, most=0.02)


def near_ties(table: pa.Table) -> dict[str, float]:
    """Shares within 1 of the trend's margin, within a tenth of a noise level, and with a lead below 2."""
    measures = {name: column.to_numpy() for name, column in zip(*_columns(table), strict=True)}
    low, high = (np.abs(measures["noise_rms"] / level - 1) < 0.1 for level in NOISE_LEVELS)
    return {
        "trend": float((np.abs(np.abs(measures["trend_delta"]) - TREND_MARGIN) < 1).mean()),
        "noise at 2": float(low.mean()),
        "noise at 12": float(high.mean()),
        "maximum": float((measures["maximum_lead"] < 2).mean()),
        "minimum": float((measures["minimum_lead"] < 2).mean()),
    }


def _columns(table: pa.Table) -> tuple[list[str], list[pa.Array]]:
    measures = table["measures"].combine_chunks()
    return [field.name for field in measures.type], measures.flatten()


def _shares(row: dict[str, float]) -> dict[str, Any]:
    """Classes by rank and not by name, which differs from facet to facet."""
    return {f"class {i}": f"{name} {share:.3f}" for i, (name, share) in enumerate(row.items(), 1)}


if __name__ == "__main__":
    main()
