"""The robust truth of series: what stays the same, what is found where it is, and each estimator by a reference.

References are scipy's and numpy's plain, slow forms of the same definitions.
"""

import warnings

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.many_kinds import columns, drawn, equal, one, scaled, some

from tsd.series.robust import block_rows, measure

LENGTHS = (32, 47, 64, 128, 200, 1024)
PLACES = {"shift_place": 0, "outlier_place": -1}  # a shift lies between two points, an outlier on one

lengths = st.integers(32, 1024)
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=25)


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
    for name in ("noise", "season_cycles", "season_height", "reversion_memory"):
        assert back[name] == pytest.approx(there[name], rel=1e-3, abs=1e-3), name
    assert np.abs(back["trend_strength"]) == pytest.approx(np.abs(there["trend_strength"]), rel=2e-3, abs=1e-3)
    mirrored = {0: 0, 1: 2, 2: 1}
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


def test_noise_that_grows_is_told_from_noise_that_shrinks_and_bursts_are_neither() -> None:
    rng = np.random.default_rng(3)
    loud = np.ones((4, 128))
    loud[0, 80:], loud[1, :50], loud[2, 45:80] = 5, 5, 6
    found = measure(scaled(rng.standard_normal((4, 128)) * loud))
    assert found.volatility.tolist() == [1, 2, 0, 0]
    assert abs(found.volatility_place[0] - 80) <= 8
    assert abs(found.volatility_place[1] - 50) <= 8
    assert (found.volatility_ratio[:2] > 2).all()


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
