"""A facet is one question about a series. A task is a set of facets with prompts, phrasings and ground truth.

Everything that depends on the set of facets is derived from the task: truth and margins, prompts and phrasings,
parsing, table schemas. To add a facet, add it to the tuple of its task.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tsd.series.processes import SCALED, own_ranges
from tsd.series.truth import Lengths
from tsd.storage.keys import digest
from tsd.storage.schemas import Tables, labels_type, make_tables, score_names
from tsd.tasks.definitions import Definitions
from tsd.tasks.facet import STYLES, Facet, Labels, Measures, Number, known_label
from tsd.tasks.language import NO_JSON, Reading, entangled, named_beside, normal, sentences, topics_of
from tsd.tasks.language.wording import Wordings, telling_words

_SLOT = re.compile(r"\{(\w+)\}")

PARAMETERS = (*SCALED, "tau", *own_ranges())  # parameters of series; no process has all of them


@dataclass(frozen=True)
class Parsed:
    """The labels of a response. `reason` lists the facets that are not stated, and why; None if all are."""

    labels: Labels
    reason: str | None


@dataclass(frozen=True)
class Case:
    """A teacher's response, the labels that it states, and the true labels: what a curation policy judges."""

    status: str
    reason: str | None
    """Why the status is not `ok`."""
    text: str
    labels: Labels
    truth: Labels
    key: str
    """Key of the request, from which the phrasings of corrections are chosen."""
    corrected: bool = False


@dataclass(frozen=True)
class Task:
    """The questions to teacher and student about one item: one series, or several together."""

    name: str
    version: str
    """Changes with anything that changes a prompt or a phrasing. Part of every key."""
    curves: int
    """Series per item. An item's values are those of its series, concatenated."""
    facets: tuple[Facet, ...]
    measure: Callable[[npt.NDArray[np.uint8]], Measures]
    """Values of items, (batch, curves × length) uint8 -> measures."""
    measures: Mapping[str, pa.DataType]
    """Names and Arrow types of the measures."""
    shown: str
    """The first sentence of the teacher's prompt, with {length}."""
    asked: str
    """The prompt of a text student, with {} for each series."""
    reply_tokens: int
    """An upper bound on the tokens of its responses, in a vocabulary of whole words."""
    sheet: tuple[str, str]
    """Two facets for the layout of the gallery: rows and columns."""
    parameters: tuple[str, ...] = PARAMETERS
    """Columns of the series table for parameters of processes. A recipe adds those of processes from plugins."""
    metrics: tuple[str, ...] = ()
    """Columns of the runs table for metrics from plugins, named by a recipe."""
    defined: Definitions | None = None
    """By which definitions a built-in task labels series."""

    def __post_init__(self) -> None:
        """Raise ValueError if facets contradict each other."""
        if not self.facets:
            raise ValueError(f"the task {self.name} has no facets")
        if twice := [name for name in self.names if self.names.count(name) > 1]:
            raise ValueError(f"the task {self.name} has the facet {twice[0]!r} twice: leave one out, or rename it")
        for topic in self.topics:
            counts = {facet.name: len(facet.phrasings) for facet in self._of(topic)}
            if len(set(counts.values())) > 1:
                raise ValueError(
                    f"facets of one topic must have equally many phrasings, and those of {topic!r} have "
                    f"{', '.join(f'{name} {count}' for name, count in counts.items())}: change the phrasings, or "
                    "give one of them a topic of its own"
                )

    @property
    def unit(self) -> str:
        """The plural noun for items."""
        return "series" if self.curves == 1 else "pairs"

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the facets, in order."""
        return tuple(facet.name for facet in self.facets)

    @cached_property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """The classes of each facet."""
        return {facet.name: facet.classes for facet in self.facets}

    @cached_property
    def topics(self) -> tuple[str, ...]:
        """The keys of a JSON response, in order."""
        return tuple(dict.fromkeys(facet.topic for facet in self.facets))

    @cached_property
    def phrasing_counts(self) -> tuple[int, ...]:
        """The number of phrasings per topic."""
        return tuple(len(self._of(topic)[0].phrasings) for topic in self.topics)

    @cached_property
    def tables(self) -> Tables:
        """The schemas of the tables that hold this task's labels."""
        numbers = [number.name for number in self.numbers]
        return make_tables(self.names, self.measures, self.parameters, self.curves, self.metrics, numbers)

    @cached_property
    def scores(self) -> tuple[str, ...]:
        """The names of a student's scores."""
        return score_names(self.names, self.metrics, bool(self.numbers))

    def classify(self, measures: Measures, length: Lengths) -> dict[str, npt.NDArray[np.intp]]:
        """The class of every facet, as indices into its classes, (batch,) each. length: points per series."""
        return {facet.name: facet.classify(measures, length) for facet in self.facets}

    def truth(self, measures: Measures, length: Lengths) -> pa.StructArray:
        """The label of every facet, as an Arrow struct array. length: points per series."""
        classes = self.classify(measures, length)
        named = [pa.array(names).take(pa.array(classes[facet])) for facet, names in self.classes.items()]
        return pa.StructArray.from_arrays(named, fields=list(labels_type(self.names)))

    def margins(self, measures: Measures) -> pa.StructArray:
        """The margin of every facet, as an Arrow struct array of float32; null if a facet has none."""
        rows = len(next(iter(measures.values())))
        columns = [
            pa.array(facet.margin(measures), pa.float32()) if facet.margin else pa.nulls(rows, pa.float32())
            for facet in self.facets
        ]
        return pa.StructArray.from_arrays(columns, names=list(self.names))

    def near_ties(self, measures: Measures) -> npt.NDArray[np.int64]:
        """How ambiguous each item is, (batch,): a bit per near tie, the first facet's the highest; 0 for none."""
        found = np.zeros(len(next(iter(measures.values()))), np.int64)
        for facet in self.facets:
            found *= 2
            if facet.margin is not None:
                found += facet.margin(measures) < facet.tie
        return found

    @cached_property
    def definitions(self) -> dict[str, str]:
        """The definition of each facet that has one."""
        return {facet.name: facet.definition for facet in self.facets if facet.definition}

    def teacher_prompt(self, length: int, defined: bool = False) -> str:
        """The teacher's prompt for an item whose series have `length` points each. defined: with definitions."""
        lines = [
            self.shown.format(length=length),
            "Describe what you see with a JSON object that has exactly these keys:",
        ]
        for topic in self.topics:
            questions = ", and ".join(facet.question for facet in self._of(topic))
            lines.append(f'"{topic}": {questions}.')
        if defined and self.definitions:
            by_text: dict[str, list[str]] = {}
            for name, text in self.definitions.items():
                by_text.setdefault(text, []).append(name)
            lines += ["Definitions:", *(f"{', '.join(names)}: {text}." for text, names in by_text.items())]
        lines.append(
            "Each key holds a short sentence or two. Commit to one answer each. Reply with the JSON object alone."
            if defined
            else "Each holds a short sentence or two. Commit to one answer each. Reply with the JSON object alone."
        )
        return "\n".join(lines)

    def student_prompt(self, values: Sequence[int]) -> str:
        """The prompt of a text student, with the values inserted."""
        length = len(values) // self.curves
        curves = (values[i * length : (i + 1) * length] for i in range(self.curves))
        return self.asked.format(*(" ".join(map(str, curve)) for curve in curves))

    @property
    def image_prompt(self) -> str:
        """The prompt of a vision student: the text before the image."""
        return re.sub(r" *\{\} *", " ", self.asked).strip()

    def items(self, series: pa.Table) -> list[list[npt.NDArray[np.uint8]]]:
        """The series of each row of a series table: one or two arrays, (length,) uint8."""
        return [np.split(row.values.to_numpy(), self.curves) for row in series["values"]]

    def curves_in(self, prompt: str) -> list[npt.NDArray[np.uint8]]:
        """The series in a prompt made by `student_prompt`."""
        return [np.fromstring(values, np.uint8, sep=" ") for values in re.findall(r"\d[\d ]*", prompt)]

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
    def numbers(self) -> tuple[Number, ...]:
        """The numbers that its descriptions may state; facets may share one."""
        found = {number.name: number for facet in self.facets for number in facet.numbers}
        return tuple(found.values())

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

    def styled_prompt(self, style: Sequence[int]) -> str:
        """The prompt of a locally trained teacher, which asks for a style."""
        return " ".join([self.image_prompt, *map(str, style)])

    def describe(self, labels: Mapping[str, object], numbers: Mapping[str, str], choice: Sequence[int]) -> str:
        """A JSON response that states the labels in varied sentences, some with numbers.

        numbers: the text of each number by its name; without those of a facet, it is stated in its phrasings.
        choice: any whole number for each facet, which selects the wording; see also `wording_of`.
        Raises DataError for a missing or unknown label.
        """
        said: dict[str, list[str]] = {topic: [] for topic in self.topics}
        for facet, number in zip(self.facets, choice, strict=True):
            label = known_label(facet, labels)
            if all(one.name in numbers for one in facet.numbers):
                wordings = self.wordings[facet.name][label]
                text = wordings.text(number % wordings.count)
                said[facet.topic].append(_SLOT.sub(lambda slot: numbers[slot[1]], text))
            else:
                said[facet.topic].append(facet.phrasings[number % len(facet.phrasings)].format(label))
        return json.dumps({topic: " ".join(texts) for topic, texts in said.items()})

    def true_numbers(self, series: pa.Table) -> dict[str, npt.NDArray[np.floating]]:
        """The numbers of each row of a series table by name, (batch,) each."""
        column = series["measures"].combine_chunks()
        measures = {name: column.field(name).to_numpy(zero_copy_only=False) for name in self.measures}
        points = pc.list_value_length(series["values"]).to_numpy() // self.curves
        return {number.name: number.true(measures, points.astype(np.int32)) for number in self.numbers}

    def stated(self, series: pa.Table) -> list[dict[str, str]]:
        """The numbers of each row of a series table as texts, by name."""
        texts = {
            number.name: [f"{each:.{number.digits}f}" for each in true.tolist()]
            for number, true in zip(self.numbers, self.true_numbers(series).values(), strict=True)
        }
        return [{name: column[row] for name, column in texts.items()} for row in range(len(series))]

    def numbers_in(self, text: str) -> dict[str, float | None]:
        """The numbers that a response states, by name; None for one that it does not."""
        topics = {topic: normal(said) for topic, said in topics_of(text, self.topics)[0].items()}
        return {
            number.name: number.read(topics.get(facet.topic, ""))
            for facet in self.facets
            for number in facet.numbers
            if number.read
        }

    def restate(self, text: str, labels: Labels, topics: Collection[str], choice: Sequence[int]) -> str:
        """A response with its text on some topics replaced by phrasings of these labels.

        Text on other topics is unchanged, except free sentences that also name one of these. A label of None is
        left out. choice: phrasing index for each of the task's topics, below `phrasing_counts`.
        """
        said, problem = topics_of(text, self.topics)
        if problem == NO_JSON and said:  # free sentences on one topic may name another
            topics = {*topics, *entangled(text, topics)}
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

    def texts(self, text: str) -> dict[str, str]:
        """The original text of a response by topic, for the topics that it has."""
        return topics_of(text, self.topics)[0]

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

    def parse(self, text: str) -> Parsed:
        """Parse the labels of a response in any form. See `tsd.tasks.language` for the rules. Never raises."""
        topics, problem = topics_of(text, self.topics)
        texts = {topic: normal(topics.get(topic, "")) for topic in self.topics}
        readings = {facet.name: facet.read(texts[facet.topic]) for facet in self.facets}
        if problem == NO_JSON and topics:
            readings |= _read_beside(self.facets, text, readings)
        labels = {name: reading.label for name, reading in readings.items()}
        whys = [f"{name}: {reading.why}" for name, reading in readings.items() if reading.label is None]
        if not whys:
            return Parsed(labels, None)
        return Parsed(labels, "; ".join([problem, *whys] if problem else whys))

    def sentences(self, text: str) -> list[str]:
        """A response as plain sentences."""
        return sentences(text, self.topics)

    def _of(self, topic: str) -> list[Facet]:
        """The facets of a topic, in order."""
        return [facet for facet in self.facets if facet.topic == topic]


def _read_beside(facets: Sequence[Facet], text: str, readings: Mapping[str, Reading]) -> dict[str, Reading]:
    """Readings of facets on which their own sentences say nothing, from free sentences on other topics."""
    silent = [facet for facet in facets if readings[facet.name].silent]
    beside = {topic: normal(named_beside(text, topic)) for topic in {facet.topic for facet in silent}}
    found = {facet.name: facet.read(beside[facet.topic]) for facet in silent}
    return {name: reading for name, reading in found.items() if reading.label is not None}
