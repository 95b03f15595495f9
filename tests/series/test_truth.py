"""Truth: what is measurably true of series made by hand, mirrored, shifted, and of the paper's own rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tsd.series.truth import measure, polynomials, regions
from tsd.tasks import PAPER, single

PAPERS = single(PAPER)
REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "pixtral_annotations.jsonl"
SWAP = {"increasing": "decreasing", "decreasing": "increasing", "flat": "flat"}
LENGTHS = (32, 128, 1000)

values_0_to_99 = st.sampled_from(LENGTHS).flatmap(lambda n: arrays(np.uint8, n, elements=st.integers(0, 99)))


def truth_of(values: npt.ArrayLike) -> dict[str, str]:
    """The labels of one series."""
    batch = np.asarray(values, np.uint8)[None]
    (labels,) = PAPERS.truth(measure(batch), batch.shape[1]).to_pylist()
    return dict(labels)


def measures_of(values: npt.ArrayLike) -> dict[str, Any]:
    """The measures of one series."""
    return {name: column[0] for name, column in measure(np.asarray(values, np.uint8)[None]).items()}


# ---- The truth of series made by hand


@pytest.mark.parametrize("value", [0, 50, 99])
def test_a_constant_is_flat_and_noiseless_with_its_extrema_at_the_first_point(value: int) -> None:
    assert truth_of(np.full(128, value)) == {
        "trend": "flat",
        "noise": "low",
        "maximum": "beginning",
        "minimum": "beginning",
    }


def test_a_straight_rise_peaks_at_its_end_and_a_straight_fall_at_its_beginning() -> None:
    rise = np.arange(128) * 99 // 127
    assert truth_of(rise) == {"trend": "increasing", "noise": "low", "maximum": "end", "minimum": "beginning"}
    assert truth_of(rise[::-1]) == {
        "trend": "decreasing",
        "noise": "low",
        "maximum": "beginning",
        "minimum": "end",
    }


@pytest.mark.parametrize(
    ("at", "place"),
    [(0, "beginning"), (31, "beginning"), (32, "middle"), (96, "middle"), (97, "end"), (127, "end")],
)
def test_a_spike_is_found_where_it_stands(at: int, place: str) -> None:
    values = np.full(128, 50)
    values[at] = 60
    assert truth_of(values)["maximum"] == place
    values[at] = 40
    assert truth_of(values)["minimum"] == place


def test_of_two_equal_peaks_the_first_one_counts() -> None:
    values = np.full(128, 50)
    values[[60, 120]] = 70
    values[[20, 90]] = 30
    assert (truth_of(values)["maximum"], truth_of(values)["minimum"]) == ("middle", "beginning")


@pytest.mark.parametrize(("step", "trend"), [(60, "flat"), (61, "increasing")])
def test_a_rise_of_exactly_three_is_still_flat(step: int, trend: str) -> None:
    # The mean of 20 values moves by 3 when their sum moves by 60.
    values = np.full(128, 50)
    values[-20:] += np.array([step // 20 + (i < step % 20) for i in range(20)])
    assert truth_of(values)["trend"] == trend
    assert truth_of(values[::-1])["trend"] == {"flat": "flat", "increasing": "decreasing"}[trend]


@pytest.mark.parametrize(("rms", "noise"), [(1.999, "low"), (2.0, "medium"), (12.0, "medium"), (12.001, "high")])
def test_noise_of_exactly_two_and_of_exactly_twelve_is_medium(rms: float, noise: str) -> None:
    one = {name: np.zeros(1, np.int32) for name in ("trend_delta", "argmax", "argmin")}
    (found,) = PAPERS.classify({**one, "noise_rms": np.array([rms], np.float32)}, 128)["noise"]
    assert PAPERS.classes["noise"][found] == noise


@given(values_0_to_99)
def test_noise_is_the_residual_of_a_cubic_fit(values: npt.NDArray[np.uint8]) -> None:
    t = np.linspace(-1, 1, len(values))
    residual = values - np.polyval(np.polyfit(t, values.astype(float), 3), t)
    assert measures_of(values)["noise_rms"] == pytest.approx(np.sqrt(np.mean(residual**2)), abs=1e-4)


@given(st.tuples(*[st.floats(-20, 20)] * 4))
def test_a_cubic_without_noise_measures_as_no_more_than_its_rounding(coefficients: tuple[float, ...]) -> None:
    curve = np.polyval(coefficients, np.linspace(-1, 1, 128))
    curve = 10 + (curve - curve.min()) / max(1e-9, np.ptp(curve)) * 80
    assert measures_of(np.rint(curve))["noise_rms"] < 0.5  # rounding moves no value by more


@given(values_0_to_99.filter(lambda v: (v == v.max()).sum() == 1 and (v == v.min()).sum() == 1))
def test_mirrored_in_time_a_series_swaps_rising_and_falling_and_its_two_ends(
    values: npt.NDArray[np.uint8],
) -> None:
    there, back = measures_of(values), measures_of(values[::-1])
    last = len(values) - 1
    assert (back["argmax"], back["argmin"]) == (last - there["argmax"], last - there["argmin"])
    assert truth_of(values[::-1])["trend"] == SWAP[truth_of(values)["trend"]]
    assert back["noise_rms"] == pytest.approx(there["noise_rms"], abs=1e-4)


@given(values_0_to_99)
def test_turned_upside_down_a_series_swaps_its_maximum_and_minimum(values: npt.NDArray[np.uint8]) -> None:
    upright, turned = truth_of(values), truth_of(99 - values)
    assert (turned["maximum"], turned["minimum"]) == (upright["minimum"], upright["maximum"])
    assert turned["trend"] == SWAP[upright["trend"]]


@given(values_0_to_99, st.sampled_from([2, 3, 8]))
def test_a_series_drawn_with_more_points_keeps_its_truth(values: npt.NDArray[np.uint8], times: int) -> None:
    short, long = truth_of(values), truth_of(np.repeat(values, times))
    assert long["trend"] == short["trend"]  # 20 of 128 points are as many of 256
    # 32·k is in the middle and 32 is the first index of it; an index of 96 falls on 96·k.
    assert (long["maximum"], long["minimum"]) == (short["maximum"], short["minimum"])


@pytest.mark.parametrize(("length", "at", "place"), [(64, 15, "beginning"), (64, 16, "middle"), (64, 49, "end")])
def test_the_quarters_of_another_length_are_its_own(length: int, at: int, place: str) -> None:
    values = np.full(length, 50)
    values[at] = 60
    assert truth_of(values)["maximum"] == place


@given(values_0_to_99, st.integers(0, 50))
def test_shifted_up_a_series_keeps_its_truth(values: npt.NDArray[np.uint8], by: int) -> None:
    low = values // 2  # 0–49: there is room above
    here, there = measures_of(low), measures_of(low + by)
    assert truth_of(low + by) == truth_of(low)
    assert there["noise_rms"] == pytest.approx(here["noise_rms"], abs=1e-3)
    assert all(there[name] == here[name] for name in here if name != "noise_rms")


@pytest.mark.parametrize("length", LENGTHS)
@given(st.data())
def test_a_single_spike_leads_by_its_height_and_is_found_wherever_it_is(length: int, data: st.DataObject) -> None:
    at, height = data.draw(st.integers(0, length - 1)), data.draw(st.integers(1, 49))
    values = np.full(length, 50)
    values[at] += height
    found = measures_of(values)
    assert (found["argmax"], found["maximum_lead"]) == (at, height)
    assert found["minimum_lead"] == 0  # the floor is as low everywhere
    first, last = regions(length)
    expected = "beginning" if at < first else "end" if at >= last else "middle"
    assert truth_of(values)["maximum"] == expected
    below = measures_of(100 - values)
    assert (below["argmin"], below["minimum_lead"]) == (at, height)


@given(values_0_to_99)
def test_a_lead_is_the_distance_to_the_best_value_of_the_other_regions(values: npt.NDArray[np.uint8]) -> None:
    found, (first, last) = measures_of(values), regions(len(values))
    parts = [values[:first].astype(int), values[first:last].astype(int), values[last:].astype(int)]
    highs = sorted((int(part.max()) for part in parts), reverse=True)
    lows = sorted(int(part.min()) for part in parts)
    assert found["maximum_lead"] == highs[0] - highs[1]
    assert found["minimum_lead"] == lows[1] - lows[0]


def test_the_regions_are_those_of_the_paper() -> None:
    assert regions(128) == (32, 97)


@pytest.mark.parametrize("length", [2, 3, 4, 5, 255, 256, 257])
def test_short_series_and_those_around_a_power_of_two_are_measured_too(length: int) -> None:
    values = np.random.default_rng(length).integers(0, 100, (20, length), dtype=np.uint8)
    found = measure(values)
    assert np.array_equal(found["argmax"], values.argmax(axis=1))
    assert np.array_equal(found["argmin"], values.argmin(axis=1))
    if length > 4:
        t = np.linspace(-1, 1, length)
        fit = np.polynomial.polynomial.polyfit(t, values.T, 3)
        residual = values - np.polynomial.polynomial.polyval(t, fit)
        assert found["noise_rms"] == pytest.approx(np.sqrt((residual**2).mean(axis=1)), rel=1e-5, abs=1e-4)


def test_the_sums_that_truth_rests_on_are_exact() -> None:
    for length in (*LENGTHS, 1024):
        weights, norms = polynomials(length)
        whole = [[int(w) for w in column] for column in weights.T]
        assert all(
            float(w) == exact
            for column, row in zip(weights.T, whole, strict=True)
            for w, exact in zip(column, row, strict=True)
        )
        for i, column in enumerate(whole):
            assert 99 * sum(map(abs, column)) < 2**53
            assert norms[i] == pytest.approx(sum(w * w for w in column), rel=1e-12)
            for other in whole[:i]:
                assert sum(a * b for a, b in zip(column, other, strict=True)) == 0


@pytest.mark.parametrize("length", LENGTHS)
def test_a_batch_measures_bit_for_bit_as_its_rows_do(length: int) -> None:
    batch = np.random.default_rng(3).integers(0, 100, (700, length), dtype=np.uint8)
    together, turned = measure(batch), measure(np.asfortranarray(batch))
    assert measure(batch[:0])["argmax"].shape == (0,)
    for name, column in together.items():
        assert np.array_equal(column, turned[name])
        assert np.array_equal(column[123:456], measure(batch[123:456])[name])
        assert [measures_of(row)[name] for row in batch[:50]] == column[:50].tolist()


# ---- The truth of the paper's own rows


@pytest.mark.skipif(not REFERENCE.is_file(), reason="../shared/reference is not there")
def test_the_truth_of_the_papers_rows_is_what_its_formulas_say() -> None:
    def by_hand(values: list[int]) -> dict[str, str]:
        delta = sum(values[-20:]) / 20 - sum(values[:20]) / 20
        x = np.arange(128.0)
        design = np.stack([np.ones(128), x / 128, (x / 128) ** 2, (x / 128) ** 3], axis=1)
        fitted = design @ np.linalg.lstsq(design, np.array(values, float), rcond=None)[0]
        rms = float(np.sqrt(np.mean((np.array(values) - fitted) ** 2)))

        def place(index: int) -> str:
            return "beginning" if index < 32 else "end" if index > 96 else "middle"

        return {
            "trend": "increasing" if delta > 3 else "decreasing" if delta < -3 else "flat",
            "noise": "low" if rms < 2 else "high" if rms > 12 else "medium",
            "maximum": place(values.index(max(values))),
            "minimum": place(values.index(min(values))),
        }

    rows = [json.loads(line)["values"] for line in REFERENCE.read_text().splitlines()]
    assert len(rows) == 100
    assert [truth_of(row) for row in rows] == [by_hand(row) for row in rows]
    # Of the 200 rows, these are every second one; the paper's corpus has 128 rising, 71 falling, 1 flat.
    trends = [truth_of(row)["trend"] for row in rows]
    assert trends.count("increasing") > trends.count("decreasing") > trends.count("flat")
