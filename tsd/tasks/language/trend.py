"""Parse the direction of a series, or of its thirds, from sentences. See the package docstring for the rules."""

import re
from collections.abc import Iterator
from functools import lru_cache

from tsd.tasks.language.numbers import movements
from tsd.tasks.language.phrases.trend import TREND, TREND_IF_ALONE
from tsd.tasks.language.words import (
    COMES_BACK,
    DOWN,
    FILLER,
    FLAT,
    NEGATION,
    NOT_MENTIONED,
    UP,
    WAVERING,
    Reading,
    plain,
    quote,
)

_DIRECTION = re.compile(rf"\b(?:(?P<increasing>{UP})|(?P<decreasing>{DOWN})|(?P<flat>{FLAT}))\b")
_OVERALL = re.compile(
    r"\b(?:overall|general(?:ly)?|on the whole|as a whole|on average|net"
    r"|mostly|mainly|largely|predominantly|on balance|all in all|(?:main|dominant|underlying|prevailing) "
    r"(?:trend|direction|tendency|movement))\b"
)
_BOTH_WAYS = (
    rf"(?:(?:{UP}) (?:n?or|and) (?:\w+ )??(?:{DOWN})"
    rf"|(?:{DOWN}) (?:n?or|and) (?:\w+ )??(?:{UP}))"
)
_HARDLY_ANY = r"\b(?:(?<!a )little|minimal|negligible|hardly|barely|scarcely)"
_NO_TREND = re.compile(
    rf"(?:{NEGATION}|{_HARDLY_ANY}) {FILLER}(?:{_BOTH_WAYS}(?: (?:trend|direction|tendency|movement))?"
    r"|trend|direction|tendency|slope|drift(?:s|ing)?|net changes?|(?P<change>changes?|movements?))\b"
    r"(?P<phase> (?:at first|initially|until|at the (?:start|beginning)))?"
)
_NEGATES = re.compile(rf"{NEGATION}|{_HARDLY_ANY}|\bnon-")
_MOVE = r"(?:rise|drop|dip|increase|decrease|fall|decline|spike|jump|surge|bump|blip)"
_NOISE = r"(?:noise|variance|variability|volatility|scatter|spread|amplitude)"
_TREND_ASIDES = re.compile(
    rf"\b(?:(?<!or )(?:less|more) (?:steady|{FLAT})"
    rf"|(?:{UP}|{DOWN}|{FLAT}) (?:(?:(?:in|of) (?:the )?)?(?:{WAVERING}|noise|rate|pace|speed)"
    r"|briefly|temporarily|momentarily)"
    rf"|{_NOISE}(?: level| intensity)?(?: (?:that|which|is|are|also|\w+ly)){{0,3}} (?:{UP}|{DOWN}|{FLAT})"
    r"|(?:despite|in spite of|notwithstanding|except(?: for)?|apart from|aside from|regardless of)\b[^,.;]*"
    r"|if\b[^,.;]*|(?:(?<=^)|(?<=[.;] ))(?:had|should|were) (?:the|it|this|they)\b[^,.;]*"
    r"|(?:occasional|brief|temporary|momentary|short-lived|sporadic|local) (?:[\w-]+ )?"
    rf"{_MOVE}s?(?: and {_MOVE}s?)?(?: (?:up|down)(?:wards?)?)?"
    rf"|(?:{UP}|{DOWN}) by (?:about |only )?0(?:\.0+)?(?![.\d])"
    r"|(?:minor|small|slight|some|few|several|sharp|sudden|frequent) (?:[\w-]+ )?"
    rf"{_MOVE}s(?: and {_MOVE}s)?)\b"
)
_NEGATED_TREND = re.compile(
    rf"(?:(?:{NEGATION}|\b(?:hardly|barely|scarcely)) {FILLER}|\bnon-)(?:{UP}|{DOWN}|{FLAT})\b"
)
_EITHER_TREND = re.compile(
    rf"\b(?:{UP}|{DOWN}|{FLAT})(?: trend)?(?: or |/)(?:\w+ )?(?:(?:could|might|may|is) )?(?:be )?(?:{UP}"
    rf"|{DOWN}|{FLAT})\b"
    r"|\brevers(?:e|al)"
)
_EITHER_MARKS = (" or ", "/", "revers")
_OPENING = re.compile(r"(^|[.] )((?:overall|generally|in general|on the whole|on average|mostly)),")
_SUCCESSION = re.compile(r"\b(?:then|followed by|before|until|after|afterwards|finally|subsequent\w*)\b")
_PHASE = re.compile(r"[.,;]|\b(?:then|followed by|before|but|while|whereas|although|though|until|with)\b")


@lru_cache(maxsize=1024)  # teachers repeat their sentences
def read_trend(text: str) -> Reading:
    """The stated direction of the whole series. text: normalised, see `normal`."""
    if not text:
        return NOT_MENTIONED
    said = TREND.plain(movements(plain(text).replace("if anything", "")))
    reading = _direction_of(said)
    return _direction_of(TREND_IF_ALONE.plain(said)) if reading.silent else reading


def _direction_of(text: str) -> Reading:
    """The direction stated in the words of `_DIRECTION` alone."""
    if COMES_BACK.search(text):
        return Reading(None, "what comes right back is no trend")
    negates = _NEGATES.search(text)  # most texts do not
    if negates:
        text = _NO_TREND.sub(_no_trend, text)
    text = _TREND_ASIDES.sub(" ", text)
    if negates:
        text = _NEGATED_TREND.sub(" ", text)
    if any(mark in text for mark in _EITHER_MARKS) and (either := _EITHER_TREND.search(text)):
        return Reading(None, f"{quote(either[0])} is no one direction")
    # "Overall, it rises" states the overall direction; in "Overall, it rises, then falls" neither phase is
    # overall.
    text = _OPENING.sub(r"\1" if _SUCCESSION.search(text) else r"\1\2", text)
    named, overall = set(), set()
    for phase in _PHASE.split(text):
        directions = {found.lastgroup or "" for found in _DIRECTION.finditer(phase)}
        named |= directions
        if directions and _OVERALL.search(phase):
            overall |= directions
    return _one_direction(overall or named)


def _no_trend(said: re.Match[str]) -> str:
    """Flat, and overall so unless it is said of a phase, or of a movement ("rises without changes")."""
    lead = said.string[max(0, said.start() - 5) : said.start()]
    beside = said["change"] and (lead.endswith("with ") or said[0].startswith("without"))
    return " flat " if said["phase"] or beside else " overall flat "


_WHICH = (
    r"(?:(?P<beginning>(?:first|initial|beginning|opening) third|third 1)"
    r"|(?P<middle>(?:second|middle|central|mid) third|third 2)"
    r"|(?P<end>(?:third|last|final|end|closing) third|third 3))"
)
_THIRD = re.compile(rf"\b{_WHICH}\b")
_IN = r"(?:in|during|over|for|within|throughout) (?:the|its)"
_IN_THIRD = re.compile(rf"\b{_IN} {_WHICH}\b")
_LEAD = re.compile(rf"\s*{_IN} {_WHICH}(?: of (?:the|its) (?:series|\w+ series|values|time))?\s*")
_NAME = r"(?:first|initial|beginning|opening|second|middle|central|mid|third|last|final|end|closing)"
_LANDMARK = re.compile(
    r"\b(?:until|till|before|after|except|outside|unlike|between|from|by|than|to|towards?|since|past|beyond|into"
    r"|through|like|apart from|as (?=in|during)|not|compared with|(?:start|beginning|middle|end|half|part) of) ?\b"
    r"(?: ?\b(?:in|during|over|for|of|at|within|the|its|start|beginning|end)(?= ))*"
    rf" ?\b(?:{_NAME} (?:third )?(?:and|to) (?:the )?)?(?:{_NAME} third|third [123])\b"
)
_UP_AND_DOWN = re.compile(rf"\b{_BOTH_WAYS}\b")
_JOINT = re.compile(r"([.,;]|\b(?:then|before|but|while|whereas|and)\b)")
_SUBJECT = re.compile(r"\s*(?:it|they|this|there|the)\b")


@lru_cache(maxsize=1024)
def read_thirds(text: str) -> dict[str, Reading]:
    """The stated direction of each third, by name. A clause must name the third and one direction."""
    said: dict[str, set[str]] = {third: set() for third in ("beginning", "middle", "end")}
    text = _UP_AND_DOWN.sub(lambda both: both[0].replace(" and ", " or "), _LANDMARK.sub(" ", text))
    for clause in _clauses(text):
        thirds = {found.lastgroup or "" for found in _THIRD.finditer(clause)}
        for third in thirds:
            said[third].add(read_trend(_IN_THIRD.sub(" ", clause)).label or "")
    return {third: _one_third(labels) for third, labels in said.items()}


def _clauses(text: str) -> Iterator[str]:
    """The clauses of a text. A lead such as "in the first third," is joined with its clause."""
    parts = _JOINT.split(text)
    joint, lead = ".", ""  # separator before the clause; a pending lead
    for clause, after in zip(parts[::2], [*parts[1::2], "."], strict=True):
        if lead:
            # In mid-sentence, "in the first third," may belong to the text before it.
            leads = not _THIRD.search(clause) and (joint in ".;" or _SUBJECT.match(clause))
            yield from [f"{lead} {clause}"] if leads else [lead, clause]
            lead = ""
        elif after == "," and _LEAD.fullmatch(clause):
            lead = clause
            continue
        else:
            yield clause
        joint = after


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
        return Reading(None, "no direction is named", silent=True)
    return Reading((moving or directions).pop())
