"""Split a response into text per topic, whatever its form: JSON, fenced JSON, broken JSON or prose."""

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from tsd.tasks.language.prose import from_prose

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
    return from_prose(text, known), NO_JSON


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
