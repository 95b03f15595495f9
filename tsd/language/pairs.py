"""Sentences about two series -> how often they cross and which lies above. The rules stand in `tsd.language`."""

import re

from tsd.language.words import NEGATION, NOT_MENTIONED, Reading, quote

_CROSS = r"(?:cross(?:es|ing|ings)?|intersect(?:s|ion|ions|ing)?|meet(?:s|ing)?)"
_IS = r"\b(?:crossings|intersections)(?::| is| are)"
_COUNTS = {
    "none": re.compile(
        rf"{NEGATION} (?:\w+ ){{0,2}}?{_CROSS}\b|\b(?:zero|0|no) (?:\w+ )?{_CROSS}\b"
        rf"|\bnone\b|\b{_CROSS} (?:each other )?0 times\b|{_IS} 0\b"
    ),
    "one": re.compile(
        rf"\b{_CROSS} (?:each other )?(?:exactly |only |just )?(?:once|one time)\b"
        rf"|\b(?:one|1|a single|exactly one|only one) {_CROSS}\b|\bonce\b|{_IS} (?:one|1)\b"
    ),
    "several": re.compile(
        rf"\b{_CROSS} (?:each other )?(?:\w+ )?(?:several|many|multiple|two|three|four|five|\d+) times\b"
        rf"|\b{_CROSS} (?:each other )?(?:twice|repeatedly|often|frequently)\b"
        rf"|\b(?:several|many|multiple|numerous|frequent|two|three|four|five|[2-9]|\d\d+) (?:\w+ )?{_CROSS}\b"
        rf"|\b(?:several|many|multiple|\d+) times\b|{_IS} (?:several|many|two|three|four|five|[2-9]|\d\d+)\b"
    ),
}
_ABOVE = r"(?:above|over|higher|greater|on top)"
_BELOW = r"(?:below|under|beneath|lower)"


def _lies(whose: str, where: str) -> str:
    """The series that is named last before the word is the one that lies there."""
    return rf"\b{whose}\b(?:(?!\b(?:first|second)\b)[^.;])*?\b{where}\b"


_POSITIONS = {
    "above": re.compile(rf"{_lies('first', _ABOVE)}|{_lies('second', _BELOW)}"),
    "below": re.compile(rf"{_lies('first', _BELOW)}|{_lies('second', _ABOVE)}"),
    "alternating": re.compile(
        r"\b(?:alternat\w*|takes? turns|taking turns|overlap\w*|intertwine\w*|neither (?:is|lies|stays))\b"
    ),
}


def read_intersections(text: str) -> Reading:
    """How often the two series are said to cross: none, one or several."""
    return _one_of(text, _COUNTS, "no count is named")


def read_position(text: str) -> Reading:
    """Where the first series is said to lie: above the second, below it, or alternating."""
    return _one_of(text, _POSITIONS, "no position is named")


def _one_of(text: str, patterns: dict[str, re.Pattern[str]], nothing: str) -> Reading:
    if not text:
        return NOT_MENTIONED
    found = [label for label, pattern in patterns.items() if pattern.search(text)]
    if len(found) > 1:
        return Reading(None, f"{quote(text)} says {' and '.join(found)}")
    return Reading(found[0]) if found else Reading(None, nothing)
