"""Words or a bigger student: differences of known data, and intervals that hold as often as they say."""

import numpy as np
import pyarrow as pa
import pytest

from tsd.evaluation import scoring
from tsd.evaluation.intervals import crossed_mean, small_mean
from tsd.evaluation.paired import Difference, Learned, at_flops, compare
from tsd.tasks import SINGLE


@pytest.mark.parametrize(
    ("seed_spread", "row_spread", "rest"),
    [(1.0, 0.3, 1.0), (0.0, 1.0, 0.3), (0.02, 0.02, 1.0), (0.1, 1.0, 1.0)],
    ids=["seeds differ", "series differ", "chance alone", "all of it"],
)
@pytest.mark.parametrize("seeds", [3, 5])
def test_an_interval_over_seeds_and_series_holds_the_true_mean_at_least_as_often_as_it_says(
    seeds: int, seed_spread: float, row_spread: float, rest: float
) -> None:
    rng, rows, studies = np.random.default_rng(5), 80, 1000
    held = 0
    for _ in range(studies):
        values = (
            0.7
            + rng.normal(0, seed_spread, (seeds, 1))
            + rng.normal(0, row_spread, (1, rows))
            + rng.normal(0, rest, (seeds, rows))
        )
        interval = crossed_mean(values)
        held += interval.low <= 0.7 <= interval.high
    # 95 % ± 2 %: three standard errors of 1,000 studies. A floor only, since the interval may be wide.
    assert held / studies > 0.93


def test_an_interval_is_not_wider_than_series_make_it_where_seeds_agree() -> None:
    rows = np.random.default_rng(0).normal(0, 1, 400)
    interval = crossed_mean(np.stack([rows, rows, rows]))
    assert interval.value == pytest.approx(rows.mean())
    assert interval.high - interval.low == pytest.approx(2 * 1.966 * rows.std(ddof=1) / 20, rel=1e-3)


def test_a_single_seed_has_the_interval_of_its_series() -> None:
    rows = np.random.default_rng(0).normal(0, 1, (1, 400))
    assert crossed_mean(rows) == small_mean(rows[0])


def test_seeds_that_always_differ_by_the_same_leave_no_doubt() -> None:
    assert crossed_mean(np.full((3, 10), 0.25)).as_dict() == {"value": 0.25, "low": 0.25, "high": 0.25}


def test_the_mean_of_three_has_students_interval() -> None:
    interval = small_mean(np.array([1.0, 2.0, 3.0]))
    assert interval.value == 2.0
    assert interval.high - 2.0 == pytest.approx(4.3027 / 3**0.5, rel=1e-4)  # t of 2 degrees of freedom, s = 1


def learned(loss: float, right: list[list[int]], flops: float = 1.0) -> Learned:
    """A run; right: a row a series, a column a facet."""
    each = np.array(right, np.bool_)
    return Learned(loss, each.mean(1), each.all(1).astype(np.float64), flops)


def test_runs_are_paired_by_the_seeds_that_both_have() -> None:
    half, whole, none = [[1, 0], [1, 0]], [[1, 1], [1, 0]], [[0, 0], [0, 0]]
    words = {0: learned(1.0, half), 1: learned(2.0, half), 7: learned(99.0, none)}
    distilled = {0: learned(0.8, whole, 1.5), 1: learned(1.7, half, 2.5), 9: learned(99.0, none)}
    found = compare(("small", "small-taught"), 500, words, distilled)
    assert (found.first, found.second, found.examples, found.seeds) == ("small", "small-taught", 500, 2)
    assert (found.loss.first, found.loss.second) == (1.5, 1.25)
    assert found.loss.apart.value == pytest.approx(-0.25)
    assert (found.right.first, found.right.second) == (0.5, 0.625)
    assert (found.all_right.first, found.all_right.second) == (0.0, 0.25)
    assert found.all_right.apart.value == pytest.approx(0.25)
    assert found.flops == 2.0
    assert compare(("small", "small-taught"), 500, {0: words[0]}, {9: distilled[9]}) is None


def test_what_as_many_flops_would_have_brought_lies_between_the_runs_on_either_side() -> None:
    runs = [learned(1.0, [[1, 0]], 1e6), learned(3.0, [[0, 0]], 1e4), learned(0.5, [[1, 1]], 1e8)]
    found = at_flops(runs, 1e5)
    assert found is not None
    assert (found.loss, found.flops) == (pytest.approx(2.0), 1e5)
    assert found.right == pytest.approx([0.25])
    assert at_flops(runs, 1e7).all_right == pytest.approx([0.5])
    assert at_flops(runs, 1e6).loss == 1.0
    assert at_flops(runs, 9e3) is None
    assert at_flops(runs, 2e8) is None


def test_one_seed_tells_nothing_of_the_loss_of_others() -> None:
    found = compare(("a", "b"), 500, {0: learned(1.0, [[1], [0]])}, {0: learned(0.5, [[1], [1]])})
    assert found.loss == Difference(1.0, 0.5, None)
    assert found.loss.sign == 0
    assert found.right.apart is not None


def test_what_is_right_stands_in_the_order_of_the_series_and_what_is_not_stated_is_wrong() -> None:
    truth = {"trend": "flat", "noise": "low", "maximum": "end", "minimum": "middle"}
    rows = [
        {"run_id": "a", "series_id": 9, "text": "", "labels": truth, "truth": truth},
        {
            "run_id": "a",
            "series_id": 2,
            "text": "",
            "labels": {**truth, "trend": None, "noise": "high"},
            "truth": truth,
        },
    ]
    found = scoring.right(pa.Table.from_pylist(rows, SINGLE.tables.predictions))
    assert found.tolist() == [[False, False, True, True], [True, True, True, True]]
