"""Tasks and their facets: what is said and read of every task, and what a new facet touches."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsd.curation import curate
from tsd.evaluation import scoring
from tsd.recipe import CurationConfig, RulesTeacher
from tsd.storage.schemas import conform
from tsd.tasks import PAIR, SINGLE, Facet, Task, variants
from tsd.tasks.language import Reading
from tsd.teachers.rules import Rules

every_task = pytest.mark.parametrize("task", variants(), ids=lambda task: task.version)


def labels_of(task: Task) -> st.SearchStrategy[dict[str, str]]:
    return st.fixed_dictionaries({name: st.sampled_from(classes) for name, classes in task.classes.items()})


def choices_of(task: Task) -> st.SearchStrategy[tuple[int, ...]]:
    return st.tuples(*(st.integers(0, count - 1) for count in task.phrasing_counts))


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
