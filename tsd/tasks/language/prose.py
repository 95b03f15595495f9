"""Split free sentences into text per topic: each piece of a sentence is assigned to the topic that it names.

Of one series, the five topics of its structure come before trend, noise and extrema: "an upward shift" is no
trend. Of two series, sentences are assigned that name crossings, a position, or one of the two series.
"""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache

from tsd.tasks.language.numbers import movements
from tsd.tasks.language.phrases.extrema import EXTREMA, SUBJECTS
from tsd.tasks.language.phrases.noise import NOISE_HEAD
from tsd.tasks.language.phrases.structure import MENTIONED, STRUCTURE, STRUCTURE_TOPICS
from tsd.tasks.language.phrases.trend import TREND, TREND_IF_ALONE
from tsd.tasks.language.words import DOWN, FLAT, MAXIMUM, MINIMUM, NEGATION, PLAIN, UP, telling

PROSE_TOPICS = frozenset({"trend", "noise", "extrema"})  # told apart in any free sentence on one series
RELATIONS = ("intersections", "position")  # of two series

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_PIECE = re.compile(r"([,;]|\s[/|–—]\s|\b(?:and|with|while|whereas|but|whose)\b)", re.IGNORECASE)
_MARKUP = re.compile(r"[*#`]+")
_COLON = re.compile(r":\s+")
_HEAD = re.compile(
    rf"\b(?:(?:around|about|along|after|before) (?:the|this|an?|its) (?:[\w-]+ ){{0,2}}(?:trend|peak)\w*"
    rf"|(?P<extrema>extrem(?:a|um)|{MAXIMUM}|{MINIMUM})|(?P<trend>trend\w*|{UP}|{DOWN}|{FLAT}))\b",
    re.IGNORECASE,
)
_SUBORDINATE = re.compile(r"\s*(?:after|before|following|until|despite|where|which|when)\b", re.IGNORECASE)
_WITH_NOISE = re.compile(  # where noise is not the subject: "a rise marred by noise", "a noise-free rise"
    r"\b(?:by|of|with|within|amid|under|in|despite) (?:[\w-]+ ){0,3}noise\b|\bnoise-", re.IGNORECASE
)
_OF_A_MOVEMENT = re.compile(  # "at the end of the rise" does not say that the series rises
    r"\b(?:of|after|before|during|following|until|by|from|to|since) (?:the|this|that|an?|its|each|every) "
    rf"(?:(?!it\b|they\b|the\b)[\w-]+ ){{0,2}}(?:{UP}|{DOWN}|{FLAT})\b",
    re.IGNORECASE,
)


_SUBJECT = re.compile(
    r"\b(?:trend\w*|series|values|curve|line|signal|overall|as a whole|on the whole|nois\w*|max\w*|min\w*|peak"
    r"|highest|lowest)\b",
    re.IGNORECASE,
)
_DENIES = re.compile(NEGATION, re.IGNORECASE)


@dataclass(frozen=True)
class _Stretch:
    """Successive pieces of a sentence on one topic, and the other topics that they name as well."""

    topic: str
    said: str
    beside: frozenset[str]


def from_prose(text: str, known: Collection[str]) -> dict[str, str]:
    """Text by topic from free sentences. known: topics; some others than tsd's cannot be told apart."""
    topics: dict[str, list[str]] = {}
    for stretch in _stretches(text, frozenset(known)):
        topics.setdefault(stretch.topic, []).append(stretch.said)
    return {topic: "\n".join(said) for topic, said in topics.items() if topic in known}


def named_beside(text: str, topic: str, known: Collection[str]) -> str:
    """What free sentences say on a topic in stretches on another topic: the noise in "a smooth climb".

    What is said of the structure says nothing else: "an upward shift" is no trend.
    """
    said = []
    for stretch in _stretches(text, frozenset(known)):
        of_noise = stretch.topic == "noise" and "noise" in _WITH_NOISE.sub(" ", stretch.said).lower()
        if topic in stretch.beside and not of_noise and stretch.topic in PROSE_TOPICS:
            said.append(stretch.said)
    found = "\n".join(said)
    return _OF_A_MOVEMENT.sub(" ", found) if topic == "trend" else found


def entangled(text: str, topics: Collection[str], known: Collection[str]) -> set[str]:
    """The topics of free sentences whose text also names one of these topics."""
    stretches = _stretches(text, frozenset(known))
    return {stretch.topic for stretch in stretches if stretch.beside.intersection(topics)}


@lru_cache(maxsize=1)  # asked for again where a facet is not stated
def _stretches(text: str, known: frozenset[str]) -> tuple[_Stretch, ...]:
    """Split free sentences by topic. A piece that names no topic is assigned to the topic before it.

    None if the known topics are not those of one series, or of two.
    """
    sentences = telling(_SENTENCE_END.split(_COLON.sub(": ", _MARKUP.sub("", text.translate(PLAIN)))))
    if known <= PROSE_TOPICS | STRUCTURE_TOPICS:
        structure = known & STRUCTURE_TOPICS
        return tuple(stretch for sentence in sentences for stretch in _stretches_of(sentence, structure))
    if known >= set(RELATIONS):
        return tuple(stretch for sentence in sentences for stretch in _of_two(sentence))
    return ()


def _stretches_of(sentence: str, structure: Collection[str]) -> Iterator[_Stretch]:
    """The stretches of a sentence on one series. structure: known topics of its structure."""
    said = ""
    named: list[str] = []  # the topics of the stretch so far
    parts = _PIECE.split(sentence)
    for joint, piece in zip(["", *parts[1::2]], parts[::2], strict=True):
        names = _topics_named(piece, structure)
        # "A spike at point 40, rising to 99": the trend is another one's
        if named and named[0] in structure and names[:1] == ["trend"] and not _SUBJECT.search(piece):
            names = []
        if named and names and names[0] != named[0]:
            yield from _assigned(named, said, structure)
            said, named = piece, names
        else:
            said, named = said + joint + piece if said else piece, named + names
    named = named or _topics_named(said, structure)  # as in "starts low, ends high"
    if named:
        yield from _assigned(named, said, structure)


def _assigned(named: list[str], said: str, structure: Collection[str]) -> Iterator[_Stretch]:
    """A stretch with its topics. named: those that it names, the first one is its own.

    Several of the structure are clear only where they are denied together: "neither a level shift nor a spike".
    """
    several = [topic for topic in dict.fromkeys(named) if topic in structure]
    if len(several) > 1 and not _DENIES.search(said):
        return
    for topic in several or named[:1]:
        yield _Stretch(topic, said, frozenset(named) - {topic})


def _topics_named(piece: str, structure: Collection[str]) -> list[str]:
    """The topics that a piece names, the one that it is about first. structure: known topics of the structure."""
    plain = piece.lower().strip()
    first = [
        found.lastgroup for found in STRUCTURE.finditer(MENTIONED.sub(" ", plain)) if found.lastgroup in structure
    ]
    heads = [head.lastgroup for head in _HEAD.finditer(piece) if head.lastgroup]
    if "nois" in plain:
        heads.insert(0, "noise")
    if heads or not _SUBORDINATE.match(piece):
        heads += [topic for topic, names in _PHRASES if names(plain)]
    return list(dict.fromkeys(name for name in [*first, *heads] if name))


_PHRASES: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("extrema", lambda piece: EXTREMA.has(piece, SUBJECTS)),
    ("noise", lambda piece: NOISE_HEAD.search(piece) is not None),
    ("trend", lambda piece: TREND.has(piece) or TREND_IF_ALONE.has(piece) or movements(piece) != piece),
)


# ---- Prose on two series

_CROSSES = re.compile(r"\b(?:criss-?)?(?:cross(?:es|ed|ing|ings)?|intersect\w*)\b", re.IGNORECASE)
_LIES = re.compile(
    r"\b(?:above|below|under|underneath|beneath|higher|lower|on top|alternat\w*|overlap\w*|(?:inter|en)twin\w*)\b",
    re.IGNORECASE,
)
_WITHIN_ONE = re.compile(
    r"\b(?:than|from) (?:it|its|at|in|where|when|before|the (?:start|beginning|end))\b", re.IGNORECASE
)
_WHOSE = re.compile(
    r"\b(?:the )?(?P<whose>first|second)(?: (?:of the two))? (?:time )?(?:series|line|curve|graph)\b(?:'s)?",
    re.IGNORECASE,
)


def _of_two(sentence: str) -> Iterator[_Stretch]:
    """The stretches of a sentence on two series: on their crossings and position, or on one that it names."""
    crosses, lies = _CROSSES.search(sentence), _LIES.search(sentence) and not _WITHIN_ONE.search(sentence)
    if crosses or lies:
        related = [topic for topic, names in zip(RELATIONS, (crosses, lies), strict=True) if names]
        for topic in related:
            yield _Stretch(topic, sentence, frozenset(related) - {topic})
        return
    whose = {found["whose"].lower() for found in _WHOSE.finditer(sentence)}
    if len(whose) == 1 and not _LIES.search(sentence):
        name = whose.pop()
        for stretch in _stretches_of(_WHOSE.sub("the series", sentence), ()):
            beside = frozenset(f"{name} {topic}" for topic in stretch.beside)
            yield _Stretch(f"{name} {stretch.topic}", stretch.said, beside)
