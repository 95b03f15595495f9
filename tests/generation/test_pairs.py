"""Pairs of series: one draw however it is split, parameters of their own, and how often they cross."""

import numpy as np
import pyarrow as pa
import pytest

from tsd.errors import RecipeError
from tsd.evaluation.scoring import class_table
from tsd.generation.generator import BLOCK, draw_table
from tsd.recipe import SeriesConfig, load
from tsd.series.processes import PROCESSES
from tsd.tasks import PAIR


@pytest.fixture(scope="module")
def some_pairs() -> pa.Table:
    """Two blocks of pairs."""
    return draw_table(PAIR, SeriesConfig(length=64), 7, 0, 2 * BLOCK)


def test_any_range_of_pairs_is_the_same_rows_of_the_one_draw(some_pairs: pa.Table) -> None:
    assert draw_table(PAIR, SeriesConfig(length=64), 7, 1000, 300).equals(some_pairs.slice(1000, 300))


def test_a_pair_is_two_series_of_one_length_with_their_own_parameters(some_pairs: pa.Table) -> None:
    rows = some_pairs.to_pylist()
    assert {len(row["values"]) for row in rows} == {128}
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
            points = np.array(row["values"][64 * number : 64 * (number + 1)])
            assert abs(points.mean() - drawn["level"]) < 6 * drawn["sigma"] + 1


def test_pairs_cross_never_once_and_often_and_lie_either_way(some_pairs: pa.Table) -> None:
    shares = class_table(PAIR, some_pairs)
    for facet in ("intersections", "position"):
        assert min(shares[facet].values()) > 0.08, shares[facet]  # noise seldom leaves it at one crossing
    assert shares["position"]["above"] == pytest.approx(shares["position"]["below"], abs=0.06)
    rare = [f"{facet} {name}" for facet, row in shares.items() for name, share in row.items() if share < 0.08]
    assert rare == []


def test_pairs_of_several_lengths_are_refused_before_anything_is_drawn() -> None:
    with pytest.raises(RecipeError, match=r"series\.length.*pair"):
        load("laptop", ["task=pair", "series.length=[64, 128]"])
