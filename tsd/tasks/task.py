"""A facet is one question about a series. A task is a set of facets with prompts, phrasings and ground truth.

Everything that depends on the set of facets is derived from the task: truth and margins, prompts and phrasings,
parsing, table schemas. To add a facet, add it to the tuple of its task.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tsd.tasks.facet import Labels
from tsd.tasks.language import NO_JSON, Reading, named_beside, normal, sentences, topics_of
from tsd.tasks.measured import PARAMETERS
from tsd.tasks.written import WrittenFacets


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


class Task(WrittenFacets):
    """The questions to teacher and student about one item: one series, or several together."""

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

    def styled_prompt(self, style: Sequence[int]) -> str:
        """The prompt of a locally trained teacher, which asks for a style."""
        return " ".join([self.image_prompt, *map(str, style)])

    def numbers_in(self, text: str) -> dict[str, float | None]:
        """The numbers that a response states, by name; None for one that it does not."""
        topics = {topic: normal(said) for topic, said in topics_of(text, self.topics)[0].items()}
        return {
            number.name: number.read(topics.get(facet.topic, ""))
            for facet in self.facets
            for number in facet.numbers
            if number.read
        }

    def texts(self, text: str) -> dict[str, str]:
        """The original text of a response by topic, for the topics that it has."""
        return topics_of(text, self.topics)[0]

    def parse(self, text: str) -> Parsed:
        """Parse the labels of a response in any form. See `tsd.tasks.language` for the rules. Never raises."""
        topics, problem = topics_of(text, self.topics)
        texts = {topic: normal(topics.get(topic, "")) for topic in self.topics}
        readings = {facet.name: facet.read(texts[facet.topic]) for facet in self.facets}
        if problem == NO_JSON and topics:
            readings |= self._read_beside(text, readings)
        labels = {name: reading.label for name, reading in readings.items()}
        whys = [f"{name}: {reading.why}" for name, reading in readings.items() if reading.label is None]
        if not whys:
            return Parsed(labels, None)
        return Parsed(labels, "; ".join([problem, *whys] if problem else whys))

    def _read_beside(self, text: str, readings: Mapping[str, Reading]) -> dict[str, Reading]:
        """Readings of facets on which their own sentences say nothing, from free sentences on other topics."""
        silent = [facet for facet in self.facets if readings[facet.name].silent]
        topics = {facet.topic for facet in silent}
        beside = {topic: normal(named_beside(text, topic, self.topics)) for topic in topics}
        found = {facet.name: facet.read(beside[facet.topic]) for facet in silent}
        return {name: reading for name, reading in found.items() if reading.label is not None}

    def sentences(self, text: str) -> list[str]:
        """A response as plain sentences."""
        return sentences(text, self.topics)


__all__ = ["PARAMETERS", "Case", "Parsed", "Task"]
