"""Reversion: its estimator by a plain form, on paths of known half-lives, and the tau that the generator gives."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.tsa.ar_model import AutoReg
from support.many_kinds import scaled

from tsd.generation import reversion as generated
from tsd.generation.visible import noise_of
from tsd.series.robust import measure, reversion


def paths(half_life: float, count: int, points: int, seed: int = 0) -> npt.NDArray[np.float64]:
    """AR(1) paths of unit variance, (count, points)."""
    rho = 0.5 ** (1 / half_life) if half_life else 0.0
    values = np.random.default_rng(seed).standard_normal((count, points))
    values[:, 1:] *= np.sqrt(1 - rho**2)
    for i in range(1, points):
        values[:, i] += rho * values[:, i - 1]
    return values


def test_the_memory_is_that_of_least_squares_without_rounding_and_without_what_is_far_off() -> None:
    rest = (8 * paths(2, 50, 128)).astype(np.float32)
    rest[:, 40] += 300
    noise, fitted = np.full(50, 5.0), np.arange(50) % 3
    found = reversion.find(rest, noise, fitted)
    for i, row in enumerate(rest.astype(np.float64)):
        near = np.clip(row, -20, 20)
        pairs = sum(near[t] * near[t + 1] for t in range(127))
        raw = pairs / (float((near**2).sum()) - 128 / 12)
        used = 2 + 3 * (i % 3)
        # The expected autocorrelation of what a fit leaves is ρ − (used + 2 · used · ρ) / points.
        expected = np.clip((raw + used / 128) / (1 - 2 * used / 128), 0, 1)
        assert found.memory[i] == pytest.approx(expected, abs=1e-4)
        assert found.speed[i] == (found.memory[i] >= 0.5)


@pytest.mark.parametrize("points", [128, 500])
def test_the_memory_of_a_path_with_a_half_life_of_one_point_is_a_half(points: int) -> None:
    memory = measure(scaled(paths(1, 1000, points))).reversion_memory
    assert np.median(memory) == pytest.approx(0.5, abs=0.03)


def test_reversion_is_fast_or_slow_on_any_course() -> None:
    time = np.arange(128)
    for course in (0 * time, 0.3 * time, 12 * np.sin(2 * np.pi * 7 * time / 128), 30.0 * (time > 80)):
        for half_life, slow in ((0.0, 0), (0.3, 0), (4.0, 1), (20.0, 1)):
            values = np.clip(np.rint(30 + course + 4 * paths(half_life, 300, 128)), 0, 99).astype(np.uint8)
            assert (measure(values).reversion == slow).mean() > 0.95, (course[-1], half_life)


@given(st.sampled_from(["constant", "ramp", "step"]), st.sampled_from([32, 77, 128]))
def test_a_series_that_never_leaves_its_course_reverts_fast(kind: str, points: int) -> None:
    time = np.arange(points)
    clean = {
        "constant": np.full(points, 50.0),
        "ramp": 99 * time / (points - 1),
        "step": np.where(time < points // 3, 10, 80),
    }[kind]
    assert measure(np.rint(clean).astype(np.uint8)[None]).reversion[0] == reversion.FAST


def test_statsmodels_finds_the_same_memory() -> None:
    rest = (8 * paths(2, 20, 500)).astype(np.float32)
    found = reversion.find(rest, np.full(20, 100.0), np.zeros(20, np.intp))
    for memory, row in zip(found.memory, rest, strict=True):
        assert memory == pytest.approx(AutoReg(row, 1, trend="n").fit().params[0], abs=0.02)


# ---- Generated


def test_wanted_reversion_changes_tau_and_keeps_the_noise() -> None:
    rng = np.random.default_rng(0)
    sizes = {"tau": rng.uniform(0.5, 60, 900), "sigma": rng.uniform(1, 4, 900), "level": np.arange(900.0)}
    wanted = np.repeat([generated.AS_DESIGNED, generated.FAST, generated.SLOW], 300)
    found = generated.retimed(wanted, rng, sizes, 128)
    assert found["level"] is sizes["level"]
    designed, fast, slow = np.split(found["tau"], 3)
    assert np.array_equal(designed, sizes["tau"][:300])
    assert fast.max() <= generated.FASTEST[1]
    assert slow.min() >= generated.SLOWEST[0]
    kept = sizes["tau"] >= generated.SLOWEST[0]
    assert np.array_equal(slow[kept[600:]], sizes["tau"][600:][kept[600:]])
    before, after = (noise_of(each["sigma"], each["tau"], 128) for each in (sizes, found))
    assert after == pytest.approx(before, rel=1e-6)


def test_no_path_is_made_so_slow_that_it_leaves_the_scale() -> None:
    sizes = {"tau": np.full(100, 0.1), "sigma": np.full(100, 15.0)}
    found = generated.retimed(np.full(100, generated.SLOW), np.random.default_rng(0), sizes, 128)
    assert found["sigma"] == pytest.approx(np.full(100, generated.WIDEST))
