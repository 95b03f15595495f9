"""Teachers: the rules teacher, its error rates and its request keys."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from tsd.generation.generator import draw_table
from tsd.recipe import Recipe, RulesTeacher
from tsd.tasks import PAPER, SINGLE, single
from tsd.teachers.rules import Rules


@settings(max_examples=20)
@given(st.integers(0, 1023), st.integers(1, 300))
def test_what_the_rules_teacher_says_of_a_series_does_not_depend_on_its_company(
    annotations: pa.Table, series: pa.Table, recipe: Recipe, first: int, count: int
) -> None:
    teacher = Rules(recipe.teacher, recipe.asks, recipe.seed)
    assert teacher.annotate(series.slice(first, count)).equals(annotations.slice(first, count))


def test_rows_come_back_in_the_order_they_were_given(series: pa.Table, annotations: pa.Table) -> None:
    order = np.random.default_rng(1).permutation(len(series))
    shuffled = Rules(RulesTeacher(), SINGLE, 0).annotate(series.take(order))
    assert shuffled.equals(annotations.take(order).combine_chunks())


def test_without_errors_the_rules_teacher_says_the_truth_in_many_ways(series: pa.Table) -> None:
    perfect = RulesTeacher(error_rate={"every": 0})
    said = Rules(perfect, SINGLE, 0).annotate(series)
    assert said["labels"].to_pylist() == series["truth"].to_pylist()
    assert set(said["status"].to_pylist()) == {"ok"}
    texts = said["text"].to_pylist()
    assert len(set(texts)) == len(texts)
    true = SINGLE.true_numbers(series)
    for row, text in enumerate(texts):
        for name, number in SINGLE.numbers_in(text).items():
            assert number is None or number == pytest.approx(true[name][row], abs=0.5)


def test_with_the_papers_truth_the_rules_teacher_says_every_phrasing_of_every_class() -> None:
    papers = single(PAPER)
    series = draw_table(papers, Recipe(name="x", truth="paper").series, 3, 0, 2048)
    said = Rules(RulesTeacher(error_rate={"every": 0}), papers, 0).annotate(series)
    assert said["labels"].to_pylist() == series["truth"].to_pylist()
    trends = {json.loads(text)["trend"] for text in said["text"].to_pylist()}
    assert len(trends) == 3 * papers.phrasing_counts[0]


def test_the_rules_teacher_errs_as_often_as_it_is_told_in_each_facet_alone() -> None:
    rates = {"trend": 0.05, "noise": 0.3, "maximum": 0.0, "minimum": 1.0}
    series = draw_table(SINGLE, Recipe(name="x").series, 3, 0, 8192)
    said = Rules(RulesTeacher(error_rate=rates), SINGLE, 3).annotate(series)
    for facet, rate in rates.items():
        pairs = zip(said["labels"].to_pylist(), series["truth"].to_pylist(), strict=True)
        wrong = sum(label[facet] != truth[facet] for label, truth in pairs)
        interval = binomtest(wrong, len(series)).proportion_ci(0.99)
        assert interval.low <= rate <= interval.high, f"{facet}: {wrong} of {len(series)}"


def test_a_wrong_label_is_each_of_the_other_classes_about_as_often() -> None:
    rates = {"every": 1}
    series = draw_table(SINGLE, Recipe(name="x").series, 3, 0, 4096)
    said = Rules(RulesTeacher(error_rate=rates), SINGLE, 3).annotate(series)
    for facet, classes in SINGLE.classes.items():
        pairs = zip(said["labels"].to_pylist(), series["truth"].to_pylist(), strict=True)
        up = [(classes.index(label[facet]) - classes.index(truth[facet])) % 3 == 1 for label, truth in pairs]
        interval = binomtest(sum(up), len(up)).proportion_ci(0.999)
        assert interval.low <= 0.5 <= interval.high, facet


def keys_of(series: pa.Table, teacher: RulesTeacher, seed: int = 0) -> list[str]:
    """The request keys of the rules teacher."""
    keys: list[str] = Rules(teacher, SINGLE, seed).annotate(series)["request_key"].to_pylist()
    return keys


def test_a_request_key_changes_with_what_shapes_the_reply_and_with_the_values(series: pa.Table) -> None:
    few = series.slice(0, 50)
    plain = keys_of(few, RulesTeacher())
    assert len(set(plain)) == 50
    assert keys_of(few, RulesTeacher()) == plain
    assert not set(plain) & set(keys_of(few, RulesTeacher(error_rate={"trend": 0.5})))
    assert not set(plain) & set(keys_of(few, RulesTeacher(), seed=1))
    other = draw_table(SINGLE, Recipe(name="x").series, 9, 0, 50)
    assert not set(plain) & set(keys_of(other, RulesTeacher()))
