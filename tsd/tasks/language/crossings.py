"""Parse how often two series cross in each third. See the package docstring for the rules."""

import re
from functools import lru_cache

from tsd.tasks.language.statements import Said, Statement, by_third, statements
from tsd.tasks.language.words import NEGATION, Reading, quote

_CROSS = r"(?:criss-?cross(?:es|ing)?|cross(?:es|ing|ings)?|intersect(?:s|ion|ions|ing)?|meet(?:s|ing)?)"
_CROSSES = rf"{_CROSS}(?: each other| one another)?"
_POINT = r"(?:points?|places?|locations?|positions?)"
_CROSSING = rf"(?:(?:crossing|intersection|meeting) {_POINT}|{_POINT} of intersection|crossings?|intersections?)"
_IS = r"\b(?:crossings|intersections)(?: ?:| is| are| =) (?:exactly |only |just )?"
_ZERO = r"(?:zero|(?<![\d.])0(?!\.?\d))"
_ONE = r"(?:one(?! another| of)|single|(?<![\d.])1(?!\.?\d))"
_THREE_OR_MORE = (
    r"(?:three|four|five|six|seven|eight|nine|ten|eleven|twelve|dozens|(?<![\d.])(?:[3-9]|[1-9]\d+)(?!\.?\d))"
)
_SEVERAL = (
    r"(?:several|many|multiple|numerous|frequent|repeated|a few|a couple of|a number of|a handful of"
    rf"|dozens of|plenty of|lots of|a lot of|two|(?<![\d.])2(?!\.?\d)|{_THREE_OR_MORE})"
)
_OFTEN = r"(?:repeatedly|often|frequently|constantly|continually|many times)"
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
    rf"|\b(?P<at>not|never|without) (?P<all>{_CROSS}(?: it| each other| one another)?) (?:even )?once\b"
    r"|(?P<even> even once)\b"
)
_SURELY = (  # numbers that are not exact, and leave no doubt on the class
    (re.compile(rf"\b(?:about|around|roughly|approximately|some|almost|nearly|up to) (?={_THREE_OR_MORE}\b)"), ""),
    (
        re.compile(
            r"\b(?:two|three|2|3) or (?:more|three|four|3|4)\b"
            rf"|\b(?:more|no fewer) than (?:one|two|2|{_THREE_OR_MORE})\b"
        ),
        "several",
    ),
    (re.compile(r"\bmore than (?:once|twice)\b|\b(?:at least|no fewer than) twice\b"), "several times"),
    (re.compile(r"\b(?:twice|two times) or more\b"), "several times"),
    (re.compile(r"\bat least (?=two|three|four|five|[2-9])"), ""),
)
_VAGUE = re.compile(
    r"\b(?:(?:more|fewer|less|other) than|more or less|at (?:the )?(?:least|most)|almost|nearly|up to|as many as"
    r"|(?:maximum|minimum) of|perhaps|maybe|possibly|probably|likely|roughly|approximately|sometimes"
    r"|occasional(?:ly)?|rare(?:ly)?|seldom|hard(?:ly)?|barely|scarcely|may|might|could|would|seems?|appears?|if"
    r"|unless|whether|unclear|uncertain|true|untrue|false|the case|not only|until|till|when|whenever"
    rf"|or(?! (?:{_CROSS}|touch\w*|overlap\w*|meet\w*|in\b|at\b)\b)"
    r"|(?:about|around)"
    r"|(?:zero|one|two|[012])(?: to | ?[-\u2013] ?)(?:one|two|three|\d))\b"
    rf"|{NEGATION} (?:\w+ ){{0,3}}?{_CROSSES} (?:(?:very|too|that|so) )?"
    r"(?:often|frequently|much|many|a lot)\b"
    rf"|{NEGATION} (?:\w+ ){{0,3}}?(?:just|only|exactly|merely|once|twice|{_ONE}|{_SEVERAL})\b"
)
_COUNTS = {
    "none": re.compile(
        rf"{NEGATION} (?:{_NOT_A_COUNT}\w+ ){{0,3}}?(?:{_CROSS}|touch(?:es|ing)?)\b"
        rf"|\b{_ZERO} (?:\w+ )?{_CROSSING}\b|\bnone\b(?! of)|\b{_CROSSES} (?:never|neither|{_ZERO} times)\b"
        rf"|{_IS}{_ZERO}\b"
        r"|\b(?:are|is|stay|remain|lie|run|keep)s?(?: \w+)? (?:apart|separated?)\b"
        rf"|\b(?:free of|devoid of|lacks?|lacking) (?:\w+ )?{_CROSS}\b|\b{_CROSS}-free\b"
    ),
    "one": re.compile(
        rf"\b{_CROSS}(?: [\w-]+){{0,5}}? (?:once(?! (?:they|it|the)\b)|{_ONE} times?\b)"
        rf"|\b{_CROSSES} (?:at|in) {_EXACTLY}(?:a )?{_ONE} (?:\w+ )?{_POINT}\b"
        rf"|\b{_ONE} {_KIND}{_CROSSING}\b|{_IS}(?:a )?{_ONE}\b|\bonce {_CROSS}\b"
    ),
    "several": re.compile(
        rf"\b{_CROSS}(?: [\w-]+){{0,5}}? (?:{_SEVERAL} (?:\w+ )?times\b|twice\b(?! as)|thrice\b)"
        rf"|\b{_CROSSES} {_OFTEN}\b|\b{_OFTEN} {_CROSS}\b|\bkeep (?:on )?{_CROSS}\b|\bcriss-?cross(?:es)?\b"
        rf"|\b{_CROSSES} (?:at|in) {_EXACTLY}{_SEVERAL} (?:\w+ )?{_POINT}\b"
        rf"|\b{_SEVERAL} {_KIND}{_CROSSING}\b|{_IS}{_SEVERAL}(?!\w)"
    ),
}
_ARTICLE = re.compile(
    r"\b(?:an?|the|their) (?:(?!(?:no|first|second|third|next|last|final)\b)\w+ )?"
    r"(?:crossing|intersection)(?: point)?(?!\w|s\b)(?! or\b)"
)
_DO_SO = (
    r"(?:(?:there|it|they|which|that) )?(?:(?:is|are|was|were|has|have|shows?|sees?|includes?|contains?|do so"
    r"|does so|happens|occurs?) )?"
)
_ALONE = {  # where crossings are what the text is about
    "none": rf"{_DO_SO}(?:none|never|no|nothing|not|not at all|not once|{_ZERO}(?: times)?)(?: either| at all)?",
    "one": (
        rf"{_DO_SO}{_EXACTLY}(?:a )?(?:once(?: more| again)?"
        rf"|(?:just )?(?:{_ONE}|another)(?: (?:time|more|one))?(?: of them)?)"
    ),
    "several": (
        rf"{_DO_SO}{_EXACTLY}(?:{_SEVERAL}(?: more)?(?: times| of them)?(?: more)?|twice|thrice|{_OFTEN}"
        r"|a couple|a few|lots)"
    ),
}
_ALONE_OF = {label: re.compile(rf"(?:only )?{pattern}\.?") for label, pattern in _ALONE.items()}
_ALSO = re.compile(r"\b(?:also|too|as well|again)\b ?")
_COUNT = re.compile(rf"\b(?:once|twice|never|none|times|{_SEVERAL}|{_ONE}|{_ZERO})(?!\w)")
_ABOUT = re.compile(rf"\b(?:{_CROSS}|touch\w*|apart|separated?)\b")
_ANOTHER_TOPIC = re.compile(
    r"\b(?:above|below|under|beneath|higher|lower|on top|alternat\w*|overlap\w*|trend|noise|maximum"
    r"|minimum|position)\b"
)
_ANOTHER_LINE = re.compile(  # what a series may cross beside the other one
    rf"\b{_CROSS} (?:its|their|zero|the (?:value|level|mean|median|average|axis|threshold|base|mid|zero|x\b))"
)
_ONLY_ONE = re.compile(
    rf"(?:the|their|its) (?:only|sole|lone|single|one) (?:\w+ )?{_CROSSING}"
    r"(?: (?:is|lies|occurs|happens|comes|falls|takes place|is found))?"
)
_ALL_OF_THEM = re.compile(rf"\b(?:all|both|every|each)(?: of)?(?: the| these| their)? {_CROSSING}\b")
_NONE_BESIDE = re.compile(rf"\bnone\b.*\b(?:once|twice|{_ONE}|{_SEVERAL})(?!\w)")
_NO_COUNT = "no count is named"


@lru_cache(maxsize=1024)  # asked for once a third
def read_intersections(text: str) -> dict[str, Reading]:
    """How often the series cross in each third, by name: none, one or several. text: normalised, see `normal`."""
    found: list[Said] = []
    about = True  # whether the text was about crossings so far
    for statement in statements(text):
        said = _plain(statement.said)
        if _ABOUT.search(_ANOTHER_LINE.sub(" ", said)):
            about, reading = True, _count(said)
        elif _ABOUT.search(said) or _ANOTHER_TOPIC.search(said):
            about = False
            continue
        elif (about and _COUNT.search(said)) or said in ("no", "not", "not at all"):
            reading = _count_alone(said)
        else:
            continue
        if found and _completes(found[-1], statement, reading):
            found[-1] = Said(found[-1].statement, reading, found[-1].elsewhere)
        else:
            found.append(_of(statement, said, reading))
    return by_third(found)


def _completes(before: Said, statement: Statement, reading: Reading) -> bool:
    """Whether a statement is the count that the one before lacks: "they cross in the middle, three times"."""
    free = statement.other in ("", "u") or statement.thirds == before.statement.thirds
    same = before.statement.sentence == statement.sentence and before.reading.why == _NO_COUNT
    return same and free and reading.label not in (None, "none") and bool(before.statement.thirds)


def _of(statement: Statement, said: str, reading: Reading) -> Said:
    """A statement with the count that it states for its thirds, or for the whole, and elsewhere."""
    only = (
        statement.only
        or _ALL_OF_THEM.search(said)
        or (statement.thirds and not statement.leads and _ONLY_ONE.fullmatch(said))
    )
    elsewhere = "none" if only and not {"x", "u"} & set(statement.other) and reading.label != "none" else None
    if "o" in statement.other and reading.label != "none":
        return Said(statement, Reading(None, "the place is left open"), elsewhere)
    total = not (statement.thirds or set("rn") & set(statement.other))
    if total and reading.label in ("one", "several"):
        return Said(statement, Reading(None, "is the count of the whole"), elsewhere)
    return Said(statement, reading, elsewhere)


def _plain(said: str) -> str:
    """A statement with the wordings replaced that the patterns would misread."""
    said = _NOT_ONE.sub(_without_one, _SERIES.sub("they", said))
    for pattern, plain in _SURELY:
        said = pattern.sub(plain, said)
    return _ALSO.sub("", said).strip()


def _without_one(said: re.Match[str]) -> str:
    """Rewrite "not a single crossing" as no crossing, and "never once" and "not crossing once" likewise."""
    if said["at"]:
        return f"{said['at']} {said['all']}"
    return "no " if said["not"] else said["never"] or ""


def _count(said: str) -> Reading:
    """The count that a statement on crossings names."""
    if vague := _VAGUE.search(said):
        return Reading(None, f"{quote(vague[0])} leaves the count open")
    found = [label for label, pattern in _COUNTS.items() if pattern.search(said)]
    if not found and _ARTICLE.search(said):
        found = ["one"]
    if len(found) > 1 or _NONE_BESIDE.search(said):
        return Reading(None, f"{quote(said)} says {' and '.join(found)}")
    return Reading(found[0]) if found else Reading(None, _NO_COUNT)


def _count_alone(said: str) -> Reading:
    """The count that a statement without another word names, as in "none at the end"."""
    found = [label for label, pattern in _ALONE_OF.items() if pattern.fullmatch(said)]
    return Reading(found[0]) if len(found) == 1 else Reading(None, f"{quote(said)} leaves the count open")
