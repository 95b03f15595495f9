"""Laws recovered from data made with them, and from the points of Hoffmann et al. 2022."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import approx_fprime

from tsd.evaluation import laws
from tsd.evaluation.laws import FittedLaw, Law, compute_optimal, fit, fit_with_intervals

Floats = npt.NDArray[np.float64]

CHINCHILLA = Path(__file__).parents[3] / "shared" / "reference" / "chinchilla_points.csv"

LANGUAGE = Law(E=1.8, A=480.0, alpha=0.35, B=2100.0, beta=0.37, objective=0.0)
TINY = Law(E=0.4, A=25.0, alpha=0.3, B=40.0, beta=0.5, objective=0.0)
ERROR_RATE = Law(E=0.02, A=60.0, alpha=0.6, B=9.0, beta=0.45, objective=0.0)

BILLIONS = ((5e7, 2e8, 1e9, 4e9, 1e10), (1e9, 5e9, 2e10, 1e11, 4e11))
THOUSANDS = ((3e4, 1e5, 4e5, 2e6), (250, 1000, 4000, 16000))


def crossed(levels: tuple[tuple[float, ...], tuple[float, ...]]) -> tuple[Floats, Floats]:
    """Every size with every train size: two columns."""
    grid = np.array(list(product(*levels)), dtype=np.float64)
    return grid[:, 0], grid[:, 1]


def noisy(law: Law, n: Floats, d: Floats, sigma: float, seed: int) -> Floats:
    return law.predict(n, d) * np.exp(np.random.default_rng(seed).normal(0, sigma, len(n)))


@pytest.fixture(scope="module")
def chinchilla() -> tuple[Floats, Floats, Floats]:
    if not CHINCHILLA.exists():
        pytest.skip(f"the reference points are not at {CHINCHILLA}")
    points = np.genfromtxt(CHINCHILLA, delimiter=",", names=True)
    kept = np.sort(points, order="loss")[:-5]
    return kept["parameters"], kept["tokens"], kept["loss"]


@pytest.fixture(scope="module")
def chinchilla_fit(chinchilla: tuple[Floats, Floats, Floats]) -> FittedLaw:
    return fit_with_intervals(*chinchilla, seed=0, resamples=200)


@pytest.mark.parametrize(
    ("law", "levels"),
    [(LANGUAGE, BILLIONS), (TINY, THOUSANDS), (ERROR_RATE, THOUSANDS)],
    ids=["billions of tokens", "thousands of examples", "an error rate"],
)
def test_a_law_is_recovered_from_losses_made_with_it(
    law: Law, levels: tuple[tuple[float, ...], tuple[float, ...]]
) -> None:
    n, d = crossed(levels)
    found = fit(n, d, law.predict(n, d))
    assert (found.alpha, found.beta) == pytest.approx((law.alpha, law.beta), abs=1e-3)
    heights = [(getattr(found, name), getattr(law, name)) for name in ("E", "A", "B")]
    assert [ours / true for ours, true in heights] == pytest.approx([1, 1, 1], rel=1e-2)
    assert found.objective < 1e-8


def test_the_units_of_the_runs_do_not_change_the_exponents() -> None:
    n, d = crossed(THOUSANDS)
    loss = noisy(TINY, n, d, 0.01, seed=3)
    once, rescaled = fit(n, d, loss), fit(n * 1e6, d * 1e-3, loss * 7)
    assert (rescaled.alpha, rescaled.beta) == pytest.approx((once.alpha, once.beta), abs=1e-4)
    ratio = rescaled.E / once.E
    assert ratio == pytest.approx(7, rel=1e-3)


def test_one_wild_run_hardly_moves_the_law() -> None:
    n, d = crossed(BILLIONS)
    loss = LANGUAGE.predict(n, d)
    loss[7] *= 2
    found = fit(n, d, loss)
    assert (found.alpha, found.beta) == pytest.approx((LANGUAGE.alpha, LANGUAGE.beta), abs=5e-3)


def test_the_analytic_gradient_is_the_slope_of_the_objective() -> None:
    n, d = crossed(THOUSANDS)
    runs = laws._centred(n, d, noisy(TINY, n, d, 0.3, seed=1), delta=0.3)
    weights = np.random.default_rng(2).integers(0, 3, len(n)).astype(np.float64)
    theta = np.array([-0.7, 0.2, -1.1, 0.6, -0.4])
    slope = approx_fprime(theta, lambda point: laws._objective(point, runs, weights)[0], 1e-7)
    assert laws._objective(theta, runs, weights)[1] == pytest.approx(slope, rel=1e-4, abs=1e-4)


def test_the_reference_minimum_is_reached_on_the_points_of_hoffmann(chinchilla_fit: FittedLaw) -> None:
    law = chinchilla_fit.law
    assert chinchilla_fit.runs == 240
    assert law.objective == pytest.approx(0.00101827, abs=1e-8)
    assert (law.alpha, law.beta, law.E) == pytest.approx((0.3473, 0.3672, 1.8172), abs=1e-3)
    assert (np.log(law.A), np.log(law.B)) == pytest.approx((6.1692, 7.6702), abs=5e-3)


def test_the_intervals_of_the_points_of_hoffmann_are_the_published_ones(chinchilla_fit: FittedLaw) -> None:
    # Besiroglu et al. 2024, from 4000 resamples; ours are 200, so the ends may be a hundredth off.
    published = {"alpha": (0.317, 0.373), "beta": (0.331, 0.415), "E": (1.769, 1.871)}
    for name, ends in published.items():
        assert chinchilla_fit.intervals[name] == pytest.approx(ends, abs=0.012)
    assert chinchilla_fit.determined


def test_the_true_exponents_lie_within_the_intervals_of_noisy_runs() -> None:
    n, d = (np.repeat(column, 2) for column in crossed(BILLIONS))
    # A 95 % interval may miss: over 40 seeds each of these three held the truth 38 or 39 times.
    found = fit_with_intervals(n, d, noisy(LANGUAGE, n, d, 0.005, seed=1), seed=1, resamples=100)
    for name in ("E", "alpha", "beta"):
        low, high = found.intervals[name]
        assert low < getattr(LANGUAGE, name) < high
        assert low < getattr(found.law, name) < high
    assert found.determined
    assert (found.runs, found.resamples) == (50, 100)


def test_the_same_seed_gives_the_same_intervals_and_another_seed_others() -> None:
    n, d = crossed(THOUSANDS)
    loss = noisy(TINY, n, d, 0.02, seed=5)
    first, again, other = (fit_with_intervals(n, d, loss, seed=seed, resamples=10) for seed in (1, 1, 2))
    assert first == again
    assert first.law == other.law
    assert first.intervals != other.intervals


def test_nine_noisy_runs_are_said_not_to_determine_an_exponent() -> None:
    n, d = crossed(((3e4, 1e5, 4e5), (250, 1000, 4000)))
    found = fit_with_intervals(n, d, noisy(TINY, n, d, 0.15, seed=0), seed=0, resamples=40)
    assert not found.determined
    assert "wider than itself" in found.note
    assert max(found.intervals["alpha"][1], found.intervals["beta"][1]) <= laws.LARGEST_EXPONENT


def test_two_sizes_never_determine_an_exponent_however_clean_the_runs() -> None:
    n, d = crossed(((1e5, 1e6), (250, 1000, 4000, 16000)))
    found = fit_with_intervals(n, d, TINY.predict(n, d), seed=0, resamples=20)
    assert not found.determined
    assert "alpha is fitted to two distinct sizes only" in found.note
    assert "beta rests" not in found.note


def test_a_loss_that_does_not_fall_with_size_has_exponent_zero_and_says_so() -> None:
    n, d = crossed(THOUSANDS)
    found = fit_with_intervals(n, d, 0.3 + 20 / d**0.5 + 0.02 * np.log(n), seed=0, resamples=10)
    assert found.law.alpha == 0
    assert "alpha = 0 has no meaning: the loss does not fall over these sizes" in found.note
    with pytest.raises(ValueError, match="no optimum"):
        compute_optimal(found.law, 1e12)


def test_the_same_loss_everywhere_determines_no_exponent() -> None:
    n, d = crossed(THOUSANDS)
    found = fit_with_intervals(n, d, np.full(len(n), 0.7), seed=0, resamples=5)
    assert found.law.predict(n, d) == pytest.approx(np.full(len(n), 0.7), rel=1e-3)
    assert "does not fall over these sizes" in found.note
    assert "does not fall over these train sizes" in found.note


def test_train_sizes_in_proportion_to_sizes_are_said_to_be_inseparable() -> None:
    n = np.repeat([3e4, 1e5, 4e5, 2e6, 8e6, 3e7], 3)
    found = fit_with_intervals(n, 20 * n, noisy(TINY, n, 20 * n, 0.02, seed=1), seed=0, resamples=10)
    assert "sizes and train sizes are correlated" in found.note


def test_resamples_of_a_single_size_are_left_out_and_counted() -> None:
    n, d = np.array([1e5, 1e5, 1e5, 1e5, 1e6]), np.array([250.0, 1000, 4000, 16000, 4000])
    found = fit_with_intervals(n, d, TINY.predict(n, d), seed=0, resamples=60)
    # The only run of the larger size is missed by (4/5)^5 = 33 % of the resamples.
    assert 30 <= found.resamples <= 50
    assert f"{60 - found.resamples} resamples held a single size or train size" in found.note


@pytest.mark.parametrize(
    ("n", "d", "loss", "message"),
    [
        ([1, 2, 3, 4], [1, 2, 3, 4], [4, 3, 2, 1], "needs 5 runs, got 4"),
        ([7] * 6, [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1], "two distinct sizes, all runs have 7"),
        ([1, 2, 3, 4, 5, 6], [9] * 6, [6, 5, 4, 3, 2, 1], "two distinct train sizes, all runs have 9"),
        ([1, 2, 3, 4, 5, 6], [1, 2, 1, 2, 1, 2], [6, 5, 4, 3, 2, 0], "losses must be positive .* got 0"),
        ([1, 2, 3, 4, 5, 6], [1, 2, 1, 2, 1, 2], [6, 5, 4, 3, 2, np.nan], "losses must be .* got nan"),
        ([1, 2, 3, 4, 5, 6], [1, 2, 1, 2, 1], [6, 5, 4, 3, 2, 1], "three columns of one length"),
    ],
)
def test_runs_that_cannot_be_fitted_are_refused_with_the_reason(
    n: list[float], d: list[float], loss: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit(n, d, loss)
    with pytest.raises(ValueError, match=message):
        fit_with_intervals(n, d, loss, seed=0)


@pytest.mark.parametrize("law", [LANGUAGE, replace(LANGUAGE, alpha=0.5, beta=0.28)])
def test_the_compute_optimal_size_spends_the_budget_and_no_other_split_is_better(law: Law) -> None:
    flops = 5.76e23  # that of Chinchilla
    n, d = compute_optimal(law, flops)
    assert 6 * n * d == pytest.approx(flops)
    sizes = n * np.array([0.5, 0.9, 1.1, 2.0])
    assert (law.predict(sizes, flops / 6 / sizes) > law.predict(n, d)).all()


def test_the_optimum_grows_with_compute_by_the_ratio_of_the_exponents() -> None:
    small, large = compute_optimal(LANGUAGE, 1e20), compute_optimal(LANGUAGE, 1e22)
    assert large[0] / small[0] == pytest.approx(100 ** (0.37 / 0.72))
    assert large[1] / small[1] == pytest.approx(100 ** (0.35 / 0.72))


def test_a_budget_of_nothing_buys_no_optimum() -> None:
    with pytest.raises(ValueError, match="flops is 0"):
        compute_optimal(LANGUAGE, 0)


def test_the_prediction_broadcasts_sizes_against_train_sizes() -> None:
    grid = LANGUAGE.predict(np.array([[1e8], [1e9]]), np.array([1e9, 1e10, 1e11]))
    assert grid.shape == (2, 3)
    assert grid[1, 2] == pytest.approx(1.8 + 480 / 1e9**0.35 + 2100 / 1e11**0.37)
