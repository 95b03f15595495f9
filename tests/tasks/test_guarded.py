"""Functions of a task from outside: what they raise or return wrong is one line that names them."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tsd.errors import TRACEBACK, PluginError
from tsd.generation.generator import draw_table
from tsd.recipe import Recipe
from tsd.tasks import SINGLE, Task
from tsd.tasks.guarded import Guarded, guarded
from tsd.tasks.language import Reading

VALUES = np.arange(256, dtype=np.uint8).reshape(4, 64) % 100


def with_facet(**functions: Callable[..., Any]) -> Task:
    """The single-series task with functions of its first facet replaced, guarded."""
    return guarded(
        replace(SINGLE, name="mine", facets=(replace(SINGLE.facets[0], **functions), *SINGLE.facets[1:]))
    )


def measuring(measure: Callable[..., Any]) -> Task:
    return guarded(replace(SINGLE, name="mine", measure=measure))


def test_a_task_of_tsds_own_functions_is_called_as_it_is() -> None:
    same = guarded(SINGLE)
    assert same.measure is SINGLE.measure
    assert same.facets == SINGLE.facets


@pytest.mark.parametrize(
    ("measure", "said"),
    [
        (
            lambda values: {"trend_change": 1 / 0},
            rf"failed in .*test_guarded\.py line \d+, in <lambda>: ZeroDivisionE.*{TRACEBACK}",
        ),
        (lambda values: 3, "returned int: return a mapping"),
        (
            lambda values: SINGLE.measure(values) | {"trend_change": np.zeros((len(values), 1))},
            r"trend_change as .*\(4, 1\)",
        ),
        (
            lambda values: SINGLE.measure(values) | {"trend_change": np.full(len(values), np.nan)},
            "trend_change with NaN",
        ),
        (lambda values: SINGLE.measure(values) | {"trend_change": ["a"] * len(values)}, "trend_change as <U1"),
    ],
)
def test_a_measure_that_is_wrong_is_named(measure: Callable[..., Any], said: str) -> None:
    with pytest.raises(PluginError, match=f"the task mine.*{said}") as caught:
        measuring(measure).measure(VALUES)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("functions", "said"),
    [
        (
            {"classify": lambda measures, length: np.full(4, 7)},
            "classify of the facet .*indices from 7 to 7: the facet has 3",
        ),
        ({"classify": lambda measures, length: np.zeros(4)}, r"float64 of shape \(4,\): return integers"),
        ({"classify": lambda measures, length: np.zeros(3, int)}, r"int64 of shape \(3,\)"),
        ({"classify": lambda measures, length: measures["x"]}, r"classify of the facet .*KeyError: 'x'"),
        ({"classify": lambda measures, length: None}, r"NoneType: return an array of integers of shape \(4,\)"),
        ({"margin": lambda measures: [0.0] * 4}, r"margin of the .* list: return an array of numbers of shape"),
        ({"margin": lambda measures: np.zeros((4, 2))}, r"margin of the facet .*float64 of shape \(4, 2\)"),
        ({"read": lambda text: "up"}, "read of the facet .*returned 'up': return a Reading"),
        (
            {"read": lambda text: Reading("middling")},
            "read of the facet trend .*returned the label 'middling': return one of .*, or None",
        ),
        ({"read": lambda text: Reading(3)}, "returned the label 3: return one of "),
        ({"read": lambda text: Reading(["a"])}, r"returned the label \['a'\]: return one of "),
        ({"read": lambda text: text.nothing}, "read of the facet .*AttributeError"),
    ],
)
def test_a_function_of_a_facet_that_is_wrong_is_named(functions: dict[str, Callable[..., Any]], said: str) -> None:
    task = with_facet(**functions)
    measures = SINGLE.measure(VALUES)

    def use() -> None:
        task.truth(measures, 64)
        task.margins(measures)
        task.parse("It rises.")

    with pytest.raises(PluginError, match=said) as caught:
        use()
    assert len(str(caught.value).splitlines()) == 1


def test_a_guarded_task_makes_the_same_series(recipe: Recipe) -> None:
    task = with_facet(classify=lambda measures, length: SINGLE.facets[0].classify(measures, length))
    assert isinstance(task.facets[0].classify, Guarded)
    mine, tsds = (draw_table(each, recipe.series, recipe.seed, 0, 8) for each in (task, SINGLE))
    assert mine.equals(tsds)
