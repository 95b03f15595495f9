"""Facets in words: responses that state labels, in fixed phrasings or in varied sentences with numbers."""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from itertools import product

import pyarrow as pa

from tsd.storage.keys import digest
from tsd.tasks.facet import STYLES, Facet, Labels, known_label
from tsd.tasks.language import NO_JSON, entangled, topics_of
from tsd.tasks.language.wording import Wordings, telling_words
from tsd.tasks.measured import MeasuredFacets

_SLOT = re.compile(r"\{(\w+)\}")
_ONE_UNIT = re.compile(r"(?<![\d.])1 units\b")


class WrittenFacets(MeasuredFacets):
    """Measured facets whose labels are written."""

    def reply(self, labels: Mapping[str, object], choice: Sequence[int]) -> str:
        """A JSON response that states the labels. choice: phrasing index per topic, below `phrasing_counts`.

        Raises DataError for a missing or unknown label.
        """
        said = {
            topic: " ".join(
                facet.phrasings[number].format(known_label(facet, labels)) for facet in self._of(topic)
            )
            for topic, number in zip(self.topics, choice, strict=True)
        }
        return json.dumps(said)

    @cached_property
    def wordings(self) -> dict[str, dict[str, Wordings]]:
        """The varied sentences of each facet, by class; its phrasings if it has none."""

        def templates(facet: Facet, name: str) -> Sequence[str]:
            return facet.sentences[name] if facet.sentences else [one.format(name) for one in facet.phrasings]

        return {
            facet.name: {name: Wordings.of(templates(facet, name)) for name in facet.classes}
            for facet in self.facets
        }

    @cached_property
    def words(self) -> tuple[frozenset[str], frozenset[str]]:
        """The words of its descriptions that tell classes of some facet apart, and all others."""
        telling = telling_words(self.wordings.values())
        every = (wordings.words for by_class in self.wordings.values() for wordings in by_class.values())
        return telling, frozenset().union(*every) - telling

    def style(self, key: str) -> tuple[int, ...]:
        """The style of each facet in a response, chosen by a key; empty if its sentences do not vary."""
        if not self.numbers:
            return ()
        return tuple(int(digest([key, facet.name]), 16) % STYLES for facet in self.facets)

    def describe(self, labels: Mapping[str, object], numbers: Mapping[str, str], choice: Sequence[int]) -> str:
        """A JSON response that states the labels in varied sentences, some with numbers.

        numbers: the text of each number by its name; without those of a facet, it is stated in its phrasings. One
        that need not hold, see `Number.holds`, may lack: its facet's sentences then do without it.
        choice: any whole number for each facet, which selects the wording; see also `wording_of`.
        Raises DataError for a missing or unknown label.
        """
        said: dict[str, list[str]] = {topic: [] for topic in self.topics}
        for facet, number in zip(self.facets, choice, strict=True):
            label = known_label(facet, labels)
            lacking = {one.name: one for one in facet.numbers if one.name not in numbers}
            if all(one.holds for one in lacking.values()):
                wordings = self.wordings[facet.name][label]
                text = _SLOT.sub(lambda slot: numbers[slot[1]], wordings.text(number % wordings.count, lacking))
                said[facet.topic].append(_ONE_UNIT.sub("1 unit", text))
            else:
                said[facet.topic].append(facet.phrasings[number % len(facet.phrasings)].format(label))
        return json.dumps({topic: " ".join(texts) for topic, texts in said.items()})

    def stated(self, series: pa.Table) -> list[dict[str, str]]:
        """The numbers of each row of a series table as texts, by name, without those that do not hold."""
        holding = self.holding_numbers(series)
        texts = {
            number.name: [f"{each:.{number.digits}f}" for each in true.tolist()]
            for number, true in zip(self.numbers, self.true_numbers(series).values(), strict=True)
        }
        return [
            {name: column[row] for name, column in texts.items() if name not in holding or holding[name][row]}
            for row in range(len(series))
        ]

    def restate(self, text: str, labels: Labels, topics: Collection[str], choice: Sequence[int]) -> str:
        """A response with its text on some topics replaced by phrasings of these labels.

        Text on other topics is unchanged, except free sentences that also name one of these. A label of None is
        left out. choice: phrasing index for each of the task's topics, below `phrasing_counts`.
        """
        said, problem = topics_of(text, self.topics)
        if problem == NO_JSON and said:  # free sentences on one topic may name another
            topics = {*topics, *entangled(text, topics, self.topics)}
        for topic, number in zip(self.topics, choice, strict=True):
            if topic in topics:
                stated = [facet for facet in self._of(topic) if labels[facet.name] is not None]
                said[topic] = " ".join(
                    facet.phrasings[number].format(known_label(facet, labels)) for facet in stated
                )
        return json.dumps({topic: said[topic] for topic in self.topics if topic in said})

    def sentence(self, topic: str, labels: Labels) -> str:
        """The labels of a topic's facets in their first phrasing."""
        return " ".join(facet.phrasings[0].format(known_label(facet, labels)) for facet in self._of(topic))

    def statements(self, topic: str) -> list[str]:
        """Every text on a topic that `reply` can produce."""
        facets = self._of(topic)
        said = product(*(facet.classes for facet in facets))
        wordings = range(len(facets[0].phrasings))
        return [
            " ".join(facet.phrasings[i].format(name) for facet, name in zip(facets, labels, strict=True))
            for labels in said
            for i in wordings
        ]
