"""Tasks and their facets: what is measured of pairs, said and read of both tasks, and what a new facet touches."""

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tsd.curation import curate
from tsd.evaluation import scoring
from tsd.recipe import CurationConfig, RulesTeacher
from tsd.storage.schemas import conform
from tsd.tasks import PAIR, PAPER, SINGLE, Facet, Task, pair, variants
from tsd.tasks.language import Reading, read_intersections, read_position, read_thirds
from tsd.teachers.rules import Rules

every_task = pytest.mark.parametrize("task", variants(), ids=lambda task: task.version)
pairs = arrays(np.uint8, (3, 2 * 96), elements=st.integers(0, 99))


def labels_of(task: Task) -> st.SearchStrategy[dict[str, str]]:
    return st.fixed_dictionaries({name: st.sampled_from(classes) for name, classes in task.classes.items()})


def choices_of(task: Task) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*(st.integers(0, count - 1) for count in task.phrasing_counts))


def truth_of(first: npt.ArrayLike, second: npt.ArrayLike) -> dict[str, str]:
    """The labels of one pair."""
    values = np.concatenate([np.asarray(first, np.uint8), np.asarray(second, np.uint8)])[None]
    (labels,) = PAIR.truth(PAIR.measure(values), values.shape[1] // 2).to_pylist()
    return dict(labels)


# ---- Said and read


@every_task
@given(data=st.data())
def test_a_reply_reads_back_as_exactly_its_labels(task: Task, data: st.DataObject) -> None:
    labels, choice = data.draw(labels_of(task)), data.draw(choices_of(task))
    parsed = task.parse(task.reply(labels, choice))
    assert (parsed.labels, parsed.reason) == (labels, None)


@every_task
def test_the_prompt_asks_for_each_topic_and_names_every_class(task: Task) -> None:
    prompt = task.teacher_prompt(96)
    assert "96 integers" in prompt
    for topic in task.topics:
        assert f'"{topic}"' in prompt
    for facet in task.facets:
        assert all(name in facet.question for name in facet.classes)
        assert facet.question in prompt


def test_a_pair_is_shown_to_a_student_series_by_series() -> None:
    assert PAIR.student_prompt([1, 2, 3, 4]) == "Describe the two series. First: 1 2 Second: 3 4"


@given(labels_of(PAIR), choices_of(PAIR))
def test_a_reply_about_two_series_may_hold_an_object_for_each(labels: dict[str, str], choice: Any) -> None:
    flat = json.loads(PAIR.reply(labels, choice))
    nested: dict[str, Any] = {"first series": {}, "second": {}}
    for topic, said in flat.items():
        whose, _, what = topic.partition(" ")
        if what:
            nested["first series" if whose == "first" else "second"][what] = said
        else:
            nested[topic.title()] = said
    assert PAIR.parse(json.dumps(nested)).labels == labels


def test_what_is_said_of_one_series_of_two_is_not_taken_for_the_other() -> None:
    parsed = PAIR.parse(json.dumps({"first noise": "The noise is high.", "noise": "It is low."}))
    assert parsed.labels["first noise"] == "high"
    assert parsed.labels["second noise"] is None
    assert "second noise: not mentioned" in str(parsed.reason)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("it rises in the first third, is flat in the middle third and falls in the last third.", "ifd"),
        ("the first third is increasing, the second third is increasing, the final third is stable.", "iif"),
        ("flat in the first third. then a decrease during the middle third.", "fd."),
        ("it rises, then falls.", "..."),  # phases are not thirds
        ("the first third rises or falls.", "..."),
        ("the first third rises and falls.", "..."),
        (
            "in the first third, the series rises. in the middle third, it is flat. in the last third, it falls.",
            "ifd",
        ),
        ("in the first third, rising; in the middle third, flat; in the last third, falling.", "ifd"),
        ("during the first third, it is flat, and over the last third, it climbs.", "f.i"),
        ("unlike the first third, the last third falls.", "..d"),
        ("the first third is flat. the middle third rises. the last third is flat, as in the first third.", "fif"),
        ("it rises only in the last third.", "..i"),
        ("rising until the last third.", "..."),
        ("after the first third it falls.", "..."),
        ("before the last third, it falls.", "..."),
        ("flat except in the last third.", "..."),
        ("flat outside the last third.", "..."),
        ("it rises by the middle third.", "..."),
        ("between the first and the last third it is flat.", "..."),
        ("from the middle third on, it falls.", "..."),
        ("it rises faster than in the first third.", "..."),
        ("at the end of the first third it drops.", "..."),
        ("it rises, in the first third, falls in the middle third.", ".d."),
        ("it rises in the first third and in the middle third, falls in the last third.", "i.d"),
        ("", "..."),
    ],
)
def test_the_direction_of_a_third_is_read_from_the_clause_that_names_it(text: str, said: str) -> None:
    letters = {"increasing": "i", "decreasing": "d", "flat": "f", None: "."}
    found = read_thirds(text)
    assert "".join(letters[found[third].label] for third in ("beginning", "middle", "end")) == said


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("they never cross.", "none"),
        ("the two series do not intersect.", "none"),
        ("there are no crossings.", "none"),
        ("they cross once, near the middle.", "one"),
        ("there is a single intersection.", "one"),
        ("they cross several times.", "several"),
        ("the lines cross each other 4 times.", "several"),
        ("there are multiple crossings.", "several"),
        ("they intersect twice.", "several"),
        ("the series move together.", None),
        ("they cross once or several times.", None),
        ("the two series cross once.", "one"),
        ("the two curves cross once.", "one"),
        ("the two cross three times.", "several"),
        ("both two lines cross 0 times.", "none"),
        ("they cross 0 times.", "none"),
        ("they cross 1 times.", "one"),
        ("they cross each other 12 times.", "several"),
        ("0", "none"),
        ("the number of crossings is 0.", "none"),
        ("number of crossings: 3.", "several"),
        ("one.", "one"),
        ("7", "several"),
        ("twice.", "several"),
        ("they cross at a single point.", "one"),
        ("there are two points of intersection.", "several"),
        ("the two crossings are near the end.", "several"),
        ("there is one clear crossing, around the middle.", "one"),
        ("there is not a single crossing.", "none"),
        ("they never once cross.", "none"),
        ("they do not cross or touch.", "none"),
        ("they never cross one another.", "none"),
        ("they cross once and never cross again.", "one"),
        ("they cross again and again.", "several"),
        ("they cross a few times.", "several"),
        ("the two series cross.", None),
        ("they cross.", None),
        ("they cross more than once.", None),
        ("they cross at least once.", None),
        ("they cross once or twice.", None),
        ("there is no more than one crossing.", None),
        ("they almost cross once.", None),
        ("there are fewer than two crossings.", None),
        ("there are one to two crossings.", None),
        ("they cross about once.", None),
        ("they do not cross only once.", None),
        ("there isn't just one crossing.", None),
        ("they do not always cross.", None),
        ("they do not cross until the end.", None),
        ("they cross once at the beginning and again at the end.", None),
        ("one series crosses the other.", None),
        ("once they cross, the first stays ahead.", None),
        ("there are few crossings.", None),
        ("they may cross once.", None),
    ],
)
def test_crossings_are_counted_as_they_are_said(text: str, label: str | None) -> None:
    assert read_intersections(text).label == label


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("the first series lies above the second.", "above"),
        ("the second series stays below the first.", "above"),
        ("the first is lower than the second throughout.", "below"),
        ("the second series is always above the first one.", "below"),
        ("they alternate.", "alternating"),
        ("the two overlap for most of the time.", "alternating"),
        ("the first is above the second, then the second is above the first.", None),
        ("both rise.", None),
        ("the first series is above most of the time.", "above"),
        ("relative to the second series, the first is below.", "below"),
        ("the first is above and the second below.", "above"),
        ("the first series has higher values than the second.", "above"),
        ("the second is mostly lower than the other.", "above"),
        ("the first series is noisy, but lies below the second overall.", "below"),
        ("the first is above the second from beginning to end, and they never cross.", "above"),
        ("the first is below the second almost always.", "below"),
        ("the first lies above the second by about 20.", "above"),
        ("over time, the first stays above the second.", "above"),
        ("they intertwine, with neither above for long.", "alternating"),
        ("they take turns being above.", "alternating"),
        ("the first series alternates above and below the second.", "alternating"),
        ("the two do not overlap; the first is higher throughout.", "above"),
        ("the first is not above the second.", None),
        ("the first is never above the second.", None),
        ("the first isn't below the second.", None),
        ("the second is rarely above the first.", None),
        ("the first starts above the second but ends below it.", None),
        ("the first starts above the second.", None),
        ("the first is higher than the second at the beginning and lower at the end.", None),
        ("the first rises over time, the second stays flat.", None),
        ("the second series is above 50.", None),
        ("the first is below only briefly; most of the time above.", None),
        ("below only briefly; most of the time above.", None),
        ("the first is above the second at first.", None),
        ("the first is above the second only at its peak.", None),
        ("the first rises above the second.", None),
        ("the first trends lower.", None),
        ("the first has a higher maximum than the second.", None),
        ("the first is above the second's minimum.", None),
        ("compared with the first, it is above.", None),
        ("the first and the second are higher.", None),
        ("the first is above the second in the middle third.", None),
        ("the first is above the second between 20 and 40.", None),
        ("the first may be above the second.", None),
        ("the first is above or below the second.", None),
        ("they do not alternate.", None),
        ("they overlap only at the end.", None),
        ("alternatively, both rise.", None),
    ],
)
def test_the_series_that_is_named_before_the_word_is_the_one_that_lies_there(text: str, label: str | None) -> None:
    assert read_position(text).label == label


# ---- Measured


def test_two_parallel_lines_never_meet_and_the_upper_one_is_above() -> None:
    line = np.arange(96) // 2
    found = truth_of(line + 40, line)
    assert (found["intersections"], found["position"]) == ("none", "above")
    assert {found[f"first trend {third}"] for third in ("beginning", "middle", "end")} == {"increasing"}
    assert truth_of(line, line + 40)["position"] == "below"


def test_a_line_that_rises_through_one_that_falls_crosses_it_once() -> None:
    rise = np.arange(96)
    found = truth_of(rise, rise[::-1])
    assert (found["intersections"], found["position"]) == ("one", "alternating")


def test_touching_is_not_crossing() -> None:
    level, hill = np.full(96, 50), 50 - np.abs(np.arange(96) - 48)
    assert truth_of(level, hill)["intersections"] == "none"  # equal at one point
    assert truth_of(level, level)["intersections"] == "none"


def test_a_hat_rises_holds_and_falls_in_its_thirds() -> None:
    hat = np.concatenate([np.arange(32) * 2, np.full(32, 64), np.arange(32)[::-1] * 2])
    found = truth_of(hat, np.full(96, 99))
    assert [found[f"first trend {third}"] for third in ("beginning", "middle", "end")] == [
        "increasing",
        "flat",
        "decreasing",
    ]


@given(pairs)
def test_the_measures_of_a_pair_are_those_of_an_independent_count(values: npt.NDArray[np.uint8]) -> None:
    found = pair(PAPER).measure(values)
    for row, (first, second) in enumerate(
        zip(values[:, :96].astype(int), values[:, 96:].astype(int), strict=True)
    ):
        signs = [np.sign(a - b) for a, b in zip(first, second, strict=True) if a != b]
        assert found["intersections"][row] == sum(a != b for a, b in pairwise(signs))
        share = sum(sign > 0 for sign in signs) / len(signs) if signs else 0.5
        assert found["above_share"][row] == pytest.approx(share)
        for number, third in enumerate(("beginning", "middle", "end")):
            points = second[32 * number : 32 * (number + 1)]  # a window of 20 in 128 is one of 5 in 32
            assert found[f"second_{third}_trend_delta"][row] == pytest.approx(
                points[-5:].mean() - points[:5].mean()
            )


@given(pairs)
def test_exchanged_the_two_series_exchange_their_labels(values: npt.NDArray[np.uint8]) -> None:
    there = PAIR.truth(PAIR.measure(values), 96).to_pylist()
    back = PAIR.truth(PAIR.measure(np.roll(values, 96, axis=1)), 96).to_pylist()
    swap = {"first": "second", "second": "first"}
    position = {"above": "below", "below": "above", "alternating": "alternating"}
    for one, other in zip(there, back, strict=True):
        assert position[one["position"]] == other["position"]
        assert one["intersections"] == other["intersections"]
        for name, label in one.items():
            whose, _, what = name.partition(" ")
            if what:
                assert other[f"{swap[whose]} {what}"] == label


# ---- A new facet


SPREAD = Facet(
    "spread",
    ("narrow", "wide"),
    topic="spread",
    question="whether the values spread over a narrow or a wide range",
    phrasings=("The values spread over a {} range.",),
    read=lambda text: Reading(next((word for word in ("narrow", "wide") if word in text), None), "not said"),
    classify=lambda measures, _: (measures["noise"] > 5).astype(np.intp),
)


def test_a_facet_is_added_in_one_place(series: pa.Table) -> None:
    task = replace(SINGLE, facets=(*SINGLE.facets, SPREAD))
    values = np.stack([row.values.to_numpy() for row in series["values"]])
    measures = task.measure(values)
    widened = series.drop_columns(["truth", "margins"])
    widened = widened.append_column("truth", task.truth(measures, values.shape[1]))
    widened = conform(widened.append_column("margins", task.margins(measures)), task.tables.series)
    assert '"spread": whether' in task.teacher_prompt(128)
    annotated = Rules(RulesTeacher(error_rate={"every": 0}), task, 0).annotate(widened)
    assert annotated["labels"].to_pylist() == widened["truth"].to_pylist()
    examples, rejects, _ = curate(task, annotated, widened, CurationConfig())
    assert (len(examples), len(rejects)) == (len(series), 0)
    predictions = pa.table({"labels": annotated["labels"], "truth": widened["truth"]})
    assert {name: found.value for name, found in scoring.score(predictions).items()} == dict.fromkeys(
        (*SINGLE.names, "spread", "all_right", "valid"), 1.0
    )
    assert set(scoring.baselines(task, widened)) == {*task.names, "all_right"}
    assert set(scoring.class_table(task, widened)["spread"]) == {"narrow", "wide"}


@given(st.data())
@every_task
def test_a_student_s_prompt_gives_back_the_series_that_it_holds(task: Task, data: st.DataObject) -> None:
    length = data.draw(st.integers(2, 300))
    values = data.draw(st.lists(st.integers(0, 99), min_size=length * task.curves, max_size=length * task.curves))
    curves = task.curves_in(task.student_prompt(values))
    assert np.concatenate(curves).tolist() == values
    assert [curve.dtype for curve in curves] == [np.uint8] * task.curves
    assert not any(sign.isdigit() or sign in "{}" for sign in task.image_prompt)
