"""Shared by all parsers: the reading of a facet, and patterns for directions and extrema in normalised text."""

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """The label that a text states for a facet, or None and the reason."""

    label: str | None
    why: str = ""
    silent: bool = False
    """Whether the text says nothing on the facet, and not two things or an unclear one."""


NOT_MENTIONED = Reading(None, "not mentioned", silent=True)


# Descriptions are short. What is longer is not read, so that hostile text takes no more than bounded time.
MOST_WORDS = 120  # of a sentence
MOST_CHARACTERS = 1_000  # of a sentence
LONGEST_TEXT = 10_000  # characters of a text on one topic
PLAIN = str.maketrans("\u2019\u2212", "'-")  # apostrophe, minus sign
_SENTENCE_END = re.compile(r"(?<=[.!?]) ")
_NO = re.compile(r"(?:no|nope|not|hardly)\b", re.IGNORECASE)


def normal(text: str) -> str:
    """Normalise text: lower case, single spaces, plain apostrophes and minus signs, line breaks as sentence ends.

    Sentences that state nothing are left out, see `telling`. A text above `LONGEST_TEXT` characters is empty.
    """
    lines = (" ".join(line.split()) for line in text.lower().translate(PLAIN).splitlines())
    told = (line if _is_short(line) else " ".join(telling(_SENTENCE_END.split(line))) for line in lines)
    said = ". ".join(line.rstrip(".") for line in told if line)
    return said if len(said) <= LONGEST_TEXT else ""


def _is_short(line: str) -> bool:
    """Whether every sentence of a line is told, as of most lines: it is short, and without a question."""
    return len(line) < 2 * MOST_WORDS and "?" not in line


def telling(sentences: list[str]) -> Iterator[str]:
    """The sentences that may state something.

    A sentence of more than `MOST_WORDS` words or `MOST_CHARACTERS` characters is no statement, nor is a question
    that the next sentence answers with no.
    """
    for sentence, after in zip(sentences, [*sentences[1:], ""], strict=True):
        long = len(sentence) > MOST_CHARACTERS or len(sentence.split()) > MOST_WORDS
        if not long and not (sentence.endswith("?") and _NO.match(after)):
            yield sentence


def plain(text: str) -> str:
    """The text without sentences and clauses that only look like statements. text: normalised.

    Left out are sentences on what has ceased ("no longer rises"), would be, is denied twice ("not without") or
    is called false, and clauses on what might be.
    """
    if _CUES.isdisjoint(text.split()) or not _DOUBT.search(text):  # as most texts
        return text
    kept = (part for part in _SENTENCE_END.split(text) if not _CEASED.search(part))
    return _MIGHT.sub(" ", " ".join(kept))


COMES_BACK = re.compile(  # an event, and no trend: "shoots up and comes right back"
    r"(?<!never )(?<!not )(?<!n't )\b"
    r"(?:com|go|fall|drop|snap)(?:es|s|ing)? (?:right|straight|promptly) back(?! (?:up|down))\b"
)
_STOPPED = r"(?:stop(?:s|ped)?|ceas(?:es?|ed)|quits?|gives up)"
_FALSE = r"(?:false|untrue|incorrect|wrong|not true|not the case)"
_CEASED = re.compile(
    r"\b(?:no longer|(?:not|n't) (?:\w+ ){0,3}any ?more"
    rf"|(?<!never )(?<!not )(?<!n't ){_STOPPED} (?:to )?(?:\w+ing|increase|decrease|rise|fall|grow|be|show|have)"
    r"|(?:has|have|had) (?:ended|stopped|ceased|come to an end)"
    r"|would(?:n't| not)|would (?:have been|be|rise|fall|increase|decrease|look|remain|stay)"
    r"|if it (?:weren't|were not|wasn't|was not)|were it not for"
    rf"|(?:it|that)(?: is|'s| would be) {_FALSE}|isn't (?:true|the case)"
    r"|(?:no|not|never) (?:a |any )?(?:without|lack of|absence of|free of|devoid of))\b"
)
_MIGHT = re.compile(r"\b(?:it|they|that|this|which|the \w+) (?:\w+ly )?(?:might|may|could) [^,.;]*")
_CUES = frozenset(  # words, one of which is in every doubt; much faster to look for
    (
        *("longer", "any", "anymore", "anymore.", "anymore,", "stop", "stops", "stopped", "cease", "ceases"),
        *("ceased", "quit", "quits", "gives", "has", "have", "had", "would", "wouldn't", "if", "were", "false"),
        *("false.", "false,", "untrue", "untrue.", "incorrect", "incorrect.", "wrong", "wrong.", "true", "true."),
        *("case", "case.", "without", "lack", "absence", "free", "devoid", "might", "may", "could"),
    )
)
_DOUBT = re.compile(rf"{_CEASED.pattern}|\b(?:might|may|could)\b")


def quote(text: str) -> str:
    return f"'{text}'" if len(text) <= 40 else f"'{text[:37]}...'"


UP = (
    r"increas\w*|upwards?|uptrend|ris(?:e|es|ing|en)|rose|gr(?:ow(?:s|ing|th|n)?|ew)|climb\w*|ascend\w*"
    r"|(?:go|goes|going|trend|trends|trending) up|positive (?:trend|slope)|recover\w*|rebound\w*"
)
DOWN = (
    r"decreas\w*|downwards?|downtrend|declin\w*|fall(?:s|ing|en)?(?! (?:with)?in\b| between)|fell"
    r"|drop(?:s|ped|ping)?|descend\w*|dip(?:s|ped|ping)?|diminish\w*|sink(?:s|ing)?"
    r"|(?:go|goes|going|trend|trends|trending) down|negative (?:trend|slope)"
)
FLAT = (
    r"flat(?:tens?|tened|tening)?|stable|stabili[sz]\w*|constant|stationary|horizontal|unchanged|trendless"
    r"|sideways|plateau\w*|level(?:s|l?ing|l?ed)? (?:off|out)"
    r"|(?:is|are|stay|stays|remain|remains|remaining|hold|holds|keep|keeps) (?:\w+ly )?(?:level|steady)"
)
NEGATION = (
    r"(?:\b(?:no|not(?! only)|neither|nor|never|without|lacks?|lacking|lack of|absence of|rather than|instead of"
    r"|anything but|far from|(?:fail|refuse)(?:s|d|ed|ing)? to)|n't)"
)
FILLER = (
    r"(?:(?:a|an|any|the|clear|perceptible|overall|general|strong|significant|obvious|discernible|distinct|definite"
    r"|particular|consistent|pronounced|visible|apparent|evident|noticeable|marked|real|long-term|very|too|so|as"
    r"|substantial|major|meaningful|big|large|sustained|net|lasting|systematic|notable|much|considerable"
    r"|persistent"
    r"|either|show|exhibit|display|have|follow|see|observe|detect|find|look|appear|seem|signs?|evidence|of|to"
    r"|be|being|been|\w+ly) )*"
)
WAVERING = r"(?:fluctuat|variab|variation|variance|volatil|oscillat|amplitude|deviation)\w*"

MAXIMUM = (
    r"max(?:imum|ima|imal)?|peak(?:s|ed|ing)?|highest(?: (?:points?|values?|levels?))?|largest values?"
    r"|(?:global|overall|absolute|its) high"
)
MINIMUM = (
    r"min(?:imum|ima|imal)?|troughs?|nadir|lowest(?: (?:points?|values?|levels?))?|smallest values?"
    r"|(?:global|overall|absolute|its) low"
)
