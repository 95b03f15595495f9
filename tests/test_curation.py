"""Curation: every annotation ends in exactly one table, and a rejected one says why."""

from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsd.curation import curate, reject_reason
from tsd.recipe import CurationConfig
from tsd.tasks import SINGLE

TRUTH = {"trend": "flat", "noise": "low", "maximum": "end", "minimum": "middle"}
DROP, KEEP = CurationConfig(against_truth="drop"), CurationConfig(against_truth="keep")
STATUSES = ("ok", "invalid", "refused", "truncated", "error")


@settings(max_examples=25)
@given(statuses=st.lists(st.sampled_from(STATUSES), min_size=1, max_size=200), keep=st.booleans())
def test_every_annotation_ends_in_exactly_one_table(
    annotations: pa.Table, series: pa.Table, statuses: list[str], keep: bool
) -> None:
    replies = annotations.slice(0, len(statuses))
    index = replies.column_names.index("status")
    replies = replies.set_column(index, replies.field("status"), pa.array(statuses))
    examples, rejects = curate(SINGLE, replies, series.slice(0, len(statuses)), KEEP if keep else DROP)
    kept, rejected = examples["series_id"].to_pylist(), rejects["series_id"].to_pylist()
    assert sorted([*kept, *rejected]) == replies["series_id"].to_pylist()
    by_status = dict(zip(replies["series_id"].to_pylist(), statuses, strict=True))
    assert {by_status[one] for one in kept} <= {"ok"}


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


def test_no_kept_example_contradicts_what_is_measured(examples: pa.Table, series: pa.Table) -> None:
    truth = dict(zip(series["series_id"].to_pylist(), series["truth"].to_pylist(), strict=True))
    for row in examples.to_pylist():
        assert SINGLE.parse(row["completion"]).labels == truth[row["series_id"]]


def test_keeping_what_contradicts_rejects_nothing_that_can_be_read(
    annotations: pa.Table, series: pa.Table
) -> None:
    examples, rejects = curate(SINGLE, annotations, series, KEEP)
    assert (len(examples), len(rejects)) == (len(series), 0)


@pytest.mark.parametrize("facet", SINGLE.classes)
def test_a_reply_that_contradicts_the_measure_is_dropped_for_the_facet_it_gets_wrong(facet: str) -> None:
    wrong = next(name for name in SINGLE.classes[facet] if name != TRUTH[facet])
    labels = {**TRUTH, facet: wrong}
    assert reject_reason("ok", None, labels, TRUTH, DROP) == f"contradicts the measured {facet}"
    assert reject_reason("ok", None, labels, TRUTH, KEEP) is None


@pytest.mark.parametrize("config", [DROP, KEEP])
@pytest.mark.parametrize("status", STATUSES[1:])
def test_a_reply_that_is_not_whole_is_rejected_with_its_own_reason(status: str, config: CurationConfig) -> None:
    assert reject_reason(status, "why", TRUTH, TRUTH, config) == f"{status}: why"
    assert reject_reason(status, None, TRUTH, TRUTH, config) == status


def test_reasons_can_be_counted(annotations: pa.Table, series: pa.Table) -> None:
    reasons = Counter(curate(SINGLE, annotations, series, DROP)[1]["reason"].to_pylist())
    # Four facets can be wrong alone or together: 15 reasons at most, however many rows.
    assert sum(reasons.values()) > 50
    assert len(reasons) <= 15


def test_annotations_of_another_series_table_are_refused(annotations: pa.Table, series: pa.Table) -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        curate(SINGLE, annotations, series.slice(0, 10), DROP)
