"""The 100 replies of a real teacher, through the same code as any teacher's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tsd.curation import about, curate
from tsd.curation import review as reviewing
from tsd.recipe import CurationConfig, load
from tsd.tasks import PAPER, SINGLE, single
from tsd.teachers import Reply, annotations, request_keys

REFERENCE = Path(__file__).parents[3] / "shared" / "reference" / "pixtral_annotations.jsonl"

# What a person reads in each reply, in the order of the file: trend, noise, maximum and minimum by their initials,
# - where it is not stated. Of a series that first rises and then falls, what the teacher calls the overall or the
# general trend is the trend, and without such a word none is.
READ = """
Umeb Uhem Umeb Dmmm Umeb -hme Umeb Dmbe Dmbe Uheb Dmbe Fhmm Umeb Dmbe Umeb Umeb Uheb Umeb Ummm Uleb
Umeb Uleb Ummb Dmbe Umeb Umeb Umeb Umeb Uhem Dlbe Dmbe -hmb Dlbe Umeb Dmbe Umeb Umeb Dmbe Umeb Umeb
Umeb Uleb Umem Umeb Umeb Umeb Umeb Dlbe Dmbe U-eb Dmbm Dmbe Umeb Uleb Umeb Umeb -mmb Dmbm Umeb Dmbe
Dmbe Dmbe Dmbe Dmbe Umeb Umeb Dmbm Dmbe Umeb Umeb Dmme Umeb Dmbm Umeb Dlbe Dmbe Dmbe Umbm Dlbe Dmbe
Dlbe Umeb Dmbe Umeb Dmbe Dlbe Ummm Umeb Umeb Umeb Umeb Dmbm Dmbe Dhbm Umeb Umeb Uhmb Dmbe Dmbe Dlbe
"""
PAPERS = single(PAPER)  # the definitions of those who published the replies
INITIALS = {facet.name: {name[0]: name for name in facet.classes} for facet in SINGLE.facets}
INITIALS["trend"] = {"U": "increasing", "D": "decreasing", "F": "flat"}


@pytest.fixture(scope="module")
def real_replies() -> list[dict[str, Any]]:
    """The reference's rows: values and reply of each."""
    if not REFERENCE.exists():
        pytest.skip(f"the reference replies are not at {REFERENCE}")
    return [json.loads(line) for line in REFERENCE.read_text().splitlines()]


@pytest.fixture(scope="module")
def replies(real_replies: list[dict[str, Any]]) -> tuple[pa.Table, pa.Table]:
    """Annotations and series as the stages have them."""
    values = np.array([row["values"] for row in real_replies], np.uint8)
    series = pa.table(
        {
            "series_id": pa.array([row["index"] for row in real_replies], pa.int64()),
            "split": ["train"] * len(real_replies),
            "values": pa.array(list(values), pa.list_(pa.uint8())),
            "truth": PAPERS.truth(PAPERS.measure(values), np.full(len(real_replies), values.shape[1], np.int32)),
        }
    )
    said = [Reply(row["reply"]) for row in real_replies]
    return annotations(SINGLE, "pixtral-large", series, request_keys(SINGLE, "reference", series), said), series


def curated(replies: tuple[pa.Table, pa.Table], against_truth: Any) -> Any:
    config = CurationConfig.model_validate({"against_truth": against_truth})
    examples, rejects, counts = curate(SINGLE, *replies, config)
    return examples, rejects, about(counts)


def test_each_reply_is_read_as_a_person_reads_it(replies: tuple[pa.Table, pa.Table]) -> None:
    labels = replies[0]["labels"].to_pylist()
    assert len(labels) == len(READ.split()) == 100
    for number, (found, read) in enumerate(zip(labels, READ.split(), strict=True)):
        wanted = {facet: INITIALS[facet].get(letter) for facet, letter in zip(SINGLE.names, read, strict=True)}
        assert found == wanted, replies[0]["text"][number]


def test_at_least_97_of_100_state_each_facet_and_agree_with_the_truth_as_often_as_is_known(
    replies: tuple[pa.Table, pa.Table], record_property: Callable[[str, object], None]
) -> None:
    _, _, counts = curated(replies, "keep")
    lines = reviewing.lines(counts)
    record_property("table", "\n".join(lines))
    assert counts["statuses"] == {"ok": 96, "invalid": 4}
    # The reference's README gives 91 % for trend and 80 % for noise on the whole dataset, of which this is half.
    known = {"trend": 0.91, "noise": 0.80}
    for facet in SINGLE.names:
        stated, right = (find(counts["said"][facet]) for find in (reviewing.stated, reviewing.accuracy))
        assert stated is not None
        assert right is not None
        assert stated >= 0.97
        assert right.low <= known.get(facet, right.value) <= right.high
        assert any(line.startswith(facet) and f"{right.value:.1%}" in line for line in lines)
    assert sum(found["rows"] for found in counts["rejects"]) == 100 - counts["kept"] == 4


def test_corrected_as_in_the_paper_every_extremum_that_is_learned_is_true(
    replies: tuple[pa.Table, pa.Table],
) -> None:
    examples, rejects, counts = curated(replies, load("paper").curation.against_truth)
    truth = dict(zip(replies[1]["series_id"].to_pylist(), replies[1]["truth"].to_pylist(), strict=True))
    said = dict(zip(replies[0]["series_id"].to_pylist(), replies[0]["text"].to_pylist(), strict=True))
    for row in examples.to_pylist():
        labels = SINGLE.parse(row["completion"]).labels
        assert all(labels[facet] == truth[row["series_id"]][facet] for facet in ("maximum", "minimum"))
        before, after = json.loads(said[row["series_id"]]), json.loads(row["completion"])
        assert [before["trend"], before["noise"]] == [after["trend"], after["noise"]]
    assert counts["corrected"] == sum(row["completion"] != said[row["series_id"]] for row in examples.to_pylist())
    assert 0 < counts["corrected"] < 15
    assert {row["reason"].split(":")[0] for row in rejects.to_pylist()} == {"invalid"}


def measured(values: list[int]) -> dict[str, str]:
    """The truth of a series by the formulas in the reference's README."""
    (up, down, flat), (start, middle, end) = SINGLE.classes["trend"], SINGLE.classes["maximum"]
    series = np.array(values, dtype=np.float64)
    steps = np.linspace(-1, 1, len(series))
    delta = series[-20:].mean() - series[:20].mean()
    residual = series - np.polyval(np.polyfit(steps, series, 3), steps)
    rms = np.sqrt(np.mean(residual**2))
    return {
        "trend": up if delta > 3 else down if delta < -3 else flat,
        "noise": "low" if rms < 2 else "high" if rms > 12 else "medium",
        "maximum": start if series.argmax() < 32 else end if series.argmax() > 96 else middle,
        "minimum": start if series.argmin() < 32 else end if series.argmin() > 96 else middle,
    }


def test_a_real_teachers_replies_are_stated_but_for_those_that_name_two_labels(
    real_replies: list[dict[str, Any]],
) -> None:
    parsed = {row["index"]: SINGLE.parse(row["reply"]) for row in real_replies}
    unstated = {
        facet: {index for index, reply in parsed.items() if reply.labels[facet] is None}
        for facet in SINGLE.classes
    }
    assert unstated == {"trend": {10, 62, 112}, "noise": {98}, "maximum": set(), "minimum": set()}


def test_a_real_teachers_labels_agree_with_the_measured_truth_as_often_as_is_known(
    real_replies: list[dict[str, Any]], record_property: Callable[[str, object], None]
) -> None:
    # The README gives 91 % for trend and 80 % for noise on the whole dataset, of which this is one half.
    agreement = {
        facet: float(
            np.mean(
                [
                    SINGLE.parse(row["reply"]).labels[facet] == measured(row["values"])[facet]
                    for row in real_replies
                ]
            )
        )
        for facet in SINGLE.classes
    }
    record_property("agreement", agreement)
    assert abs(agreement["trend"] - 0.91) <= 0.04
    assert abs(agreement["noise"] - 0.80) <= 0.04
    assert min(agreement["maximum"], agreement["minimum"]) >= 0.95


def test_a_real_teachers_replies_read_the_same_as_prose(real_replies: list[dict[str, Any]]) -> None:
    for row in real_replies:
        prose = " ".join(json.loads(row["reply"]).values())
        assert SINGLE.parse(prose).labels == SINGLE.parse(row["reply"]).labels, row["index"]
