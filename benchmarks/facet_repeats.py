"""Which classes of reversion, shape and bursts are the same when the noise of a series is drawn again.

Three tables for each: how often a class is given where nothing is there; how often a known class is found, by
strength and noise, 1,000 series a case at 128 points; and how often series of the task `rich` have the same class
when their signals stay and their noise is drawn again, with and without near ties. Of the three, a class that is
the same in less than 95 % is no class of `rich`. The other facets stand beside. Writes facet_repeats.json beside
itself. A minute.

    OMP_NUM_THREADS=1 python benchmarks/facet_repeats.py --check
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import numpy.typing as npt
from known_series import Array, autoregressive, clock, ramp, scaled, sine, step, uniform, white
from left_out import NO_TREND, SHAPES, returns, shapes
from measured import Bound, finish, parser, show
from redrawn import Twice, twice

from tsd.series.robust import Measures, measure, reversion, volatility
from tsd.tasks import RICH

POINTS, COUNT, SEED = 128, 1000, 20261130
KEPT = 16384  # series of `rich`
LENGTHS = (32, 64, 128, 256, 1024)
HALF_LIVES = (0.0, 0.25, 0.35, 0.5, 1.0, 2.0, 3.0, 6.0, 12.0, np.inf)  # points; without end for a random walk
SIZES = (1.0, 3.0, 8.0)  # standard deviations of the path in value units
TIMES = (2.0, 3.0, 4.0, 5.0, 6.0)  # loudness of a burst by that of the rest
NOISES = (0.02, 0.05, 0.1, 0.2)  # standard deviations by the height of the trend
NEAR = 1.25  # factor by which a half-life may differ and be the same number
BORDER = 1.0  # point: half-life of a slow path at least
LEFT_OUT = "left out"
MOST_TIES = 0.10  # of the series, that may be near ties
WANTED = 0.95  # least share of series with the same class

Rows = list[dict[str, Any]]
Classes = npt.NDArray[Any]  # (series,) indices of classes


def main() -> None:
    """Measure all, print the tables, hold them against the bounds."""
    arguments = parser(__doc__).parse_args()
    null = null_table()
    show("Nothing there: share of series with the class", null)
    speeds, roots = reversion_table()
    show("Reversion: share called slow, by half-life in points (inf: a random walk)", speeds)
    lengths = length_table()
    show("Reversion: share called slow, by number of points", lengths)
    show("Reversion: share in which a unit root is rejected, by half-life in points", roots)
    curves = shape_table()
    show("Shape: share called right, by noise as a fraction of the trend's height", curves)
    loud = burst_table()
    show("Bursts: share found, by how many times as loud they are", loud)
    repeats = repeat_table()
    show("Series of rich with their noise drawn again: share with the same class", repeats)
    tables = {
        "null": null,
        "speeds": speeds,
        "lengths": lengths,
        "roots": roots,
        "shapes": curves,
        "bursts": loud,
        "repeats": repeats,
    }
    finish(
        __file__,
        {"series": {"a case": COUNT, "of rich": KEPT}, **tables},
        bounds_of(speeds, repeats),
        arguments.check,
    )


def rng_of(*case: int) -> np.random.Generator:
    """The random numbers of a case."""
    return np.random.default_rng([SEED, *case])


def on_scale(raw: Array) -> npt.NDArray[np.uint8]:
    """Series on the common scale: around its middle, rounded."""
    values: npt.NDArray[np.uint8] = np.clip(np.rint(raw + 50), 0, 99).astype(np.uint8)
    return values


def with_bursts(values: npt.NDArray[np.uint8]) -> Measures:
    """Measure with stretches within the series as candidates for louder noise."""
    with patch.object(volatility, "find", partial(volatility.find, bursts=True)):
        return measure(values)


def null_table() -> Rows:
    """How often each class is given to series that have none of it."""
    cases: dict[str, Callable[[np.random.Generator, int, int], Array]] = {
        "white": white,
        "uniform": uniform,
        "t of 3": lambda rng, count, points: rng.standard_t(3, (count, points)),
        "AR(1) .8": autoregressive(0.8),
        "random walk": autoregressive(1.0),
    }
    for name, path in (("white", white), ("AR(1) .8", autoregressive(0.8))):
        for noise in NOISES:
            cases[f"ramp + {noise:.0%} {name}"] = partial(_ramp_and, path=path, noise=noise)
    rows: Rows = []
    for name, draw in cases.items():
        values = scaled(draw(rng_of(0), COUNT, POINTS)).values
        found = with_bursts(values)
        rows.append(
            {
                "series": name,
                "slow": _share(found.reversion == reversion.SLOW),
                "bursts": _share(found.volatility == volatility.BURSTS),
                "saturating, accelerating or bent": _share(np.isin(shapes(values), (1, 2, 3))),
            }
        )
    return rows


def _ramp_and(rng: np.random.Generator, count: int, points: int, path: Any, noise: float) -> Array:
    """A ramp with a path around it. noise: standard deviation of the path by the height of the ramp."""
    both: Array = ramp(rng, count, points) + noise * path(rng, count, points)
    return both


def reversion_table() -> tuple[Rows, Rows]:
    """How often paths of each half-life are called slow, and a unit root is rejected, on what they lie."""
    below: dict[str, Callable[[np.random.Generator], Array]] = {
        "nothing": lambda rng: np.zeros((COUNT, POINTS)),
        "ramp of 40": lambda rng: 40 * (ramp(rng, COUNT, POINTS) - 0.5),
        "season of 30": lambda rng: 30 * sine(3, 12)(rng, COUNT, POINTS),
        "shift of 30": lambda rng: 30 * (step(rng, COUNT, POINTS) - 0.5),
        "wave of 30, 1 to 2 cycles": lambda rng: 30 * sine(1, 2)(rng, COUNT, POINTS),
    }
    speeds: Rows = []
    roots: Rows = []
    for name, signal in below.items():
        for size in SIZES:
            slow, rejected = {}, {}
            for half_life in HALF_LIVES:
                rng = rng_of(2)
                rho = 0.5 ** (1 / half_life) if half_life else 0.0
                path = autoregressive(rho)(rng, COUNT, POINTS)
                path = path - path.mean(axis=1, keepdims=True)
                values = on_scale(signal(rng) + size * path / (path.std() if rho == 1 else 1.0))
                slow[f"{half_life:g}"] = _share(measure(values).reversion == reversion.SLOW)
                rejected[f"{half_life:g}"] = _share(returns(values))
            case = {"on": name, "sd": size}
            speeds.append({**case, **slow})
            roots.append({**case, **rejected})
    return speeds, roots


def length_table() -> Rows:
    """How often paths of each half-life are called slow, by the number of points."""
    rows: Rows = []
    for half_life in HALF_LIVES:
        found: dict[str, Any] = {"half-life": f"{half_life:g}"}
        for points in LENGTHS:
            rho = 0.5 ** (1 / half_life) if half_life else 0.0
            values = scaled(autoregressive(rho)(rng_of(5, points), COUNT, points)).values
            found[str(points)] = _share(measure(values).reversion == reversion.SLOW)
        rows.append(found)
    return rows


def shape_table() -> Rows:
    """How often each shape is called by its name, by noise."""
    time = clock(POINTS + 1)[:POINTS]
    curves = {
        "straight": (time, 0),
        **{f"saturating, {rate:g}": (1 - np.exp(-time / rate), 1) for rate in (0.15, 0.3, 0.5)},
        **{f"accelerating, {rate:g}": (np.exp((time - 1) / rate), 2) for rate in (0.15, 0.3, 0.5)},
        "bent, flat to steep": (np.maximum(time - 0.5, 0), 3),
        "bent, steep to flat": (np.minimum(time, 0.3), 3),
        "bent, 3 times as steep": (time + 2 * np.maximum(time - 0.5, 0), 3),
    }
    rows: Rows = []
    for name, (curve, true) in curves.items():
        found: dict[str, Any] = {"trend": name}
        for kind, rho in (("white", 0.0), ("AR .8", 0.8)):
            for noise in NOISES:
                rng = rng_of(3)
                raw = curve / np.ptp(curve) + noise * autoregressive(rho)(rng, COUNT, POINTS)
                found[f"{kind} {noise:.0%}"] = _share(shapes(scaled(raw).values) == true)
        rows.append(found)
    return rows


def burst_table() -> Rows:
    """How often a burst of a fifth of the length is found, by its loudness and the noise around it."""
    rows: Rows = []
    for rho in (0.0, 0.8):
        for size in SIZES:
            found: dict[str, Any] = {"noise": "white" if rho == 0 else f"AR(1) {rho:g}", "sd": size}
            for times in TIMES:
                rng = rng_of(4)
                at = rng.uniform(0.16, 0.64, (COUNT, 1))
                within = (clock(POINTS) >= at) & (clock(POINTS) < at + 0.2)
                path = white(rng, COUNT, POINTS) * np.where(within, times, 1.0)
                path[:, 1:] *= np.sqrt(1 - rho**2)
                for i in range(1, POINTS):
                    path[:, i] += rho * path[:, i - 1]
                found[f"{times:g}"] = _share(with_bursts(on_scale(size * path)).volatility == volatility.BURSTS)
            rows.append(found)
    return rows


# ---- Noise drawn again


def repeat_table() -> Rows:
    """How often series of `rich` have the same class with other noise, for each facet and each class left out.

    What is left out has no near ties. Its share without them is at most that where all near ties, `MOST_TIES` of
    the series, are among those with another class.
    """
    series = twice(KEPT)
    rows: Rows = []
    for facet in RICH.facets:
        both = tuple(each[facet.name] for each in series.classes)
        rows.append(_repeats(facet.name, facet.classes, both, series.ties.get(facet.name)))
    values = (series.first, series.second)
    found = [measure(each) for each in values]
    speeds, drawn = ("fast", "slow", "none"), (series.half_life > BORDER).astype(np.intp)
    other = twice(KEPT, designed=True)
    both = tuple(each["reversion"] for each in other.classes)
    rows.append(_repeats("reversion, any half-life drawn", speeds[:2], both, other.ties["reversion"]))
    rows.append(_repeats("reversion and half-life drawn", speeds[:2], (series.classes[0]["reversion"], drawn)))
    three = [np.where(returns(each), m.reversion, 2) for each, m in zip(values, found, strict=True)]
    rows.append(_repeats(f"{LEFT_OUT}: reversion with none", speeds, three))
    rows.append(_half_lives(found))
    return rows + _left_out(twice(KEPT, more=True))


def _half_lives(found: Sequence[Measures]) -> dict[str, Any]:
    """How often the half-life of a slow series is the same number, within a factor of `NEAR`."""
    memory = np.array([each.reversion_memory for each in found], np.float64)  # (2, series)
    slow = memory[:, ((memory >= reversion.BORDER) & (memory < 1)).all(axis=0)]
    apart = np.abs(np.diff(np.log(-np.log(slow)), axis=0))
    return _repeats(f"{LEFT_OUT}: half-life, slow", (), (apart[0] <= np.log(NEAR), np.ones(slow.shape[1], bool)))


def _left_out(series: Twice) -> Rows:
    """Shape and bursts, on series to which the generator gives them too."""
    values = (series.first, series.second)
    fine, coarse = ([shapes(each, kind) for each in values] for kind in (False, True))
    directed = (fine[0] != NO_TREND) & (fine[1] != NO_TREND)
    courses = ("steady", "growing", "shrinking", "bursts")
    loud = [with_bursts(each).volatility for each in values]
    # No other change of volatility was added to some: their noise is steady, but for the process of bursts.
    only = [each[series.steady] for each in loud]
    return [
        _repeats(f"{LEFT_OUT}: shape", SHAPES, fine),
        _repeats("shape where both have a trend", SHAPES[:NO_TREND], [each[directed] for each in fine]),
        _repeats("the same without bent", SHAPES[:3], [each[directed] for each in coarse]),
        _repeats(f"{LEFT_OUT}: volatility with bursts", courses, loud),
        _repeats("the same, only bursts added", courses, only),
    ]


def _repeats(
    name: str, classes: Sequence[str], both: Sequence[Classes], tie: npt.NDArray[np.bool_] | None = None
) -> dict[str, Any]:
    """Shares with the same class: of all, without near ties, and of the series that have each class at first."""
    same = both[0] == both[1]
    of_class = [f"{each} {same[both[0] == i].mean():.2f}" for i, each in enumerate(classes)]
    clear = "" if tie is None else f"{_share(same[~tie]):.3f}"
    if name.startswith(LEFT_OUT):
        clear = f"≤ {min(1.0, _share(same) / (1 - MOST_TIES)):.3f}"
    ties = "" if tie is None else f"{_share(tie):.3f}"
    return {"facet": name, "same": _share(same), "no ties": clear, "ties": ties, "by class": ", ".join(of_class)}


def _share(holds: npt.NDArray[Any]) -> float:
    return float(holds.mean())


def bounds_of(speeds: Rows, repeats: Rows) -> list[Bound]:
    """What is taken into `rich` repeats; what is left out does not."""
    row = {each["facet"]: each for each in repeats}
    mine = row["reversion"]
    classes = [float(each.rpartition(" ")[2]) for each in mine["by class"].split(", ")]
    plain = [each for each in speeds if each["on"] != "wave of 30, 1 to 2 cycles"]
    return [
        Bound("reversion: same", mine["same"], least=WANTED),
        Bound("reversion: same, the rarer class", min(classes), least=WANTED),
        Bound("reversion: same without near ties", float(mine["no ties"]), least=0.97),
        Bound("reversion: near ties", float(mine["ties"]), most=0.10),
        Bound("reversion: half-lives to .25 called slow", max(each["0.25"] for each in plain), most=0.01),
        Bound("reversion: half-lives of 3 points called slow", min(each["3"] for each in plain), least=0.97),
        *(Bound(name, row[name]["same"], most=WANTED) for name in row if name.startswith(LEFT_OUT)),
    ]


if __name__ == "__main__":
    main()
