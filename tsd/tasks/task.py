"""A facet is one question about what is shown; a task is the facets that are asked together, and how.

Everything that depends on which facets there are asks the task: truth and margins, prompts and sentences, what a
reply states, the schema of the tables. Adding a facet is adding it to the tuple of its task.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tsd.errors import DataError
from tsd.series.processes import SCALED, own_ranges
from tsd.series.truth import Lengths
from tsd.storage.schemas import Tables, labels_type, make_tables
from tsd.tasks.language import Reading, normal, sentences, topics_of

PARAMETERS = (*SCALED, "tau", *own_ranges())  # what a series is drawn from; not every process has all of them

Labels: TypeAlias = dict[str, str | None]  # facet -> class, None where it is not stated
Measures: TypeAlias = dict[str, npt.NDArray[Any]]  # name -> (batch,)


@dataclass(frozen=True)
class Facet:
    """One question: its classes, how it is measured, asked, said and read."""

    name: str
    classes: tuple[str, ...]
    topic: str
    """The key of a JSON reply that answers it; several facets may share one."""
    question: str
    """What a teacher is asked, with every class in it."""
    phrasings: tuple[str, ...]
    """Sentences that state it, with {} for the class. Every sentence reads back as its class."""
    read: Callable[[str], Reading]
    """The class that a text on its topic states; the text is `tsd.tasks.language.normal`."""
    classify: Callable[[Measures, Lengths], npt.NDArray[np.intp]]
    """Measures and points a series -> indices into classes, (batch,)."""
    margin: Callable[[Measures], npt.NDArray[np.float32]] | None = None
    """How far the measure is from where the class would change, (batch,); None where that has no sense."""
    tie: float = 0.0
    """A margin below this is a near tie, where a class says little."""
    given: str | None = None
    """A facet of the same task that gives this one away, for the baseline that knows it."""


@dataclass(frozen=True)
class Parsed:
    """A reply as labels; `reason` says which facets are not stated and why, None when all are."""

    labels: Labels
    reason: str | None


@dataclass(frozen=True)
class Task:
    """What is asked of teacher and student about one item: one series, or several at once."""

    name: str
    version: str
    """Changes with anything that changes a prompt or a sentence; part of every key."""
    curves: int
    """Series in an item. Its values are theirs, one after the other."""
    facets: tuple[Facet, ...]
    measure: Callable[[npt.NDArray[np.uint8]], Measures]
    """Values of the items, (batch, curves × length) uint8 -> measures."""
    measures: Mapping[str, pa.DataType]
    """The names and types of what is measured."""
    shown: str
    """The first sentence of the teacher's prompt, with {length}."""
    asked: str
    """The student's prompt, with {} for each of the curves."""
    reply_tokens: int
    """More than the longest of its replies has in a vocabulary of whole words."""
    sheet: tuple[str, str]
    """The two facets by which plots are laid out for people to look at, down and across."""

    def __post_init__(self) -> None:
        for topic in self.topics:
            assert len({len(facet.phrasings) for facet in self._of(topic)}) == 1, topic

    @property
    def unit(self) -> str:
        """What an item is, in the plural."""
        return "series" if self.curves == 1 else "pairs"

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The facets' names, in order."""
        return tuple(facet.name for facet in self.facets)

    @cached_property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """The classes of each facet."""
        return {facet.name: facet.classes for facet in self.facets}

    @cached_property
    def topics(self) -> tuple[str, ...]:
        """The keys of a reply, in order."""
        return tuple(dict.fromkeys(facet.topic for facet in self.facets))

    @cached_property
    def phrasing_counts(self) -> tuple[int, ...]:
        """How many phrasings each topic has to choose from."""
        return tuple(len(self._of(topic)[0].phrasings) for topic in self.topics)

    @cached_property
    def tables(self) -> Tables:
        """The schemas of the tables that hold this task's labels."""
        return make_tables(self.names, self.measures, PARAMETERS, self.curves)

    def classify(self, measures: Measures, length: Lengths) -> dict[str, npt.NDArray[np.intp]]:
        """The class of every facet, as indices into its classes, (batch,) each. length: points a series."""
        return {facet.name: facet.classify(measures, length) for facet in self.facets}

    def truth(self, measures: Measures, length: Lengths) -> pa.StructArray:
        """The class of every facet, a struct array of labels. length: points a series."""
        classes = self.classify(measures, length)
        named = [pa.array(names).take(pa.array(classes[facet])) for facet, names in self.classes.items()]
        return pa.StructArray.from_arrays(named, fields=list(labels_type(self.names)))

    def margins(self, measures: Measures) -> pa.StructArray:
        """How near each facet is to a tie, a struct array of float32; null where a facet has no margin."""
        rows = len(next(iter(measures.values())))
        columns = [
            pa.array(facet.margin(measures), pa.float32()) if facet.margin else pa.nulls(rows, pa.float32())
            for facet in self.facets
        ]
        return pa.StructArray.from_arrays(columns, names=list(self.names))

    def near_ties(self, measures: Measures) -> npt.NDArray[np.int64]:
        """How much of each item is a near tie, (batch,): 0 for nothing; a facet weighs more than all after it."""
        found = np.zeros(len(next(iter(measures.values()))), np.int64)
        for facet in self.facets:
            found *= 2
            if facet.margin is not None:
                found += facet.margin(measures) < facet.tie
        return found

    def teacher_prompt(self, length: int) -> str:
        """What a teacher is asked about an item whose series have `length` points each."""
        lines = [
            self.shown.format(length=length),
            "Describe what you see with a JSON object that has exactly these keys:",
        ]
        for topic in self.topics:
            questions = ", and ".join(facet.question for facet in self._of(topic))
            lines.append(f'"{topic}": {questions}.')
        lines.append(
            "Each holds a short sentence or two. Commit to one answer each. Reply with the JSON object alone."
        )
        return "\n".join(lines)

    def student_prompt(self, values: Sequence[int]) -> str:
        """What a student is asked: the values in words' place."""
        length = len(values) // self.curves
        curves = (values[i * length : (i + 1) * length] for i in range(self.curves))
        return self.asked.format(*(" ".join(map(str, curve)) for curve in curves))

    @property
    def looking_prompt(self) -> str:
        """What a student that looks is asked, in front of the picture."""
        return re.sub(r" *\{\} *", " ", self.asked).strip()

    def items(self, series: pa.Table) -> list[list[npt.NDArray[np.uint8]]]:
        """The one or two series of each row of a table of series."""
        return [np.split(row.values.to_numpy(), self.curves) for row in series["values"]]

    def curves_in(self, prompt: str) -> list[npt.NDArray[np.uint8]]:
        """The series that a student's prompt holds, as `student_prompt` put them there."""
        return [np.fromstring(values, np.uint8, sep=" ") for values in re.findall(r"\d[\d ]*", prompt)]

    def reply(self, labels: Mapping[str, object], choice: Sequence[int]) -> str:
        """The reply that states the labels. choice: the phrasing of each topic, below `phrasing_counts`.

        Raises DataError for a label that is missing or unknown.
        """
        said = {
            topic: " ".join(facet.phrasings[number].format(_known(facet, labels)) for facet in self._of(topic))
            for topic, number in zip(self.topics, choice, strict=True)
        }
        return json.dumps(said)

    def restate(self, text: str, labels: Labels, topics: Collection[str], choice: Sequence[int]) -> str:
        """The reply with its sentences on these topics replaced by such as state the labels.

        What the reply says on the other topics stays as it is; a label that is None is not stated. choice: the
        phrasing of each of the task's topics, below `phrasing_counts`.
        """
        said, _ = topics_of(text, self.topics)
        for topic, number in zip(self.topics, choice, strict=True):
            if topic in topics:
                stated = [facet for facet in self._of(topic) if labels[facet.name] is not None]
                said[topic] = " ".join(facet.phrasings[number].format(_known(facet, labels)) for facet in stated)
        return json.dumps({topic: said[topic] for topic in self.topics if topic in said})

    def sentence(self, topic: str, labels: Labels) -> str:
        """The labels of a topic's facets, stated plainly."""
        return " ".join(facet.phrasings[0].format(_known(facet, labels)) for facet in self._of(topic))

    def texts(self, text: str) -> dict[str, str]:
        """What a reply says on each topic that it touches, in its own words."""
        return topics_of(text, self.topics)[0]

    def statements(self, topic: str) -> list[str]:
        """Every text on a topic that `reply` may hold."""
        facets = self._of(topic)
        said = product(*(facet.classes for facet in facets))
        wordings = range(len(facets[0].phrasings))
        return [
            " ".join(facet.phrasings[i].format(name) for facet, name in zip(facets, labels, strict=True))
            for labels in said
            for i in wordings
        ]

    def parse(self, text: str) -> Parsed:
        """Read the labels that a reply states, whatever its form; see `tsd.tasks.language`. Never raises."""
        topics, problem = topics_of(text, self.topics)
        texts = {topic: normal(topics.get(topic, "")) for topic in self.topics}
        readings = {facet.name: facet.read(texts[facet.topic]) for facet in self.facets}
        labels = {name: reading.label for name, reading in readings.items()}
        whys = [f"{name}: {reading.why}" for name, reading in readings.items() if reading.label is None]
        if not whys:
            return Parsed(labels, None)
        return Parsed(labels, "; ".join([problem, *whys] if problem else whys))

    def sentences(self, text: str) -> list[str]:
        """A reply as plain sentences."""
        return sentences(text, self.topics)

    def _of(self, topic: str) -> list[Facet]:
        return [facet for facet in self.facets if facet.topic == topic]


def _known(facet: Facet, labels: Mapping[str, object]) -> str:
    label = labels[facet.name]
    if not isinstance(label, str) or label not in facet.classes:
        raise DataError(f"{facet.name} is {label!r}, expected one of {', '.join(facet.classes)}")
    return label
