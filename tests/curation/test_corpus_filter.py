"""The filter over a whole corpus: duplicates, and a cap for each class."""

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.hand_made_replies import CLASSES, DROP, TRUTH, config, hand_made, saying

from tsd.curation import curate, judge, settle
from tsd.curation.corpus import DUPLICATE
from tsd.errors import InputError
from tsd.tasks import SINGLE


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
