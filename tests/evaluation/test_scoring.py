"""Scores of hand-made replies, the Wilson interval, and baselines over all truths there can be."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsd.evaluation.intervals import Interval
from tsd.evaluation.scoring import (
    Clear,
    about,
    accuracy,
    add,
    baselines,
    beside_teacher,
    class_table,
    score,
    tally,
    without_ties,
)
from tsd.storage.schemas import score_names
from tsd.tasks import SINGLE

Row = Mapping[str, str | None]

RISING = {"trend": "increasing", "noise": "low", "maximum": "end", "minimum": "beginning"}
FALLING = {"trend": "decreasing", "noise": "high", "maximum": "beginning", "minimum": "end"}
FLAT = {"trend": "flat", "noise": "medium", "maximum": "middle", "minimum": "end"}
UNREADABLE = dict.fromkeys(SINGLE.classes)

truths = st.lists(
    st.fixed_dictionaries({facet: st.sampled_from(classes) for facet, classes in SINGLE.classes.items()}),
    min_size=1,
    max_size=60,
)


def predictions(labels: Sequence[Row], truth: Sequence[Row]) -> pa.Table:
    rows = [
        {"run_id": "r", "series_id": number, "text": "", "labels": said, "truth": true}
        for number, (said, true) in enumerate(zip(labels, truth, strict=True))
    ]
    return pa.Table.from_pylist(rows, schema=SINGLE.tables.predictions)


def values(scores: Mapping[str, Interval]) -> dict[str, float]:
    return {name: interval.value for name, interval in scores.items()}


def test_a_perfect_reply_scores_one_everywhere() -> None:
    truth = [RISING, FALLING, FLAT]
    assert values(score(predictions(truth, truth))) == dict.fromkeys(score_names(SINGLE.names), 1.0)


def test_one_wrong_label_costs_its_facet_and_all_four_but_not_the_others() -> None:
    labels = [RISING, FALLING, FLAT, {**RISING, "noise": "high"}]
    assert values(score(predictions(labels, [RISING, FALLING, FLAT, RISING]))) == {
        "trend": 1.0,
        "noise": 0.75,
        "maximum": 1.0,
        "minimum": 1.0,
        "all_right": 0.75,
        "valid": 1.0,
    }


def test_a_label_that_is_not_stated_is_wrong_and_makes_the_reply_invalid() -> None:
    labels = [{**RISING, "maximum": None}, UNREADABLE]
    assert values(score(predictions(labels, [RISING, FALLING]))) == {
        "trend": 0.5,
        "noise": 0.5,
        "maximum": 0.0,
        "minimum": 0.5,
        "all_right": 0.0,
        "valid": 0.0,
    }


def test_a_reply_can_be_valid_and_wrong() -> None:
    found = values(score(predictions([FALLING], [RISING])))
    assert found == {**dict.fromkeys(score_names(SINGLE.names), 0.0), "valid": 1.0}


def test_all_four_asks_for_the_four_on_the_same_row() -> None:
    labels = [{**RISING, "trend": "flat"}, {**RISING, "minimum": "end"}]
    found = values(score(predictions(labels, [RISING, RISING])))
    assert (found["trend"], found["minimum"], found["all_right"]) == (0.5, 0.5, 0.0)


def test_a_table_in_several_chunks_scores_as_the_whole() -> None:
    whole = predictions([RISING, FALLING, RISING], [RISING, FLAT, RISING])
    chunked = pa.concat_tables([whole.slice(0, 1), whole.slice(1)])
    assert chunked.column("labels").num_chunks == 2
    assert score(chunked) == score(whole)


def test_no_predictions_are_no_score() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        score(SINGLE.tables.predictions.empty_table())


def test_ten_of_ten_is_not_certainty() -> None:
    # Wilson 1927 at 10/10 in closed form: the lower end is n / (n + z²), z = 1.959964.
    found = accuracy(np.ones(10, dtype=np.bool_))
    assert found.value == 1.0
    assert found.low == pytest.approx(10 / (10 + 1.959964**2), abs=1e-6)
    assert found.high == pytest.approx(1.0)


def test_the_interval_is_plain_floats_that_fit_the_runs_table() -> None:
    row = accuracy(np.array([True, False, True])).as_dict()
    assert list(row) == ["value", "low", "high"]
    assert {type(number) for number in row.values()} == {float}


@given(st.lists(st.booleans(), min_size=1, max_size=300))
@settings(deadline=None)
def test_the_wilson_interval_holds_the_value_and_stays_within_zero_and_one(hits: list[bool]) -> None:
    found = accuracy(np.array(hits, dtype=np.bool_))
    assert found.value == sum(hits) / len(hits)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high


@given(st.integers(1, 40), st.integers(0, 40))
@settings(deadline=None)
def test_ten_times_the_rows_narrow_the_interval(right: int, wrong: int) -> None:
    few = np.array([True] * right + [False] * wrong)
    once, ten_times = accuracy(few), accuracy(np.tile(few, 10))
    assert ten_times.high - ten_times.low < once.high - once.low


@given(truths)
@settings(deadline=None)
def test_no_baseline_is_below_a_more_ignorant_one(truth: list[Row]) -> None:
    found = baselines(SINGLE, truth)
    for facet in SINGLE.classes:
        assert found[facet]["chance"] <= found[facet]["majority"] + 1e-12 <= 1 + 1e-12
    for place in ("maximum", "minimum"):
        assert found[place]["majority"] <= found[place]["given"] <= 1
    assert found["all_right"]["chance"] <= found["all_right"]["majority"]
    assert found["all_right"]["majority"] <= min(found[facet]["majority"] for facet in SINGLE.classes)


@given(truths)
@settings(deadline=None)
def test_always_saying_the_most_frequent_class_scores_the_majority_baseline(truth: list[Row]) -> None:
    shares, found = class_table(SINGLE, truth), baselines(SINGLE, truth)
    guess = {facet: max(of_class, key=lambda name: of_class[name]) for facet, of_class in shares.items()}
    scores = values(score(predictions([guess] * len(truth), truth)))
    assert {facet: scores[facet] for facet in SINGLE.classes} == {
        facet: pytest.approx(found[facet]["majority"]) for facet in SINGLE.classes
    }


@given(truths)
@settings(deadline=None)
def test_the_class_shares_of_every_facet_sum_to_one(truth: list[Row]) -> None:
    shares = class_table(SINGLE, truth)
    assert {facet: tuple(of_class) for facet, of_class in shares.items()} == SINGLE.classes
    assert [sum(of_class.values()) for of_class in shares.values()] == pytest.approx([1.0] * len(SINGLE.classes))


def test_the_trend_gives_the_place_away_where_rising_series_peak_at_their_end() -> None:
    truth = [RISING, RISING, {**RISING, "maximum": "middle"}, FALLING, FALLING, FLAT]
    found = baselines(SINGLE, truth)
    # maximum: end 2, middle 2, beginning 2; given the trend: 2 of 3 rising, 2 of 2 falling, 1 of 1 flat
    assert found["maximum"] == pytest.approx({"chance": 1 / 3, "majority": 2 / 6, "given": 5 / 6})
    assert found["minimum"] == pytest.approx({"chance": 1 / 3, "majority": 3 / 6, "given": 1.0})
    assert found["trend"] == pytest.approx({"chance": 1 / 3, "majority": 3 / 6})
    assert found["all_right"] == pytest.approx({"chance": 1 / 81, "majority": 2 / 6})


def test_a_table_and_its_structs_have_the_same_baselines() -> None:
    truth = [RISING, FALLING, FLAT, RISING]
    table = pa.table({"truth": pa.array(truth, type=SINGLE.tables.labels)})
    assert baselines(SINGLE, table) == baselines(SINGLE, truth)
    assert class_table(SINGLE, table) == class_table(SINGLE, truth)


def test_a_class_that_no_row_has_is_listed_with_a_share_of_zero() -> None:
    assert class_table(SINGLE, [RISING, FALLING])["trend"] == {"increasing": 0.5, "decreasing": 0.5, "flat": 0.0}


@pytest.mark.parametrize("wrong", ["sideways", None])
def test_a_truth_that_is_no_class_is_refused_by_its_facet_and_value(wrong: str | None) -> None:
    with pytest.raises(ValueError, match=f"truth.trend has .*{wrong}"):
        baselines(SINGLE, [RISING, {**RISING, "trend": wrong}])


def test_no_truth_has_no_baseline() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        baselines(SINGLE, [])
    with pytest.raises(ValueError, match="at least one row"):
        class_table(SINGLE, SINGLE.tables.predictions.empty_table())


def test_near_ties_are_set_aside_facet_by_facet_whatever_the_order() -> None:
    said = predictions([FALLING, RISING, RISING], [RISING, RISING, RISING])
    clear = {"trend": 5.0, "noise": 5.0, "maximum": 5.0, "minimum": 5.0}
    margins = pa.table(
        {"series_id": [2, 0, 1], "margins": [clear, {**clear, "trend": 0.05}, {**clear, "noise": 0.0}]}
    )
    found = without_ties(SINGLE, said, margins)
    assert (found["trend"].ties, found["trend"].accuracy.value) == (pytest.approx(1 / 3), 1.0)  # type: ignore[union-attr]
    assert (found["noise"].ties, found["noise"].accuracy.value) == (pytest.approx(1 / 3), 0.5)  # type: ignore[union-attr]
    assert found["maximum"] == Clear(0.0, score(said)["maximum"])
    with pytest.raises(ValueError, match="1 predictions have no margins"):
        without_ties(SINGLE, said, margins.slice(1))


@given(truths)
def test_tallies_of_parts_add_up_to_the_shares_and_baselines_of_the_whole(truth: list[Row]) -> None:
    rows = pa.table({"split": ["test"] * len(truth), "truth": pa.array(truth, SINGLE.tables.labels)})
    middle = len(truth) // 2
    parts = [part for part in (rows.slice(0, middle), rows.slice(middle)) if len(part)]
    told = about(SINGLE, add(tally(SINGLE, part) for part in parts))
    assert told["classes"] == class_table(SINGLE, rows)
    assert told["baselines"] == baselines(SINGLE, rows)


def test_a_student_stands_beside_its_teacher_on_the_same_series_in_any_order() -> None:
    truth = [RISING, RISING, FALLING, FLAT]
    student = [RISING, {**RISING, "trend": "flat"}, FALLING, UNREADABLE]
    teacher = [RISING, {**RISING, "trend": "flat"}, {**FALLING, "trend": "increasing"}, UNREADABLE]
    annotations = pa.table(
        {
            "series_id": pa.array([9, 3, 2, 1, 0]),
            "labels": pa.array([FLAT, *reversed(teacher)], SINGLE.tables.labels),
        }
    )
    found = beside_teacher(predictions(student, truth), annotations)
    trend = found["trend"]
    assert (trend.teacher.value, trend.student.value) == (1 / 4, 2 / 4)
    assert trend.agreement.value == 2 / 4  # the one both have right, the one both have wrong alike
    assert (trend.teacher_only, trend.student_only, trend.p) == (0, 1, 1.0)
    assert found["all_right"].student.value == 2 / 4
    with pytest.raises(ValueError, match="4 predictions have no annotation"):
        beside_teacher(predictions(student, truth), annotations.slice(0, 1))


def test_a_student_that_is_right_where_its_teacher_is_not_is_better_beyond_chance() -> None:
    truth = [RISING] * 40
    wrong = {**RISING, "noise": "high"}
    annotations = pa.table({"series_id": range(40), "labels": [wrong] * 12 + [RISING] * 28})
    found = beside_teacher(predictions(truth, truth), annotations)["noise"]
    assert (found.student_only, found.teacher_only) == (12, 0)
    assert found.p == pytest.approx(2 * 0.5**12)
    assert beside_teacher(predictions(truth, truth), annotations)["trend"].p == 1.0
