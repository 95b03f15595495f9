"""Sentences -> labels, for teacher and student alike; nothing here calls a model.

A reply that does not say a facet plainly leaves it None with a reason: the reader never guesses.

How a reply is read
  form     a JSON object, fenced or amid prose; of a broken one the pairs that are whole; else free sentences
  trend    a direction by its word ("rises", "downward", "stable"); "no clear trend" and "neither rising nor
           falling" are flat, "not increasing" says nothing; nor do fluctuations, "despite" and brief drops
  phases   the one direction said overall wins; else a direction beside a flat phase; else not stated
  noise    the level said of the noise, "relatively" or not; of fluctuations only where the noise has none
  levels   two of them ("medium to high", "low at first, then high") are not stated; nor is "not high"
  extrema  a place belongs to the extremum of its clause, the one before it if the clause begins with one;
           "both" and "maximum and minimum" share it; local extrema and "the end of the rise" do not count
  places   two of one extremum ("between the beginning and the middle") are not stated; nor are halves, thirds
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from tsd.language.writing import Labels
from tsd.schema import FACETS


@dataclass(frozen=True)
class Parsed:
    """A reply as labels; `reason` says which facets are not stated and why, None when all four are."""

    labels: Labels
    reason: str | None


def parse_reply(text: str) -> Parsed:
    """Read the labels that a reply states, whatever its form; see the rules at the top. Never raises."""
    topics, problem = _topics_of(text)
    texts = {topic: _normal(topics.get(topic, "")) for topic in _TOPICS}
    readings = {
        "trend": _read_trend(texts["trend"]),
        "noise": _read_noise(texts["noise"]),
        **_read_extrema(texts["extrema"]),
    }
    labels = Labels(
        trend=readings["trend"].label,
        noise=readings["noise"].label,
        maximum=readings["maximum"].label,
        minimum=readings["minimum"].label,
    )
    whys = [f"{facet}: {reading.why}" for facet, reading in readings.items() if reading.label is None]
    if not whys:
        return Parsed(labels, None)
    return Parsed(labels, "; ".join([problem, *whys] if problem else whys))


def sentences(text: str) -> list[str]:
    """A reply as plain sentences, in its order of topics for JSON and as written for prose."""
    topics, problem = _topics_of(text)
    said = [text] if problem == _NO_JSON else [topics[topic] for topic in _TOPICS if topic in topics]
    parts = (" ".join(part.split()) for value in said for part in _SENTENCE_END.split(value))
    return [part if part[-1] in ".!?" else part + "." for part in parts if part]


# ---- From a text to what it says on each topic


_TOPICS = ("trend", "noise", "extrema")
_NO_JSON = "not a JSON object"
_BROKEN_JSON = "not a whole JSON object"

_DECODER = json.JSONDecoder(strict=False)  # teachers put raw line breaks into strings
_BRACE = re.compile(r"\{")
_MOST_BRACES = 8  # prose may hold a brace or two before the reply; more would make hostile text slow
_PAIR = re.compile(r'"([\w ]{1,30})"\s*:\s*"((?:[^"\\]|\\.)*+)"', re.DOTALL)
_KEY = re.compile(
    r"(?:global|overall|general)?[ _]*(trend|noise|extrem(?:a|um)|max(?:imum)?|min(?:imum)?)"
    r"(?:[ _]+(?:intensity|level|location|position))?"
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


def _topics_of(text: str) -> tuple[dict[str, str], str | None]:
    """The text on each topic that the reply has, and what is wrong with the reply's form, if anything."""
    for brace in islice(_BRACE.finditer(text), _MOST_BRACES):
        try:
            value, _ = _DECODER.raw_decode(text, brace.start())
        except (ValueError, RecursionError):
            continue
        if topics := _by_topic(value.items()):
            return topics, None
    if topics := _by_topic(_PAIR.findall(text)):
        return topics, _BROKEN_JSON
    return _from_prose(text), _NO_JSON


def _by_topic(pairs: Iterable[tuple[str, object]]) -> dict[str, str]:
    topics: dict[str, list[str]] = {}
    for key, value in pairs:
        known = _KEY.fullmatch(key.strip().lower())
        if known is None:
            continue
        topic, said = known[1], _plain(value)
        if topic.startswith(("max", "min")):
            said = f"{topic}: {said}"
        topics.setdefault(topic if topic in _TOPICS else "extrema", []).append(said)
    return {topic: "\n".join(said) for topic, said in topics.items()}


def _plain(value: object, depth: int = 0) -> str:
    """A JSON value as prose: {"maximum": "end"} reads "maximum: end"."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and depth < 4:
        return "\n".join(_plain(item, depth + 1) for item in value)
    if isinstance(value, dict) and depth < 4:
        return "\n".join(f"{key.replace('_', ' ')}: {_plain(item, depth + 1)}" for key, item in value.items())
    return str(value) if isinstance(value, int | float) else ""


def _normal(text: str) -> str:
    """Lower case, single spaces, straight apostrophes; a line break ends a sentence."""
    lines = (" ".join(line.split()) for line in text.lower().replace("\u2019", "'").splitlines())
    return ". ".join(line.rstrip(".") for line in lines if line)


# ---- The words. Alternatives of one pattern each; all are matched on normal text.

_UP = (
    r"increas\w*|upwards?|uptrend|ris(?:e|es|ing|en)|rose|gr(?:ow(?:s|ing|th|n)?|ew)|climb\w*|ascend\w*"
    r"|(?:go|goes|going|trend|trends|trending) up|positive (?:trend|slope)|recover\w*|rebound\w*"
)
_DOWN = (
    r"decreas\w*|downwards?|downtrend|declin\w*|fall(?:s|ing|en)?(?! (?:with)?in\b| between)|fell"
    r"|drop(?:s|ped|ping)?|descend\w*|dip(?:s|ped|ping)?|diminish\w*|sink(?:s|ing)?"
    r"|(?:go|goes|going|trend|trends|trending) down|negative (?:trend|slope)"
)
_FLAT = (
    r"flat(?:tens?|tened|tening)?|stable|stabili[sz]\w*|constant|stationary|horizontal|unchanged|trendless"
    r"|sideways|plateau\w*|level(?:s|l?ing|l?ed)? (?:off|out)"
    r"|(?:is|are|stay|stays|remain|remains|remaining|hold|holds|keep|keeps) (?:\w+ly )?(?:level|steady)"
)
_NEGATION = (
    r"(?:\b(?:no|not(?! only)|neither|nor|never|without|lacks?|lacking|rather than|instead of"
    r"|anything but|far from)|n't)"
)
_FILLER = (
    r"(?:(?:a|an|any|the|clear|overall|general|strong|significant|obvious|discernible|distinct|definite"
    r"|particular|consistent|pronounced|visible|apparent|evident|noticeable|marked|real|long-term|very|too|so|as"
    r"|either|show|exhibit|display|have|follow|be|being|been|\w+ly) )*"
)
_WAVERING = r"(?:fluctuat|variab|variation|variance|volatil|oscillat|amplitude|deviation)\w*"

_MAXIMUM = (
    r"max(?:imum|ima|imal)?|peak(?:s|ed|ing)?|highest(?: (?:points?|values?|levels?))?|largest values?"
    r"|(?:global|overall|absolute|its) high"
)
_MINIMUM = (
    r"min(?:imum|ima|imal)?|troughs?|nadir|lowest(?: (?:points?|values?|levels?))?|smallest values?"
    r"|(?:global|overall|absolute|its) low"
)


# ---- Prose: every piece of a sentence goes to the topic that it names

_PIECE = re.compile(r"([,;]|\b(?:and|with|while|whereas|but)\b)", re.IGNORECASE)
_MARKUP = re.compile(r"[*#`]+")
_COLON = re.compile(r":\s+")
_HEAD = re.compile(
    rf"\b(?:(?:around|about|along|after|before) (?:the|this|an?|its) (?:[\w-]+ ){{0,2}}(?:trend|peak)\w*"
    rf"|(?P<extrema>extrem(?:a|um)|{_MAXIMUM}|{_MINIMUM})|(?P<trend>trend\w*|{_UP}|{_DOWN}|{_FLAT}))\b",
    re.IGNORECASE,
)


def _from_prose(text: str) -> dict[str, str]:
    """Attribute free sentences; a piece that names no topic goes with the piece before it."""
    topics: dict[str, list[str]] = {}
    for sentence in _SENTENCE_END.split(_COLON.sub(": ", _MARKUP.sub("", text))):
        topic, waiting = None, ""
        parts = _PIECE.split(sentence)
        for joint, piece in zip(["", *parts[1::2]], parts[::2], strict=True):
            named = _topic_named(piece)
            if named is not None and named != topic:
                topics.setdefault(named, []).append(waiting + joint + piece if waiting else piece)
                topic, waiting = named, ""
            elif topic is not None:
                topics[topic][-1] += joint + piece
            else:
                waiting += joint + piece
    return {topic: "\n".join(said) for topic, said in topics.items()}


def _topic_named(piece: str) -> str | None:
    if "nois" in piece.lower():
        return "noise"
    return next((head.lastgroup for head in _HEAD.finditer(piece) if head.lastgroup), None)


# ---- Reading one topic


@dataclass(frozen=True)
class _Reading:
    label: str | None
    why: str = ""


_NOT_MENTIONED = _Reading(None, "not mentioned")

_DIRECTION = re.compile(rf"\b(?:(?P<increasing>{_UP})|(?P<decreasing>{_DOWN})|(?P<flat>{_FLAT}))\b")
_OVERALL = re.compile(
    r"\b(?:overall|general(?:ly)?|on the whole|as a whole|on average|net"
    r"|mostly|mainly|largely|predominantly)\b"
)
_BOTH_WAYS = (
    rf"(?:(?:{_UP}) (?:n?or|and) (?:\w+ )??(?:{_DOWN})"
    rf"|(?:{_DOWN}) (?:n?or|and) (?:\w+ )??(?:{_UP}))"
)
_NO_TREND = re.compile(
    rf"{_NEGATION} {_FILLER}(?:{_BOTH_WAYS}(?: (?:trend|direction|tendency))?|trend|direction|tendency"
    rf"|(?:net )?changes?)\b(?P<phase> (?:at first|initially|until|at the (?:start|beginning)))?"
)
_MOVE = r"(?:rise|drop|dip|increase|decrease|fall|decline)"
_TREND_ASIDES = re.compile(
    rf"\b(?:(?:{_UP}|{_DOWN}|{_FLAT}) (?:in (?:the )?)?(?:{_WAVERING}|noise|rate|pace|speed)"
    r"|(?:despite|in spite of|notwithstanding|except(?: for)?|apart from|aside from|regardless of)\b[^,.;]*"
    r"|(?:occasional|brief|temporary|momentary|short-lived|sporadic|local) (?:[\w-]+ )?"
    rf"{_MOVE}s?(?: and {_MOVE}s?)?"
    r"|(?:minor|small|slight|some|few|several|sharp|sudden|frequent) (?:[\w-]+ )?"
    rf"{_MOVE}s(?: and {_MOVE}s)?)\b"
)
_NEGATED_TREND = re.compile(rf"(?:{_NEGATION} {_FILLER}|\bnon-)(?:{_UP}|{_DOWN}|{_FLAT})\b")
_EITHER_TREND = re.compile(
    rf"\b(?:{_UP}|{_DOWN}|{_FLAT})(?: trend)?(?: or |/)(?:\w+ )?(?:{_UP}|{_DOWN}|{_FLAT})\b|\brevers(?:e|al)"
)
_OPENING = re.compile(r"(^|[.] )((?:overall|generally|in general|on the whole|on average|mostly)),")
_SUCCESSION = re.compile(r"\b(?:then|followed by|before|until|after|afterwards|finally|subsequent\w*)\b")
_PHASE = re.compile(r"[.,;]|\b(?:then|followed by|before|but|while|whereas|although|though|until|with)\b")


def _read_trend(text: str) -> _Reading:
    """The direction that is said of the whole series."""
    if not text:
        return _NOT_MENTIONED
    text = _NO_TREND.sub(lambda said: " flat " if said["phase"] else " overall flat ", text)
    text = _NEGATED_TREND.sub(" ", _TREND_ASIDES.sub(" ", text))
    if either := _EITHER_TREND.search(text):
        return _Reading(None, f"{_quote(either[0])} is no one direction")
    # "Overall, it rises" is said of the rise; "Overall, it rises, then falls" of neither phase.
    text = _OPENING.sub(r"\1" if _SUCCESSION.search(text) else r"\1\2", text)
    named, overall = set(), set()
    for phase in _PHASE.split(text):
        directions = {found.lastgroup or "" for found in _DIRECTION.finditer(phase)}
        named |= directions
        if directions and _OVERALL.search(phase):
            overall |= directions
    return _one_direction(overall or named)


def _one_direction(directions: set[str]) -> _Reading:
    moving = directions - {"flat"}
    if len(moving) == 2:
        return _Reading(None, "increasing and decreasing phases, neither said of the whole")
    if not directions:
        return _Reading(None, "no direction is named")
    return _Reading((moving or directions).pop())


_LOW = r"low|minimal|little|small|minor|weak|slight|negligible|mild|faint|limited"
_HIGH = r"high|large|strong|heavy|significant|considerable|substantial|severe|intense|pronounced"
_MEDIUM = r"medium|moderate|moderately|intermediate"
_ANY_LEVEL = rf"(?:{_LOW}|{_MEDIUM}|{_HIGH})"
_LEVEL = re.compile(rf"\b(?:(?P<low>low)|(?P<medium>{_MEDIUM})|(?P<high>high))\b")
_AMOUNT = rf"(?:(?P<low>{_LOW})|(?P<medium>{_MEDIUM})|(?P<high>{_HIGH}))"
_OTHER_NOUN = (
    r"(?:change|swing|spike|movement|jump|peak|point|trend|increase|decrease|rise|drop|slope|value|frequen|signal)"
    r"\w*"
)
_BETWEEN = r"(?:(?:and |but |or )?(?!(?:nois|and|but|or|to|with|around|about|in|of|the|is)\w*\b)[\w-]+ ){0,2}?"


def _level_of(noun: str) -> re.Pattern[str]:
    """A level that is said of the noun: "small but frequent swings", "swings are small"."""
    return re.compile(
        rf"\b{_ANY_LEVEL}(?:[ -](?:to|and|or)[ -]{_ANY_LEVEL})?[ -]{_BETWEEN}{noun}"
        rf"|\b{noun} (?:is|are|being|remains?|appears?) (?:\w+ly )?{_ANY_LEVEL}\b"
    )


_OF_OTHERS = _level_of(_OTHER_NOUN)
_OF_FLUCTUATIONS = _level_of(_WAVERING)
_NEGATED_LEVEL = re.compile(
    rf"{_NEGATION} (?:(?:a|the|that|very|too|so|as|either|at|\w+ly) )*(?:{_ANY_LEVEL}|noisy|smooth)\b"
    rf"(?: n?or (?:\w+ly )?{_ANY_LEVEL}\b)?"
)
_NO_NOISE = re.compile(
    r"\b(?:no|without|free of|(?:hardly|barely|scarcely) any) "
    r"(?:(?:any|visible|noticeable|significant|apparent|discernible|real) )?noise\b"
    r"|\bnoise(?:-| )?(?:free|less)\b"
)
_SAID_OF_NOISE = re.compile(
    rf"\b{_AMOUNT} (?:(?:amount|level|degree|intensity)s? of )?"
    r"(?:(?:random|background|overall) )?nois(?:e|y)\b"
)
_NOISE_IS = re.compile(
    r"\bnoise (?:(?:intensity|level|amplitude|in|of|the|this|time|series|data) )*"
    r"(?:(?:is|appears|seems|remains|stays|looks|to|be|at|an?|\w+ly|very|quite|rather) )+"
    rf"{_AMOUNT}\b"
)
_BARE_AMOUNT = re.compile(
    rf"(?:^|(?<=[.,;:] ))(?:(?:a|very|quite|rather|\w+ly) )*{_AMOUNT}(?: (?:level|intensity))?\b(?=[.,;]|$)"
)
_HOW_NOISY = re.compile(
    r"\b(?:(?P<low>(?:slightly|barely|hardly) noisy|smooth)"
    r"|(?P<high>(?:very|highly|extremely|strongly) noisy))\b"
)


def _read_noise(text: str) -> _Reading:
    """The level that is said of the noise, or of the fluctuations where none is said of the noise."""
    if not text:
        return _NOT_MENTIONED
    text = _NEGATED_LEVEL.sub(" ", _NO_NOISE.sub("noise is low", text))
    text = _OF_OTHERS.sub(" ", text)
    of_noise = _OF_FLUCTUATIONS.sub(" ", text)
    for patterns, said in (
        ((_LEVEL, _SAID_OF_NOISE, _NOISE_IS), of_noise),
        ((_BARE_AMOUNT,), of_noise),
        ((_LEVEL,), text),
        ((_HOW_NOISY,), text),
    ):
        found = [match for pattern in patterns for match in pattern.finditer(said)]
        if found:
            return _one_level(found, said)
    return _Reading(None, "no level is named")


def _one_level(found: list[re.Match[str]], text: str) -> _Reading:
    levels = {match.lastgroup for match in found}
    if len(levels) == 1:
        return _Reading(levels.pop())
    starts, ends = zip(*(match.span(match.lastgroup or 0) for match in found), strict=True)
    span = text[min(starts) : max(ends)]
    return _Reading(None, f"{_quote(span)} names {'two' if len(levels) == 2 else 'three'} levels")


def _quote(text: str) -> str:
    return f"'{text}'" if len(text) <= 40 else f"'{text[:37]}...'"


_BEGINNING = (
    r"beginning|begin|start|outset|early|initially|first (?:quarter|points?|values?|few \w+)"
    r"|(?:initial|starting|opening) (?:part|portion|section|segment|quarter|points?|values?)"
    r"|left(?:-hand)? (?:end|side|edge)"
    rf"|(?:starts|begins)(?= (?:at|with|from|near|on) (?:\w+ ){{0,2}}(?:{_MAXIMUM}|{_MINIMUM})\b)"
)
_MIDDLE = r"middle|mid|mid-?point|mid-?way|half-?way|cent(?:er|re|ral)|(?:second|third) quarter"
_END = (
    r"end|ending|late|right(?:-hand)? (?:end|side|edge)"
    r"|(?:last|final) (?:quarter|points?|values?|few \w+|part|portion|section|segment|stages?)"
    rf"|(?:ends|finishes)(?= (?:at|with|near|on) (?:\w+ ){{0,2}}(?:{_MAXIMUM}|{_MINIMUM})\b)"
)
_PLACE = rf"(?:{_BEGINNING}|{_MIDDLE}|{_END})"
_WHOLE = (
    r"(?:(?:the|this|that|its|entire|whole|full|observed|given|total|overall|time|data|observation) )*"
    r"(?:series|period|data|dataset|plot|graph|chart|sequence|signal|timeline|timeframe|time|observations?|record"
    r"|range|interval|window|curve|axis|x-axis|line|span|measurements?|duration|trace)\b"
)
_COUPLED = r" ?(?:,? and|/|&|,? as well as) ?(?:the |its )?(?:global |overall |absolute )?"
_EVENT = re.compile(
    # Matched without a name, so passed over: a place denied, of a part or too coarse; a mere landmark.
    rf"{_NEGATION}(?: (?!and|but|while)[\w-]+){{0,4}}? {_PLACE}\b"
    rf"|\b(?:{_PLACE}(?: (?:part|portion|section|segment|phase))? of (?!{_WHOLE})[\w-]+(?: [\w-]+)?"
    r"|(?:first|second|last|latter|former|final) (?:half|third|two thirds)"
    rf"|(?<!just )(?<!shortly )(?<!slightly )(?<!right )(?:after|past|beyond|before) the (?:{_MIDDLE})"
    rf"|(?:before|after|than|following) (?:the|its|this|that) (?:\w+ )?(?:{_MAXIMUM}|{_MINIMUM})"
    r"(?! (?:at|in|near|towards?|around|is))"
    rf"|(?P<local>(?:local|secondary|second|another|other|smaller) (?:{_MAXIMUM}|{_MINIMUM}))"
    rf"|(?P<both>both|extrema|(?:{_MAXIMUM}){_COUPLED}(?:{_MINIMUM})|(?:{_MINIMUM}){_COUPLED}(?:{_MAXIMUM}))"
    rf"|(?P<maximum>{_MAXIMUM})|(?P<minimum>{_MINIMUM})"
    rf"|(?P<beginning>{_BEGINNING})|(?P<middle>{_MIDDLE})|(?P<end>{_END})"
    r"|(?P<clause>and|while|whereas|but))\b|(?P<stop>[,.;])"
)
_SUBJECTS = {
    "maximum": ("maximum",),
    "minimum": ("minimum",),
    "both": ("maximum", "minimum"),
    "local": (),
}
_ORDER = re.compile(rf"\b(?:(?P<maximum>{_MAXIMUM})|(?P<minimum>{_MINIMUM}))\b")


def _read_extrema(text: str) -> dict[str, _Reading]:
    """The place that is said of the maximum and of the minimum."""
    events = [event.lastgroup for event in _EVENT.finditer(text) if event.lastgroup]
    if "respectively" in text:
        said = _in_order([event for event in events if event in FACETS["maximum"]], text)
    else:
        said = _by_clause(events)
    mentioned = set(events)
    return {
        facet: _one_place(said[facet]) if {facet, "both"} & mentioned else _NOT_MENTIONED
        for facet in ("maximum", "minimum")
    }


def _one_place(places: set[str]) -> _Reading:
    if len(places) == 1:
        return _Reading(next(iter(places)))
    if not places:
        return _Reading(None, "no place is named")
    return _Reading(None, " and ".join(place for place in FACETS["maximum"] if place in places) + " are named")


def _in_order(places: list[str], text: str) -> dict[str, set[str]]:
    """ "The maximum and minimum are at the end and beginning, respectively." """
    subjects = list(dict.fromkeys(found.lastgroup or "" for found in _ORDER.finditer(text)))
    said: dict[str, set[str]] = {"maximum": set(), "minimum": set()}
    if len(subjects) == len(places) == 2:
        said |= {subject: {place} for subject, place in zip(subjects, places, strict=True)}
    return said


def _by_clause(events: list[str]) -> dict[str, set[str]]:
    said: dict[str, set[str]] = {"maximum": set(), "minimum": set()}
    subject: tuple[str, ...] | None = None
    waiting: list[str] = []  # places named before any extremum: "At the end, the maximum is reached"
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
    clause: list[str] = []
    for event in events:
        if event in ("clause", "stop"):
            yield clause
            clause = []
        else:
            clause.append(event)
    yield clause


def _attach(clause: list[str], subject: tuple[str, ...] | None) -> Iterable[tuple[str, tuple[str, ...] | None]]:
    """Pair each place of a clause with its extrema: those before it, or after it if a place comes first."""
    place_first = bool(clause) and clause[0] not in _SUBJECTS
    for index, event in enumerate(clause):
        if event in _SUBJECTS:
            subject = _SUBJECTS[event]
        else:
            later = (_SUBJECTS[after] for after in clause[index:] if after in _SUBJECTS)
            yield event, next(later, subject) if place_first else subject
