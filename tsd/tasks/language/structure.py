"""Parse season, level shift, outlier and volatility from sentences. See the package docstring for the rules.

Each reader takes the normalised text on its own topic. What it denies is read first and taken out of the text;
what the rest states must be one class.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache

from tsd.tasks.language.words import COMES_BACK, NEGATION, NOT_MENTIONED, Reading, plain, quote

# Words between a negation and what it denies. None of them is an amount: "no strong season" denies no season.
# Each word is matched in one way only (atomic groups), so that many of them take no exponential time.
_FILL_WORDS = (
    r"(?:an?|any|the|its|clear|clearly|obvious|discernible|distinct|definite|visible|visibly|apparent|evident"
    r"|noticeable|recogni[sz]able|detectable|real|true|regular|overall|single|isolated|abrupt|sudden|sharp|permanent"
    r"|lasting|show|shows|exhibit|display|have|has|contain|see|observe|detect|find|signs?|evidence|hint|trace|kind"
    r"|sort|of|to|be|appear|seem|in|it|at all|such|actual)"
)
_FILL = rf"(?>{_FILL_WORDS} )*"
_DENIED = rf"(?:{NEGATION}|\bfree (?:of|from)|\bnone of (?:the|its) \w+ (?:is|are)) "
_NONE = re.compile(
    r"(?:^|(?<=[.,;:] )|(?<=\bis )|(?<=\bare ))(?:none|absent|missing|n/a|nothing)\b(?! of)|^no\.?$"
)
_BUT = r"(?:except(?: for)?|apart from|aside from|but for|save for)"
_EXCEPT = re.compile(rf"\b(?:none|no \w+|free of \w+),? {_BUT} ")  # "no outliers except for a spike"
_AND = r"(?:,? (?:n?or|and) )"


def _denial(nouns: str) -> re.Pattern[str]:
    """A pattern for the denial of a thing, and of others that are named with it: "no level shift or trend"."""
    return re.compile(rf"{_DENIED}{_FILL}(?:{nouns})\b|\b(?:{nouns}) (?:is|are) (?:absent|missing)\b")


def _terms(classes: Mapping[str, str]) -> re.Pattern[str]:
    """A pattern with a group for each class. classes: by name, a pattern of its words."""
    return re.compile("|".join(rf"\b(?P<{name}>{words})\b" for name, words in classes.items()))


def _negated(classes: Mapping[str, str]) -> re.Pattern[str]:
    """A pattern for classes that are denied: "not strong", "neither growing nor shrinking"."""
    words = "|".join(classes.values())
    fill = rf"(?>(?:{_FILL_WORDS}|very|too|so|\w+ly) )*"
    return re.compile(rf"{_DENIED}{fill}(?:{words})\b(?:{_AND}{fill}(?:{words})\b)*")


def _one(found: Iterable[str], text: str, what: str) -> Reading:
    """The one class that a text states. what: it is a class of."""
    named = list(dict.fromkeys(found))
    if len(named) == 1:
        return Reading(named[0])
    if named:
        return Reading(None, f"{quote(text)} names {' and '.join(named)}")
    return Reading(None, f"no {what} is named", silent=True)


def _names(pattern: re.Pattern[str], text: str) -> list[str]:
    return [match.lastgroup or "" for match in pattern.finditer(text)]


# ---- Season

_SEASON = (
    r"(?:seasonal|periodic|cyclic(?:al)?|repeating|recurring)"
    r" (?:pattern|component|behaviou?r|cycle|structure|variation)s?"
    r"|season(?:s|al|ality)?|period(?:ic|icity)|cycl(?:es?|ic|ical|icality)|repetitions?"
)
_REPEATS = r"repeat(?:s|ing)?"
_STRENGTHS = {
    "weak": r"weak(?:ly)?|mild(?:ly)?|slight(?:ly)?|faint(?:ly)?|subtle|minor|small|low|moderate(?:ly)?",
    "strong": r"strong(?:ly)?|pronounced|marked(?:ly)?|dominant|prominent|large|high(?:ly)?|substantial"
    r"|considerable",
}
_NO_SEASON = _denial(rf"{_SEASON}|{_REPEATS}")
_UNSEASONAL = re.compile(r"\b(?:cycles|seasons): (?:0|none)\b|\b(?:non-?|un)seasonal\b|\b(?:a|non-?)periodic\b")
_STRENGTH, _NO_STRENGTH = _terms(_STRENGTHS), _negated(_STRENGTHS)
_ANY_STRENGTH, _OTHERS = (
    "|".join(_STRENGTHS.values()),
    r"(?:trend|noise|spike|dip|outlier|shift|rise|fall|level)s?",
)
_STRENGTH_OF_OTHERS = re.compile(
    rf"\b(?:{_ANY_STRENGTH}) (?:(?:evidence|signs?|indications?|hints?) (?:of|for)|irregular|random|erratic)\b|"
    rf"\b(?:{_ANY_STRENGTH}) (?:\w+ )?{_OTHERS}\b|\b{_OTHERS} (?:is|are) (?:{_ANY_STRENGTH})\b"
)


@lru_cache(maxsize=1024)  # teachers repeat their sentences
def read_season(text: str) -> Reading:
    """The strength of the season that a text states: none, weak or strong."""
    if not text:
        return NOT_MENTIONED
    rest = _NO_STRENGTH.sub(" ", _STRENGTH_OF_OTHERS.sub(" ", plain(text)))
    denied = bool(_NO_SEASON.search(rest) or _UNSEASONAL.search(rest) or _NONE.search(rest))
    rest = _NO_SEASON.sub(" ", rest)
    return _one([*(["none"] if denied else []), *_names(_STRENGTH, rest)], text, "strength of a season")


# ---- Level shift

_AT_ONCE = r"(?:abruptly|suddenly|sharply|at once|instantly)"
_MOVES = r"(?:shift|jump|step|move|break)(?:s|ed|ing)?"
_RISES, _FALLS = r"(?:rises|rose|increases|increased|jumps)", r"(?:falls|fell|drops|dropped|decreases|decreased)"
_DIRECTIONS = {
    "up": rf"up(?:wards?)?|higher|{_RISES} {_AT_ONCE}|{_AT_ONCE} {_RISES}"
    r"|(?:sudden|abrupt|sharp) (?:rise|increase)",
    "down": rf"down(?:wards?)?|lower|drops?|{_FALLS} {_AT_ONCE}|{_AT_ONCE} {_FALLS}"
    r"|(?:sudden|abrupt|sharp) (?:drop|fall|decrease)",
}
_SHIFT = (
    rf"(?:(?:level|mean) )?{_MOVES}(?: (?:in|of) (?:the )?(?:level|mean))?"
    r"|changes?(?: (?:in|of) (?:the )?(?:level|mean))?|structural breaks?"
)
_NO_SHIFT = _denial(rf"{_SHIFT}|(?:up(?:wards?)?|higher){_AND}{_FILL}(?:down(?:wards?)?|lower)(?: (?:{_SHIFT}))?")
_SAME_LEVEL = re.compile(
    r"\b(?:level|mean) (?:(?:stays|remains|is|keeps) )(?:\w+ly )?(?:the same|constant|unchanged|stable|steady)"
    r"|\b(?:keeps|holds) (?:its|the same|one) level\b"
)
_DIRECTION, _NO_DIRECTION = _terms(_DIRECTIONS), _negated(_DIRECTIONS)
_NO_DIRECTED_SHIFT = re.compile(rf"{_DENIED}{_FILL}(?:{'|'.join(_DIRECTIONS.values())}) (?:{_SHIFT})\b")
_LEVEL_BEFORE = re.compile(  # what was, and what else drops: "from the lower level", "a drop of noise"
    r"\bfrom (?:the|an?|its) (?:lower|higher|upper)(?: level)?\b|\b(?:lower|higher) (?:\w+ )?before\b"
    r"|\b(?:drops?|falls?|rises?|increases?|decreases?) (?:of|in) (?:the )?"
    r"(?:noise|volatility|variance|amplitude)\b"
)
_FROM_TO = re.compile(
    rf"\b{_MOVES} (?:\w+ )?from (?:about )?(?P<from>\d{{1,6}}) to (?:about )?(?P<to>\d{{1,6}})(?![.\d]*\d)"
)
_NOT_OF_THE_LEVEL = re.compile(r"\bup and down\b|\b(?:up|down)ward (?:trend|slope|drift|movement)s?\b")
_SMALLER = re.compile(rf"{_DENIED}(?:\w+ )?(?:large|big|major|strong|significant|substantial) (?:{_SHIFT})\b")


@lru_cache(maxsize=1024)
def read_shift(text: str) -> Reading:
    """The direction of the level shift that a text states: none, up or down."""
    if not text:
        return NOT_MENTIONED
    if COMES_BACK.search(text):
        return Reading(None, "what comes right back is no shift")
    rest = _LEVEL_BEFORE.sub(" ", _SMALLER.sub(" ", _FROM_TO.sub(_moved, plain(text))))
    denied = bool(_NO_SHIFT.search(rest) or _SAME_LEVEL.search(rest) or _NONE.search(rest))
    rest = _NO_DIRECTION.sub(" ", _NO_DIRECTED_SHIFT.sub(" ", _NO_SHIFT.sub(" ", rest)))
    rest = _NOT_OF_THE_LEVEL.sub(" ", rest)
    return _one([*(["none"] if denied else []), *_names(_DIRECTION, rest)], text, "direction of a shift")


def _moved(found: re.Match[str]) -> str:
    """ "shifts from 20 to 60" as "up"; blank if both levels are the same."""
    change = int(found["to"]) - int(found["from"])
    return "up" if change > 0 else "down" if change < 0 else " "


# ---- Outlier

_OFF = r"(?:blips?|outliers?|outlying (?:points?|values?)|anomal(?:y|ies)|extreme (?:points?|values?))"
_POINTS = r"(?:points?|values?|observations?|readings?)"
_KINDS = {
    "spike": rf"spikes?|(?:up(?:ward)?|positive|high) {_OFF}|{_OFF} (?:upwards?|above)"
    rf"|(?:unusually|far too|extremely|isolated) (?:high|large) {_POINTS}"
    r"|(?:stands?|sticks?) out (?:upwards?|above|high)|(?:isolated|single|lone) (?:peak|jump)",
    "dip": rf"dips?|(?:down(?:ward)?|negative|low) {_OFF}|{_OFF} (?:downwards?|below)"
    rf"|(?:unusually|far too|extremely|isolated) (?:low|small) {_POINTS}"
    r"|(?:stands?|sticks?) out (?:downwards?|below|low)|(?:isolated|single|lone) (?:drop|trough)",
}
_NO_OUTLIER = _denial(
    rf"{_OFF}|(?:spikes?{_AND}{_FILL}dips?|dips?{_AND}{_FILL}spikes?)"
    rf"|{_POINTS} (?:\w+ )?(?:stands?|sticks?|standing|sticking) out"
    rf"|{_POINTS} (?:that )?(?:lies?|is|are) (?:far off"
    r"|out of the ordinary|unusual)"
)
_KIND, _NO_KIND = _terms(_KINDS), _negated(_KINDS)


@lru_cache(maxsize=1024)
def read_outlier(text: str) -> Reading:
    """The kind of outlier that a text states: none, spike or dip."""
    if not text:
        return NOT_MENTIONED
    said = _EXCEPT.sub(" ", plain(text))
    denied = bool(_NO_OUTLIER.search(said) or _NONE.search(said) or "outlier-free" in said)
    rest = _NO_KIND.sub(" ", _NO_OUTLIER.sub(" ", said))
    return _one([*(["none"] if denied else []), *_names(_KIND, rest)], text, "kind of outlier")


# ---- Volatility

_MORE, _LESS = (
    r"(?:larger|louder|noisier|wider|more volatile|stronger)",
    r"(?:smaller|quieter|calmer|less volatile|weaker)",
)
_LATE = r"(?:towards|at|near|in) the (?:end|second half|last \w+)"
_EARLY = r"(?:at|near|in) the (?:start|beginning|first half)"
_BECOMES = r"(?:becom|get|grow|turn)\w*(?: \w+ly)?"
_COURSES = {
    "growing": rf"{_BECOMES} {_MORE}|grow(?:s|ing|n|th)?|increas(?:es|ed|ing)|ris(?:es|ing)|widen(?:s|ed|ing)"
    rf"|expand(?:s|ing)|{_MORE} {_LATE}|{_LESS} {_EARLY}",
    "shrinking": rf"{_BECOMES} {_LESS}|shrink(?:s|ing)?|shrunk|decreas(?:es|ed|ing)|declin(?:es|ed|ing)"
    r"|fall(?:s|ing)|narrow(?:s|ed|ing)|diminish(?:es|ed|ing)|(?:calms?|calming|dies?|dying) down|fad(?:es|ing)"
    rf"|{_LESS} {_LATE}|{_MORE} {_EARLY}",
    "steady": r"steady|steadily|constant|stable|uniform|unchanged|evenly|homogeneous|equally \w+"
    r"|keeps? (?:its|their|the) (?:same )?size|the same",
}
_CHANGES = r"chang(?:es?|ing)(?: (?:in|of) (?:the )?(?:volatility|variance|noise))?|vary|varies"
_NO_CHANGE = _denial(_CHANGES)
_CHANGE_COURSES = {name: words for name, words in _COURSES.items() if name != "steady"}
_GROW, _SHRINK = rf"(?:{_COURSES['growing']}|grow|increase)", rf"(?:{_COURSES['shrinking']}|shrink|decrease)"
_BOTH_WAYS = re.compile(rf"{_DENIED}{_FILL}(?:{_GROW} n?or {_FILL}{_SHRINK}|{_SHRINK} n?or {_FILL}{_GROW})\b")
_BURSTS = r"bursts?|bursty|clusters?|clustered|(?:volatile|turbulent|loud) (?:phases?|episodes?)"
_COURSE, _NO_COURSE = _terms(_COURSES), _negated(_COURSES | {"bursts": _BURSTS})
_OF_THE_VALUES = re.compile(  # "the level rises but the volatility falls"
    r"\b(?:level|values|mean|trend) (?:is |are )?(?:rises?|rising|falls?|falling|increas\w+|decreas\w+|grow\w*)\b"
    r"(?! in\b)"
)
_AND_MORE = re.compile(r"\b(less|more) and \1\b")
_LESS_STEADY = re.compile(r"\b(?:less|more) (?:steady|constant|stable|uniform|homogeneous)\b")
_UNRESOLVED = re.compile(r"\b(?:n?either|nor)\b")
_IN_BURSTS = re.compile(rf"\b(?:{_BURSTS})\b")
_STEADY_CHANGE = re.compile(
    rf"\b(?:steadily|constantly|evenly|steady|constant) (?={'|'.join(_CHANGE_COURSES.values())})"
)


@lru_cache(maxsize=1024)
def read_volatility(text: str) -> Reading:
    """The course of the volatility that a text states: steady, growing or shrinking; bursts are none of them."""
    if not text:
        return NOT_MENTIONED
    said = _AND_MORE.sub(r"\1", _OF_THE_VALUES.sub(" ", plain(text)))
    rest = _STEADY_CHANGE.sub("", _BOTH_WAYS.sub(" steady ", _NO_CHANGE.sub(" steady ", said)))
    rest = _NO_COURSE.sub(" ", _LESS_STEADY.sub(" ", rest))
    if _UNRESOLVED.search(rest):
        return Reading(None, f"{quote(text)} denies courses")
    if _IN_BURSTS.search(rest):
        return Reading(None, f"{quote(text)} names bursts")
    return _one(_names(_COURSE, rest), text, "course of the volatility")
