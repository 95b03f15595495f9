"""Parse intersections and relative position of two series. See the package docstring for the rules."""

import re

from tsd.tasks.language.words import NEGATION, NOT_MENTIONED, Reading, quote

_CROSS = r"(?:cross(?:es|ing|ings)?|intersect(?:s|ion|ions|ing)?|meet(?:s|ing)?)"
_CROSSES = rf"{_CROSS}(?: each other| one another)?"
_POINT = r"(?:points?|places?|locations?|positions?)"
_CROSSING = rf"(?:(?:crossing|intersection|meeting) {_POINT}|{_POINT} of intersection|crossings?|intersections?)"
_IS = r"\b(?:crossings|intersections)(?::| is| are| =) (?:exactly |only |just )?"
_ZERO = r"(?:zero|(?<![\d.])0(?!\.?\d))"
_ONE = r"(?:one(?! another| of)|single|(?<![\d.])1(?!\.?\d))"
_SEVERAL = (
    r"(?:several|many|multiple|numerous|frequent|a few|a couple of|dozens of|two|three|four|five|six|seven|eight"
    r"|nine|ten|eleven|twelve|(?<![\d.])(?:[2-9]|[1-9]\d+)(?!\.?\d))"
)
_EXACTLY = r"(?:exactly |only |just )?"
_NOT_A_COUNT = r"(?!(?:only|just|always|often|frequently|repeatedly|simply|merely)\b)"  # "not always crossing"
_KIND = r"(?:(?!(?:series|lines?|curves?|graphs?|of)\b)\w+ )?"  # "one clear crossing", not "one line crossing"

_SERIES = re.compile(
    r"\b(?:(?:the|both|these|its) )?two (?:time series|series|lines|curves|graphs|plots)\b"
    rf"|\b(?:the|these) two\b(?! (?:\w+ )?{_CROSSING}\b)"
)
_NOT_ONE = re.compile(
    rf"\b(?P<not>not|no) (?:even )?(?:one|a single) (?={_CROSSING}\b)"
    rf"|\b(?P<never>never|not) (?:even )?once(?= {_CROSS})"
    r"|(?P<even> even once)\b"
)
_NOT_AGAIN = re.compile(
    rf"{NEGATION} (?:\w+ ){{0,2}}?{_CROSSES} (?:again|any ?more|afterwards?|thereafter|after that)\b"
)
_VAGUE = re.compile(
    r"\b(?:(?:more|fewer|less|other) than|more or less|at (?:the )?(?:least|most)|almost|nearly|up to|as many as"
    r"|(?:maximum|minimum) of|perhaps|maybe|possibly|probably|likely|roughly|approximately|sometimes"
    r"|occasional(?:ly)?|rare(?:ly)?|seldom|hard(?:ly)?|barely|scarcely|may|might|could|would|seems?|appears?|if|unless|whether"
    r"|unclear|uncertain|not only"
    rf"|or(?! (?:{_CROSS}|touch\w*|overlap\w*)\b)"
    r"|(?:about|around)(?! (?:the|its|half|mid|index|position|step|time)\w*\b)"
    r"|(?:zero|one|two|[012])(?: to | ?[-\u2013] ?)(?:one|two|three|\d))\b"
    rf"|{NEGATION} (?:\w+ ){{0,3}}?(?:just|only|exactly|merely|once|twice|{_ONE}|{_SEVERAL})\b"
)
_COUNTS = {
    "none": re.compile(
        rf"{NEGATION} (?:{_NOT_A_COUNT}\w+ ){{0,2}}?{_CROSS}\b|\b{_ZERO} (?:\w+ )?{_CROSSING}\b|\bnone\b(?! of)"
        rf"|\b{_CROSSES} {_ZERO} times\b|{_IS}{_ZERO}\b|^{_ZERO}(?: times)?\.?$"
    ),
    "one": re.compile(
        rf"\b{_CROSS}(?: [\w-]+){{0,5}}? (?:once(?! (?:they|it|the|again)\b)|{_ONE} times?\b)"
        rf"|\b{_CROSSES} (?:at|in) {_EXACTLY}(?:a )?{_ONE} (?:\w+ )?{_POINT}\b"
        rf"|\b{_ONE} {_KIND}{_CROSSING}\b|{_IS}(?:a )?{_ONE}\b"
        rf"|^{_EXACTLY}(?:once(?=[.,;]|$)|{_ONE}(?: times?)?\.?$)"
    ),
    "several": re.compile(
        rf"\b{_CROSS}(?: [\w-]+){{0,5}}? (?:{_SEVERAL} (?:\w+ )?times\b|twice\b(?! as)|thrice\b)"
        rf"|\b{_CROSSES} (?:repeatedly|often|frequently|again and again)\b"
        rf"|\b(?:repeatedly|frequently|often) {_CROSS}\b"
        rf"|\b{_CROSSES} (?:at|in) {_EXACTLY}{_SEVERAL} (?:\w+ )?{_POINT}\b"
        rf"|\b{_SEVERAL} {_KIND}{_CROSSING}\b|{_IS}{_SEVERAL}(?!\w)"
        rf"|^{_EXACTLY}(?:(?:{_SEVERAL} times|twice)\b(?! as)|{_SEVERAL}\.?$)"
    ),
}
# Patterns that limit a count to a part: "no crossing until the end", "once at the start and again at the end".
_OF_A_PART = {
    "none": re.compile(
        r"\b(?:until|till|before|after|except|besides|apart from|aside from|beyond|but one|again"
        r"|(?:in|during|at|near|over) the (?:first|second|middle|last|initial|final|beginning|start|end))\b"
    ),
    "one": re.compile(r"\b(?:again|another)\b|\b(?:once|one|1) [^.]*\b(?:and|then) (?:once|one|1)\b"),
}

_ABOVE = r"(?:above|higher|greater|on top)"
_BELOW = r"(?:below|under|beneath|lower)"
_WHERE = re.compile(rf"\b(?:{_ABOVE}|{_BELOW})\b")
_LEAD = re.compile(
    r"\b(?:relative|compared|in comparison|with respect) (?:to|with) the (?:first|second)(?: (?:series|one))?\b,?"
)
_THROUGHOUT = re.compile(
    r"\bfrom (?:the )?(?:start|beginning) (?:to|until|through) (?:the )?(?:end|finish)\b"
    r"|\b(?:almost|nearly) (?=always|all\b|entirely|throughout|the (?:whole|entire))"
)
_BOTH_SIDES = re.compile(rf"\b(?:{_ABOVE} (?:and|or) {_BELOW}|{_BELOW} (?:and|or) {_ABOVE})\b")
_TURNS = r"(?:alternat(?:es?|ed|ing|ely|ions?)|(?:takes?|taking) turns|overlap\w*|intertwin\w*)"
_APART = re.compile(
    rf"{NEGATION} (?:\w+ ){{0,2}}?(?:{_CROSSES}|overlap\w*|touch\w*)(?=[.,;]|$| and\b)"
    rf"(?! and (?:{_ABOVE}|{_BELOW}))"
)
_PARTLY = re.compile(
    r"\b(?:rare(?:ly)?|seldom|hardly|barely|scarcely|sometimes|some|occasional(?:ly)?|often|intermittent(?:ly)?"
    r"|brief(?:ly)?|momentar(?:y|ily)|temporar(?:y|ily)|short(?:ly)?|few|parts?|partly|partial(?:ly)?|places"
    r"|only (?:at|in|for|near|on|when|while|during|around)|at (?:times|points?|one|certain)"
    r"|for a (?:while|time|bit)"
    r"|start(?:s|ed|ing)?|beg[aiu]n(?:s|ning)?|ends?|ended|ending|finish\w*|at first|initial(?:ly)?|until|till"
    r"|then|after(?:wards?)?|before|later?|last|final(?:ly)?|eventually|again|once|when(?:ever)?|where|except"
    r"|half|halves|thirds?|quarters?|mid\w*|swap\w*|switch\w*|revers\w*|overt(?:ak\w+|ook)"
    r"|trad\w+ places|chang\w+ places"
    r"|perhaps|maybe|possibly|probably|likely|may|might|could|would|seems?|tends?|almost|nearly|if|unless|either"
    r"|whether|unclear|uncertain|cannot|vice versa"
    r"|(?:between|from|near|around|during|since|past) (?:\w+ ){0,2}\d+"
    r"|(?:first|second)(?: series)? (?:and|or|nor) (?:the )?(?:first|second))\b"
    # "rises above" and "trends lower" describe a movement, "peaks higher" a point
    r"|\b(?:ris|climb|grow|go|mov|jump|cross|com|shoot|push|edg|drift|head|trend|drop|fall|dip|sink|plung|slip|peak"
    rf"|reach|spik|swing|becom|get)(?:e?s|ing|e)? (?:\w+ )?(?:{_ABOVE}|{_BELOW})\b"
)
_ANOTHER_THING = (
    r"it|they|both|each|max\w*|min\w*|peaks?|troughs?|noise|amplitude|variance|variability|slope|trend|spread"
    r"|range|rate|mean|median"
)


def _lies(whose: str, where: str, other: str) -> str:
    """A pattern for `whose` series being `where`, if the comparison is with the other series or implicit.

    The series must be the last one named before the word.
    """
    return (
        rf"\b{whose}\b(?:(?!\b(?:first|second|{_ANOTHER_THING})\b)[^.;])*?\b{where}(?: values| levels?)?\b"
        rf"(?: (?:than |of )?(?:(?:that|those|the (?:values|level|curve|line)) of )?"
        rf"(?:the )?(?:{other}|other|it)\b(?!')"
        r"|(?=[.,;:!?)]|$)|(?= (?:and|while|whereas|with) the (?:first|second)\b)"
        r"|(?= (?:for |during )?(?:most|all\b|the (?:whole|entire|majority|vast majority)|throughout|overall"
        r"|always|at all|everywhere|in general|generally|by)\b))"
    )


_POSITIONS = {
    "above": re.compile(rf"{_lies('first', _ABOVE, 'second')}|{_lies('second', _BELOW, 'first')}"),
    "below": re.compile(rf"{_lies('first', _BELOW, 'second')}|{_lies('second', _ABOVE, 'first')}"),
    "alternating": re.compile(rf"\b{_TURNS}\b"),
}
_NEGATED = re.compile(rf"{NEGATION}(?!\w)")
_NO_TURNS = re.compile(rf"{NEGATION} (?:\w+ ){{0,3}}?{_TURNS}\b|\bnon-{_TURNS}\b")


def read_intersections(text: str) -> Reading:
    """How often the two series intersect according to the text: none, one or several."""
    said = _NOT_AGAIN.sub(" ", _NOT_ONE.sub(_without_one, _SERIES.sub("they", text)))
    if vague := _VAGUE.search(said):
        return Reading(None, f"{quote(vague[0])} leaves the count open")
    reading = _one_of(said, _COUNTS, "no count is named")
    part = _OF_A_PART.get(reading.label or "")
    if part and (found := part.search(said)):
        return Reading(None, f"{quote(found[0])} makes it the count of a part")
    return reading


def _without_one(said: re.Match[str]) -> str:
    """Rewrite "not a single crossing" as no crossing, and "never once" as never."""
    return "no " if said["not"] else said["never"] or ""


def read_position(text: str) -> Reading:
    """Position of the first series relative to the second: above, below or alternating."""
    said = _LEAD.sub(" ", _THROUGHOUT.sub("throughout", text))
    said = _APART.sub(" ", _BOTH_SIDES.sub("around", said))
    if partly := _PARTLY.search(said):
        return Reading(None, f"{quote(partly[0])} leaves the position open")
    reading = _one_of(said, _POSITIONS, "no position is named")
    if reading.label is None:
        return reading
    if reading.label == "alternating":
        negated = _NO_TURNS.search(said)
    else:
        negated = _NEGATED.search(said)
        stated = sum(1 for _ in _POSITIONS[reading.label].finditer(said))
        if stated < sum(1 for _ in _WHERE.finditer(said)):
            return Reading(None, f"{quote(text)} also speaks of another position")
    return Reading(None, f"{quote(negated[0])} negates") if negated else reading


def _one_of(text: str, patterns: dict[str, re.Pattern[str]], nothing: str) -> Reading:
    """A reading from the one pattern that matches. nothing: the reason if none does."""
    if not text:
        return NOT_MENTIONED
    found = [label for label, pattern in patterns.items() if pattern.search(text)]
    if len(found) > 1:
        return Reading(None, f"{quote(text)} says {' and '.join(found)}")
    return Reading(found[0]) if found else Reading(None, nothing)
