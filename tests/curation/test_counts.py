"""Counts of curation: parts add up to the whole, and a teacher's table names all of it."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.hand_made_replies import CLASSES, DROP, KEEP, RIGHT, config, hand_made, saying

from tsd.curation import about, add, curate, judge, settle, sort_out
from tsd.curation import review as reviewing
from tsd.curation.counts import MOST_REASONS, MOST_SHOWN, NOT_STATED
from tsd.recipe import Recipe, RulesTeacher
from tsd.tasks import SINGLE
from tsd.teachers import Reply
from tsd.teachers.rules import Rules


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
