"""Series: the same bytes however they are drawn, and what is measurably true of series made by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tsd.drawing import BLOCK, draw_table, ornstein_uhlenbeck, split_of
from tsd.recipe import Recipe, SeriesConfig
from tsd.schema import SPLITS
from tsd.scoring import baselines, class_table
from tsd.series.truth import classify, label_structs, measure
from tsd.tasks import SINGLE

REFERENCE = Path(__file__).parents[2] / "shared" / "reference" / "pixtral_annotations.jsonl"
SHORT = SeriesConfig(length=32)
ROWS = 3 * BLOCK

values_0_to_99 = arrays(np.uint8, 128, elements=st.integers(0, 99))


@pytest.fixture(scope="module")
def whole() -> pa.Table:
    """Three blocks of short series, drawn at once."""
    return draw_table(SINGLE, SHORT, 11, 0, ROWS)


@pytest.fixture(scope="module")
def many(recipe: Recipe) -> pa.Table:
    """Twenty blocks of the laptop study's series."""
    return draw_table(SINGLE, recipe.series, recipe.seed, 0, 20 * BLOCK)


def truth_of(values: npt.ArrayLike) -> dict[str, str]:
    """The labels of one series."""
    batch = np.asarray(values, np.uint8)[None]
    (labels,) = label_structs(classify(measure(batch), batch.shape[1])).to_pylist()
    return dict(labels)


def measures_of(values: npt.ArrayLike) -> dict[str, Any]:
    """The measures of one series."""
    return {name: column[0] for name, column in measure(np.asarray(values, np.uint8)[None]).items()}


# ---- A series is a function of (seed, id) alone


@settings(max_examples=40)
@given(st.data())
def test_any_range_of_ids_is_the_same_rows_of_the_one_draw(whole: pa.Table, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, ROWS - 1))
    count = data.draw(st.integers(1, ROWS - first))
    assert draw_table(SINGLE, SHORT, 11, first, count).equals(whole.slice(first, count))


@settings(max_examples=15)
@given(st.lists(st.integers(1, ROWS - 1), unique=True, max_size=6).map(sorted))
def test_any_layout_of_parts_in_any_order_gives_the_one_draw(whole: pa.Table, cuts: list[int]) -> None:
    bounds = list(zip([0, *cuts], [*cuts, ROWS], strict=True))
    parts = {low: draw_table(SINGLE, SHORT, 11, low, high - low) for low, high in reversed(bounds)}
    assert pa.concat_tables(parts[low] for low in sorted(parts)).equals(whole)


def test_asking_for_more_series_changes_none_of_the_first_ones() -> None:
    few = draw_table(SINGLE, SHORT.model_copy(update={"count": 100}), 5, 0, 100)
    more = draw_table(SINGLE, SHORT.model_copy(update={"count": 5000, "blocks_per_part": 3}), 5, 0, 5000)
    assert more.slice(0, 100).equals(few)


def test_another_seed_gives_other_series_and_the_same_splits(whole: pa.Table) -> None:
    other = draw_table(SINGLE, SHORT, 12, 0, BLOCK)
    mine = whole.slice(0, BLOCK)
    same = [a == b for a, b in zip(mine["values"].to_pylist(), other["values"].to_pylist(), strict=True)]
    assert sum(same) == 0
    assert other["split"].equals(mine["split"])


def test_no_series_is_drawn_twice(whole: pa.Table) -> None:
    assert len({tuple(row) for row in whole["values"].to_pylist()}) == ROWS


def test_a_far_id_can_be_drawn_without_those_before_it() -> None:
    far = 10**10 - 3
    assert draw_table(SINGLE, SHORT, 1, far, 3)["series_id"].to_pylist() == [far, far + 1, far + 2]


# ---- Split


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=50))
def test_a_split_depends_on_the_id_and_not_on_its_company(ids: list[int]) -> None:
    together = split_of(np.array(ids, np.int64), (0.8, 0.1, 0.1))
    alone = [int(split_of(np.array([one], np.int64), (0.8, 0.1, 0.1))[0]) for one in ids]
    assert together.tolist() == alone


@pytest.mark.parametrize("shares", [(0.8, 0.1, 0.1), (0.5, 0.25, 0.25), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)])
def test_splits_have_the_shares_that_were_asked_for(shares: tuple[float, float, float]) -> None:
    count = 200_000
    found = np.bincount(split_of(np.arange(count), shares), minlength=3) / count
    # five standard errors of a share of 200,000 draws; none where the share is 0 or 1
    margin = 5 * np.sqrt(np.array(shares) * (1 - np.array(shares)) / count)
    assert (np.abs(found - shares) <= margin).all()


def test_the_split_column_is_the_hash_of_the_id(whole: pa.Table) -> None:
    expected = [SPLITS[i] for i in split_of(whole["series_id"].to_numpy(), SHORT.split)]
    assert whole["split"].to_pylist() == expected


def test_the_first_splits_are_what_they_have_always_been() -> None:
    # SplitMix64 of 0, 1, 2 … as published: 0 gives 0xE220A8397B1DCDAF, a share of .883.
    z = np.array([0], np.int64)
    shares = [(0.89, 0.01, 0.10), (0.88, 0.01, 0.11), (0.87, 0.01, 0.12)]
    assert [int(split_of(z, share)[0]) for share in shares] == [0, 1, 2]


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
    (found,) = classify({**one, "noise_rms": np.array([rms], np.float32)}, 128)["noise"]
    assert SINGLE.classes["noise"][found] == noise


@given(values_0_to_99)
def test_noise_is_the_residual_of_a_cubic_fit(values: npt.NDArray[np.uint8]) -> None:
    t = np.linspace(-1, 1, 128)
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
    swap = {"increasing": "decreasing", "decreasing": "increasing", "flat": "flat"}
    there, back = measures_of(values), measures_of(values[::-1])
    assert (back["argmax"], back["argmin"]) == (127 - there["argmax"], 127 - there["argmin"])
    assert truth_of(values[::-1])["trend"] == swap[truth_of(values)["trend"]]
    assert back["noise_rms"] == pytest.approx(there["noise_rms"], abs=1e-4)


@given(values_0_to_99)
def test_turned_upside_down_a_series_swaps_its_maximum_and_minimum(values: npt.NDArray[np.uint8]) -> None:
    swap = {"increasing": "decreasing", "decreasing": "increasing", "flat": "flat"}
    upright, turned = truth_of(values), truth_of(99 - values)
    assert (turned["maximum"], turned["minimum"]) == (upright["minimum"], upright["maximum"])
    assert turned["trend"] == swap[upright["trend"]]


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


def test_a_batch_measures_as_its_rows_do() -> None:
    batch = np.random.default_rng(3).integers(0, 100, (50, 128), dtype=np.uint8)
    together = measure(batch)
    for i, row in enumerate(batch):
        for name, value in measures_of(row).items():
            assert together[name][i] == pytest.approx(value, rel=1e-6)


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


# ---- What is drawn


@pytest.mark.parametrize("tau", [0.5, 3.0, 12.0])
def test_the_path_is_stationary_and_forgets_at_the_rate_of_tau(tau: float) -> None:
    rows, length = 20_000, 40
    path = ornstein_uhlenbeck(np.random.default_rng(7).standard_normal((rows, length)), np.full(rows, tau))
    # Rows are independent: a variance of n draws has standard error √(2/n), a correlation at most 1/√n.
    variance = path.var(axis=0)
    assert np.abs(variance - 1).max() < 5 * np.sqrt(2 / rows)
    for first in (0, 19, 38):
        correlation = np.corrcoef(path[:, first], path[:, first + 1])[0, 1]
        assert abs(correlation - np.exp(-1 / tau)) < 5 / np.sqrt(rows)
    assert abs(np.corrcoef(path[:, 0], path[:, 5])[0, 1] - np.exp(-5 / tau)) < 5 / np.sqrt(rows)


def test_values_are_integers_of_0_to_99_and_as_many_as_asked_for(many: pa.Table, recipe: Recipe) -> None:
    flat = many["values"].combine_chunks()
    assert set(np.diff(flat.offsets.to_numpy())) == {recipe.series.length}
    assert flat.values.to_numpy().max() <= 99


def test_the_truth_column_is_measured_on_the_values_column(many: pa.Table) -> None:
    part = many.slice(777, 200)
    assert part["truth"].to_pylist() == [truth_of(values) for values in part["values"].to_pylist()]


def test_every_class_of_every_facet_has_between_20_and_45_percent(many: pa.Table) -> None:
    for facet, shares in class_table(SINGLE, many).items():
        for name, share in shares.items():
            assert 0.20 <= share <= 0.45, f"{facet} {name} {share:.3f}"


def test_the_trend_does_not_give_the_extrema_away(many: pa.Table) -> None:
    found = baselines(SINGLE, many)
    assert found["maximum"]["given"] <= 0.65
    assert found["minimum"]["given"] <= 0.65


def test_the_splits_are_alike_in_their_classes(many: pa.Table) -> None:
    tables = {split: class_table(SINGLE, many.filter(pa.compute.equal(many["split"], split))) for split in SPLITS}
    for facet, shares in tables["train"].items():
        for name, share in shares.items():
            # about 2,000 rows: five standard errors are .053 at a share of a third
            assert abs(tables["test"][facet][name] - share) < 0.06
            assert abs(tables["validation"][facet][name] - share) < 0.06
