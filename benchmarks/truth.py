"""Whether the robust truth of series is right where the truth is known, agrees with readers, and costs little.

Series of known kinds, 2,000 a case at 128 points: how often `tsd.series.robust` finds what is in them and what is
not. Published labels, people's words and readings of real plots from ../shared/reference, where they are. The rate
for one core beside the rate at which numpy draws as many normals, in turns. Writes truth.json beside itself. Two
minutes; the real series need .venv-real, which is set up once.

    OMP_NUM_THREADS=1 python benchmarks/truth.py --check
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from known_series import (
    Known,
    Signal,
    autoregressive,
    directed,
    large_step,
    late_step,
    louder,
    noisy,
    nothing,
    pulse,
    pulses,
    ramp,
    ramp_and_season,
    ramp_and_waves,
    saturating,
    sawtooth,
    scaled,
    shifted,
    sine,
    spiked,
    square,
    staircase,
    step,
    step_and_season,
    transition,
    uniform,
    white,
)
from measured import ROOT, Bound, finish, medians, parser, show
from truth_labels import agreements

from tsd.generation.generator import draw_table
from tsd.recipe import load
from tsd.series.robust import Measures, measure
from tsd.tasks import PAPER, SINGLE, single

POINTS, COUNT, SEED = 128, 2000, 20261130
OTHERS = {32: 2000, 64: 2000, 256: 1000, 1024: 256}  # points: series a case, for information
RATED, REPEATS = 8192, 15
REFERENCE = ROOT.parent / "shared" / "reference"
NOISES = (0.0, 0.1, 0.2, 0.3)
SINES: dict[str, Signal] = {
    **{f"sine {cycles:g}": sine(cycles, cycles) for cycles in (1, 1.5, 2, 4.5)},
    "sine 1–15": sine(1, 15),
}
SHAPES: dict[str, Signal] = {"square": square, "sawtooth": sawtooth}  # seasons that are no sines
ON_THE_WAY = (1, 3, 8)  # points between two levels
NEAR_END = (1, 2, 3, 5, 7)  # points of the shorter level
WHOLE = (3, 4, 5, 6, 8, 10, 12, 15, 20)

Case = Callable[[np.random.Generator, int, int], Known]
Rates = dict[str, float]


def main() -> None:
    """Measure all, print the tables, hold them against the bounds."""
    options = parser(__doc__)
    options.add_argument("--reference", type=Path, default=REFERENCE, help=f"folder of labels, {REFERENCE}")
    arguments = options.parse_args()
    rates = {points: measure_rates(points, count) for points, count in {POINTS: COUNT, **OTHERS}.items()}
    show(
        "Shares by number of points",
        [
            {"facet and case": name, **{str(points): share[name] for points, share in sorted(rates.items())}}
            for name in rates[POINTS]
        ],
    )
    cost = measure_cost()
    show("Series a second, one core", [{"work": name, "series/s": rate} for name, rate in cost.items()])
    labels = agreements(arguments.reference)
    if labels:
        show("Agreement", [{"labels": name, "share": share} for name, share in labels.items()])
    bounds = bounds_of(rates[POINTS])
    bounds.append(Bound("rate of numpy's normals", cost["robust truth"] / cost["numpy's normals"], least=0.10))
    bounds += [
        Bound(f"agreement: {name}", labels[name], least=least)
        for name, least in AGREEMENT.items()
        if name in labels
    ]
    record = {"series": {POINTS: COUNT, **OTHERS}, "shares": rates, "rates": cost, "agreement": labels}
    finish(__file__, record, bounds, arguments.check)


AGREEMENT = {
    "real plots, trend": 0.85,
    "real plots, noise": 0.65,
    "real plots, season": 0.85,
    "TimeSeriesExam, trend": 0.97,
    "TRUCE synthetic, trend": 0.95,
    "TRUCE synthetic, peak or trough": 0.95,
    "TRUCE stock, people's words": 0.86,
    "TRUCE stock, maximum in people's words": 0.80,
    "TRUCE stock, minimum in people's words": 0.80,
}


def measure_rates(points: int, count: int) -> Rates:
    """The share of each case at one length."""
    rates: Rates = {}
    for facet in (trend_rates, noise_rates, season_rates, shift_rates, outlier_rates, volatility_rates):
        rates |= facet(points, count)
    return rates


def found_in(case: Case, points: int, count: int) -> tuple[Known, Measures]:
    """The series of a case with their measures; the same ones at each start."""
    known = case(np.random.default_rng([SEED, points]), count, points)
    return known, measure(known.values)


def of(signal: Signal) -> Case:
    """The series of a signal, scaled."""
    return lambda rng, count, points: scaled(signal(rng, count, points))


def share(signal: Signal, points: int, count: int, holds: Callable[[Measures], Any]) -> float:
    """The share of a signal's series whose measures hold."""
    return float(np.mean(holds(found_in(of(signal), points, count)[1])))


def trend_rates(points: int, count: int) -> Rates:
    """Shares called directed where nothing rises, and called rightly where something does."""
    flat: dict[str, Signal] = {
        "white": white,
        "uniform": uniform,
        "AR(1) .5": autoregressive(0.5),
        "AR(1) .8": autoregressive(0.8),
        "AR(1) .95": autoregressive(0.95),
        "random walk": autoregressive(1.0),
        **SINES,
        **{f"{name} + 10 %": noisy(signal, 0.1) for name, signal in SINES.items()},
        "sine 1 + 30 %": noisy(SINES["sine 1"], 0.3),
    }
    rates = {}
    for name, signal in flat.items():
        rates[f"trend: {name}, directed"] = share(signal, points, count, lambda m: m.trend != 0)
    rates["trend: AR(1) .8, near tie"] = share(flat["AR(1) .8"], points, count, lambda m: m.trend_near_tie)
    for name, signal, noises in (
        ("ramp", ramp, (*NOISES, 0.5)),
        ("step", step, (0.0, 0.05, 0.2)),
        ("saturating", saturating, (0.0, 0.1)),
        ("ramp and season", ramp_and_season, (0.0, 0.1)),
    ):
        for noise in noises:
            known, found = found_in(partial(directed, signal=signal, share=noise), points, count)
            rates[f"trend: {name} + {noise:.0%}, right"] = float((found.trend == known.sign).mean())
    for name, signal in SHAPES.items():
        rates[f"trend: {name}, directed"] = share(signal, points, count, lambda m: m.trend != 0)
    rates["trend: ramp + two waves, directed"] = share(ramp_and_waves, points, count, lambda m: m.trend != 0)
    return rates


def noise_rates(points: int, count: int) -> Rates:
    """Shares in the right class, and within a fifth of the true standard deviation."""
    rates = {"noise: white, high": share(white, points, count, lambda m: m.noise_level == 2)}
    smooth: dict[str, Signal] = {
        "ramp": ramp,
        "step": step,
        "saturating": saturating,
        "sine 1–12": sine(1, 12),
        "sine 12–20": sine(12, 20),
        **{f"{name} 3–12": signal for name, signal in SHAPES.items()},
    }
    rates["noise: pulses 3–12, low"] = share(pulses, points, count, lambda m: m.noise_level == 0)
    for name, signal in smooth.items():
        rates[f"noise: {name}, low"] = share(signal, points, count, lambda m: m.noise_level == 0)
    for name, signal in {"nothing": nothing, **smooth, "sine 2": sine(2, 2), "sine 4.5": sine(4.5, 4.5)}.items():
        near = []
        for size in (0.03, 0.05, 0.1, 0.2, 0.3):
            known, found = found_in(of(noisy(signal, size)), points, count // 5)
            true = size * known.scale
            near.append((np.abs(found.noise / true - 1) <= 0.2)[true >= 2])
        rates[f"noise: {name}, within 20 %"] = float(np.concatenate(near).mean())
    return rates


def season_rates(points: int, count: int) -> Rates:
    """Shares called seasonal, and of those with a season, with the right whole number of cycles."""
    rates = {}
    many = sine(3, min(30, points / 3.1))
    for name, signal in {
        "white": white,
        "AR(1) .5": autoregressive(0.5),
        "AR(1) .8": autoregressive(0.8),
        "AR(1) .95": autoregressive(0.95),
        "random walk": autoregressive(1.0),
        "ramp": ramp,
        "step": step,
        "staircase": staircase,
        **{f"season of 3–30 + {noise:.0%}": noisy(many, noise) for noise in (*NOISES, 0.5)},
    }.items():
        rates[f"season: {name}, found"] = share(signal, points, count, lambda m: m.season > 0)
    for noise in NOISES:
        found, right = [], []
        for cycles in (c for c in WHOLE if c <= points / 4):
            m = found_in(of(noisy(sine(cycles, cycles), noise)), points, max(120, count // 8))[1]
            found.append(m.season > 0)
            right.append(np.rint(m.season_cycles) == cycles)
        there = np.concatenate(found)
        rates[f"season: whole + {noise:.0%}, exact where found"] = float(np.concatenate(right)[there].mean())
    both = step_and_season
    rates["season: 6 cycles + equal step, found"] = share(both, points, count, lambda m: m.season > 0)
    rates["shift: step + equal season, found"] = share(both, points, count, lambda m: m.shift != 0)
    return rates


def shift_rates(points: int, count: int) -> Rates:
    """Shares with a level shift, and how near it is."""
    rates = {}
    for name, signal in {
        "white": white,
        "AR(1) .8": autoregressive(0.8),
        "AR(1) .95": autoregressive(0.95),
        "random walk": autoregressive(1.0),
        "sine 1–15": sine(1, 15),
        "sine 1–15 + 10 %": noisy(sine(1, 15), 0.1),
        "sine 1 + 30 %": noisy(sine(1, 1), 0.3),
        **{f"ramp + {noise:.0%}": noisy(ramp, noise) for noise in NOISES},
        "saturating": saturating,
        "staircase": staircase,
        "pulse": pulse,
        **{f"{least} points from an end": late_step(least) for least in NEAR_END},
    }.items():
        rates[f"shift: {name}, found"] = share(signal, points, count, lambda m: m.shift != 0)
    for size in (2.0, 3.0, 5.0):
        known, found = found_in(partial(shifted, size=size), points, count)
        there = found.shift == known.sign
        rates[f"shift: {size:g} sd, found"] = float(there.mean())
        near = np.abs(found.shift_place - known.what) <= 2
        rates[f"shift: {size:g} sd, place within 2 points"] = float(near[there].mean()) if there.any() else 0.0
    return rates


def outlier_rates(points: int, count: int) -> Rates:
    """Shares with an outlier, and found at its place in its direction."""
    rates = {}
    for name, signal in {
        "white": white,
        "AR(1) .8": autoregressive(0.8),
        "random walk": autoregressive(1.0),
        "sine 1–15": sine(1, 15),
        "ramp + 10 %": noisy(ramp, 0.1),
        "step + 10 %": noisy(step, 0.1),
        **{f"step over {over}": transition(over) for over in ON_THE_WAY},
        **{f"step {least} from an end": late_step(least) for least in NEAR_END if least > 2},
    }.items():
        rates[f"outlier: {name}, found"] = share(signal, points, count, lambda m: m.outlier != 0)
    for name, size, below in (
        ("6 sd", 6.0, nothing),
        ("8 sd", 8.0, nothing),
        ("8 sd on a shift", 8.0, large_step),
    ):
        known, found = found_in(partial(spiked, size=size, below=below), points, count)
        right = (found.outlier == known.sign) & (np.abs(found.outlier_place - known.what) <= 1)
        rates[f"outlier: {name}, found"] = float(right.mean())
    return rates


def volatility_rates(points: int, count: int) -> Rates:
    """Shares whose volatility changes."""
    rates = {}
    for name, signal in {
        "white": white,
        "uniform": uniform,
        "AR(1) .8": autoregressive(0.8),
        "step + 10 %": noisy(step, 0.1),
        "sine 1–15 + 10 %": noisy(sine(1, 15), 0.1),
        **{f"step {least} from an end": late_step(least) for least in NEAR_END},
    }.items():
        rates[f"volatility: {name}, found"] = share(signal, points, count, lambda m: m.volatility != 0)
    for times, at in ((2.0, 0.5), (3.0, 0.5), (3.0, 0.3), (3.0, 0.7)):
        found = found_in(partial(louder, times=times, at=at), points, count)[1]
        rates[f"volatility: × {times:g} at {at:g}, found"] = float((found.volatility == 1).mean())
    return rates


def measure_cost() -> Rates:
    """Series a second of the robust truth, on the laptop recipe's series, and of numpy's normals."""
    recipe = load("laptop")
    table = draw_table(SINGLE, recipe.series, recipe.seed, 0, RATED)
    values = np.array(table["values"].to_pylist(), np.uint8)
    generator = np.random.default_rng(0)
    works: Mapping[str, Callable[[], object]] = {
        "numpy's normals": lambda: generator.standard_normal(values.shape, dtype=np.float32),
        "paper's truth": lambda: single(PAPER).measure(values),
        "robust truth": lambda: measure(values),
    }
    return {name: RATED / seconds for name, seconds in medians(dict(works), REPEATS, time.process_time).items()}


def bounds_of(rates: Rates) -> list[Bound]:
    """The claims about series of known kinds."""

    def most(claim: str, limit: float, *names: str) -> Bound:
        return Bound(claim, max(rates[name] for name in names), most=limit)

    def least(claim: str, limit: float, *names: str) -> Bound:
        return Bound(claim, min(rates[name] for name in names), least=limit)

    clean = [f"trend: {name}, directed" for name in SINES]
    return [
        most("trend: white noise directed", 0.01, "trend: white, directed"),
        most("trend: AR(1) .5 directed", 0.03, "trend: AR(1) .5, directed"),
        most("trend: AR(1) .8 directed", 0.09, "trend: AR(1) .8, directed"),
        most("trend: clean sines directed", 0.005, *clean),
        most("trend: sines + 10 % directed", 0.025, *(name.replace(",", " + 10 %,") for name in clean)),
        least("trend: ramps to 30 % right", 0.99, *(f"trend: ramp + {noise:.0%}, right" for noise in NOISES)),
        least("trend: steps right", 0.99, *(f"trend: step + {noise:.0%}, right" for noise in (0.0, 0.05, 0.2))),
        least("trend: ramps under a season", 0.99, *(f"trend: ramp and season + {n}%, right" for n in (0, 10))),
        most("trend: clean shapes directed", 0.005, *(f"trend: {name}, directed" for name in SHAPES)),
        least("noise: white high", 0.99, "noise: white, high"),
        least("noise: clean low", 0.99, *(f"noise: {name}, low" for name in ("ramp", "step", "sine 1–12"))),
        least("noise: clean shapes low", 0.95, *(f"noise: {name} 3–12, low" for name in SHAPES)),
        least("noise: sines of 12–20 low", 0.95, "noise: sine 12–20, low"),
        least("noise: within a fifth", 0.9, *(name for name in rates if name.endswith("within 20 %"))),
        most("season: white", 0.003, "season: white, found"),
        most("season: AR(1) .8", 0.04, "season: AR(1) .8, found"),
        most("season: random walk", 0.08, "season: random walk, found"),
        least("season: found", 0.98, *(f"season: season of 3–30 + {noise:.0%}, found" for noise in NOISES)),
        least("season: exact", 0.995, *(f"season: whole + {noise:.0%}, exact where found" for noise in NOISES)),
        most("shift: white", 0.005, "shift: white, found"),
        most("shift: sines", 0.005, "shift: sine 1–15, found"),
        most("shift: ramps", 0.005, *(f"shift: ramp + {noise:.0%}, found" for noise in NOISES)),
        least("shift: near an end", 0.98, *(f"shift: {near} points from an end, found" for near in (5, 7))),
        most("shift: at an end", 0.005, *(f"shift: {near} points from an end, found" for near in (1, 2, 3))),
        least("shift: 3 sd", 0.92, "shift: 3 sd, found"),
        least("shift: 5 sd", 0.98, "shift: 5 sd, found"),
        least("shift: place", 0.95, *(f"shift: {size} sd, place within 2 points" for size in (3, 5))),
        most("outlier: white", 0.005, "outlier: white, found"),
        most("outlier: on the way", 0.01, *(f"outlier: step over {over}, found" for over in ON_THE_WAY)),
        most("outlier: near an end", 0.005, *(f"outlier: step {near} from an end, found" for near in (3, 5, 7))),
        least("outlier: 8 sd", 0.95, "outlier: 8 sd, found"),
        least("outlier: 8 sd on a shift", 0.90, "outlier: 8 sd on a shift, found"),
        most("volatility: white", 0.02, "volatility: white, found"),
        most("volatility: near an end", 0.01, *(f"volatility: step {near} from an end, found" for near in (5, 7))),
        least("volatility: × 3 at half", 0.97, "volatility: × 3 at 0.5, found"),
        least("volatility: × 3 at .3 and .7", 0.75, *(f"volatility: × 3 at {at}, found" for at in (0.3, 0.7))),
    ]


if __name__ == "__main__":
    main()
