"""What is measured of a pair of series: trends of thirds, crossings and relative position in each."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tsd.tasks import PAIR, PAPER, pair
from tsd.tasks.pair import THIRDS, relation, thirds

pairs = arrays(np.uint8, (3, 2 * 96), elements=st.integers(0, 99))
close = st.integers(3, 70).flatmap(lambda length: arrays(np.int16, (4, length), elements=st.integers(-2, 2)))


def truth_of(first: npt.ArrayLike, second: npt.ArrayLike) -> dict[str, str]:
    """The labels of one pair."""
    values = np.concatenate([np.asarray(first, np.uint8), np.asarray(second, np.uint8)])[None]
    (labels,) = PAIR.truth(PAIR.measure(values), values.shape[1] // 2).to_pylist()
    return dict(labels)


def of_thirds(labels: dict[str, str], facet: str) -> list[str]:
    """The labels of one facet in order of the thirds."""
    return [labels[f"{facet} {third}"] for third in THIRDS]


def test_two_parallel_lines_never_meet_and_the_upper_one_is_above() -> None:
    line = np.arange(96) // 2
    found = truth_of(line + 40, line)
    assert of_thirds(found, "intersections") == ["none"] * 3
    assert of_thirds(found, "position") == ["above"] * 3
    assert of_thirds(found, "first trend") == ["increasing"] * 3
    assert of_thirds(truth_of(line, line + 40), "position") == ["below"] * 3


def test_a_line_that_rises_through_one_that_falls_crosses_it_once_in_the_middle() -> None:
    rise = np.arange(96)
    found = truth_of(rise, rise[::-1])
    assert of_thirds(found, "intersections") == ["none", "one", "none"]
    assert of_thirds(found, "position") == ["below", "alternating", "above"]


@pytest.mark.parametrize(("first_above", "counts"), [(31, "onn"), (32, "non"), (33, "non"), (64, "nno")])
def test_a_crossing_on_the_border_of_two_thirds_counts_once_where_the_new_sign_begins(
    first_above: int, counts: str
) -> None:
    step = np.where(np.arange(96) < first_above, 40, 60)
    letters = {"none": "n", "one": "o", "several": "s"}
    assert (
        "".join(letters[label] for label in of_thirds(truth_of(step, np.full(96, 50)), "intersections")) == counts
    )


def test_a_crossing_over_equal_points_counts_where_they_end() -> None:
    step = np.repeat([40, 50, 60], [28, 10, 58])  # equal from point 28 to 37, and so over the border at 32
    assert of_thirds(truth_of(step, np.full(96, 50)), "intersections") == ["none", "one", "none"]


def test_touching_is_not_crossing() -> None:
    level, hill = np.full(96, 50), 50 - np.abs(np.arange(96) - 48)
    assert of_thirds(truth_of(level, hill), "intersections") == ["none"] * 3  # equal at one point
    assert of_thirds(truth_of(level, level), "intersections") == ["none"] * 3
    assert of_thirds(truth_of(level, level), "position") == ["alternating"] * 3


def test_a_hat_rises_holds_and_falls_in_its_thirds() -> None:
    hat = np.concatenate([np.arange(32) * 2, np.full(32, 64), np.arange(32)[::-1] * 2])
    assert of_thirds(truth_of(hat, np.full(96, 99)), "first trend") == ["increasing", "flat", "decreasing"]


def test_the_thirds_are_successive_and_of_equal_length_but_for_one_point() -> None:
    for length in range(3, 200):
        parts = list(thirds(length).values())
        assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
        assert (parts[0].start, parts[-1].stop) == (0, length)
        sizes = [part.stop - part.start for part in parts]
        assert max(sizes) - min(sizes) <= 1


@given(close)
def test_crossings_and_shares_are_those_of_a_walk_along_the_points(apart: npt.NDArray[np.int16]) -> None:
    found = relation(apart)
    for row, points in enumerate(apart.tolist()):
        counts, above, unequal = [0] * 3, [0] * 3, [0] * 3
        side = 0
        for at, height in enumerate(points):
            third = next(i for i, part in enumerate(thirds(len(points)).values()) if part.start <= at < part.stop)
            if height != 0:
                counts[third] += side * height < 0
                above[third] += height > 0
                unequal[third] += 1
                side = height
        for i, name in enumerate(THIRDS):
            assert found[f"{name}_intersections"][row] == counts[i]
            share = above[i] / unequal[i] if unequal[i] else 0.5
            assert found[f"{name}_above_share"][row] == pytest.approx(share)


@given(close)
def test_a_third_that_one_series_leads_throughout_is_crossed_at_its_first_point_at_most(
    apart: npt.NDArray[np.int16],
) -> None:
    found = relation(apart)
    for name in THIRDS:
        led = np.isin(found[f"{name}_above_share"], (0, 1))
        assert found[f"{name}_intersections"][led].max(initial=0) <= 1


@given(pairs)
def test_the_trend_of_a_third_is_measured_on_its_own_points(values: npt.NDArray[np.uint8]) -> None:
    found = pair(PAPER).measure(values)
    for row, second in enumerate(values[:, 96:].astype(int)):
        for number, third in enumerate(THIRDS):
            points = second[32 * number : 32 * (number + 1)]  # a window of 20 in 128 is one of 5 in 32
            assert found[f"second_{third}_trend_delta"][row] == pytest.approx(
                points[-5:].mean() - points[:5].mean()
            )


@given(pairs)
def test_exchanged_the_two_series_exchange_their_labels(values: npt.NDArray[np.uint8]) -> None:
    there = PAIR.truth(PAIR.measure(values), 96).to_pylist()
    back = PAIR.truth(PAIR.measure(np.roll(values, 96, axis=1)), 96).to_pylist()
    swap = {"first": "second", "second": "first"}
    position = {"above": "below", "below": "above", "alternating": "alternating"}
    for one, other in zip(there, back, strict=True):
        for name, label in one.items():
            whose, _, what = name.partition(" ")
            if whose in swap:
                assert other[f"{swap[whose]} {what}"] == label
            else:
                assert other[name] == (position[label] if whose == "position" else label)


def test_a_position_close_to_a_limit_is_a_near_tie() -> None:
    values = np.full((1, 2 * 129), 50, np.uint8)
    values[0, :129] = 40
    values[0, :29] = 60  # 29 of 43 points above, .674
    values[0, 43:75] = 60  # 32 of 43, .744
    measures = PAIR.measure(values)
    (margins,) = PAIR.margins(measures).to_pylist()
    tie = next(facet.tie for facet in PAIR.facets if facet.name == "position beginning")
    assert margins["position beginning"] == pytest.approx(29 / 43 - 2 / 3, abs=1e-6)
    assert margins["position beginning"] < tie < margins["position middle"]
    assert margins["intersections beginning"] is None


def test_each_third_has_a_question_of_its_own() -> None:
    prompt = PAIR.teacher_prompt(96, defined=True)
    for third in ("first", "middle", "last"):
        assert f"how often the two series cross in their {third} third: none, one or several times" in prompt
        assert f"where the first series lies most of the time in their {third} third" in prompt
    assert "a crossing on the border of two thirds counts in the later one" in prompt
