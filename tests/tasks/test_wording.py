"""Templates with alternatives: every wording once, templates equally often, and faults that are named."""

from collections import Counter

import pytest

from tsd.tasks.language.wording import Wording, Wordings


def test_a_template_has_every_combination_of_its_alternatives_once() -> None:
    wording = Wording("[The series|It] {}[ overall|].")
    assert wording.count == 4
    texts = [wording.text(i) for i in range(wording.count)]
    assert sorted(texts) == ["It {} overall.", "It {}.", "The series {} overall.", "The series {}."]


def test_a_template_without_alternatives_has_one_wording() -> None:
    assert (Wording("It is {}.").count, Wording("It is {}.").text(0)) == (1, "It is {}.")


def test_repeated_alternatives_count_once() -> None:
    assert Wording("[a|a|b]").count == 2


def test_slots_are_those_of_any_alternative() -> None:
    assert Wording("{} [from {start}|up to {end}]").slots == {"", "start", "end"}


def test_templates_are_equally_frequent_whatever_their_alternatives() -> None:
    wordings = Wordings.of(["[a|b|c|d]", "x", "[y|z]"])
    texts = Counter(wordings.text(i) for i in range(wordings.count))
    assert texts == {"a": 1, "b": 1, "c": 1, "d": 1, "x": 4, "y": 2, "z": 2}


@pytest.mark.parametrize("template", ["[a|b", "a|b]", "[a|[b|c]]"])
def test_a_bracket_without_its_other_one_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="bracket"):
        Wording(template)
