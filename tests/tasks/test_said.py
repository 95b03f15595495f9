"""Varied sentences: every wording of every class reads back as exactly its class and the numbers in it."""

import json
import random
import re
from collections.abc import Iterator

import pytest

from tsd.tasks import SINGLE, Definitions, Task, single

THIRDS = single(Definitions(places="thirds"))
PLACES = {  # first and last point of each place, of 128
    SINGLE.version: {"beginning": (1, 32), "middle": (33, 97), "end": (98, 128)},
    THIRDS.version: {"beginning": (1, 43), "middle": (44, 86), "end": (87, 128)},
}
LEVEL = {"low": (0.0, 1.9), "medium": (2.0, 10.0), "high": (10.1, 30.0)}


def wordings() -> Iterator[tuple[str, str, str]]:
    """Facet, class and text of every wording, with its slots."""
    for facet, by_class in SINGLE.wordings.items():
        for name, found in by_class.items():
            for template in found.templates:
                for number in range(template.count):
                    yield facet, name, template.text(number)


def numbers(task: Task, facet: str, name: str, rng: random.Random) -> dict[str, str]:
    """Numbers as a series of this class may have them."""
    low, high = sorted((rng.randint(0, 60), rng.randint(65, 99)))
    start, end = (high, low) if name == "decreasing" else (low, high)
    point = rng.randint(*PLACES[task.version].get(name, (1, 128)))
    return {
        **{"start": str(start), "end": str(end), "change": "3", "mean": "50"},
        **{"noise": f"{rng.uniform(*LEVEL.get(name, (0, 30))):.1f}", "maximum": "93", "minimum": "4"},
        **{"maximum_at": str(point), "minimum_at": str(point), "length": "128"},
    }


@pytest.mark.parametrize("task", [SINGLE, THIRDS], ids=["quarters", "thirds"])
def test_every_wording_reads_back_as_its_class_and_its_numbers(task: Task) -> None:
    rng = random.Random(0)
    count = 0
    for facet, name, text in wordings():
        known = numbers(task, facet, name, rng)
        said = re.sub(r"\{(\w+)\}", lambda slot, known=known: known[slot[1]], text)
        topic = next(one.topic for one in task.facets if one.name == facet)
        reply = json.dumps({topic: said})
        assert task.parse(reply).labels[facet] == name, said
        stated = set(re.findall(r"\{(\w+)\}", text)) & {one.name for one in task.numbers if one.read}
        found = {key: value for key, value in task.numbers_in(reply).items() if value is not None}
        assert found == {key: float(known[key]) for key in stated}, said
        count += 1
    assert count > 2000


def test_no_wording_is_said_twice() -> None:
    texts = [text for _, _, text in wordings()]
    assert len(texts) == len(set(texts))


def test_replies_of_both_extrema_read_back_whatever_their_order_and_wording() -> None:
    rng = random.Random(1)
    for _ in range(500):
        labels = {facet.name: rng.choice(facet.classes) for facet in SINGLE.facets}
        known = numbers(SINGLE, "trend", labels["trend"], rng)
        known["noise"] = numbers(SINGLE, "noise", labels["noise"], rng)["noise"]
        for which in ("maximum", "minimum"):
            known[f"{which}_at"] = numbers(SINGLE, which, labels[which], rng)[f"{which}_at"]
        reply = SINGLE.describe(labels, known, [rng.randrange(10**6) for _ in SINGLE.facets])
        assert SINGLE.parse(reply).labels == labels, reply
        stated = {name: number for name, number in SINGLE.numbers_in(reply).items() if number is not None}
        assert stated == {name: float(known[name]) for name in stated}, reply


def test_a_facet_whose_numbers_are_not_known_is_stated_in_its_phrasings() -> None:
    labels = {"trend": "flat", "noise": "low", "maximum": "end", "minimum": "middle"}
    reply = json.loads(SINGLE.describe(labels, {}, [0, 1, 2, 3]))
    assert reply == {
        "trend": SINGLE.facets[0].phrasings[0].format("flat"),
        "noise": SINGLE.facets[1].phrasings[1].format("low"),
        "extrema": " ".join(SINGLE.facets[i].phrasings[i].format(name) for i, name in ((2, "end"), (3, "middle"))),
    }
