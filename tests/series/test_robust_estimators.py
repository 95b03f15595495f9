"""Each estimator of the robust truth by scipy's or numpy's plain, slow form of the same definition."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.signal import savgol_coeffs, savgol_filter
from scipy.stats import kendalltau, theilslopes
from support.many_kinds import scaled

from tsd.series.robust import exact, measure, noise, outlier, shift, trend, volatility, waves

LENGTHS = (32, 47, 64, 128, 200, 1024)


# ---- Each estimator by a plain form of its definition


def walks(points: int, count: int = 20) -> npt.NDArray[np.float32]:
    """Centred paths with noise, (count, points)."""
    rng = np.random.default_rng(points)
    paths = rng.standard_normal((count, points)).cumsum(axis=1) + rng.standard_normal((count, points)) * 3
    return (paths - paths.mean(axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("points", LENGTHS)
def test_the_spectrum_is_what_least_squares_with_a_line_explains(points: int) -> None:
    line, residual = trend.fit_line(walks(points))
    power, table = waves.spectrum(residual), waves.wave_table(points)
    time = np.arange(points)
    for i in range(1, len(table.frequencies), max(1, len(table.frequencies) // 9)):
        between = waves._between(residual, np.full(len(residual), i))
        for found, further in ((power[:, i], 0.0), (between, waves.SPACING)):
            angle = 2 * np.pi * (table.frequencies[i] + further) * time / points
            design = np.stack([np.ones(points), time, np.cos(angle), np.sin(angle)], axis=1)
            left = np.linalg.lstsq(design, residual.T.astype(np.float64))[1]
            assert found == pytest.approx(line.energy - left, rel=1e-3, abs=1e-3 * line.energy.max())


@pytest.mark.parametrize("points", LENGTHS)
def test_a_wave_is_taken_off_as_least_squares_with_a_line_does(points: int) -> None:
    values = walks(points)
    line, residual = trend.fit_line(values)
    frequency = np.random.default_rng(1).uniform(1, points / 3, len(values))
    wave, rest = waves.take_off(residual, line.energy, frequency, least=0.0)
    time = np.arange(points) - (points - 1) / 2
    for i, cycles in enumerate(frequency):
        angle = 2 * np.pi * cycles * time / points
        design = np.stack([np.ones(points), time, np.cos(angle), np.sin(angle)], axis=1)
        fit, *_ = np.linalg.lstsq(design, values[i].astype(np.float64))
        assert rest[i] == pytest.approx(values[i] - design @ fit, abs=2e-3 * float(np.abs(values[i]).max()))
        assert line.slope[i] - wave.tilt[i] == pytest.approx(fit[1], rel=1e-3, abs=1e-5)
        covariance = np.linalg.inv(design.T @ design)
        assert 1 / waves.spread(points) + wave.tilt_variance[i] == pytest.approx(covariance[1, 1], rel=1e-3)


@given(st.floats(3, 40), st.floats(0, 1))
def test_the_frequency_of_a_clean_sine_is_found_between_those_of_the_table(cycles: float, phase: float) -> None:
    values = np.sin(2 * np.pi * (cycles * np.arange(128) / 128 + phase))[None].astype(np.float32) * 40
    residual = trend.fit_line(values)[1]
    frequency, power = waves.strongest(residual)
    assert frequency[0] == pytest.approx(cycles, abs=0.03)
    assert power[0] == pytest.approx(waves.sum_of_squares(residual)[0], rel=0.02)


def test_no_wave_is_fitted_where_the_strongest_explains_too_little() -> None:
    rng = np.random.default_rng(9)
    values = 10 * rng.standard_normal((400, 128)).astype(np.float32)
    values[::2] += 20 * np.sin(2 * np.pi * 7.3 * np.arange(128) / 128).astype(np.float32)
    line, residual = trend.fit_line(values)
    rest = residual.copy()
    wave = waves.take_strongest(rest, line.energy)
    frequency, _ = waves.strongest(residual)
    each, around = waves.take_off(residual, line.energy, frequency)
    assert wave.entered.tolist() == each.entered.tolist()
    assert wave.entered[::2].all()
    assert wave.entered.mean() < 0.6
    assert rest == pytest.approx(around, abs=1e-4)
    assert np.array_equal(wave.energy, each.energy)


@pytest.mark.parametrize("points", LENGTHS)
def test_roughness_is_the_residual_of_savitzky_and_golay_by_its_own_gain(points: int) -> None:
    values = walks(points)
    rough, width = noise.roughness(values), noise.window(points)
    residual = values - savgol_filter(values.astype(np.float64), width, 2, axis=1, mode="interp")
    inner = np.eye(width)[width // 2] - savgol_coeffs(width, 2)
    assert rough[:, 5:-5] == pytest.approx(residual[:, 5:-5] / np.linalg.norm(inner), abs=1e-3)
    # The gain at the ends differs from point to point: each point there is a multiple of the filter's.
    for point in (0, 1, 4, points - 3, points - 1):
        ratio = rough[:, point] / residual[:, point]
        assert ratio == pytest.approx(np.full(len(ratio), np.median(ratio)), rel=1e-2)


def test_the_deviation_of_normal_noise_is_without_bias() -> None:
    rng = np.random.default_rng(5)
    for points in (64, 128, 512):
        values = (rng.standard_normal((2000, points)) * 7).astype(np.float32)
        assert np.median(noise.deviation(noise.sizes_of(noise.roughness(values)))) == pytest.approx(7, rel=0.03)


def quasi_differenced_t(series: npt.NDArray[np.float64]) -> float:
    """The t of the slope by least squares on quasi-differences, the first point as it is. series: (points,)."""
    points = len(series)
    design = np.stack([np.ones(points), np.arange(points)], axis=1)
    rest = series - design @ np.linalg.lstsq(design, series)[0]
    rho = np.clip(((rest[1:] @ rest[:-1]) / (rest @ rest) * points + 2) / (points - 4), 0, 0.995)
    rho = 1.0 if rho > 1 - 1 / np.sqrt(points) else rho
    x, y = design.astype(np.float64), series.copy()
    x[1:] -= rho * design[:-1]
    y[1:] -= rho * series[:-1]
    fit, left, *_ = np.linalg.lstsq(x, y)
    return fit[1] / np.sqrt(left[0] / (points - 2) * np.linalg.inv(x.T @ x)[1, 1])


@pytest.mark.parametrize("points", LENGTHS)
def test_perron_and_yabus_t_is_that_of_quasi_differenced_least_squares(points: int) -> None:
    values = walks(points)
    line, residual = trend.fit_line(values)
    found = trend.perron_yabu(line.slope, waves.moments(residual))
    for i, series in enumerate(values.astype(np.float64)):
        forward, backward = (quasi_differenced_t(one) for one in (series, series[::-1]))
        assert found[i] == pytest.approx((forward - backward) / 2, rel=0.01, abs=0.01)


def test_of_noisy_ramps_the_slope_is_near_that_of_theil_and_sen_and_the_direction_that_of_mann_and_kendall() -> (
    None
):
    rng = np.random.default_rng(6)
    raw = rng.choice([-1, 1], (40, 1)) * np.arange(128) / 128 + 0.2 * rng.standard_normal((40, 128))
    values = scaled(raw)
    found = measure(values)
    for i, series in enumerate(values):
        tau = kendalltau(np.arange(128), series)
        assert tau.pvalue < 1e-3
        assert found.trend[i] == np.sign(tau.statistic)
        slope = theilslopes(series.astype(np.float64)).slope
        assert found.trend_change[i] == pytest.approx(slope * 127 / 99, abs=0.12)


@pytest.mark.parametrize("points", LENGTHS)
def test_the_best_split_is_that_of_trying_them_all(points: int) -> None:
    values = walks(points)
    score, first = shift._best_split(shift._cusum(values))
    edge = shift.edge(points)
    for i, series in enumerate(values.astype(np.float64)):
        left = [
            np.square(series[:k] - series[:k].mean()).sum() + np.square(series[k:] - series[k:].mean()).sum()
            for k in range(edge, points - edge + 1)
        ]
        assert series @ series - score[i] ** 2 == pytest.approx(min(left), rel=1e-4)
        assert left[first[i] - edge] == pytest.approx(min(left), rel=1e-4)


@pytest.mark.parametrize("points", LENGTHS)
def test_distances_are_those_to_the_medians_of_both_sides(points: int) -> None:
    values = walks(points)
    distance, medians = outlier._distances(values)
    gap = outlier._gaps(medians)
    wide = np.pad(values, ((0, 0), (4, 4)), mode="reflect")
    for point in range(0, points, 7):
        left = np.median(wide[:, point : point + 4], axis=1)
        right = np.median(wide[:, point + 5 : point + 9], axis=1)
        assert distance[:, point] == pytest.approx(values[:, point] - (left + right) / 2, abs=1e-3)
        assert gap[:, point] == pytest.approx(np.abs(right - left), abs=1e-3)


@pytest.mark.parametrize("bursts", [False, True])
def test_a_contrast_is_the_difference_of_two_means_by_its_standard_error(bursts: bool) -> None:
    contrasts = volatility._contrasts(100, bursts)
    sizes = np.random.default_rng(7).uniform(0, 1, 100)
    sums = np.add.reduceat(sizes, contrasts.starts)
    for i in range(0, len(contrasts.first), 5):
        start = contrasts.starts[contrasts.first[i]]
        stop = 100 if contrasts.last[i] == len(contrasts.starts) else contrasts.starts[contrasts.last[i]]
        inside = np.arange(100)[start:stop]
        rest = np.setdiff1d(np.arange(100), inside)
        error = np.sqrt(1 / len(inside) + 1 / len(rest))
        expected = (sizes[inside].mean() - sizes[rest].mean()) / error
        scores, unit = contrasts.weights.product(sums[None].astype(np.float32))
        assert scores[0, i] * unit[0] == pytest.approx(expected * contrasts.factor[i], abs=1e-2)


@given(st.integers(0, 2**32 - 1), st.integers(1, 200))
def test_a_product_of_rounded_factors_is_near_the_plain_one_and_the_same_in_any_row(
    seed: int, points: int
) -> None:
    rng = np.random.default_rng(seed)
    rows = (rng.standard_normal((70, points)) * 10.0 ** rng.uniform(-3, 3, (70, 1))).astype(np.float32)
    table = rng.standard_normal((points, 30))
    held = exact.weights(table)
    sums, unit = held.product(rows)
    length = np.linalg.norm(rows, axis=1)[:, None] * np.linalg.norm(table, axis=0).max()
    assert (np.abs(sums * unit[:, None] - rows @ table) <= 0.001 * np.sqrt(points) * length).all()
    order = rng.permutation(70)[: rng.integers(1, 70)]
    again, units = held.product(rows[order])
    assert np.array_equal(again, sums[order])
    assert np.array_equal(units, unit[order])
