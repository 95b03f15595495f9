"""Free prose of one series and of two is read as what it says: tsd's own sentences, and those of people."""

import json
import random
import re
from collections.abc import Iterator

import pytest

from tsd.tasks import PAIR, RICH, SINGLE, Task
from tsd.tasks.language import named_beside, topics_of

NUMBERS = {
    **{"start": "20", "end": "71", "change": "3", "mean": "50", "noise": "5.2", "maximum": "93", "minimum": "4"},
    **{"maximum_at": "64", "minimum_at": "64", "length": "128"},
    **{"cycles": "4.3", "shift_at": "64", "shift_size": "23", "outlier_at": "7", "outlier_size": "41"},
}
FALLING = {"start": "71", "end": "20"}
UP, DOWN, FLAT = SINGLE.classes["trend"]


def sentences(task: Task) -> Iterator[tuple[str, str, str, str]]:
    """Facet, topic, class and text of every wording that the task can write, with numbers."""
    for facet in task.facets:
        for name in facet.classes:
            yield from ((facet.name, facet.topic, name, phrasing.format(name)) for phrasing in facet.phrasings)
            if not facet.sentences:
                continue
            numbers = NUMBERS | (FALLING if name == DOWN else {})
            for template in task.wordings[facet.name][name].templates:
                for number in range(template.count):
                    text = re.sub(r"\{(\w+)\}", lambda slot, known=numbers: known[slot[1]], template.text(number))
                    yield facet.name, facet.topic, name, text


def stated(task: Task, text: str) -> dict[str, str]:
    return {facet: label for facet, label in task.parse(text).labels.items() if label is not None}


@pytest.mark.parametrize("task", [SINGLE, RICH], ids=lambda task: task.name)
def test_every_sentence_that_tsd_writes_is_read_as_what_it_says_as_json_and_as_prose(task: Task) -> None:
    count = 0
    for facet, topic, name, text in sentences(task):
        assert stated(task, json.dumps({topic: text})) == {facet: name}, text
        assert stated(task, text) == {facet: name}, text
        count += 1
    assert count > 1_500


def test_every_sentence_on_two_series_is_read_as_what_it_says_and_as_prose_if_it_names_what_it_is_of() -> None:
    for facet, topic, name, text in sentences(PAIR):
        assert stated(PAIR, json.dumps({topic: text})) == {facet: name}, text
        prose = {facet: name} if topic in ("intersections", "position") else {}
        assert stated(PAIR, text) == prose, text


@pytest.mark.parametrize("task", [SINGLE, RICH], ids=lambda task: task.name)
def test_whole_descriptions_read_the_same_as_prose(task: Task) -> None:
    rng = random.Random(3)
    for _ in range(300):
        labels: dict[str, str] = {facet.name: rng.choice(facet.classes) for facet in task.facets}
        numbers = NUMBERS | (FALLING if labels["trend"] == DOWN else {})
        reply = task.describe(labels, numbers, [rng.randrange(10**6) for _ in task.facets])
        prose = " ".join(task.sentences(reply))
        assert (task.parse(prose).labels, task.parse(prose).reason) == (labels, None), prose
        assert task.numbers_in(prose) == task.numbers_in(reply), prose


def test_a_flat_trend_with_its_reason_is_read_from_prose() -> None:
    assert stated(SINGLE, "The trend is flat: the change of 2 is within the noise.") == {"trend": FLAT}


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        (
            "The series rises with little noise. There is a strong season of about 5 cycles, and the level shifts "
            "up at point 64. A dip stands out at point 20.",
            {"trend": UP, "noise": "low", "season": "strong", "shift": "up", "outlier": "dip"},
        ),
        ("There is neither a level shift nor an outlier.", {"shift": "none", "outlier": "none"}),
        ("There is an upward shift at point 60.", {"shift": "up"}),
        ("A spike at point 40, rising to 99.", {"outlier": "spike"}),
        ("There is a dip at point 20 and it recovers at once.", {"outlier": "dip"}),
        ("A clear seasonal pattern and an upward trend.", {"trend": UP}),  # how strong?
        ("The spike hides the strong season.", {}),  # of which of them is it said?
        (
            "The fluctuations grow over time; the values return to their mean slowly.",
            {"volatility": "growing", "reversion": "slow"},
        ),
        ("No season, only a strong upward trend.", {"season": "none", "trend": UP}),
        ("The noise is low and the volatility steady.", {"noise": "low", "volatility": "steady"}),
        ("The maximum is at the end, after a jump to a higher level.", {"maximum": "end", "shift": "up"}),
        ("Its standard deviation is 3.", {}),
        ("After the jump the noise is higher.", {}),
        ("The trend is not affected by the spike.", {}),
        ("The maximum of the wave grows from cycle to cycle.", {}),
    ],
)
def test_prose_on_the_structure_of_a_series_is_read_by_its_readers(text: str, labels: dict[str, str]) -> None:
    assert stated(RICH, text) == labels


def test_what_is_said_of_the_structure_says_nothing_of_the_trend() -> None:
    assert named_beside("There is an upward shift.", "trend", RICH.topics) == ""


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        (
            "In the first third, the first series rises. The two series cross once in the middle third. "
            "In the last third, the first series is above the second.",
            {"first trend beginning": UP, "intersections middle": "one", "position end": "above"},
        ),
        (
            "The second series has low noise, and its maximum is at the end.",
            {"second noise": "low", "second maximum": "end"},
        ),
        ("The maximum of the first series lies at the beginning.", {"first maximum": "beginning"}),
        ("It rises in the first third.", {}),  # which series?
        ("The first series rises in the last third and the second series falls.", {}),
        ("The first series ends lower than it started.", {}),
        ("The first series is above 50 in the last third.", {}),
    ],
)
def test_prose_on_two_series_is_read_where_it_names_the_series(text: str, labels: dict[str, str]) -> None:
    assert stated(PAIR, text) == labels


def test_topics_that_tsd_does_not_know_are_not_read_from_prose() -> None:
    assert topics_of("It rises.", ("trend", "colour"))[0] == {}


def test_a_corrected_facet_of_prose_on_the_structure_is_contradicted_by_no_sentence() -> None:
    said = "There is neither a level shift nor an outlier. The trend is flat."
    labels: dict[str, str | None] = dict.fromkeys(RICH.names, None) | {"shift": "up"}
    text = json.loads(RICH.restate(said, labels, {"shift"}, [0] * len(RICH.topics)))
    assert text["shift"] == "Shift: up."
    assert "shift" not in text.get("outlier", "")
    assert text["trend"] == "The trend is flat."
