"""Classes that are left out of `rich`: their definitions find what is plain, and miss what noise hides."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from statsmodels.tsa.stattools import adfuller
from support.many_kinds import scaled

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def left_out(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The benchmark's module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import left_out  # type: ignore[import-not-found]

    yield left_out
    sys.modules.pop("left_out")


def test_clean_curves_have_their_shapes_in_either_direction(left_out: Any) -> None:
    time = np.linspace(0, 1, 128)
    curves = {
        left_out.STRAIGHT: time,
        left_out.SATURATING: 1 - np.exp(-time / 0.3),
        left_out.ACCELERATING: np.exp((time - 1) / 0.3),
        left_out.BENT: np.maximum(time - 0.4, 0),
        left_out.NO_TREND: np.sin(2 * np.pi * 3 * time),
    }
    noise = 0.01 * np.random.default_rng(0).standard_normal((20, 128))
    for shape, curve in curves.items():
        for sign in (1, -1):
            raw = sign * curve / np.ptp(curve) + noise
            assert (left_out.shapes(scaled(raw)) == shape).all(), (shape, sign)


def test_a_season_beside_a_trend_does_not_bend_it(left_out: Any) -> None:
    time = np.linspace(0, 1, 128)
    noise = 0.01 * np.random.default_rng(0).standard_normal((20, 128))
    raw = time + 0.2 * np.sin(2 * np.pi * 5 * time) + noise
    assert (left_out.shapes(scaled(raw)) == left_out.STRAIGHT).all()


def test_the_t_of_a_unit_root_is_that_of_a_regression(left_out: Any) -> None:
    rest = np.random.default_rng(1).standard_normal((10, 100)).cumsum(axis=1)
    for t, row in zip(left_out.unit_root_t(rest), rest, strict=True):
        change = np.diff(row)
        design = np.stack([row[1:-1], change[:-1]], axis=1)
        fit, *_ = np.linalg.lstsq(design, change[1:])
        left = change[1:] - design @ fit
        covariance = left @ left / (98 - 4) * np.linalg.inv(design.T @ design)
        assert t == pytest.approx(fit[0] / np.sqrt(covariance[0, 0]), rel=1e-6)


def test_statsmodels_rejects_the_same_unit_roots(left_out: Any) -> None:
    values = scaled(np.random.default_rng(2).standard_normal((20, 128)).cumsum(axis=1))
    rest = left_out.around_line(values, left_out.measure(values))
    for mine, row in zip(left_out.unit_root_t(rest), rest.astype(float), strict=True):
        # Its degrees of freedom do not count the line.
        assert mine == pytest.approx(adfuller(row, 1, "n", autolag=None, result_object=False)[0], rel=0.03)
