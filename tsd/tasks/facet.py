"""A facet is one question about a series: how it is measured, prompted, phrased and parsed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from tsd.errors import DataError
from tsd.series.truth import Lengths
from tsd.tasks.language import Reading

STYLES = 64  # wordings of each facet that a locally trained teacher knows
SPREAD = 2654435761  # Knuth's multiplier: spreads the styles over all wordings

Labels: TypeAlias = dict[str, str | None]  # by facet, None if not stated
Measures: TypeAlias = dict[str, npt.NDArray[Any]]  # by name, (batch,)


def wording_of(style: int) -> int:
    """The number of the wording that a style stands for, see `Task.describe`."""
    return style * SPREAD % 2**32


@dataclass(frozen=True)
class Number:
    """A number of a series that a description may state."""

    name: str
    """Its slot in sentences, and its column in tables."""
    unit: Literal["value", "point", "cycles"]
    """Units of 0–99, points counted from 1, or cycles in the series."""
    true: Callable[[Measures, Lengths], npt.NDArray[np.floating]]
    """Measures and points per series -> the numbers, (batch,)."""
    read: Callable[[str], float | None] | None = None
    """Reads the number from the normalised text on its facet's topic. None for one that is not scored."""
    digits: int = 0
    """Decimals with which it is stated."""
    holds: Callable[[Measures, Lengths], npt.NDArray[np.bool_]] | None = None
    """Measures and points per series -> whether what sentences say with it is true, (batch,). None if it is for
    every series. Where it is not, sentences leave the number out."""


@dataclass(frozen=True)
class Facet:
    """One question: its classes, and how it is measured, prompted, phrased and parsed."""

    name: str
    classes: tuple[str, ...]
    topic: str
    """The key of its text in a JSON response. Facets may share a topic."""
    question: str
    """The question in the teacher's prompt. It names every class."""
    phrasings: tuple[str, ...]
    """Sentences that state a label, with {} for the class. Each must parse back to its class."""
    read: Callable[[str], Reading]
    """Parses the label from the normalised text on its topic, see `tsd.tasks.language.normal`."""
    classify: Callable[[Measures, Lengths], npt.NDArray[np.intp]]
    """Measures and points per series -> indices into classes, (batch,)."""
    margin: Callable[[Measures], npt.NDArray[np.float32]] | None = None
    """Distance of the measure to the nearest class boundary, (batch,). None if the facet has no such distance."""
    tie: float = 0.0
    """A smaller margin is a near tie."""
    definition: str = ""
    """When it has which class, in one line for readers and teachers."""
    sentences: Mapping[str, tuple[str, ...]] | None = None
    """Templates of varied sentences by class, see `tsd.tasks.language.wording`. Each must parse to its class."""
    numbers: tuple[Number, ...] = ()
    """What its sentences may state in numbers."""
    given: str | None = None
    """A facet of the same task that predicts this one, for the conditional majority baseline."""

    def __post_init__(self) -> None:
        """Raise ValueError for classes or phrasings that no reply could state."""
        for what, texts in (("classes", self.classes), ("phrasings", self.phrasings)):
            if isinstance(texts, str) or not texts or not all(isinstance(one, str) and one for one in texts):
                raise ValueError(f"{what} of the facet {self.name} must be a tuple of texts, not {texts!r}")
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"the facet {self.name} must have two or more different classes, not {self.classes}")
        if lacking := [phrasing for phrasing in self.phrasings if "{}" not in phrasing]:
            raise ValueError(f"the phrasing {lacking[0]!r} of the facet {self.name} has no {{}} for the class")


def known_label(facet: Facet, labels: Mapping[str, object]) -> str:
    """The label of a facet. Raises DataError if it is missing or not one of its classes."""
    label = labels[facet.name]
    if not isinstance(label, str) or label not in facet.classes:
        raise DataError(f"{facet.name} is {label!r}, expected one of {', '.join(facet.classes)}")
    return label
