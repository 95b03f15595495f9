"""Parse which of two series lies above the other in each third. See the package docstring for the rules."""

import re
from functools import lru_cache

from tsd.tasks.language.statements import Said, Statement, by_third, statements
from tsd.tasks.language.words import NEGATION, Reading, quote

_ABOVE = r"(?:above|higher|greater|larger|on top)"
_BELOW = r"(?:below|under|underneath|beneath|lower|smaller)"
_WHERE = re.compile(rf"\b(?:{_ABOVE}|{_BELOW})\b")
_SERIES = r"(?:(?:time )?series|one|lines?|curves?|graphs?|plots?)"
_NAMES = (  # other names of the two series
    (re.compile(rf"\b{_SERIES} (?:no\.? ?|number )?(?:1|one|a)\b|\bthe former\b"), "the first series"),
    (re.compile(rf"\b{_SERIES} (?:no\.? ?|number )?(?:2|two|b)\b|\bthe latter\b"), "the second series"),
)
_LEAD = re.compile(
    r"\b(?:relative|compared|in comparison|with respect) (?:to|with) the (?P<name>first|second)"
    r"(?: (?:series|one))?\b,?"
)
_VERBS = (
    (re.compile(r"\b(first|second)(?: series)? ?> ?(?=(?:the )?(?:first|second)\b)"), r"\1 is above the "),
    (re.compile(r"\b(first|second)(?: series)? ?< ?(?=(?:the )?(?:first|second)\b)"), r"\1 is below the "),
    (
        re.compile(r"\bnever (?:once )?(?:falls|drops|dips|goes|gets|sinks|comes) (?:below|under|beneath)\b"),
        "is above",
    ),
    (re.compile(r"\bnever (?:once )?(?:rises|climbs|goes|gets|comes) above\b"), "is below"),
    (re.compile(r"\b(?:is|lies|runs|sits|stays|remains) over (?=(?:the )?(?:first|second|other)\b)"), "is above "),
    (re.compile(r"\b(?:exceeds?|surpass(?:es)?|dominates?|tops)(?= (?:the )?(?:first|second)\b)"), "is above"),
    (
        re.compile(
            r"\b(?:has |shows? |with |takes? )(?:clearly |consistently |mostly )?(?=higher|lower|larger|smaller)"
        ),
        "is ",
    ),
    (re.compile(r"\b(?:has )?(?:dropped|fallen|sunk|slipped|gone) (?=below|under|beneath)"), "is "),
    (re.compile(r"\b(?:has )?(?:risen|climbed|moved|gone) (?=above)"), "is "),
    (
        re.compile(rf"\bthe (?P<where>higher|lower|upper) (?:of the two|(?:one|{_SERIES})(?: of the two)?)\b"),
        r"\g<where>",
    ),
    (re.compile(r"\bupper\b"), "higher"),
)
_HEDGE = r"(?:sometimes|at times|partly|now|half the time|occasionally)"
_BOTH_SIDES = (
    (
        re.compile(rf"\b{_HEDGE} {_ABOVE}(?: the \w+)?,? (?:and |or |but )?{_HEDGE} {_BELOW}\b"),
        "alternates",
    ),
    (
        re.compile(rf"\b{_HEDGE} {_BELOW}(?: the \w+)?,? (?:and |or |but )?{_HEDGE} {_ABOVE}\b"),
        "alternates",
    ),
    (re.compile(rf"\b(?:{_ABOVE} (?:and|or) {_BELOW}|{_BELOW} (?:and|or) {_ABOVE})\b"), "around"),
)
_TURNS = (
    r"(?:alternat(?:es?|ed|ing|ely|ions?)|(?:takes?|taking) turns|overlap\w*|(?:inter|en)twin\w*|interweav\w*"
    r"|interlac\w*|intermingl\w*|(?:en)?tangled?"
    r"|keeps? (?:on )?(?:swapp|chang|switch|trad)ing(?: (?:places|sides|positions))?"
    r"|(?:trade|swap|change|switch|exchange)s? (?:places|sides|positions|order) (?:repeatedly|often|several times"
    r"|many times|constantly|frequently)"
    rf"|neither (?!at |in |the )(?:\w+ ){{0,4}}?(?:{_ABOVE}|{_BELOW}|dominates)(?: (?:the other|for long))?)"
)
_APART = re.compile(
    rf"{NEGATION} (?:\w+ ){{0,2}}?(?:cross\w*|meet\w*|intersect\w*|touch\w*|overlap\w*)(?: (?:each|one an)other)?"
)
_MOSTLY = re.compile(
    r"\b(?:mostly|mainly|largely|predominantly|generally|usually|overall|in general|on average|on the whole"
    r"|(?:for |during )?(?:the )?(?:most|(?:vast |large )?majority)(?: of (?:the|its) (?:\w+ )?\w+| of it)?"
    r"|almost|nearly)\b"
)
_OPEN = re.compile(
    r"\b(?:rare(?:ly)?|seldom|hardly|barely|scarcely|sometimes|occasional(?:ly)?|often|intermittent(?:ly)?|few|parts?"
    r"|from (?:above|below|under|beneath)"
    r"|partly|partial(?:ly)?|only (?:at|in|for|near|on|when|while|during|around)"
    r"|until|till|after|before|last|eventually|once|when(?:ever)?"
    r"|swap\w*|switch\w*|revers\w*|overt(?:ak\w+|ook)|trad\w+ places|chang\w+ (?:places|sides)"
    r"|perhaps|maybe|possibly|probably|likely|may|might|could|would|seems?|appears?|tends?|if|unless|either|whether"
    r"|unclear|uncertain|cannot|vice versa|true|untrue|false|the case"
    r"|(?:first|second)(?: series)? (?:and|or|nor) (?:the )?(?:first|second))\b"
    # "rises above" and "trends lower" describe a movement, "peaks higher" a point
    r"|\b(?:ris|climb|grow|go|mov|jump|cross|com|shoot|push|edg|drift|head|trend|drop|fall|dip|sink|plung|slip|peak"
    rf"|reach|spik|swing|becom|get|end|start|finish|beg[iu]n)(?:e?s|n?ing|e)? (?:\w+ )?(?:{_ABOVE}|{_BELOW})\b"
)
_CHANGES = re.compile(
    r"\b(?:swap|switch|revers|overt[ao]k|exchang|trad|opposite|takes? over|(?:order|position|lead)\w* chang)\w*"
)
_ANOTHER_THING = (
    r"it|they|both|each|max\w*|min\w*|peaks?|troughs?|noise|amplitude|variance|variability|slope|trend|spread"
    r"|range|rate|mean|median"
)
_TRAILING = re.compile(r"(?: (?:only|again|there|too|also|as well|instead))+\s*$")
_OF_ANOTHER_THING = re.compile(
    r"\b(?:max\w*|min\w*|peaks?|troughs?|noise|amplitude|variance|variability|slope|trend|spread|range|rate|gap|distance"
    r"|difference)(?: \w+)? (?:of|between) "
)
_SUBJECTS = re.compile(
    r"(?:(?:and|but|so|then|here|there|now|while|clearly|both|the|values?|level|of) )*(?P<name>first|second)\b"
)
_ELLIPSIS = re.compile(
    rf"^(?:it |which |that )?(?:(?:is|are|lies|stays|remains|runs|sits|being|ends up) )?"
    r"(?P<how>(?:\w+ly |well |far |just |still |back )*)"
    rf"(?=(?:{_ABOVE}|{_BELOW})\b)"
)


def _lies(whose: str, where: str, other: str) -> str:
    """A pattern for `whose` series being `where`, if the comparison is with the other series or implicit.

    The series must be the last one named before the word.
    """
    return (
        rf"\b{whose}\b(?:(?!\b(?:first|second|{_ANOTHER_THING})\b)[^.;])*?\b{where}(?: values| levels?)?\b"
        rf"(?: (?:than |of )?(?:(?:that|those|the (?:values|level|curve|line)) of )?"
        rf"(?:the )?(?:{other}|other|it)\b(?!')"
        r"|(?=[.,;:!?)]|$)|(?= (?:for|by|at all|again)\b))"
    )


_POSITIONS = {
    "above": re.compile(rf"{_lies('first', _ABOVE, 'second')}|{_lies('second', _BELOW, 'first')}"),
    "below": re.compile(rf"{_lies('first', _BELOW, 'second')}|{_lies('second', _ABOVE, 'first')}"),
    "alternating": re.compile(rf"\b{_TURNS}\b"),
}
_TURN = re.compile(rf"\b{_TURNS}\b")
_NEGATED = re.compile(rf"{NEGATION}(?!\w)")
_NO_TURNS = re.compile(rf"{NEGATION} (?:\w+ ){{0,3}}?{_TURNS}\b|\bnon-{_TURNS}\b")


@lru_cache(maxsize=1024)  # asked for once a third
def read_position(text: str) -> dict[str, Reading]:
    """Where the first series lies in each third, by its name: above, below or alternating. text: normalised."""
    for pattern, plain in (*_NAMES, *_VERBS, *_BOTH_SIDES):
        text = pattern.sub(plain, text)
    found: list[Said] = []
    lead = _LEAD.search(text)
    subject = "second" if lead and lead["name"] == "first" else "first"  # of the next elliptical statement
    about = True  # whether the text was about the position so far
    for statement in statements(_LEAD.sub(" ", text)):
        said = _MOSTLY.sub(" ", statement.said)
        mostly = said != statement.said
        said = " ".join(_TRAILING.sub("", _APART.sub(" ", said).rpartition(": ")[2]).split())
        named = _SUBJECTS.match(said)
        subject = named["name"] if named and not _ELLIPSIS.match(said) else subject
        if _WHERE.search(said) or _TURN.search(said) or _CHANGES.search(said):
            about = True
            found.append(Said(statement, _of(statement, _whole(said, subject), mostly)))
        elif about and statement.said == "not" and statement.thirds:
            found.append(Said(statement, Reading(None, "'not' leaves the position open")))
    return by_third(found)


def _whole(said: str, subject: str) -> str:
    """An elliptical statement with its subject: "below it" as "the first is below it"."""
    shortened = _ELLIPSIS.match(said)
    return f"the {subject} is {said[shortened.start('how') :]}" if shortened else said


def _of(statement: Statement, said: str, mostly: bool) -> Reading:
    """The position that a statement names for its thirds, or for the whole."""
    if "o" in statement.other:
        return Reading(None, "the place is left open")
    reading = _position(said)
    whole = not (statement.thirds or "r" in statement.other)
    if whole and mostly and "t" not in statement.other:
        return Reading(None, "is said of most of the series")
    if whole and reading.label == "alternating" and "t" not in statement.other:
        return Reading(None, "they need not alternate in each third")
    return reading


def _position(said: str) -> Reading:
    """The one position that a statement names."""
    if partly := _OPEN.search(_TURN.sub(" ", said)):
        return Reading(None, f"{quote(partly[0])} leaves the position open")
    if thing := _OF_ANOTHER_THING.search(said):
        return Reading(None, f"{quote(thing[0])} is not of the series")
    found = [label for label, pattern in _POSITIONS.items() if pattern.search(said)]
    if "alternating" in found:
        found = ["alternating"] if not _WHERE.search(_TURN.sub(" ", said)) else found
        negated = _NO_TURNS.search(said)
    else:
        negated = _NEGATED.search(said)
    if len(found) != 1:
        return Reading(None, f"{quote(said)} says {' and '.join(found)}" if found else "no position is named")
    if negated:
        return Reading(None, f"{quote(negated[0])} negates")
    places = sum(1 for _ in _WHERE.finditer(said))
    if found[0] != "alternating" and sum(1 for _ in _POSITIONS[found[0]].finditer(said)) < places:
        return Reading(None, f"{quote(said)} also speaks of another position")
    return Reading(found[0])
