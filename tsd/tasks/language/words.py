"""Shared by all parsers: the reading of a facet, and patterns for directions and extrema in normalised text."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Reading:
    """The label that a text states for a facet, or None and the reason."""

    label: str | None
    why: str = ""
    silent: bool = False
    """Whether the text says nothing on the facet, and not two things or an unclear one."""


NOT_MENTIONED = Reading(None, "not mentioned", silent=True)


def normal(text: str) -> str:
    """Normalise text: lower case, single spaces, straight apostrophes, line breaks as sentence ends."""
    lines = (" ".join(line.split()) for line in text.lower().replace("\u2019", "'").splitlines())
    return ". ".join(line.rstrip(".") for line in lines if line)


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
    r"(?:\b(?:no|not(?! only)|neither|nor|never|without|lacks?|lacking|rather than|instead of"
    r"|anything but|far from)|n't)"
)
FILLER = (
    r"(?:(?:a|an|any|the|clear|overall|general|strong|significant|obvious|discernible|distinct|definite"
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
