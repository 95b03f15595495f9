"""What descriptions say beside the label is true of the series: the reason of a flat trend, its mean, units."""

import json
import re

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from tsd.generation.generator import draw_table
from tsd.recipe import load
from tsd.tasks import RICH, SINGLE, Task
from tsd.tasks.facet import STYLES, wording_of
from tsd.tasks.language.wording import Wording

WITHIN = re.compile(r"the change of (\d+) is within the noise")
ROWS = 1_500


@pytest.fixture(scope="module", params=[SINGLE, RICH], ids=lambda task: task.name)
def said(request: pytest.FixtureRequest) -> tuple[Task, pa.Table, list[str]]:
    """A task, series as recipes draw them, and a description of each, in wordings of all styles."""
    task: Task = request.param
    recipe = load("rich" if task is RICH else "laptop", [])
    series = draw_table(task, recipe.series, 11, 0, ROWS)
    choices = [[wording_of((row * 7 + i) % STYLES) for i in range(len(task.facets))] for row in range(ROWS)]
    return task, series, list(map(task.describe, series["truth"].to_pylist(), task.stated(series), choices))


def test_a_change_is_called_within_the_noise_only_where_it_is_at_most_its_standard_deviation(
    said: tuple[Task, pa.Table, list[str]],
) -> None:
    task, series, texts = said
    numbers = task.true_numbers(series)
    found = [(row, WITHIN.search(text)) for row, text in enumerate(texts)]
    stated = [(row, int(match[1])) for row, match in found if match]
    assert stated
    for row, change in stated:
        assert 1 <= numbers["change"][row] <= numbers["noise"][row]
        assert change == round(float(numbers["change"][row]))


def test_flat_trends_are_described_without_a_reason_where_it_does_not_hold(
    said: tuple[Task, pa.Table, list[str]],
) -> None:
    task, series, texts = said
    holds = task.holding_numbers(series)["change"]
    flat = [row for row, truth in enumerate(series["truth"].to_pylist()) if truth["trend"] == "flat"]
    without = [texts[row] for row in flat if not holds[row]]
    assert without
    assert all("{" not in json.loads(text)["trend"] and not WITHIN.search(text) for text in without)
    assert len({json.loads(text)["trend"] for text in without}) > 20


def test_the_mean_is_that_of_all_values(said: tuple[Task, pa.Table, list[str]]) -> None:
    _, series, texts = said
    means = [float(row.values.to_numpy().mean()) for row in series["values"]]
    stated = [(row, re.search(r"around a mean of (\d+)", text)) for row, text in enumerate(texts)]
    assert any(match for _, match in stated)
    assert all(abs(int(match[1]) - means[row]) <= 0.51 for row, match in stated if match)
    assert not any("level of 5" in json.loads(text)["trend"] for text in texts)


def test_one_is_a_unit_and_cycles_are_counted_in_decimals_but_do_not_repeat_so_often() -> None:
    labels = dict.fromkeys(RICH.names, "none") | {
        "trend": "flat",
        "noise": "low",
        "shift": "up",
        "season": "strong",
    }
    labels |= {"maximum": "end", "minimum": "end", "volatility": "steady", "reversion": "fast"}
    names = [number.name for number in RICH.numbers]
    said = [
        json.loads(RICH.describe(labels, dict.fromkeys(names, "1"), [number] * len(RICH.facets)))
        for number in range(300)
    ]
    shifts = {one["shift"] for one in said}
    assert any(re.search(r"\b1 unit\b", text) for text in shifts)
    assert not any(re.search(r"\b1 units", text) for text in shifts)
    assert not any(re.search(r"\d times", one["season"]) for one in said)
    assert any(re.search(r"\d cycles", one["season"]) for one in said)


def measures(change: float, noise: float) -> dict[str, npt.NDArray[np.float32]]:
    return {
        "start": np.array([50], np.float32),
        "end": np.array([50 - change], np.float32),
        "noise": np.array([noise], np.float32),
    }


@pytest.mark.parametrize(
    ("change", "noise", "holds"),
    [(19, 2.1, False), (2, 2.1, True), (2.3, 1.1, False), (0.4, 3, False), (3, 3, True)],
)
def test_a_change_within_the_noise_is_neither_larger_than_it_nor_none(
    change: float, noise: float, holds: bool
) -> None:
    number = next(number for number in SINGLE.numbers if number.name == "change")
    assert number.holds is not None
    assert number.holds(measures(change, noise), np.array([128])).tolist() == [holds]


def test_a_slot_is_avoided_where_an_alternative_has_none() -> None:
    wording = Wording("Flat[: by {change}|, near {mean}|].")
    assert [wording.text(number, {"change"}) for number in range(3)] == [
        "Flat, near {mean}.",
        "Flat, near {mean}.",
        "Flat.",
    ]
    assert Wording("By {change}.").text(0, {"change"}) == "By {change}."
