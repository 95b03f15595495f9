"""Series with edges: ways between two levels, steps near an end, seasons that are no sines; refused input."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.many_kinds import columns, one, scaled

from tsd.series.robust import measure

POINTS = 128
TIME = np.arange(POINTS)
Values = npt.NDArray[np.float64]

SHAPES = {
    "square": lambda turns: (turns % 1 < 0.5) * 1.0,
    "quarter": lambda turns: (turns % 1 < 0.25) * 1.0,
    "sawtooth": lambda turns: turns % 1,
}


def noisy(clean: Values, deviation: float, count: int = 400) -> npt.NDArray[np.uint8]:
    """A series with normal noise, (count, points)."""
    noise = np.random.default_rng(1).standard_normal((count, len(clean))) * deviation
    return np.clip(np.rint(clean + noise), 0, 99).astype(np.uint8)


def cycles(shape: str, count: int, seed: int) -> Values:
    """A shape repeated 3 to 12 times from any phase, (count, points)."""
    rng = np.random.default_rng(seed)
    turns = rng.uniform(3, 12, (count, 1)) * TIME / POINTS + rng.uniform(0, 1, (count, 1))
    return np.asarray(SHAPES[shape](turns))


# ---- Points between two levels


@pytest.mark.parametrize("over", [1, 3, 8])
@pytest.mark.parametrize("deviation", [0.0, 3.0])
def test_a_point_on_the_way_from_one_level_to_another_is_no_outlier(over: int, deviation: float) -> None:
    way = np.interp(TIME, [0, 63, 64 + over, 127], [20, 20, 70, 70])
    for clean in (way, way[::-1], 90 - way):
        found = measure(noisy(clean, deviation))
        assert (found.outlier != 0).mean() <= 0.01
        assert (found.shift != 0).mean() >= 0.98


@pytest.mark.parametrize("at", [20, 57, 66, 110])
def test_a_spike_beside_a_point_on_the_way_is_still_found(at: int) -> None:
    values = np.where(TIME < 62, 20, np.where(TIME == 62, 40, 60))
    values[at] += 30
    found = one(values.astype(np.uint8))
    assert (found["shift"], found["outlier"], found["outlier_place"]) == (1, 1, at)


# ---- Steps near an end


@pytest.mark.parametrize("after", [4, 5, 7])
def test_a_shift_near_an_end_is_where_it_is_and_explains_its_points(after: int) -> None:
    late = np.repeat([20.0, 70.0], [POINTS - after, after])
    for clean, place in ((late, POINTS - after), (late[::-1], after)):
        found = measure(noisy(clean, 0.0, 1))
        assert (found.shift[0] != 0, found.shift_place[0], found.outlier[0]) == (True, place, 0)
        found = measure(noisy(clean, 3.0))
        assert (np.abs(found.shift_place - place) <= 1).mean() > 0.98
        assert (found.outlier != 0).mean() <= 0.005
        assert (found.volatility != 0).mean() <= 0.01


@pytest.mark.parametrize("after", [1, 2, 3])
def test_fewer_points_at_an_end_are_no_level(after: int) -> None:
    late = np.repeat([20.0, 70.0], [POINTS - after, after])
    for clean in (late, late[::-1]):
        found = measure(noisy(clean, 3.0))
        assert not found.shift.any()


# ---- The trend under a season


@pytest.mark.parametrize("deviation", [0.0, 3.0])
def test_a_rise_under_a_season_of_three_cycles_rises_in_any_phase(deviation: float) -> None:
    phases = np.linspace(0, 2 * np.pi, 16, endpoint=False)[:, None]
    raw = 60 * TIME / 127 + 40 * np.sin(2 * np.pi * 3 * TIME / POINTS + phases)
    raw += np.random.default_rng(2).standard_normal(raw.shape) * deviation
    assert measure(scaled(raw)).trend.tolist() == [1] * 16
    assert measure(scaled(-raw)).trend.tolist() == [-1] * 16


# ---- Seasons of any shape


@pytest.mark.parametrize("shape", SHAPES)
def test_a_clean_season_of_any_shape_has_low_noise(shape: str) -> None:
    found = measure(scaled(cycles(shape, 400, 3)))
    assert (found.noise_level[found.season > 0] == 0).mean() >= 0.99
    assert (found.season > 0).mean() > 0.9


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.05, 0.1, 0.2])
def test_the_noise_around_a_season_of_any_shape_is_that_which_was_added(shape: str, share: float) -> None:
    raw = cycles(shape, 400, 4)
    raw += share * np.random.default_rng(5).standard_normal(raw.shape)
    found = measure(scaled(raw))
    near = np.abs(found.noise * np.ptp(raw, axis=1) / (99 * share) - 1) <= 0.2
    assert near[found.season > 0].mean() >= 0.9


def test_the_noise_around_a_sine_is_not_taken_for_its_shape() -> None:
    rng = np.random.default_rng(6)
    turns = rng.uniform(3, 12, (1000, 1)) * TIME / POINTS + rng.uniform(0, 1, (1000, 1))
    raw = np.sin(2 * np.pi * turns) / 2 + 0.3 * rng.standard_normal(turns.shape)
    ratio = measure(scaled(raw)).noise * np.ptp(raw, axis=1) / (99 * 0.3)
    assert np.median(ratio) == pytest.approx(1, abs=0.05)
    assert (ratio < 0.8).mean() <= 0.05


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(SHAPES)), st.sampled_from([0.0, 0.05, 0.2]))
def test_seasons_of_any_shape_measure_the_same_backwards_and_upside_down(
    seed: int, shape: str, share: float
) -> None:
    raw = cycles(shape, 24, seed)
    raw += share * np.random.default_rng(seed).standard_normal(raw.shape)
    values = scaled(raw)
    there, back, turned = (columns(measure(each)) for each in (values, values[:, ::-1], 99 - values))
    for name in ("noise", "noise_level", "season"):
        assert np.array_equal(turned[name], there[name]), name
        assert back[name] == pytest.approx(there[name], rel=1e-3, abs=1e-3), name


# ---- Input that is not on the scale


@pytest.mark.parametrize("values", [np.full((2, 64), 1e12), np.full((2, 64), -1), np.full((2, 64), 100, np.uint8)])
def test_values_off_the_scale_are_refused(values: npt.NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="must be 0–99, and values are from"):
        measure(values)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.complex128, object, np.dtype("U3")])
def test_what_is_no_real_number_is_refused(dtype: npt.DTypeLike) -> None:
    with pytest.raises(ValueError, match="must be real numbers"):
        measure(np.full((2, 64), 5).astype(dtype))


@pytest.mark.parametrize("value", [1e300, np.inf, -np.inf])
def test_what_float32_cannot_hold_is_refused_without_a_warning(value: float) -> None:
    values = np.full((2, 64), 5.0)
    values[1, 3] = value
    with pytest.raises(ValueError, match="must be finite"):
        measure(values)
