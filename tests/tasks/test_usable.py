"""Tasks from outside that cannot be used: one line says why, when the recipe is loaded."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tsd.errors import RecipeError
from tsd.recipe import load
from tsd.tasks import PAIR, SINGLE, Facet, Task, names
from tsd.tasks.guarded import guarded
from tsd.tasks.language import Reading, topic_of
from tsd.tasks.usable import require_measurable, require_usable, tried


def read_spread(text: str) -> Reading:
    found = set(re.findall(r"\b(narrow|wide)\b", text))
    return Reading(found.pop()) if len(found) == 1 else Reading(None, "no single spread is named")


SPREAD = Facet(
    "spread",
    ("narrow", "wide"),
    topic="spread",
    question="whether the values spread over a narrow or a wide range",
    phrasings=("The values spread over a {} range.", "The spread is {}."),
    read=read_spread,
    classify=lambda measures, _: (measures["noise"] > 5).astype(np.intp),
)


def with_facet(**changes: Any) -> Task:
    """The single-series task with one more facet."""
    return replace(SINGLE, name="mine", facets=(*SINGLE.facets, replace(SPREAD, **changes)))


def test_the_built_in_tasks_and_one_with_a_facet_more_can_be_used() -> None:
    for task in (SINGLE, PAIR, with_facet(), with_facet(topic="spread of values")):
        require_usable(task)
        for points in (32, 64, 1000):
            require_measurable(task, 3 * points if task is PAIR else points)  # each third has its trend


@pytest.mark.parametrize(
    ("topic", "said"),
    [
        ("crossing", r"never found in replies, whose key 'crossing' is read as 'intersections': give it another"),
        ("maximum", r"is read as 'extrema': give it another topic"),
        ("value_range", r"whose key 'value_range' is read as 'value range': call it 'value range'"),
        ("Spread", r"is read as 'spread': call it 'spread'"),
        ("first series spread", r"is read as 'first spread'"),
        ("second", r"is read as 'second': give it another topic"),
        ("", "the topic '' of the facet spread"),
    ],
)
def test_a_topic_that_no_key_of_a_reply_stands_for_is_refused(topic: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"of the facet spread .*{said}|{said}") as caught:
        require_usable(with_facet(topic=topic))
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("topic", [*SINGLE.topics, *PAIR.topics, "range", "long-term change"])
def test_a_topic_stands_for_itself(topic: str) -> None:
    assert topic_of(topic) == topic


def test_a_phrasing_that_is_not_read_is_named_with_what_its_parser_was_given_and_returned() -> None:
    capitals = with_facet(read=lambda text: Reading("wide" if "WIDE" in text else None, "nothing in capitals"))
    with pytest.raises(
        ValueError,
        match=r"^spread: 'The values spread over a narrow range\.' is read as None, not narrow: read was given "
        r"'the values spread over a narrow range' and returned the label None \(nothing in capitals\)$",
    ):
        require_usable(capitals)


def test_a_phrasing_that_is_misread_beside_the_other_facet_of_its_topic_is_named() -> None:
    phrasings = tuple(f"The values spread over a {{}} range {i}." for i in range(len(SINGLE.facets[1].phrasings)))
    require_usable(with_facet(phrasings=phrasings, topic="noise"))
    levels = {"classes": ("low", "high"), "read": lambda text: Reading("high" if "a high" in text else "low")}
    said = "^noise: 'The noise intensity is medium.' is read as None, not medium: .*over a low range"
    with pytest.raises(ValueError, match=said):
        require_usable(with_facet(phrasings=phrasings, topic="noise", **levels))


@pytest.mark.parametrize("classes", [("no", "one"), ("one", "no")])
def test_facets_of_one_topic_may_depend_on_each_other(classes: tuple[str, str]) -> None:
    def read_peak(text: str) -> Reading:
        return Reading("no" if "no peak" in text else "one" if "one peak" in text else None, "no peak is named")

    def read_place(text: str) -> Reading:
        found = re.findall(r"\b(early|late)\b", text)
        return Reading(found[0]) if len(found) == 1 and "no peak" not in text else Reading(None, "nowhere")

    peak = Facet("peak", classes, "peaks", "how many", ("There is {} peak.",), read_peak, SPREAD.classify)
    place = Facet("place", ("early", "late"), "peaks", "where", ("It comes {}.",), read_place, SPREAD.classify)
    require_usable(guarded(replace(SINGLE, name="mine", facets=(*SINGLE.facets, peak, place))))
    never = replace(place, read=lambda text: Reading(None, "nowhere") if "peak" in text else read_place(text))
    with pytest.raises(ValueError, match=f"^place: 'It comes early.' is read as None.*there is {classes[0]} peak"):
        require_usable(guarded(replace(SINGLE, name="mine", facets=(*SINGLE.facets, peak, never))))


FACETS: dict[str, tuple[Callable[[], Task], str]] = {
    "a facet twice": (
        lambda: replace(SINGLE, name="mine", facets=(*SINGLE.facets, SINGLE.facets[0])),
        "the task mine has the facet 'trend' twice: leave one out, or rename it",
    ),
    "another number of phrasings in a topic": (
        lambda: with_facet(topic="trend"),
        "facets of one topic must have equally many phrasings, and those of 'trend' have trend 4, spread 2: ",
    ),
    "no facets": (lambda: replace(SINGLE, name="mine", facets=()), "the task mine has no facets"),
    "phrasings that are a text": (
        lambda: with_facet(phrasings="The spread is {}."),
        "phrasings of the facet spread must be a tuple of texts, not 'The spread is {}.'",
    ),
    "no phrasings": (lambda: with_facet(phrasings=()), "phrasings of the facet spread must be a tuple of texts"),
    "classes that are a text": (lambda: with_facet(classes="ab"), "classes of the facet spread must be a tuple"),
    "one class": (lambda: with_facet(classes=("wide",)), "must have two or more different classes"),
    "a class twice": (lambda: with_facet(classes=("wide", "wide")), "must have two or more different classes"),
    "no place for the class": (
        lambda: with_facet(phrasings=("It is wide.",)),
        "the phrasing 'It is wide.' of the facet spread has no {} for the class",
    ),
    "the name of a column": (
        lambda: with_facet(name="seed"),
        "the facet 'seed' has the name of a column of the runs table: rename it",
    ),
    "a facet that is given and missing": (
        lambda: with_facet(given="tend"),
        "given of the facet spread is 'tend', which is no facet of the task",
    ),
}


@pytest.mark.parametrize(("build", "said"), FACETS.values(), ids=FACETS)
def test_facets_that_no_task_can_have_are_refused_in_one_line(build: Callable[[], Task], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        require_usable(build())
    assert len(str(caught.value).splitlines()) == 1


def test_facets_that_contradict_each_other_are_one_line_of_the_command(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(
        "from dataclasses import replace\nfrom tsd.tasks import SINGLE\n"
        "TASK = replace(SINGLE, name='x', facets=(*SINGLE.facets, SINGLE.facets[0]))\n"
    )
    with pytest.raises(RecipeError, match=r"has the facet 'trend' twice.*line 3") as caught:
        load("laptop", ["teacher={kind: rules}", f"task={tmp_path}/task.py:TASK"])
    assert "AssertionError" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_class_out_of_range_is_found_on_a_few_series_when_the_task_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(
        "from dataclasses import replace\nimport numpy as np\nfrom tsd.tasks import SINGLE\n"
        "noise = replace(SINGLE.facets[1], classify=lambda m, _: (m['noise'] // 3).astype(np.intp))\n"
        "TASK = replace(SINGLE, name='x', facets=(SINGLE.facets[0], noise, *SINGLE.facets[2:]))\n"
    )
    said = (
        "classify of the facet noise of the task x, .* returned indices from 0 to [3-9]: the facet has 3 classes"
    )
    with pytest.raises(RecipeError, match=said):
        load("laptop", ["teacher={kind: rules}", f"task={tmp_path}/task.py:TASK"])
    names.named.cache_clear()


def test_a_measure_is_tried_on_series_of_the_recipes_shortest_length(tmp_path: Path) -> None:
    (tmp_path / "task.py").write_text(
        "from dataclasses import replace\nimport numpy as np\nimport pyarrow as pa\nfrom tsd.tasks import SINGLE\n"
        "def measure(values):\n"
        "    return {**SINGLE.measure(values), 'period': np.abs(np.fft.rfft(values, axis=1))[:, 48]}\n"
        "TASK = replace(SINGLE, name='x', measure=measure, measures={**SINGLE.measures, 'period': pa.float32()})\n"
    )
    sets = ["teacher={kind: rules}", f"task={tmp_path}/task.py:TASK"]
    for length in ("128", "[96, 128]"):
        load("laptop", [*sets, f"series.length={length}"])
    for length in ("64", "[128, 64]"):
        with pytest.raises(RecipeError) as caught:
            load("laptop", [*sets, f"series.length={length}"])
        message = str(caught.value)
        assert "cannot be used on series of 64 points: measure of the task x" in message
        assert "task.py line 6, in measure: IndexError" in message
        assert len(message.splitlines()) == 1


@pytest.mark.parametrize("task", [SINGLE, PAIR], ids=lambda task: task.name)
def test_the_series_on_which_a_task_is_tried_have_every_class(task: Task) -> None:
    points = 32 if task is SINGLE else 96
    measures = task.measure(tried(task.curves, points))
    for facet, found in task.classify(measures, points).items():
        assert set(found) == set(range(len(task.classes[facet]))), facet


def test_measures_and_margins_may_be_of_double_precision_and_make_the_same_table() -> None:
    def measure(values: Any) -> Any:
        return {
            name: found.astype(np.float64) if found.dtype.kind == "f" else found.astype(np.int64)
            for name, found in SINGLE.measure(values).items()
        }

    margin = SINGLE.facets[0].margin
    assert margin
    wide = replace(SINGLE.facets[0], margin=lambda measures: margin(measures).astype(np.float64))
    task = guarded(replace(SINGLE, name="mine", measure=measure, facets=(wide, *SINGLE.facets[1:])))
    require_usable(task)
    require_measurable(task, 32)
    values = tried(1, 32)
    assert task.margins(task.measure(values)).equals(SINGLE.margins(SINGLE.measure(values)))
