"""Series of the task `rich`: classes of all facets, added structure; and the same bytes for the other tasks."""

import hashlib
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsd.evaluation.scoring import baselines, class_table
from tsd.generation.balancing import ROUNDS, SHARES, balanced, expected
from tsd.generation.blocks import draw_block
from tsd.generation.generator import BLOCK, draw_table
from tsd.recipe import Recipe, SeriesConfig
from tsd.recipe.series import OF_RICH
from tsd.tasks import PAIR, PAPER, RICH, SINGLE, Definitions, Task, rich, single

BLOCKS = 8
CONFIG = SeriesConfig.model_validate(OF_RICH)
SHORT = CONFIG.model_copy(update={"length": 32})


@pytest.fixture(scope="module")
def many() -> pa.Table:
    """Eight blocks of the series of a recipe with `task: rich`."""
    return draw_table(RICH, CONFIG, 3, 0, BLOCKS * BLOCK)


@pytest.fixture(scope="module")
def whole() -> pa.Table:
    """Two blocks of short series, drawn at once."""
    return draw_table(RICH, SHORT, 11, 0, 2 * BLOCK)


def test_a_recipe_of_the_task_has_its_defaults() -> None:
    assert Recipe.model_validate({"name": "mine", "task": "rich"}).series == CONFIG
    mine = Recipe.model_validate({"name": "mine", "task": "rich", "series": {"mix": {"linear": 1.0}}})
    assert mine.series == CONFIG.model_copy(update={"mix": {"linear": 1.0}})


def test_every_class_of_every_facet_has_its_share(many: pa.Table) -> None:
    for facet, shares in class_table(RICH, many).items():
        least, most = (0.4, 0.6) if facet == "reversion" else (0.2, 0.47)
        for name, share in shares.items():
            assert least <= share <= most, f"{facet} {name} {share:.3f}"


def test_the_trend_does_not_give_the_extrema_away(many: pa.Table) -> None:
    found = baselines(RICH, many)
    assert found["maximum"]["given"] <= 0.55
    assert found["minimum"]["given"] <= 0.55


def test_few_series_are_near_ties(many: pa.Table) -> None:
    margins = many["margins"].combine_chunks()
    for facet in RICH.facets:
        if facet.margin:
            near = margins.field(facet.name).to_numpy(zero_copy_only=False) < facet.tie
            assert near.mean() <= 0.11, facet.name


def test_each_class_is_found_beside_each_of_another_facet_but_for_those_that_exclude_each_other(
    many: pa.Table,
) -> None:
    rows = many["truth"].to_pylist()
    for first, second in (
        ("season", "shift"),
        ("season", "outlier"),
        ("outlier", "volatility"),
        ("noise", "shift"),
        ("reversion", "season"),
        ("reversion", "volatility"),
    ):
        found = Counter((row[first], row[second]) for row in rows)
        for a in RICH.classes[first]:
            for b in RICH.classes[second]:
                assert found[a, b] >= 0.005 * len(rows), (first, a, second, b)


def test_reversion_is_fast_or_slow_but_where_high_noise_fills_the_range(many: pa.Table) -> None:
    rows = many["truth"].to_pylist()
    found = Counter((row["noise"], row["reversion"]) for row in rows)
    for level in ("low", "medium"):
        for speed in ("fast", "slow"):
            assert found[level, speed] >= 0.03 * len(rows), (level, speed)
    assert found["high", "fast"] > 10 * found["high", "slow"]


def test_outliers_and_shifts_lie_anywhere(many: pa.Table) -> None:
    measures = many["measures"].combine_chunks()
    for name in ("outlier_place", "shift_place"):
        places = measures.field(name).to_numpy()
        thirds = np.histogram(places[places >= 0], [0, 42, 86, 128])[0]
        assert thirds.min() > 0.2 * thirds.sum(), name


def test_values_are_on_either_scale(many: pa.Table) -> None:
    values = np.asarray(many["values"].combine_chunks().flatten()).reshape(len(many), -1)
    assert values.max() <= 99
    full = (values.min(axis=1) == 0) & (values.max(axis=1) == 99)
    assert 0.4 < full.mean() < 0.9


@pytest.mark.parametrize("length", [32, 500])
def test_all_classes_are_found_at_other_lengths(length: int) -> None:
    table = draw_table(RICH, CONFIG.model_copy(update={"length": length}), 0, 0, 2 * BLOCK)
    for facet, shares in class_table(RICH, table).items():
        assert min(shares.values()) > (0.005 if length == 32 else 0.05), (facet, shares)


# ---- A series is a function of (seed, id) alone


@settings(max_examples=15)
@given(st.data())
def test_any_range_of_ids_is_the_same_rows_of_the_one_draw(whole: pa.Table, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(whole) - 1))
    count = data.draw(st.integers(1, len(whole) - first))
    assert draw_table(RICH, SHORT, 11, first, count).equals(whole.slice(first, count))


def test_series_of_several_lengths_are_any_range_of_one_draw_too() -> None:
    config = CONFIG.model_copy(update={"length": (32, 48, 100)})
    drawn = draw_table(RICH, config, 3, 0, 2 * BLOCK)
    assert draw_table(RICH, config, 3, 1000, 100).equals(drawn.slice(1000, 100))
    assert set(pa.compute.list_value_length(drawn["values"]).to_pylist()) == {32, 48, 100}


BEFORE = {  # ranges with which the paper's series were drawn before those of the robust truth were chosen
    "trend_shares": (0.41, 0.41, 0.18),
    "noise_shares": (0.36, 0.28, 0.36),
    "own_trend_shares": (0.43, 0.43, 0.14),
    "own_noise_shares": (0.32, 0.28, 0.40),
    "noise_rms": ((0.4, 1.7), (2.5, 8.5), (10.8, 14.5)),
    "drift": (8.0, 40.0),
    "own_drift": (0.27, 0.40),
}
BYTES: dict[str, tuple[Task, dict[str, Any], str]] = {  # those of the paper as before structure could be added
    "single": (SINGLE, {}, "948ac50c9743ac9f"),
    "paper": (single(PAPER), BEFORE, "092c7b4f72920d1c"),
    "pair": (PAIR, {}, "a7d8e5cb8ea1204b"),
}


@pytest.mark.parametrize("name", BYTES)
def test_tasks_that_ask_for_no_structure_have_the_series_that_they_had(name: str) -> None:
    task, ranges, known = BYTES[name]
    assert _values(task, ranges) == known


def _values(task: Task, ranges: dict[str, Any]) -> str:
    """A hash of the integers of some series, which are alike on all machines with the same numpy."""
    config = SeriesConfig.model_validate({"length": 96, "oversampling": 1.5, **ranges})
    table = draw_table(task, config, 7, 500, 100)
    return hashlib.sha256(np.asarray(table["values"].combine_chunks().flatten()).tobytes()).hexdigest()[:16]


def test_structure_is_added_for_the_facets_that_a_task_names_and_for_no_others() -> None:
    few = replace(RICH, added=("outlier",))
    classes = draw_block(few, CONFIG, 0, 0).classes
    shares = {name: np.bincount(classes[name], minlength=3) / BLOCK for name in ("outlier", "season", "shift")}
    assert shares["outlier"][1:].min() > 0.2
    everything = draw_block(RICH, CONFIG, 0, 0).classes
    for name in ("season", "shift"):
        assert shares[name][0] > (everything[name] == 0).mean() + 0.1


def test_extrema_are_even_by_thirds_too() -> None:
    thirds = rich(Definitions(places="thirds"))
    for facet, shares in class_table(thirds, draw_table(thirds, CONFIG, 0, 0, 2 * BLOCK)).items():
        if facet in ("maximum", "minimum"):
            assert min(shares.values()) > 0.25, shares


# ---- Balancing


def test_balancing_takes_each_facet_towards_its_shares_whatever_the_others_are() -> None:
    rng = np.random.default_rng(0)
    count, counts = 6000, {"trend": 3, "mine": 2, "season": 3, "other": 4}
    skewed = {}
    for name, size in counts.items():
        shares = np.linspace(2, 1, size)
        skewed[name] = rng.choice(size, count, p=shares / shares.sum())
    kept = balanced(skewed, counts, np.zeros(count, np.int64), 2000)
    assert len(set(kept.tolist())) == len(kept) == 2000
    assert kept.tolist() == sorted(kept.tolist())
    for name, size in counts.items():
        wanted = np.array(SHARES.get(name, (1.0,) * size))
        off = [
            np.abs(np.bincount(some, minlength=size) / len(some) - wanted / wanted.sum()).max()
            for some in (skewed[name], skewed[name][kept])
        ]
        assert off[1] < min(0.06, 0.7 * off[0]), (name, off)


def test_balancing_drops_near_ties_of_the_first_facet_first() -> None:
    rng = np.random.default_rng(1)
    classes = {"a": rng.integers(3, size=900), "b": rng.integers(3, size=900)}
    ties = rng.integers(4, size=900)  # two facets: bit 2 is that of the first
    kept = balanced(classes, {"a": 3, "b": 3}, ties, 600)
    left = np.bincount(ties[kept], minlength=4) / np.bincount(ties, minlength=4)
    assert left[3] <= left[2] < left[1] <= left[0]


def test_balancing_leaves_fewer_extrema_where_the_trend_has_them() -> None:
    rng = np.random.default_rng(2)
    trend = rng.integers(3, size=3000)
    where = np.where(trend == 2, rng.integers(3, size=3000), np.where(rng.random(3000) < 0.8, 2 - 2 * trend, 1))
    classes = {"trend": trend, "maximum": where, "minimum": 2 - where}
    kept = balanced(classes, dict.fromkeys(classes, 3), np.zeros(3000, np.int64), 2000)

    def both(these: npt.NDArray[np.intp]) -> float:
        return float((expected(*(classes[name][these] for name in classes)) == 2).mean())

    assert both(kept) < both(np.arange(3000)) - 0.1


def test_extrema_where_the_trend_has_them_are_counted() -> None:
    trend, maximum, minimum = np.array([[0, 2, 0], [0, 1, 0], [1, 0, 2], [1, 2, 0], [2, 2, 0]]).T
    assert expected(trend, maximum, minimum).tolist() == [2, 1, 2, 0, 0]


def test_balancing_keeps_all_where_there_are_no_more() -> None:
    classes = {"a": np.zeros(ROUNDS, np.intp)}
    assert balanced(classes, {"a": 2}, np.zeros(ROUNDS, np.int64), ROUNDS).tolist() == list(range(ROUNDS))
