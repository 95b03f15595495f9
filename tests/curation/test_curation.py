"""Curation: every annotation ends in exactly one table, a rejected one says why, and the counts add up."""

import json
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsd.curation import about, add, curate, judge, settle, sort_out
from tsd.curation import review as reviewing
from tsd.curation.corpus import DUPLICATE
from tsd.curation.counts import MOST_REASONS, MOST_SHOWN, NOT_STATED
from tsd.errors import InputError
from tsd.generation.generator import draw_table
from tsd.recipe import CurationConfig, Recipe, RulesTeacher
from tsd.tasks import PAIR, SINGLE
from tsd.teachers import Reply
from tsd.teachers import annotations as lay_out
from tsd.teachers.rules import Rules

TRUTH = {"trend": "flat", "noise": "low", "maximum": "end", "minimum": "middle"}
RIGHT = {
    "trend": "The series is flat.",
    "noise": "There is low noise.",
    "extrema": "The maximum is at the end, the minimum in the middle.",
}
DROP, KEEP = CurationConfig(), CurationConfig.model_validate({"against_truth": "keep"})
CORRECT = CurationConfig.model_validate({"against_truth": "correct"})
STATUSES = ("ok", "invalid", "refused", "truncated", "error")
CLASSES = SINGLE.classes


def config(**fields: Any) -> CurationConfig:
    return CurationConfig.model_validate(fields)


def hand_made(
    replies: list[str | Reply],
    truth: dict[str, str] | list[dict[str, str]] = TRUTH,
    splits: list[str] | None = None,
    values: list[list[int]] | None = None,
) -> tuple[pa.Table, pa.Table]:
    """Annotations with these replies, and series of this truth: each has its own values unless they are given."""
    rows = len(replies)
    truths = truth if isinstance(truth, list) else [truth] * rows
    series = pa.table(
        {
            "series_id": pa.array(range(rows), pa.int64()),
            "split": splits or ["train"] * rows,
            "values": pa.array(
                values or [[number // 100, number % 100] for number in range(rows)], pa.list_(pa.uint8())
            ),
            "truth": pa.array(truths, SINGLE.tables.labels),
        }
    )
    said = [reply if isinstance(reply, Reply) else Reply(reply) for reply in replies]
    keys = [f"{number:032x}" for number in range(rows)]
    return lay_out(SINGLE, "someone", series, keys, said), series


def fate(reply: str | Reply, policy: CurationConfig) -> tuple[str | None, str | None]:
    """What is learned from one reply, and why it is rejected: one of them is None."""
    examples, rejects, _ = curate(SINGLE, *hand_made([reply]), policy)
    return (
        examples["completion"].to_pylist()[0] if len(examples) else None,
        rejects["reason"].to_pylist()[0] if len(rejects) else None,
    )


def saying(**topics: str) -> str:
    return json.dumps(RIGHT | topics)


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


# ---- The whole corpus


def test_of_examples_with_one_series_the_first_stays_and_none_is_learned_that_is_measured_on() -> None:
    wrong = saying(trend="It is rising.")
    tables = hand_made(
        [saying(), saying(), wrong, saying(), saying(), wrong, saying()],
        splits=["train", "train", "train", "train", "test", "validation", "train"],
        values=[[1, 2], [1, 2], [3, 4], [3, 4], [5, 6], [7, 8], [7, 8]],
    )
    # 0 and 1 are one series; of 2 and 3 only the second is usable; what 6 would learn, validation holds
    examples, rejects, _ = curate(SINGLE, *tables, DROP)
    assert examples["series_id"].to_pylist() == [0, 3, 4]
    assert dict(zip(rejects["series_id"].to_pylist(), rejects["reason"].to_pylist(), strict=True)) == {
        1: DUPLICATE,
        2: "contradicts the measured trend",
        5: "contradicts the measured trend",
        6: DUPLICATE,
    }
    assert len(curate(SINGLE, *tables, config(duplicates="keep"))[0]) == 5


def test_series_that_are_drawn_have_no_duplicates(annotations: pa.Table, series: pa.Table) -> None:
    assert DUPLICATE not in curate(SINGLE, annotations, series, DROP)[1]["reason"].to_pylist()


def said_with(labels: list[dict[str, str]], splits: list[str] | None = None) -> tuple[pa.Table, pa.Table]:
    return hand_made([SINGLE.reply(one, (0, 0, 0)) for one in labels], list(labels), splits)


def test_a_cap_holds_for_what_is_kept_and_takes_no_more_than_it_must() -> None:
    labels = [{**TRUTH, "trend": name} for name in ("increasing",) * 700 + ("decreasing",) * 200 + ("flat",) * 100]
    examples, rejects, counts = curate(SINGLE, *said_with(labels), config(caps={"trend": 0.5}))
    assert len(examples) == 600  # 300 of the 700, beside the 300 others
    assert set(rejects["reason"].to_pylist()) == {"over the cap on a class of trend"}
    stated = {true: sum(row.values()) for true, row in counts["taught"]["trend"].items()}
    assert stated == {"increasing": 300, "decreasing": 200, "flat": 100}


def test_caps_are_for_what_is_trained_on_and_not_for_what_is_measured_on() -> None:
    labels = [{**TRUTH, "trend": "increasing"}] * 100 + [{**TRUTH, "trend": "flat"}] * 100
    splits = ["test"] * 80 + ["train"] * 120
    examples, _, _ = curate(SINGLE, *said_with(labels, splits), config(caps={"trend": 0.5}))
    assert Counter(examples["split"].to_pylist()) == {"test": 80, "train": 40}


@settings(max_examples=40)
@given(
    rows=st.lists(
        st.fixed_dictionaries({facet: st.sampled_from(classes) for facet, classes in CLASSES.items()}),
        min_size=1,
        max_size=150,
    ),
    cap=st.floats(0.34, 0.9),
    order=st.randoms(use_true_random=False),
)
def test_every_class_keeps_its_cap_whatever_the_order_and_the_parts(
    rows: list[dict[str, str]], cap: float, order: Any
) -> None:
    replies, series = said_with(rows)
    policy = config(caps=cap)
    verdicts = judge(SINGLE, replies, series, policy)
    shuffled = list(range(len(rows)))
    order.shuffle(shuffled)
    try:
        settled = settle(SINGLE, verdicts, policy)
    except InputError:
        with pytest.raises(InputError, match=r"curation\.caps"):
            settle(SINGLE, verdicts.take(shuffled), policy)
        return
    mixed = verdicts.take(shuffled)
    again = settle(SINGLE, pa.concat_tables([mixed.slice(0, 40), mixed.slice(40)]), policy)
    np.testing.assert_array_equal(settled.ids, again.ids)
    everyone = np.arange(len(rows))
    assert settled.reasons_for(everyone) == again.reasons_for(everyone)
    kept = [one for number, one in enumerate(rows) if number not in set(settled.ids.tolist())]
    for facet in CLASSES:
        assert max(Counter(one[facet] for one in kept).values()) <= cap * len(kept) + 1e-6


def test_narrow_caps_on_every_facet_leave_most_of_an_uneven_corpus(
    series: pa.Table, annotations: pa.Table
) -> None:
    examples, _, counts = curate(SINGLE, annotations, series, config(against_truth="keep", caps=0.34))
    trained = examples["split"].to_pylist().count("train")
    assert trained > 0.5 * series["split"].to_pylist().count("train")
    for confusion in counts["taught"].values():
        stated = Counter(said for row in confusion.values() for said in row for _ in range(row[said]))
        assert max(stated.values()) <= 0.34 * trained


def test_caps_that_nothing_can_keep_are_said_to_leave_nothing() -> None:
    with pytest.raises(InputError, match=r"curation\.caps leave nothing to train on: raise that of trend, 0\.4"):
        curate(SINGLE, *said_with([TRUTH] * 10), config(caps={"trend": 0.4}))


# ---- Counts


def test_counts_of_parts_add_up_to_those_of_the_whole(annotations: pa.Table, series: pa.Table) -> None:
    verdicts = judge(SINGLE, annotations, series, DROP)
    settled = settle(SINGLE, verdicts, DROP)

    def counted(first: int, rows: int) -> Any:
        tables = (table.slice(first, rows) for table in (annotations, series, verdicts))
        return sort_out(SINGLE, *tables, settled)[2]

    whole = counted(0, 1024)
    noted = [json.loads(json.dumps(counted(first, 256))) for first in range(0, 1024, 256)]
    assert about(add(noted)) == about(whole)


def test_the_confusion_table_counts_every_reply_by_what_is_true_and_what_was_said() -> None:
    replies: list[str | Reply] = [
        saying(),
        saying(trend="It is rising."),
        saying(trend="It is rising."),
        saying(trend="It fluctuates."),
        Reply(None, "refused", "no"),
    ]
    _, _, counts = curate(SINGLE, *hand_made(replies), DROP)
    assert counts["said"]["trend"]["flat"] == {"increasing": 2, "decreasing": 0, "flat": 1, NOT_STATED: 2}
    assert counts["taught"]["trend"]["flat"] == {"increasing": 0, "decreasing": 0, "flat": 1, NOT_STATED: 0}
    assert reviewing.stated(counts["said"]["trend"]) == 3 / 5
    right = reviewing.accuracy(counts["said"]["trend"])
    assert right is not None
    assert right.value == 1 / 5
    assert right.low < 1 / 5 < right.high


def test_rejected_replies_are_shown_the_first_of_each_reason_and_rare_reasons_are_summed() -> None:
    replies: list[str | Reply] = [Reply(f"reply {n}", "error", "server") for n in range(9)]
    replies += [Reply(None, "error", f"server {n}") for n in range(MOST_REASONS + 6)]
    counts = about(curate(SINGLE, *hand_made(replies), DROP)[2])
    first, *others = counts["rejects"]
    assert (first["reason"], first["rows"]) == ("error: server", 9)
    assert [one["text"] for one in first["examples"]] == ["reply 0", "reply 1", "reply 2"]
    assert len(first["examples"]) == MOST_SHOWN
    assert len(others) == MOST_REASONS - 1
    assert counts["rare"] == {"reasons": 7, "rows": 7}


def test_tokens_and_dollars_of_all_replies_are_borne_by_the_kept_ones() -> None:
    paid = {"input_tokens": 1000, "output_tokens": 50, "cost_usd": 0.002}
    replies: list[str | Reply] = [Reply(saying(), **paid), Reply(saying(), **paid), Reply("?", **paid)]
    _, _, counts = curate(SINGLE, *hand_made(replies), DROP)
    assert reviewing.per_kept(counts) == pytest.approx(
        {"input_tokens": 1500, "output_tokens": 75, "cost_usd": 0.003}
    )


def test_the_measured_accuracy_of_a_teacher_is_the_one_it_was_set_to(recipe: Recipe, series: pa.Table) -> None:
    covered = []
    for seed, rate in enumerate((0.0, 0.02, 0.1, 0.3, 0.5, 0.9, 1.0)):
        teacher = RulesTeacher(error_rate={"every": rate, "noise": rate / 2})
        replies = Rules(teacher, SINGLE, seed).annotate(series)
        counts = curate(SINGLE, replies, series, KEEP)[2]
        for facet in CLASSES:
            found = reviewing.accuracy(counts["said"][facet])
            assert found is not None
            covered.append(found.low <= 1 - (rate / 2 if facet == "noise" else rate) <= found.high)
    assert np.mean(covered) >= 0.9  # of 95 % intervals


def test_a_teachers_table_names_every_facet_every_reason_and_what_an_example_took(
    annotations: pa.Table, series: pa.Table
) -> None:
    counts = about(curate(SINGLE, annotations, series, DROP)[2])
    lines = reviewing.lines(counts)
    for facet in CLASSES:
        found = reviewing.accuracy(counts["said"][facet])
        assert found is not None
        (line,) = (line for line in lines if line.startswith(facet))
        assert f"{found.value:.1%} [{found.low:.1%}–{found.high:.1%}]" in line
        assert "100.0%" in line
    listed = [
        int(line.split()[0].replace(",", "")) for line in lines if line.startswith("   ") and "right" not in line
    ]
    assert sum(listed) == counts["replies"] - counts["kept"]
    assert any("0 input tokens, 0 output tokens and $0" in line for line in lines)


def test_a_corpus_without_examples_is_said_in_one_line_with_its_most_frequent_reasons() -> None:
    short = json.dumps(RIGHT)
    replies: list[str | Reply] = [short] * 3 + [Reply(None, "error", f"fault {number}") for number in range(4)]
    _, _, counts = curate(SINGLE, *hand_made(replies), config(length=[1000, 4000]))
    assert reviewing.nothing_kept(about(counts)) == (
        "all 7 replies were rejected, mostly as shorter than 1,000 characters (3), error: fault 0 (1), "
        "error: fault 1 (1), and 2 further reasons: change the teacher, or `curation` in the recipe"
    )
    _, _, counts = curate(SINGLE, *hand_made(replies), DROP)
    assert reviewing.nothing_kept(about(counts)) is None
