"""Processes: the exact transition, the shocks and curves that are theirs, and how another one is added."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from tsd.series.processes import PROCESSES, ornstein_uhlenbeck, own_ranges

ROWS = 20_000


def draw(
    name: str, length: int = 128, rows: int = 2000, seed: int = 7, **fixed: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32], dict[str, npt.NDArray[np.float32]]]:
    """The curve and the shocks of a process, (length, rows) each, and its own parameters."""
    rng = np.random.default_rng(seed)
    own = {
        key: np.full(rows, fixed[key], np.float32)
        if key in fixed
        else rng.uniform(span.low, span.high, rows).astype(np.float32)
        for key, span in PROCESSES[name].ranges.items()
    }
    shocks = rng.standard_normal((length, rows), np.float32)
    time = np.linspace(0, 1, length, dtype=np.float32)[:, None]
    curve = np.broadcast_to(PROCESSES[name].curve(own, time, shocks, rng), shocks.shape)
    return curve, shocks, own


# ---- The path around the mean


@pytest.mark.parametrize("tau", [0.5, 3.0, 12.0])
def test_the_path_is_stationary_and_forgets_at_the_rate_of_tau(tau: float) -> None:
    shocks = np.random.default_rng(7).standard_normal((40, ROWS), np.float32)
    path = ornstein_uhlenbeck(shocks, np.full(ROWS, tau))
    # Paths are independent: a variance of n draws has standard error √(2/n), a correlation at most 1/√n.
    assert np.abs(path.var(axis=1) - 1).max() < 5 * np.sqrt(2 / ROWS)
    for first, lag in ((0, 1), (19, 1), (38, 1), (0, 5)):
        correlation = np.corrcoef(path[first], path[first + lag])[0, 1]
        assert abs(correlation - np.exp(-lag / tau)) < 5 / np.sqrt(ROWS)


def test_every_path_has_its_own_tau_and_does_not_feel_its_neighbours() -> None:
    shocks = np.random.default_rng(8).standard_normal((50, 7), np.float32)
    tau = np.array([0.3, 1, 2, 4, 8, 16, 300])
    together = ornstein_uhlenbeck(shocks.copy(), tau)
    for i in range(7):
        alone = ornstein_uhlenbeck(shocks[:, [i]].copy(), tau[[i]])
        assert np.array_equal(alone[:, 0], together[:, i])


# ---- Every process keeps to the interface


def test_no_two_processes_share_the_name_of_a_parameter() -> None:
    assert len(own_ranges()) == sum(len(process.ranges) for process in PROCESSES.values())


@pytest.mark.parametrize("name", PROCESSES)
def test_the_default_ranges_lie_within_what_a_recipe_may_ask_for(name: str) -> None:
    for span in PROCESSES[name].ranges.values():
        assert span.least <= span.low <= span.high <= span.most


@pytest.mark.parametrize("length", [32, 128, 1024])
@pytest.mark.parametrize("name", PROCESSES)
def test_a_curve_is_finite_and_of_size_one_and_the_shocks_of_unit_variance(name: str, length: int) -> None:
    curve, shocks, _ = draw(name, length)
    assert np.isfinite(curve).all()
    assert np.ptp(curve, axis=0).max() <= 2.001
    assert np.isfinite(shocks).all()
    assert shocks.mean() == pytest.approx(0, abs=0.03)
    assert shocks.var() == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("end", ["least", "most"])
@pytest.mark.parametrize("name", PROCESSES)
def test_the_ends_of_what_a_recipe_may_ask_for_can_be_drawn(name: str, end: str) -> None:
    fixed = {key: getattr(span, end) for key, span in PROCESSES[name].ranges.items()}
    curve, shocks, _ = draw(name, 64, 100, **fixed)
    assert np.isfinite(curve).all()
    assert np.isfinite(shocks).all()


# ---- What is particular about each


def test_the_fixed_mean_stays_and_the_linear_one_rises_evenly_by_one() -> None:
    assert not draw("fixed")[0].any()
    steps = np.diff(draw("linear")[0], axis=0)
    assert np.abs(steps - 1 / 127).max() < 1e-6


def test_a_saturating_mean_rises_by_one_and_ever_more_slowly() -> None:
    curve, _, own = draw("saturating")
    assert curve[-1] - curve[0] == pytest.approx(np.ones(2000), abs=1e-4)
    steps = np.diff(curve, axis=0)
    assert (steps[:-1] >= steps[1:] - 1e-6).all()
    # dθ/dt falls by the factor e in one saturation_time
    ratio = steps[20] / steps[10]
    assert ratio == pytest.approx(np.exp(-10 / 127 / own["saturation_time"]), rel=0.02)


def test_a_piecewise_mean_goes_through_its_knots() -> None:
    curve, _, own = draw("piecewise", 1024)
    t = np.linspace(0, 1, 1024)
    for i in range(20):
        xs = [0, own["knot_first"][i], own["knot_second"][i], 1]
        ys = [0, own["bend_first"][i], own["bend_second"][i], 0]
        assert curve[:, i] == pytest.approx(np.interp(t, xs, ys), abs=1e-4)


def test_a_switching_mean_has_two_levels_and_as_many_switches_as_asked_for() -> None:
    curve, _, _ = draw("switching", switches=3.0)
    assert set(np.unique(curve)) == {-0.5, 0.5}
    switches = (np.diff(curve, axis=0) != 0).sum(axis=0)
    # a share of 3/128 at each of 127 steps: about Poisson, so the mean has standard error √(3/2000)
    assert switches.mean() == pytest.approx(3 * 127 / 128, abs=5 * np.sqrt(3 / 2000))
    assert (curve[0] > 0).mean() == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(2000))


def test_a_shift_happens_once_and_where_it_should() -> None:
    curve, _, own = draw("shift")
    at = np.argmax(np.diff(curve, axis=0), axis=0) + 1
    assert ((np.diff(curve, axis=0) != 0).sum(axis=0) == 1).all()
    assert (np.abs(at / 127 - own["shift_at"]) <= 1 / 127).all()


@pytest.mark.parametrize("period", [0.125, 0.25, 0.5])
def test_a_season_comes_back_after_its_period(period: float) -> None:
    curve, _, _ = draw("season", 1025, season_period=period)
    points = int(period * 1024)
    assert np.abs(curve[points:] - curve[:-points]).max() < 1e-3
    strongest = np.abs(np.fft.rfft(curve[:-1], axis=0)).argmax(axis=0)
    assert (strongest == round(1 / period)).all()


@pytest.mark.parametrize("freedom", [3.0, 5.0, 12.0])
def test_student_shocks_have_the_tails_of_t(freedom: float) -> None:
    _, shocks, _ = draw("student_t", rows=4000, tail_freedom=freedom)
    t = stats.t(freedom)
    raw = shocks.ravel() * t.std()
    for share in (0.5, 0.9, 0.99, 0.999, 0.9999):
        error = np.sqrt(share * (1 - share) / raw.size) / t.pdf(t.ppf(share))  # of a sample's quantile
        assert np.quantile(raw, share) == pytest.approx(t.ppf(share), abs=5 * error)
        assert np.quantile(raw, 1 - share) == pytest.approx(t.ppf(1 - share), abs=5 * error)
    if freedom > 8:  # the fourth moment has a finite standard error
        assert stats.kurtosis(raw) == pytest.approx(float(t.stats("k")), rel=0.2)


def test_the_variance_of_volatile_shocks_clusters_and_that_of_others_does_not() -> None:
    def memory(name: str, **fixed: float) -> float:
        """How a shock's square goes with the next one's."""
        squares = np.minimum(draw(name, 500, **fixed)[1] ** 2, 20)
        return float(np.corrcoef(squares[:-1].ravel(), squares[1:].ravel())[0, 1])

    assert abs(memory("linear")) < 0.01
    assert abs(memory("student_t")) < 0.01
    assert memory("volatile") > 0.1
    # Of GARCH(1, 1) with α + β = p: ρ₁ = α (1 − p β) / (1 − 2 α β − β²) (Bollerslev 1986), here .14;
    # cutting off the largest squares takes a little of it.
    assert memory("volatile", volatility_reaction=0.1, volatility_memory=0.9) == pytest.approx(0.14, abs=0.03)


def test_volatile_shocks_are_not_correlated_themselves() -> None:
    _, shocks, _ = draw("volatile", 500)
    assert abs(np.corrcoef(shocks[:-1].ravel(), shocks[1:].ravel())[0, 1]) < 0.01


# ---- Another process


def test_a_process_is_added_by_one_function_and_one_line() -> None:
    code = """
from tsd.series.processes import PROCESSES, Process, Span

def sawtooth(own, time, shocks, rng):
    return time / own["tooth"] % 1

PROCESSES["sawtooth"] = Process(sawtooth, {"tooth": Span(0.1, 0.5, 0.01, 1)}, swings=True)

from tsd.recipe import load
from tsd.generation.generator import draw_table
from tsd.tasks import SINGLE

recipe = load("laptop", ["series.mix={sawtooth: 1, linear: 1}", "series.ranges={tooth: [0.2, 0.3]}"])
table = draw_table(SINGLE, recipe.series, 0, 0, 500)
rows = [row for row in table.to_pylist() if row["process"] == "sawtooth"]
assert 150 < len(rows) < 350, len(rows)
assert all(0.2 <= row["parameters"]["tooth"] <= 0.3 for row in rows)
assert all(row["parameters"]["tooth"] is None for row in table.to_pylist() if row["process"] == "linear")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
