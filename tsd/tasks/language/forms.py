"""Split a response into text per topic, whatever its form: JSON, fenced JSON, broken JSON or prose."""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from tsd.tasks.language.numbers import movements
from tsd.tasks.language.phrases.extrema import EXTREMA, SUBJECTS
from tsd.tasks.language.phrases.noise import NOISE_HEAD
from tsd.tasks.language.phrases.trend import TREND, TREND_IF_ALONE
from tsd.tasks.language.words import DOWN, FLAT, MAXIMUM, MINIMUM, UP

PROSE_TOPICS = frozenset({"trend", "noise", "extrema"})  # topics by which free sentences can be told apart
NO_JSON = "not a JSON object"
_BROKEN_JSON = "not a whole JSON object"

_DECODER = json.JSONDecoder(strict=False)  # not strict: teachers put raw line breaks into strings
_BRACE = re.compile(r"\{")
_MOST_BRACES = 8  # prose may hold a few braces before the object; a limit keeps parsing of hostile text fast
_PAIR = re.compile(r'"([\w ]{1,30})"\s*:\s*"((?:[^"\\]|\\.)*+)"', re.DOTALL)
_WHOSE = re.compile(r"(first|second)(?: series)?(?: |$)")
_KEY = re.compile(
    r"(?:global |overall |general )?(trend|noise|extrem(?:a|um)|max(?:imum)?|min(?:imum)?"
    r"|intersections?|crossings?|(?:relative )?position)(?: (?:intensity|level|location|position))?"
)
_TOPIC_OF = {"max": "extrema", "min": "extrema", "ext": "extrema", "int": "intersections", "cro": "intersections"}
_TOPIC_OF |= {"rel": "position", "pos": "position"}
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


def topics_of(text: str, known: Collection[str]) -> tuple[dict[str, str], str | None]:
    """The text on each of the known topics, and what is wrong with the response's form (None if nothing)."""
    for brace in islice(_BRACE.finditer(text), _MOST_BRACES):
        try:
            value, _ = _DECODER.raw_decode(text, brace.start())
        except (ValueError, RecursionError):
            continue
        if topics := _by_topic(value.items(), known):
            return topics, None
    if topics := _by_topic(_PAIR.findall(text), known):
        return topics, _BROKEN_JSON
    return _from_prose(text) if set(known) <= PROSE_TOPICS else {}, NO_JSON


def topics_in(value: Mapping[str, object], known: Collection[str]) -> set[str]:
    """The known topics that the keys of an object stand for."""
    return set(_by_topic(value.items(), known))


def topic_of(key: str) -> str:
    """The topic that a key of a response stands for, whether a task has it or not."""
    whose, topic, _ = _meaning(key)
    return f"{whose} {topic}" if whose else topic


def sentences(text: str, known: Sequence[str]) -> list[str]:
    """A response as plain sentences: in the order of the topics for JSON, as written for prose."""
    topics, problem = topics_of(text, known)
    said = [text] if problem == NO_JSON else [topics[topic] for topic in known if topic in topics]
    parts = (" ".join(part.split()) for value in said for part in _SENTENCE_END.split(value))
    return [part if part[-1] in ".!?" else part + "." for part in parts if part]


def _by_topic(pairs: Iterable[tuple[str, object]], known: Collection[str]) -> dict[str, str]:
    """Text by topic from key-value pairs. Texts of the same topic are joined."""
    topics: dict[str, list[str]] = {}
    for topic, said in _named(pairs, known, ""):
        topics.setdefault(topic, []).append(said)
    return {topic: "\n".join(said) for topic, said in topics.items()}


def _named(pairs: Iterable[tuple[str, object]], known: Collection[str], whose: str) -> Iterator[tuple[str, str]]:
    """Topic and text of each pair. A key, or the key of an enclosing object, may name one of two series."""
    for key, value in pairs:
        series, topic, lead = _meaning(key)
        if series and not topic and isinstance(value, dict) and not whose:
            yield from _named(value.items(), known, f"{series} ")
            continue
        topic = (f"{series} " if series else whose) + topic
        if topic in known:
            yield topic, lead + _plain(value)


def _meaning(key: str) -> tuple[str, str, str]:
    """Which of two series a key names ("" for none), its topic, and a prefix for its text."""
    name = " ".join(key.lower().replace("_", " ").split())
    series = _WHOSE.match(name)
    topic, lead = _topic(name[series.end() :] if series else name)
    return series[1] if series else "", topic, lead


def _topic(name: str) -> tuple[str, str]:
    """The topic of a key, and a prefix for its text that keeps the key's meaning."""
    means = _KEY.fullmatch(name)
    if means is None:
        return name, ""
    lead = f"{means[1]}: " if means[1].startswith(("max", "min")) else ""
    return _TOPIC_OF.get(means[1][:3], means[1]), lead


def _plain(value: object, depth: int = 0) -> str:
    """A JSON value as prose: {"maximum": "end"} becomes "maximum: end"."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and depth < 4:
        return "\n".join(_plain(item, depth + 1) for item in value)
    if isinstance(value, dict) and depth < 4:
        return "\n".join(f"{key.replace('_', ' ')}: {_plain(item, depth + 1)}" for key, item in value.items())
    return str(value) if isinstance(value, int | float) else ""


# ---- Prose: each piece of a sentence is assigned to the topic that it names

_PIECE = re.compile(r"([,;]|\s[/|–—]\s|\b(?:and|with|while|whereas|but|whose)\b)", re.IGNORECASE)
_MARKUP = re.compile(r"[*#`]+")
_COLON = re.compile(r":\s+")
_HEAD = re.compile(
    rf"\b(?:(?:around|about|along|after|before) (?:the|this|an?|its) (?:[\w-]+ ){{0,2}}(?:trend|peak)\w*"
    rf"|(?P<extrema>extrem(?:a|um)|{MAXIMUM}|{MINIMUM})|(?P<trend>trend\w*|{UP}|{DOWN}|{FLAT}))\b",
    re.IGNORECASE,
)
_LONGEST = 1_000  # characters of a piece that is searched for phrases, so that hostile text is fast
_SUBORDINATE = re.compile(r"\s*(?:after|before|following|until|despite|where|which|when)\b", re.IGNORECASE)
_WITH_NOISE = re.compile(  # where noise is not the subject: "a rise marred by noise", "a noise-free rise"
    r"\b(?:by|of|with|amid|under|in|despite) (?:[\w-]+ ){0,3}noise\b|\bnoise-", re.IGNORECASE
)
_OF_A_MOVEMENT = re.compile(  # "at the end of the rise" does not say that the series rises
    r"\b(?:of|after|before|during|following|until|by|from|to|since) (?:the|this|that|an?|its|each|every) "
    rf"(?:(?!it\b|they\b|the\b)[\w-]+ ){{0,2}}(?:{UP}|{DOWN}|{FLAT})\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class _Stretch:
    """Successive pieces of a sentence on one topic, and the other topics that they name as well."""

    topic: str
    said: str
    beside: frozenset[str]


@lru_cache(maxsize=1)  # asked for again where a facet is not stated
def _stretches(text: str) -> tuple[_Stretch, ...]:
    """Split free sentences by topic. A piece that names no topic is assigned to the topic before it."""
    sentences = _SENTENCE_END.split(_COLON.sub(": ", _MARKUP.sub("", text)))
    return tuple(stretch for sentence in sentences for stretch in _stretches_of(sentence))


def _stretches_of(sentence: str) -> Iterator[_Stretch]:
    said = ""
    named: list[str] = []  # the topics of the stretch so far
    parts = _PIECE.split(sentence)
    for joint, piece in zip(["", *parts[1::2]], parts[::2], strict=True):
        names = _topics_named(piece)
        if named and names and names[0] != named[0]:
            yield _Stretch(named[0], said, frozenset(named) - {named[0]})
            said, named = piece, names
        else:
            said, named = said + joint + piece if said else piece, named + names
    named = named or _topics_named(said)  # as in "starts low, ends high"
    if named:
        yield _Stretch(named[0], said, frozenset(named) - {named[0]})


def _from_prose(text: str) -> dict[str, str]:
    """Text by topic from free sentences."""
    topics: dict[str, list[str]] = {}
    for stretch in _stretches(text):
        topics.setdefault(stretch.topic, []).append(stretch.said)
    return {topic: "\n".join(said) for topic, said in topics.items()}


def named_beside(text: str, topic: str) -> str:
    """What free sentences say on a topic in stretches on another topic: the noise in "a smooth climb"."""
    said = []
    for stretch in _stretches(text):
        of_noise = stretch.topic == "noise" and "noise" in _WITH_NOISE.sub(" ", stretch.said).lower()
        if topic in stretch.beside and not of_noise:
            said.append(stretch.said)
    found = "\n".join(said)
    return _OF_A_MOVEMENT.sub(" ", found) if topic == "trend" else found


def entangled(text: str, topics: Collection[str]) -> set[str]:
    """The topics of free sentences whose text also names one of these topics."""
    return {stretch.topic for stretch in _stretches(text) if stretch.beside.intersection(topics)}


def _topics_named(piece: str) -> list[str]:
    """The topics that a piece names, the one that it is about first."""
    plain = piece.lower().strip()
    heads = [head.lastgroup for head in _HEAD.finditer(piece) if head.lastgroup]
    if "nois" in plain:
        heads.insert(0, "noise")
    if len(piece) < _LONGEST and (heads or not _SUBORDINATE.match(piece)):
        heads += [topic for topic, names in _PHRASES if names(plain)]
    return list(dict.fromkeys(heads))


_PHRASES: tuple[tuple[str, Callable[[str], bool]], ...] = (
    ("extrema", lambda piece: EXTREMA.has(piece, SUBJECTS)),
    ("noise", lambda piece: NOISE_HEAD.search(piece) is not None),
    ("trend", lambda piece: TREND.has(piece) or TREND_IF_ALONE.has(piece) or movements(piece) != piece),
)
