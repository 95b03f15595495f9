"""Sentences -> the direction of a series, of the whole or of its thirds. The rules stand in `tsd.language`."""

import re
from functools import lru_cache

from tsd.language.words import DOWN, FILLER, FLAT, NEGATION, NOT_MENTIONED, UP, WAVERING, Reading, quote

_DIRECTION = re.compile(rf"\b(?:(?P<increasing>{UP})|(?P<decreasing>{DOWN})|(?P<flat>{FLAT}))\b")
_OVERALL = re.compile(
    r"\b(?:overall|general(?:ly)?|on the whole|as a whole|on average|net"
    r"|mostly|mainly|largely|predominantly)\b"
)
_BOTH_WAYS = (
    rf"(?:(?:{UP}) (?:n?or|and) (?:\w+ )??(?:{DOWN})"
    rf"|(?:{DOWN}) (?:n?or|and) (?:\w+ )??(?:{UP}))"
)
_NO_TREND = re.compile(
    rf"{NEGATION} {FILLER}(?:{_BOTH_WAYS}(?: (?:trend|direction|tendency))?|trend|direction|tendency"
    rf"|(?:net )?changes?)\b(?P<phase> (?:at first|initially|until|at the (?:start|beginning)))?"
)
_MOVE = r"(?:rise|drop|dip|increase|decrease|fall|decline)"
_TREND_ASIDES = re.compile(
    rf"\b(?:(?:{UP}|{DOWN}|{FLAT}) (?:in (?:the )?)?(?:{WAVERING}|noise|rate|pace|speed)"
    r"|(?:despite|in spite of|notwithstanding|except(?: for)?|apart from|aside from|regardless of)\b[^,.;]*"
    r"|(?:occasional|brief|temporary|momentary|short-lived|sporadic|local) (?:[\w-]+ )?"
    rf"{_MOVE}s?(?: and {_MOVE}s?)?"
    r"|(?:minor|small|slight|some|few|several|sharp|sudden|frequent) (?:[\w-]+ )?"
    rf"{_MOVE}s(?: and {_MOVE}s)?)\b"
)
_NEGATED_TREND = re.compile(rf"(?:{NEGATION} {FILLER}|\bnon-)(?:{UP}|{DOWN}|{FLAT})\b")
_EITHER_TREND = re.compile(
    rf"\b(?:{UP}|{DOWN}|{FLAT})(?: trend)?(?: or |/)(?:\w+ )?(?:{UP}|{DOWN}|{FLAT})\b|\brevers(?:e|al)"
)
_OPENING = re.compile(r"(^|[.] )((?:overall|generally|in general|on the whole|on average|mostly)),")
_SUCCESSION = re.compile(r"\b(?:then|followed by|before|until|after|afterwards|finally|subsequent\w*)\b")
_PHASE = re.compile(r"[.,;]|\b(?:then|followed by|before|but|while|whereas|although|though|until|with)\b")


def read_trend(text: str) -> Reading:
    """The direction that is said of the whole series."""
    if not text:
        return NOT_MENTIONED
    text = _NO_TREND.sub(lambda said: " flat " if said["phase"] else " overall flat ", text)
    text = _NEGATED_TREND.sub(" ", _TREND_ASIDES.sub(" ", text))
    if either := _EITHER_TREND.search(text):
        return Reading(None, f"{quote(either[0])} is no one direction")
    # "Overall, it rises" is said of the rise; "Overall, it rises, then falls" of neither phase.
    text = _OPENING.sub(r"\1" if _SUCCESSION.search(text) else r"\1\2", text)
    named, overall = set(), set()
    for phase in _PHASE.split(text):
        directions = {found.lastgroup or "" for found in _DIRECTION.finditer(phase)}
        named |= directions
        if directions and _OVERALL.search(phase):
            overall |= directions
    return _one_direction(overall or named)


_WHICH = (
    r"(?:(?P<beginning>(?:first|initial|beginning|opening) third|third 1)"
    r"|(?P<middle>(?:second|middle|central|mid) third|third 2)"
    r"|(?P<end>(?:third|last|final|end|closing) third|third 3))"
)
_THIRD = re.compile(rf"\b{_WHICH}\b")
_IN_THIRD = re.compile(rf"\b(?:in|during|over|for|within|throughout) (?:the|its) {_WHICH}\b")
_CLAUSE = re.compile(r"[.,;]|\b(?:then|before|but|while|whereas|and)\b")


@lru_cache(maxsize=1024)
def read_thirds(text: str) -> dict[str, Reading]:
    """The direction that is said of each third, by name. A clause must name the third and one direction."""
    said: dict[str, set[str]] = {third: set() for third in ("beginning", "middle", "end")}
    for clause in _CLAUSE.split(text):
        thirds = {found.lastgroup or "" for found in _THIRD.finditer(clause)}
        for third in thirds:
            said[third].add(read_trend(_IN_THIRD.sub(" ", clause)).label or "")
    return {third: _one_third(labels) for third, labels in said.items()}


def _one_third(labels: set[str]) -> Reading:
    if not labels:
        return NOT_MENTIONED
    if len(labels) > 1 or "" in labels:
        return Reading(None, "no one direction is named")
    return Reading(labels.pop())


def _one_direction(directions: set[str]) -> Reading:
    moving = directions - {"flat"}
    if len(moving) == 2:
        return Reading(None, "increasing and decreasing phases, neither said of the whole")
    if not directions:
        return Reading(None, "no direction is named")
    return Reading((moving or directions).pop())
