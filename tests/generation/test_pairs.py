"""Pairs of series: one draw however it is split, parameters of their own, and how often they cross."""

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from tsd.errors import RecipeError
from tsd.evaluation.scoring import class_table
from tsd.generation.generator import BLOCK, draw_table
from tsd.recipe import SeriesConfig, load
from tsd.series.processes import PROCESSES
from tsd.tasks import PAIR
from tsd.tasks.pair import THIRDS


@pytest.fixture(scope="module")
def some_pairs() -> pa.Table:
    """Two blocks of pairs."""
    return draw_table(PAIR, SeriesConfig(length=96), 7, 0, 2 * BLOCK)


def test_any_range_of_pairs_is_the_same_rows_of_the_one_draw(some_pairs: pa.Table) -> None:
    assert draw_table(PAIR, SeriesConfig(length=96), 7, 1000, 300).equals(some_pairs.slice(1000, 300))


def test_a_pair_is_two_series_of_one_length_with_their_own_parameters(some_pairs: pa.Table) -> None:
    rows = some_pairs.to_pylist()
    assert {len(row["values"]) for row in rows} == {192}
    assert {len(row["parameters"]) for row in rows} == {2}
    assert all(row["process"].split(", ")[i] in PROCESSES for row in rows for i in (0, 1))
    assert len({row["process"] for row in rows}) > 40  # of the 81 combinations
    first, second = (row["parameters"][0]["tau"] for row in rows), (row["parameters"][1]["tau"] for row in rows)
    assert abs(np.corrcoef(list(first), list(second))[0, 1]) < 0.08  # one partner tells nothing of the other


def test_the_parameters_of_a_pair_are_those_of_its_series_as_they_lie(some_pairs: pa.Table) -> None:
    linear = [row for row in some_pairs.to_pylist() if row["process"] == "fixed, fixed"]
    assert len(linear) > 5
    for row in linear:
        for number, drawn in enumerate(row["parameters"]):
            points = np.array(row["values"][96 * number : 96 * (number + 1)])
            assert abs(points.mean() - drawn["level"]) < 6 * drawn["sigma"] + 1


@pytest.fixture(scope="module")
def default_pairs() -> pa.Table:
    """8,192 pairs of the default recipe."""
    recipe = load("laptop", ["task=pair"])
    return draw_table(recipe.asks, recipe.series, recipe.seed, 0, 8 * BLOCK)


def test_in_each_third_pairs_cross_never_once_and_often_and_lie_either_way(default_pairs: pa.Table) -> None:
    shares = class_table(PAIR, default_pairs)
    for third in THIRDS:
        for facet in (f"intersections {third}", f"position {third}"):
            assert min(shares[facet].values()) > 0.2, (facet, shares[facet])
            assert max(shares[facet].values()) < 0.45, (facet, shares[facet])
        position = shares[f"position {third}"]
        assert position["above"] == pytest.approx(position["below"], abs=0.03)
    for whose in ("first", "second"):
        assert min(shares[f"{whose} noise"].values()) > 0.2
    rare = [f"{facet} {name}" for facet, row in shares.items() for name, share in row.items() if share < 0.15]
    assert rare == []


def test_the_first_pairs_of_a_block_are_as_balanced_as_all(default_pairs: pa.Table) -> None:
    for third in THIRDS:
        shares = class_table(PAIR, default_pairs.slice(0, 128))[f"intersections {third}"]
        assert min(shares.values()) > 0.15


def test_few_positions_are_near_ties(default_pairs: pa.Table) -> None:
    for facet in PAIR.facets:
        if facet.name.startswith("position"):
            margins = default_pairs["margins"].combine_chunks().field(facet.name).to_numpy()
            assert (margins < facet.tie).mean() < 0.07


def test_a_series_is_crossed_in_a_third_that_it_leads_most_of_the_time_as_well(default_pairs: pa.Table) -> None:
    truth = default_pairs["truth"].to_pylist()
    for third in THIRDS:
        both = Counter((row[f"intersections {third}"], row[f"position {third}"]) for row in truth)
        assert both["none", "alternating"] == 0  # neither series can lead by halves without a crossing
        assert min(both[count, "above"] + both[count, "below"] for count in ("none", "one", "several")) > 900


def test_pairs_by_the_paper_s_truth_are_balanced_too() -> None:
    recipe = load("laptop", ["task=pair", "truth=paper"])
    shares = class_table(recipe.asks, draw_table(recipe.asks, recipe.series, 1, 0, 4 * BLOCK))
    for third in THIRDS:
        for facet in (f"intersections {third}", f"position {third}", f"first trend {third}"):
            assert min(shares[facet].values()) > 0.2, (facet, shares[facet])
            assert max(shares[facet].values()) < 0.45, (facet, shares[facet])


def test_pairs_of_several_lengths_are_refused_before_anything_is_drawn() -> None:
    with pytest.raises(RecipeError, match=r"series\.length.*pair"):
        load("laptop", ["task=pair", "series.length=[64, 128]"])
