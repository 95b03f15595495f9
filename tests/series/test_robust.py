"""The robust truth of series: what stays the same, what is found where it is, and each estimator by a reference.

References are scipy's and numpy's plain, slow forms of the same definitions.
"""

import warnings
from dataclasses import fields

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import savgol_coeffs, savgol_filter
from scipy.stats import kendalltau, theilslopes

from tsd.series.robust import Measures, block_rows, measure, noise, outlier, shift, trend, volatility, waves

LENGTHS = (32, 47, 64, 128, 200, 1024)
PLACES = {"shift_place": 0, "outlier_place": -1}  # a shift lies between two points, an outlier on one

lengths = st.integers(32, 1024)
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=25)


def drawn(seed: int, points: int, count: int = 24) -> npt.NDArray[np.uint8]:
    """Series of many kinds, (count, points), scaled to 0–99 each: noise, paths, waves, ramps, steps and spikes."""
    rng = np.random.default_rng(seed)
    time = np.arange(points) / points
    pick = rng.integers(0, 2, (count, 5))
    cycles, phase, at = rng.uniform(0.5, points / 5, count), rng.uniform(0, 1, count), rng.uniform(0.1, 0.9, count)
    raw = rng.uniform(0, 1, (count, 1)) * rng.standard_normal((count, points))
    raw += pick[:, :1] * rng.standard_normal((count, points)).cumsum(axis=1) / 5
    raw += pick[:, 1:2] * np.sin(2 * np.pi * (cycles[:, None] * time + phase[:, None])) * 2
    raw += pick[:, 2:3] * time * rng.normal(0, 4, (count, 1))
    raw += pick[:, 3:4] * (time >= at[:, None]) * rng.normal(0, 4, (count, 1))
    raw[np.arange(count), rng.integers(0, points, count)] += pick[:, 4] * rng.normal(0, 9, count)
    return scaled(raw)


def scaled(raw: npt.NDArray[np.floating]) -> npt.NDArray[np.uint8]:
    """Scale each series to 0–99 and round. raw: (series, points) or (points,)."""
    low, high = raw.min(axis=-1, keepdims=True), raw.max(axis=-1, keepdims=True)
    return np.rint((raw - low) / np.maximum(high - low, 1e-9) * 99).astype(np.uint8)


def columns(measures: Measures) -> dict[str, npt.NDArray[np.generic]]:
    """The measures by name."""
    return {field.name: getattr(measures, field.name) for field in fields(measures)}


def equal(one: Measures, other: Measures) -> bool:
    """Whether all measures are the same, bit for bit."""
    return all(np.array_equal(column, getattr(other, name)) for name, column in columns(one).items())


def some(measures: Measures, rows: npt.NDArray[np.intp] | slice) -> Measures:
    """The measures of some of the series."""
    return Measures(**{name: column[rows] for name, column in columns(measures).items()})


def one(values: npt.NDArray[np.generic]) -> dict[str, float]:
    """The measures of one series as plain numbers."""
    return {name: column[0].item() for name, column in columns(measure(np.asarray(values)[None])).items()}


# ---- What changes nothing, and what turns a measure round


@few
@given(seeds, lengths)
def test_batch_order_and_dtype_change_no_bit(seed: int, points: int) -> None:
    values = drawn(seed, points)
    together = measure(values)
    order = np.random.default_rng(seed).permutation(len(values))
    assert equal(measure(values[order]), some(together, order))
    assert equal(measure(values[3:4]), some(together, slice(3, 4)))
    assert equal(measure(np.asfortranarray(values)), together)
    for dtype in (np.float32, np.float64, np.int64):
        assert equal(measure(values.astype(dtype)), together)


@pytest.mark.parametrize("points", [32, 128, 1024])
def test_a_series_measures_the_same_in_a_block_of_any_neighbours(points: int) -> None:
    count = block_rows(points) + 70  # more than a block
    values = np.concatenate([drawn(seed, points, 100) for seed in range(-(-count // 100))])[:count]
    together = measure(values)
    assert len(together.trend) == count
    assert equal(measure(values[count // 3 :]), some(together, slice(count // 3, None)))
    assert equal(measure(values[::-1]), some(together, slice(None, None, -1)))
    assert measure(values[:0]).trend.shape == (0,)


@few
@given(seeds, lengths, st.integers(0, 49))
def test_a_constant_added_on_the_fixed_scale_changes_no_bit(seed: int, points: int, by: int) -> None:
    values = drawn(seed, points) // 2  # 0–49: there is room above
    assert equal(measure(values + np.uint8(by)), measure(values))


@few
@given(seeds, lengths)
def test_upside_down_all_directions_turn_and_nothing_else_changes(seed: int, points: int) -> None:
    values = drawn(seed, points)
    upright, turned = columns(measure(values)), columns(measure(99 - values))
    for name, column in upright.items():
        odd = name in ("trend", "trend_change", "trend_strength", "shift", "shift_size", "outlier")
        assert np.array_equal(turned[name], -column if odd else column), name


@few
@given(seeds, lengths)
def test_backwards_trend_and_shift_turn_and_places_are_mirrored(seed: int, points: int) -> None:
    values = drawn(seed, points)
    there, back = columns(measure(values)), columns(measure(values[:, ::-1]))
    for name in ("trend", "shift"):
        assert np.array_equal(back[name], -there[name]), name
    for name in ("noise_level", "season", "outlier", "outlier_count"):
        assert np.array_equal(back[name], there[name]), name
    for name in ("noise", "season_cycles", "season_height"):
        assert back[name] == pytest.approx(there[name], rel=1e-3, abs=1e-3), name
    assert np.abs(back["trend_strength"]) == pytest.approx(np.abs(there["trend_strength"]), rel=2e-3, abs=1e-3)
    mirrored = {0: 0, 1: 2, 2: 1, 3: 3}
    assert back["volatility"].tolist() == [mirrored[kind] for kind in there["volatility"].tolist()]
    for name, offset in PLACES.items():
        expected = np.where(there[name] < 0, -1, points + offset - there[name])
        assert np.array_equal(back[name], expected), name


# ---- Series made by hand


@pytest.mark.parametrize("points", LENGTHS)
def test_a_sine_is_flat_without_noise_and_seasonal_with_its_cycles(points: int) -> None:
    found = one(scaled(np.sin(2 * np.pi * 5 * np.arange(points) / points)))
    assert (found["trend"], found["noise_level"], found["season"], found["shift"]) == (0, 0, 2, 0)
    assert found["season_cycles"] == pytest.approx(5, abs=0.05)
    assert found["season_height"] == pytest.approx(99, abs=3)
    assert (found["outlier"], found["volatility"]) == (0, 0)


@pytest.mark.parametrize("points", LENGTHS)
@pytest.mark.parametrize("cycles", [1, 1.5, 2])
def test_one_cycle_or_two_are_neither_trend_nor_season(points: int, cycles: float) -> None:
    found = one(scaled(np.sin(2 * np.pi * cycles * np.arange(points) / points)))
    assert (found["trend"], found["season"], found["shift"], found["outlier"]) == (0, 0, 0, 0)
    assert found["noise"] < 2


@pytest.mark.parametrize("points", LENGTHS)
def test_a_ramp_rises_without_noise_and_nothing_else(points: int) -> None:
    found = one(scaled(np.arange(points, dtype=float)))
    assert found["trend"] == 1
    assert found["trend_strength"] > 1.5
    assert found["trend_change"] == pytest.approx(1, abs=0.02)
    assert (found["noise_level"], found["season"], found["shift"]) == (0, 0, 0)
    assert (found["outlier"], found["volatility"]) == (0, 0)


@pytest.mark.parametrize("points", LENGTHS)
def test_a_step_is_a_direction_and_a_shift_at_its_place(points: int) -> None:
    at = points * 2 // 3
    found = one(np.where(np.arange(points) < at, 20, 70).astype(np.uint8))
    assert (found["trend"], found["shift"], found["shift_place"]) == (1, 1, at)
    assert found["shift_size"] == pytest.approx(50, rel=1e-4)
    assert found["noise"] == pytest.approx(0, abs=1e-6)
    assert (found["season"], found["outlier"], found["volatility"]) == (0, 0, 0)


def test_white_noise_is_high_noise_and_nothing_else() -> None:
    found = measure(scaled(np.random.default_rng(1).standard_normal((500, 128))))
    assert (found.noise_level == 2).mean() > 0.98
    for facet in (found.trend, found.season, found.shift, found.outlier):
        assert (facet != 0).mean() < 0.02
    assert (found.volatility != 0).mean() < 0.04


@pytest.mark.parametrize("points", LENGTHS)
@pytest.mark.parametrize("sign", [1, -1])
@given(st.data())
@settings(max_examples=10)
def test_a_spike_on_a_slow_wave_is_found_wherever_it_is(points: int, sign: int, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, points - 1))
    values = 50 + 15 * np.sin(2 * np.pi * 1.3 * np.arange(points) / points)
    values[at] += sign * 34
    found = one(values.round().astype(np.uint8))
    assert (found["outlier"], found["outlier_place"], found["outlier_count"]) == (sign, at, 1)
    if points > 32:  # of which a wave explains a part
        assert found["outlier_size"] == pytest.approx(34, abs=10)


def test_two_spikes_in_one_direction_are_two_outliers_and_many_are_none() -> None:
    rng = np.random.default_rng(2)
    values = np.clip(rng.normal(30, 2, (3, 128)), 0, 99)
    values[0, [30, 90]] += 50
    values[1, 8:120:8] += 50
    values[2, 30], values[2, 90] = 80, 0
    values[2] = np.clip(values[2] + 15, 0, 99)
    found = measure(values.round().astype(np.uint8))
    assert found.outlier[:2].tolist() == [1, 0]
    assert found.outlier_count[0] == 2
    assert found.outlier_place[0] in (30, 90)


def test_noise_that_grows_shrinks_and_comes_in_bursts_is_told_apart() -> None:
    rng = np.random.default_rng(3)
    loud = np.ones((4, 128))
    loud[0, 80:], loud[1, :50], loud[2, 45:80] = 5, 5, 6
    found = measure(scaled(rng.standard_normal((4, 128)) * loud))
    assert found.volatility.tolist() == [1, 2, 3, 0]
    assert abs(found.volatility_place[0] - 80) <= 8
    assert abs(found.volatility_place[1] - 50) <= 8
    assert abs(found.volatility_place[2] - 45) <= 8
    assert (found.volatility_ratio[:3] > 2).all()


def test_a_staircase_rises_and_has_no_season() -> None:
    steps = np.arange(128) // 32 * 33
    found = one(np.clip(steps + np.random.default_rng(8).normal(0, 2, 128), 0, 99).round().astype(np.uint8))
    assert (found["trend"], found["season"], found["shift"]) == (1, 0, 0)


def test_a_ramp_under_two_waves_rises() -> None:
    time = np.arange(128) / 128
    raw = time + np.sin(2 * np.pi * 7 * time) / 4 + np.sin(2 * np.pi * 2.3 * time) / 4
    assert measure(scaled(np.stack([raw, -raw]))).trend.tolist() == [1, -1]


def test_on_the_fixed_scale_a_change_of_less_than_three_units_is_flat() -> None:
    ramp = np.arange(128) / 127
    found = measure(np.rint(50 + np.array([[2.0], [8.0]]) * ramp).astype(np.uint8))
    assert found.trend.tolist() == [0, 1]


def test_a_season_and_a_step_of_the_same_size_are_both_found() -> None:
    time = np.arange(128)
    found = one(scaled(np.sin(2 * np.pi * 6 * time / 128) / 2 + (time >= 70)))
    assert (found["season"], found["shift"], found["trend"]) == (2, 1, 1)
    assert round(found["season_cycles"]) == 6
    assert abs(found["shift_place"] - 70) <= 2


def test_a_spike_on_a_step_is_found_beside_the_shift() -> None:
    values = np.where(np.arange(128) < 60, 20.0, 70.0) + np.random.default_rng(4).normal(0, 2, 128)
    values[30] += 25
    found = one(values.round().astype(np.uint8))
    assert (found["shift"], found["outlier"], found["outlier_place"]) == (1, 1, 30)


# ---- Degenerate input


@pytest.mark.parametrize("points", LENGTHS)
def test_series_without_anything_measure_as_nothing_without_warnings(points: int) -> None:
    spike = np.zeros(points)
    spike[points // 3] = 99
    few_values = [np.zeros(points), np.full(points, 99), np.full(points, 50), spike, 99 - spike]
    two = [np.arange(points) % 2 * 99, (np.arange(points) < points // 2) * 99, (np.arange(points) == 0) * 99]
    batch = np.array([*few_values, *two]).astype(np.uint8)
    with warnings.catch_warnings(), np.errstate(all="raise", under="ignore"):
        warnings.simplefilter("error")
        found = measure(batch)
    for name, column in columns(found).items():
        assert np.isfinite(column).all(), name
    for name in ("trend", "trend_change", "noise", "noise_level", "season", "shift", "outlier", "volatility"):
        assert not getattr(found, name)[:3].any(), name
    assert found.outlier[3:5].tolist() == [1, -1]
    assert found.outlier_place[3:5].tolist() == [points // 3] * 2


@few
@given(st.data(), lengths)
def test_any_numbers_measure_as_finite_ones(data: st.DataObject, points: int) -> None:
    low = data.draw(st.integers(0, 99))
    high = data.draw(st.integers(low, 99))
    values = np.random.default_rng(points).integers(low, high + 1, (8, points), dtype=np.uint8)
    with np.errstate(all="raise", under="ignore"):
        found = measure(values)
    for name, column in columns(found).items():
        assert np.isfinite(column).all(), name
    assert (found.season_cycles[found.season == 0] == 0).all()
    assert (found.shift_place[found.shift == 0] == -1).all()
    assert (found.outlier_place[found.outlier == 0] == -1).all()
    assert (found.volatility_ratio >= 1).all()


@pytest.mark.parametrize("values", [np.zeros(128), np.zeros((2, 31)), np.zeros((2, 3, 40))])
def test_another_shape_is_refused_in_one_line(values: npt.NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match="must be \\(batch, points\\) with 32 points or more"):
        measure(values)


def test_missing_values_are_refused() -> None:
    values = np.full((2, 64), 5.0)
    values[1, 3] = np.nan
    with pytest.raises(ValueError, match="must be finite"):
        measure(values)


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
        angle = 2 * np.pi * table.frequencies[i] * time / points
        design = np.stack([np.ones(points), time, np.cos(angle), np.sin(angle)], axis=1)
        left = np.linalg.lstsq(design, residual.T.astype(np.float64))[1]
        assert power[:, i] == pytest.approx(line.energy - left, rel=1e-3, abs=1e-3 * line.energy.max())


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
    assert waves.strongest(waves.spectrum(residual), 128)[0] == pytest.approx(cycles, abs=0.03)


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
    score, first = shift._best_split(values)
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
    distance, gap = outlier._distances(values)
    wide = np.pad(values, ((0, 0), (4, 4)), mode="reflect")
    for point in range(0, points, 7):
        left = np.median(wide[:, point : point + 4], axis=1)
        right = np.median(wide[:, point + 5 : point + 9], axis=1)
        assert distance[:, point] == pytest.approx(values[:, point] - (left + right) / 2, abs=1e-3)
        assert gap[:, point] == pytest.approx(np.abs(right - left), abs=1e-3)


def test_a_contrast_is_the_difference_of_two_means_by_its_standard_error() -> None:
    contrasts = volatility._contrasts(100)
    sizes = np.random.default_rng(7).uniform(0, 1, 100)
    sums = np.add.reduceat(sizes, contrasts.starts)
    for i in range(0, len(contrasts.first), 17):
        start = contrasts.starts[contrasts.first[i]]
        stop = 100 if contrasts.last[i] == len(contrasts.starts) else contrasts.starts[contrasts.last[i]]
        inside = np.arange(100)[start:stop]
        rest = np.setdiff1d(np.arange(100), inside)
        error = np.sqrt(1 / len(inside) + 1 / len(rest))
        expected = (sizes[inside].mean() - sizes[rest].mean()) / error
        assert sums @ contrasts.weights[:, i] / volatility.WEIGHT == pytest.approx(
            expected * contrasts.factor[i], abs=1e-4
        )
