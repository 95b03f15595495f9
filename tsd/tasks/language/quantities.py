"""Numbers that a text states: levels, size of the noise, value and point of an extremum, cycles, steps.

A number is read where the words around it say what it is. Per cent, an index without "point" and numbers of other
things are left out. Texts are normalised, see `tsd.tasks.language.normal`.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from tsd.tasks.language.words import MAXIMUM, MINIMUM

_ABOUT = r"(?:about |around |roughly |approximately |nearly |almost |some |close to |~ ?)?"
_NUMBER = r"-?\d{1,6}(?:\.\d{1,4})?"
_NO_OTHER = r"(?![.\d]*\d)(?! ?(?:%|per ?cent|cycles?|times|points?\b))"
_LEVEL = rf"{_ABOUT}(?:a (?:value|level) of )?"

_FROM_TO = re.compile(
    rf"\b(?:from|between) {_LEVEL}(?P<start>{_NUMBER}){_NO_OTHER} ?(?:up |down )?(?:to|and)"
    rf" {_LEVEL}(?P<end>{_NUMBER}){_NO_OTHER}"
)
_STARTS = re.compile(
    r"\b(?:start|begin)(?:s|ed|ing)? (?:off )?(?:at|near|from|around|with)"
    rf" {_LEVEL}(?P<start>{_NUMBER}){_NO_OTHER}"
)
_ENDS = re.compile(
    rf"\b(?:end|finish)(?:s|es|ed|ing)? (?:up )?(?:at|near|around|with) {_LEVEL}(?P<end>{_NUMBER}){_NO_OTHER}"
)
_NOISE = r"(?:standard deviation|sd|deviations?|size|amplitude|noise|scatter|fluctuations?|wobbles?)"
_SIZE = re.compile(
    rf"\b{_NOISE}[^.;\d]{{0,40}}?{_ABOUT}(?P<size>{_NUMBER})(?: units?)?{_NO_OTHER}"
    rf"|\b(?:by|of) {_ABOUT}(?P<units>{_NUMBER}) units?\b"
)
_POINT = re.compile(
    rf"\b(?:point|index|position|step|sample|observation) (?:number |no\. ?)?{_ABOUT}(?P<point>\d{{1,6}})"
    r"(?: ?(?:of|/|out of) \d{2,6})?"
)
_VALUE = re.compile(
    rf"(?:^,|\b(?:of|at|is|reaches|reaching|value|level|near)|[(:=]) ?{_LEVEL}(?P<value>{_NUMBER}){_NO_OTHER}"
    r"(?! ?(?:of|out of|/) ?\d)"
)
_CYCLES = re.compile(
    rf"{_ABOUT}(?P<cycles>{_NUMBER}) (?:full |complete |whole |regular )?(?:cycles?|periods|repetitions)\b"
    rf"|\brepeat(?:s|ed|ing)? (?:itself )?{_ABOUT}(?P<times>{_NUMBER}) times\b"
)
_STEP = re.compile(rf"\b(?:by|of|size|height) (?:of )?{_ABOUT}(?P<size>{_NUMBER}){_NO_OTHER}")
_EXTREMUM = re.compile(rf"\b(?:(?P<maximum>{MAXIMUM})|(?P<minimum>{MINIMUM}))\b")


class Levels(NamedTuple):
    """Where a series starts and ends, None if a text does not say."""

    start: float | None
    end: float | None


class Extremum(NamedTuple):
    """Value of an extremum and the point at which it lies, counted from 1; None if a text does not say."""

    value: float | None
    point: float | None


def read_levels(text: str) -> Levels:
    """The levels between which a series moves: "rises from about 20 to 71"."""
    if found := _FROM_TO.search(text):
        return Levels(float(found["start"]), float(found["end"]))
    starts, ends = _STARTS.search(text), _ENDS.search(text)
    return Levels(float(starts["start"]) if starts else None, float(ends["end"]) if ends else None)


def read_size(text: str) -> float | None:
    """The size of the noise: "a standard deviation of about 12", "by about 3 units"."""
    found = _SIZE.search(text)
    return float(found["size"] or found["units"]) if found else None


def read_cycles(text: str) -> float | None:
    """How many cycles a season has: "about 4.2 cycles", "repeats 7 times"."""
    found = _CYCLES.search(text)
    return float(found["cycles"] or found["times"]) if found else None


def read_point(text: str) -> float | None:
    """The point at which a shift or an outlier lies, counted from 1: "at point 88"."""
    found = _POINT.search(text)
    return float(found["point"]) if found else None


def read_step(text: str) -> float | None:
    """The size of a shift or of an outlier: "by about 23 units", "of 40"."""
    found = _STEP.search(_POINT.sub(" ", text))
    return float(found["size"]) if found else None


@lru_cache(maxsize=1024)  # asked twice, once for each extremum
def read_extremum_numbers(text: str) -> Mapping[str, Extremum]:
    """Value and point of the maximum and of the minimum: "the peak of 93 is at point 88 of 128".

    A number belongs to the extremum that is named last before it.
    """
    named = list(_EXTREMUM.finditer(text))
    ends = [found.start() for found in named[1:]] + [len(text)]
    said = {"maximum": Extremum(None, None), "minimum": Extremum(None, None)}
    for found, end in zip(named, ends, strict=False):  # no end where none is named
        which = found.lastgroup or ""
        clause = text[found.end() : end]
        point = _POINT.search(clause)
        value = _VALUE.search(_POINT.sub(" ", clause))
        before = said[which]
        said[which] = Extremum(
            before.value if value is None else float(value["value"]),
            before.point if point is None else float(point["point"]),
        )
    return said
