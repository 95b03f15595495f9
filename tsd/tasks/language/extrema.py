"""Parse the positions of maximum and minimum from sentences. See the package docstring for the rules."""

import re
from collections.abc import Iterable
from functools import lru_cache

from tsd.tasks.language.numbers import place_numbers
from tsd.tasks.language.phrases.extrema import EXTREMA
from tsd.tasks.language.words import MAXIMUM, MINIMUM, NEGATION, NOT_MENTIONED, Reading, plain

PLACES = ("beginning", "middle", "end")

_BEGINNING = (
    r"beginning|begin|start|outset|early|initially|first (?:quarter|points?|values?|few \w+)"
    r"|(?:initial|starting|opening) (?:part|portion|section|segment|quarter|points?|values?)"
    r"|left(?:-hand)? (?:end|side|edge)"
    rf"|(?:starts|begins)(?= (?:at|with|from|near|on) (?:\w+ ){{0,2}}(?:{MAXIMUM}|{MINIMUM})\b)"
)
_MIDDLE = r"middle|mid|mid-?point|mid-?way|half-?way|cent(?:er|re|ral)|(?:second|third) quarter"
_END = (
    r"end|ending|late|right(?:-hand)? (?:end|side|edge)"
    r"|(?:last|final) (?:quarter|points?|values?|few \w+|part|portion|section|segment|stages?)"
    rf"|(?:ends|finishes)(?= (?:at|with|near|on) (?:\w+ ){{0,2}}(?:{MAXIMUM}|{MINIMUM})\b)"
)
_PLACE = rf"(?:{_BEGINNING}|{_MIDDLE}|{_END})"
_WHOLE = (
    r"(?:(?:the|this|that|its|entire|whole|full|observed|given|total|overall|time|data|observation) )*"
    r"(?:series|period|data|dataset|plot|graph|chart|sequence|signal|timeline|timeframe|time|observations?|record"
    r"|range|interval|window|curve|axis|x-axis|line|span|measurements?|duration|trace)\b"
)
_COUPLED = r" ?(?:,? and(?: also)?|/|&|,? as well as) ?(?:the |its )?(?:global |overall |absolute )?"
_EVENT = re.compile(
    # Matches without a group name are ignored: negated places, places of a part, coarse places, landmarks.
    rf"{NEGATION}(?: (?!and|but|while)[\w-]+){{0,4}}? {_PLACE}\b"
    rf"|\b(?:{_PLACE}(?: (?:part|portion|section|segment|phase))? of (?!{_WHOLE})[\w-]+(?: [\w-]+)?"
    r"|(?:first|second|last|latter|former|final) (?:half|third|two thirds)"
    r"|(?:opposite|other|wrong) (?:end|side|edge)"
    rf"|(?<!just )(?<!shortly )(?<!slightly )(?<!right )(?:after|past|beyond|before) the (?:{_MIDDLE})"
    rf"|(?:before|after|than|following) (?:the|its|this|that) (?:\w+ )?(?:{MAXIMUM}|{MINIMUM})"
    r"(?! (?:at|in|near|towards?|around|is))"
    rf"|(?P<local>(?:local|secondary|second|another|other|smaller) (?:{MAXIMUM}|{MINIMUM}))"
    rf"|(?P<both>both|extrema|(?:{MAXIMUM}){_COUPLED}(?:{MINIMUM})|(?:{MINIMUM}){_COUPLED}(?:{MAXIMUM}))"
    rf"|(?P<maximum>{MAXIMUM})|(?P<minimum>{MINIMUM})"
    rf"|(?P<beginning>{_BEGINNING})|(?P<middle>{_MIDDLE})|(?P<end>{_END})"
    r"|(?P<clause>and|while|whereas|but))\b|(?P<stop>[,.;])"
)
_SUBJECTS = {
    "maximum": ("maximum",),
    "minimum": ("minimum",),
    "both": ("maximum", "minimum"),
    "local": (),
}
_ORDER = re.compile(rf"\b(?:(?P<maximum>{MAXIMUM})|(?P<minimum>{MINIMUM}))\b")


@lru_cache(maxsize=1024)  # called twice per text, once per extremum
def read_extrema(text: str) -> dict[str, Reading]:
    """The stated position of the maximum and of the minimum. text: normalised, see `normal`.

    A place in words counts before one in numbers, "near the end, at point 90 of 128": whose places are words.
    """
    found = _read(text)
    numbered = place_numbers(text)
    if numbered == text:
        return found
    places = _read(numbered)
    return {facet: places[facet] if reading.silent else reading for facet, reading in found.items()}


def _read(text: str) -> dict[str, Reading]:
    """`read_extrema` of places in words."""
    text = EXTREMA.plain(plain(text))
    events = [event.lastgroup for event in _EVENT.finditer(text) if event.lastgroup]
    if "respectively" in text:
        said = _in_order([event for event in events if event in PLACES], text)
    else:
        said = _by_clause(events)
    mentioned = set(events)
    return {
        facet: _one_place(said[facet]) if {facet, "both"} & mentioned else NOT_MENTIONED
        for facet in ("maximum", "minimum")
    }


def _one_place(places: set[str]) -> Reading:
    """A reading from the positions stated for one extremum: exactly one is a label."""
    if len(places) == 1:
        return Reading(next(iter(places)))
    if not places:
        return Reading(None, "no place is named", silent=True)
    return Reading(None, " and ".join(place for place in PLACES if place in places) + " are named")


def _in_order(places: list[str], text: str) -> dict[str, set[str]]:
    """Positions by order, as in "maximum and minimum are at the end and beginning, respectively"."""
    subjects = list(dict.fromkeys(found.lastgroup or "" for found in _ORDER.finditer(text)))
    said: dict[str, set[str]] = {"maximum": set(), "minimum": set()}
    if len(subjects) == len(places) == 2:
        said |= {subject: {place} for subject, place in zip(subjects, places, strict=True)}
    return said


def _by_clause(events: list[str]) -> dict[str, set[str]]:
    """Positions by extremum, clause by clause. events: group names of `_EVENT` in the order of the text."""
    said: dict[str, set[str]] = {"maximum": set(), "minimum": set()}
    subject: tuple[str, ...] | None = None
    waiting: list[str] = []  # positions before any extremum: "At the end, the maximum is reached"
    for clause in _clauses(events):
        for place, extrema in _attach(clause, subject):
            if extrema is None:
                waiting.append(place)
            for extremum in extrema or ():
                said[extremum].add(place)
        subjects = [event for event in clause if event in _SUBJECTS]
        if subjects:
            subject = _SUBJECTS[subjects[-1]]
            if len(clause) == len(subjects):
                for extremum in subject:
                    said[extremum].update(waiting)
            waiting = []
    return said


def _clauses(events: list[str]) -> Iterable[list[str]]:
    """Split events at conjunctions and punctuation."""
    clause: list[str] = []
    for event in events:
        if event in ("clause", "stop"):
            yield clause
            clause = []
        else:
            clause.append(event)
    yield clause


def _attach(clause: list[str], subject: tuple[str, ...] | None) -> Iterable[tuple[str, tuple[str, ...] | None]]:
    """Pair each position of a clause with its extrema: the preceding ones, or the following if it comes first.

    Yields None for the extrema if neither exists. subject: extrema of the clause before.
    """
    place_first = bool(clause) and clause[0] not in _SUBJECTS
    for index, event in enumerate(clause):
        if event in _SUBJECTS:
            subject = _SUBJECTS[event]
        else:
            later = (_SUBJECTS[after] for after in clause[index:] if after in _SUBJECTS)
            yield event, next(later, subject) if place_first else subject
