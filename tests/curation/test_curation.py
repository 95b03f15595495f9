"""Curation: every annotation ends in exactly one table, and a rejected one says why."""

import json
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.hand_made_replies import (
    CLASSES,
    CORRECT,
    DROP,
    KEEP,
    RIGHT,
    STATUSES,
    TRUTH,
    config,
    fate,
    hand_made,
    saying,
)

from tsd.curation import curate, judge
from tsd.generation.generator import draw_table
from tsd.recipe import CurationConfig, Recipe, RulesTeacher
from tsd.tasks import PAIR, SINGLE
from tsd.teachers import Reply
from tsd.teachers.rules import Rules

# ---- Every row ends in one table


@settings(max_examples=25)
@given(
    statuses=st.lists(st.sampled_from(STATUSES), min_size=1, max_size=200),
    policy=st.sampled_from([DROP, KEEP, CORRECT]),
)
def test_every_annotation_ends_in_exactly_one_table(
    annotations: pa.Table, series: pa.Table, statuses: list[str], policy: CurationConfig
) -> None:
    replies = annotations.slice(0, len(statuses))
    index = replies.column_names.index("status")
    replies = replies.set_column(index, replies.field("status"), pa.array(statuses))
    examples, rejects, counts = curate(SINGLE, replies, series.slice(0, len(statuses)), policy)
    kept, rejected = examples["series_id"].to_pylist(), rejects["series_id"].to_pylist()
    assert sorted([*kept, *rejected]) == replies["series_id"].to_pylist()
    by_status = dict(zip(replies["series_id"].to_pylist(), statuses, strict=True))
    assert {by_status[one] for one in kept} <= {"ok", "invalid"}
    assert (counts["kept"], counts["replies"]) == (len(kept), len(statuses))
    assert sum(found["rows"] for found in counts["rejects"].values()) == len(rejected)


def test_a_kept_example_asks_about_its_own_series_and_answers_in_the_teachers_words(
    examples: pa.Table, series: pa.Table, annotations: pa.Table
) -> None:
    known = {row["series_id"]: row for row in series.to_pylist()}
    said = dict(zip(annotations["series_id"].to_pylist(), annotations["text"].to_pylist(), strict=True))
    assert len(examples) > 700
    for row in examples.to_pylist():
        assert row["prompt"] == SINGLE.student_prompt(known[row["series_id"]]["values"])
        assert row["completion"] == said[row["series_id"]]
        assert row["split"] == known[row["series_id"]]["split"]


def test_annotations_of_another_series_table_are_refused(annotations: pa.Table, series: pa.Table) -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        curate(SINGLE, annotations, series.slice(0, 10), DROP)


# ---- One annotation at a time


@pytest.mark.parametrize("policy", [DROP, KEEP, CORRECT])
@pytest.mark.parametrize("status", STATUSES[2:])
def test_a_reply_that_is_not_whole_is_rejected_with_its_own_reason(status: str, policy: CurationConfig) -> None:
    assert fate(Reply(saying(), status, "why"), policy) == (None, f"{status}: why")
    assert fate(Reply(None, status), policy) == (None, status)


@pytest.mark.parametrize("facet", CLASSES)
def test_a_reply_that_contradicts_the_measure_is_dropped_for_the_facet_it_gets_wrong(facet: str) -> None:
    wrong = next(name for name in CLASSES[facet] if name != TRUTH[facet])
    reply = SINGLE.reply({**TRUTH, facet: wrong}, (0, 1, 2))
    assert fate(reply, DROP) == (None, f"contradicts the measured {facet}")
    assert fate(reply, KEEP) == (reply, None)
    assert fate(reply, config(against_truth={facet: "keep"})) == (reply, None)
    assert fate(reply, config(against_truth={"every": "keep", facet: "drop"}))[1] is not None


def test_no_kept_example_contradicts_what_is_measured(examples: pa.Table, series: pa.Table) -> None:
    truth = dict(zip(series["series_id"].to_pylist(), series["truth"].to_pylist(), strict=True))
    for row in examples.to_pylist():
        assert SINGLE.parse(row["completion"]).labels == truth[row["series_id"]]


def test_keeping_what_contradicts_rejects_nothing_that_can_be_read(
    annotations: pa.Table, series: pa.Table
) -> None:
    examples, rejects, _ = curate(SINGLE, annotations, series, KEEP)
    assert (len(examples), len(rejects)) == (len(series), 0)


def test_a_correction_states_the_truth_on_its_topic_and_leaves_the_teachers_other_sentences() -> None:
    said = saying(extrema="The maximum is at the beginning, the minimum in the middle.")
    learned, reason = fate(said, config(against_truth={"maximum": "correct", "minimum": "correct"}))
    assert reason is None
    assert learned is not None
    topics = json.loads(learned)
    assert {**topics, "extrema": RIGHT["extrema"]} == RIGHT
    assert "beginning" not in topics["extrema"]
    assert SINGLE.parse(learned).labels == TRUTH


def test_correcting_one_extremum_keeps_what_the_teacher_said_of_the_other() -> None:
    said = saying(extrema="The maximum is at the beginning, the minimum at the end.")
    policy = config(against_truth={"maximum": "correct", "minimum": "keep"})
    learned, _ = fate(said, policy)
    assert learned is not None
    assert SINGLE.parse(learned).labels == {**TRUTH, "minimum": "end"}
    assert fate(said, config(against_truth={"maximum": "correct"})) == (None, "contradicts the measured minimum")


def test_what_is_right_is_not_touched_by_a_correction() -> None:
    assert fate(saying(), CORRECT) == (saying(), None)


@given(
    labels=st.fixed_dictionaries({facet: st.sampled_from([*classes, None]) for facet, classes in CLASSES.items()}),
    truth=st.fixed_dictionaries({facet: st.sampled_from(classes) for facet, classes in CLASSES.items()}),
    corrected=st.sets(st.sampled_from(list(CLASSES))),
)
def test_whatever_was_said_a_corrected_facet_is_true_and_the_others_are_as_they_were(
    labels: dict[str, str | None], truth: dict[str, str], corrected: set[str]
) -> None:
    said = {
        "trend": f"The trend is {labels['trend']}." if labels["trend"] else "It is a series.",
        "noise": f"There is {labels['noise']} noise." if labels["noise"] else "There is some noise.",
        "extrema": ", ".join(f"{one}: {labels[one] or '?'}" for one in ("maximum", "minimum")),
    }
    policy = config(
        against_truth={"every": "keep", **dict.fromkeys(corrected, "correct")}, unstated="keep", length=[1, 4000]
    )
    replies, series = hand_made([json.dumps(said)], truth)
    (verdict,) = judge(SINGLE, replies, series, policy).to_pylist()
    assert verdict["reason"] is None
    assert verdict["labels"] == labels | {facet: truth[facet] for facet in corrected}
    if verdict["corrected"] is not None:
        assert SINGLE.parse(verdict["corrected"]).labels == verdict["labels"]


def test_a_facet_that_is_left_open_rejects_the_reply_is_kept_or_is_corrected_as_the_recipe_says() -> None:
    said = saying(noise="There is some noise.")
    assert fate(said, DROP) == (None, "invalid: noise: no level is named")
    assert fate(said, config(unstated="keep")) == (said, None)
    learned, _ = fate(said, config(against_truth={"noise": "correct"}))
    assert learned is not None
    assert SINGLE.parse(learned).labels == TRUTH


def test_corrections_of_many_replies_take_every_phrasing_and_each_reply_always_the_same() -> None:
    tables = hand_made([saying(trend="It is rising.")] * 200)
    examples, _, counts = curate(SINGLE, *tables, CORRECT)
    learned = [json.loads(text)["trend"] for text in examples["completion"].to_pylist()]
    assert set(learned) == {one.format("flat") for one in SINGLE.facets[0].phrasings}
    assert counts["corrected"] == 200
    last = [table.slice(150) for table in tables]
    assert curate(SINGLE, *last, CORRECT)[0].equals(examples.slice(150))


def test_of_pairs_whatever_is_wrong_is_corrected_too(recipe: Recipe) -> None:
    pairs = draw_table(PAIR, recipe.series, 1, 0, 200)
    said = Rules(RulesTeacher(error_rate={"every": 0.4}), PAIR, 1).annotate(pairs)
    examples, rejects, counts = curate(PAIR, said, pairs, CORRECT)
    assert len(rejects) == 0
    assert counts["corrected"] > 100
    truth = dict(zip(pairs["series_id"].to_pylist(), pairs["truth"].to_pylist(), strict=True))
    for row in examples.to_pylist():
        assert PAIR.parse(row["completion"]).labels == truth[row["series_id"]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (" ".join(RIGHT.values()), "form: not a JSON object"),
        (f"```json\n{json.dumps(RIGHT)}\n```", "form: not a JSON object"),
        ("[1]", "form: not a JSON object"),
        (json.dumps({**RIGHT, "colour": "red"}), "form: other keys than were asked for"),
        (json.dumps({"trend": "flat"}), "form: other keys than were asked for"),
        (
            json.dumps({**RIGHT, "extrema": {"maximum": "end", "minimum": "middle"}}),
            "form: not a sentence behind each key",
        ),
    ],
)
def test_a_reply_of_another_form_is_rejected_where_the_form_that_was_asked_for_is_wanted(
    text: str, reason: str
) -> None:
    assert fate(text, config(form="json")) == (None, reason)


def test_the_form_that_was_asked_for_is_kept_and_any_is_unless_the_recipe_says_otherwise() -> None:
    prose = " ".join(RIGHT.values())
    assert fate(saying(), config(form="json")) == (saying(), None)
    assert fate(prose, DROP) == (prose, None)


def test_what_is_too_short_or_too_long_to_learn_is_rejected() -> None:
    size = len(saying())
    assert fate(saying(), config(length=[size, size])) == (saying(), None)
    assert fate(saying(), config(length=[size + 1, 4000])) == (None, f"shorter than {size + 1} characters")
    assert fate(saying(), config(length=[1, size - 1])) == (None, f"longer than {size - 1} characters")


def test_reasons_can_be_counted(annotations: pa.Table, series: pa.Table) -> None:
    reasons = Counter(curate(SINGLE, annotations, series, DROP)[1]["reason"].to_pylist())
    # Four facets can be wrong alone or together: 15 reasons at most, however many rows.
    assert sum(reasons.values()) > 50
    assert len(reasons) <= 15
