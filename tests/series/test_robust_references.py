"""The robust truth beside what statsmodels and ruptures find on the same series by their own estimators."""

import numpy as np
import numpy.typing as npt
import pytest
import ruptures
from statsmodels.regression.linear_model import GLSAR
from statsmodels.tools import add_constant
from statsmodels.tsa.seasonal import STL
from support.many_kinds import scaled

from tsd.series.robust import measure

POINTS, SERIES = 128, 60
Values = npt.NDArray[np.uint8]


def seasonal(cycles: int, rise: float) -> Values:
    """A sine on a line with normal noise, (SERIES, POINTS)."""
    rng, time = np.random.default_rng(cycles), np.arange(POINTS)
    wave = np.sin(2 * np.pi * (cycles * time / POINTS + rng.random((SERIES, 1))))
    return scaled(wave + rise * time / POINTS + 0.2 * rng.standard_normal((SERIES, POINTS)))


def shifted(size: float) -> Values:
    """Normal noise with a shift of so many standard deviations somewhere, (SERIES, POINTS)."""
    rng = np.random.default_rng(int(size))
    first = rng.integers(20, POINTS - 20, (SERIES, 1))
    return scaled(size * (np.arange(POINTS) >= first) + rng.standard_normal((SERIES, POINTS)))


def decomposed(values: npt.NDArray[np.generic], cycles: int) -> tuple[npt.NDArray[np.float64], ...]:
    """The deviation of what STL (Cleveland et al. 1990) leaves, and the height of its season, (SERIES,) each."""
    fits = [STL(row.astype(float), period=POINTS // cycles, seasonal=35).fit() for row in values]
    return np.array([fit.resid.std() for fit in fits]), np.array([np.ptp(fit.seasonal) for fit in fits])


@pytest.mark.parametrize("cycles", [4, 8, 16])
@pytest.mark.parametrize("rise", [0.0, 1.5])
def test_noise_and_season_are_those_of_stl(cycles: int, rise: float) -> None:
    values = seasonal(cycles, rise)
    found = measure(values)
    left, high = decomposed(values, cycles)
    # STL takes some noise for season: as much of white noise as of this.
    kept, _ = decomposed(np.random.default_rng(0).standard_normal((SERIES, POINTS)), cycles)
    assert np.median(found.noise * np.median(kept) / left) == pytest.approx(1, abs=0.1)
    assert np.median(found.season_height / high) == pytest.approx(0.9, abs=0.1)


@pytest.mark.parametrize("size", [4.0, 8.0])
def test_a_shift_begins_where_dynamic_programming_splits(size: float) -> None:
    """Bai and Perron (2003)."""
    values = shifted(size)
    found = measure(values)
    up = found.shift == 1
    assert up.mean() > 0.9
    places = [ruptures.Dynp("l2", jump=1, min_size=8).fit(row.astype(float)).predict(1)[0] for row in values[up]]
    assert found.shift_place[up].tolist() == places


def test_strength_grows_with_the_change_of_feasible_least_squares() -> None:
    """Cochrane and Orcutt (1949)."""
    rng, time = np.random.default_rng(5), np.arange(POINTS)
    noise = rng.standard_normal((SERIES, POINTS))
    for i in range(1, POINTS):
        noise[:, i] += 0.5 * noise[:, i - 1]
    values = scaled(np.linspace(0, 12, SERIES)[:, None] * time / POINTS + noise)
    found = measure(values)
    fits = [GLSAR(row.astype(float), add_constant(time), rho=1).iterative_fit(8) for row in values]
    change = np.array([fit.params[1] for fit in fits]) * (POINTS - 1)
    assert np.corrcoef(np.abs(change), found.trend_strength)[0, 1] > 0.95
    significant = np.abs([fit.tvalues[1] for fit in fits]) > 3
    assert significant[found.trend != 0].mean() > 0.9
    assert (found.trend[change > 35] == 1).all()
