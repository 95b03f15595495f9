"""Facets that are measured on series: the base of a task, from which classes, truth and tables are derived."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tsd.series.processes import SCALED, own_ranges
from tsd.series.truth import Lengths
from tsd.storage.schemas import Tables, labels_type, make_tables, score_names
from tsd.tasks.definitions import Definitions
from tsd.tasks.facet import Facet, Measures, Number

PARAMETERS = (*SCALED, "tau", *own_ranges())  # parameters of series; no process has all of them
STRUCTURES = (
    "season",
    "shift",
    "outlier",
    "volatility",
    "reversion",
)  # that series may be given, see `tsd.generation.added`


@dataclass(frozen=True)
class MeasuredFacets:
    """Facets of one item, which is one series, or several together, and how they are measured."""

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
    added: tuple[str, ...] = ()
    """Facets of `STRUCTURES` for which the generator adds structure to series of any process."""
    defined: Definitions | None = None
    """By which definitions a built-in task labels series."""

    def __post_init__(self) -> None:
        """Raise ValueError if facets contradict each other."""
        if not self.facets:
            raise ValueError(f"the task {self.name} has no facets")
        if unknown := set(self.added) - set(STRUCTURES):
            raise ValueError(f"added names {sorted(unknown)}: name some of {', '.join(STRUCTURES)}")
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
    def numbers(self) -> tuple[Number, ...]:
        """The numbers that its descriptions may state; facets may share one."""
        found = {number.name: number for facet in self.facets for number in facet.numbers}
        return tuple(found.values())

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

    def true_numbers(self, series: pa.Table) -> dict[str, npt.NDArray[np.floating]]:
        """The numbers of each row of a series table by name, (batch,) each."""
        measured = self._measured(series)
        return {number.name: number.true(*measured) for number in self.numbers}

    def holding_numbers(self, series: pa.Table) -> dict[str, npt.NDArray[np.bool_]]:
        """For each number that need not hold, see `Number.holds`, whether it does in each row, (batch,) each."""
        measured = self._measured(series)
        return {number.name: number.holds(*measured) for number in self.numbers if number.holds}

    def _measured(self, series: pa.Table) -> tuple[Measures, npt.NDArray[np.int32]]:
        """The measures of a series table by name, and the points per series, (batch,) each."""
        column = series["measures"].combine_chunks()
        measures = {name: column.field(name).to_numpy(zero_copy_only=False) for name in self.measures}
        points = pc.list_value_length(series["values"]).to_numpy() // self.curves
        return measures, points.astype(np.int32)

    @cached_property
    def definitions(self) -> dict[str, str]:
        """The definition of each facet that has one."""
        return {facet.name: facet.definition for facet in self.facets if facet.definition}

    def _of(self, topic: str) -> list[Facet]:
        """The facets of a topic, in order."""
        return [facet for facet in self.facets if facet.topic == topic]
