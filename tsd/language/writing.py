"""The prompts, and what a teacher made of rules says: labels in, sentences out."""

import json
from collections.abc import Mapping, Sequence
from typing import TypedDict

from tsd.errors import DataError
from tsd.schema import FACETS

PROMPT_VERSION = "1"

_TEACHER_PROMPT = """\
You are shown one time series of {length} integers between 0 and 99, as a plot or as numbers, oldest first.
Describe it with a JSON object that has exactly these keys, each holding one short sentence:
"trend": whether the series is increasing, decreasing or flat overall.
"noise": whether the noise intensity is low, medium or high.
"extrema": where the global maximum and the global minimum lie: at the beginning, in the middle or at the end.
Commit to one answer each. Reply with the JSON object alone."""


class Labels(TypedDict):
    """What was said of each facet, None where it was not stated; a row of the schema's LABELS."""

    trend: str | None
    noise: str | None
    maximum: str | None
    minimum: str | None


# Every sentence reads back as its label. In all of them the label's own word is where the classes part: no
# "an" before "increasing" and no "in" before "middle" gives it away or splits the decision in two, which makes
# tiny students learn it from several times fewer examples.
TREND_PHRASINGS = (
    "The series shows a clear {} trend.",
    "The overall trend is {}.",
    "The values are {} over time.",
    "Overall, the series is {}.",
)
NOISE_PHRASINGS = (
    "The noise intensity is {}.",
    "The series has {} noise.",
    "The noise is {} around the trend.",
    "The noise stays {} over time.",
)
EXTREMA_PHRASINGS = (
    "The maximum lies at the {maximum} and the minimum at the {minimum}.",
    "The maximum is near the {maximum}, the minimum near the {minimum}.",
    "The series is highest towards the {maximum} and lowest towards the {minimum}.",
    "The maximum is around the {maximum}, the minimum around the {minimum}.",
)

# How many phrasings of trend, noise and extrema there are to choose from.
PHRASING_COUNTS = (len(TREND_PHRASINGS), len(NOISE_PHRASINGS), len(EXTREMA_PHRASINGS))


def teacher_prompt(length: int) -> str:
    """What a teacher is asked about one series of `length` values."""
    return _TEACHER_PROMPT.format(length=length)


def student_prompt(values: Sequence[int]) -> str:
    """What a student is asked: the values in words' place, nothing after the last."""
    return "Describe the series: " + " ".join(map(str, values))


def reply_text(labels: Labels, choice: tuple[int, int, int]) -> str:
    """The reply that states the labels: `choice` picks the phrasing of trend, noise and extrema.

    Each number is below its PHRASING_COUNTS. Raises DataError for a label that is missing or unknown.
    """
    said = {facet: _known(facet, labels) for facet in FACETS}
    places = {facet: said[facet] for facet in ("maximum", "minimum")}
    return json.dumps(
        {
            "trend": TREND_PHRASINGS[choice[0]].format(said["trend"]),
            "noise": NOISE_PHRASINGS[choice[1]].format(said["noise"]),
            "extrema": EXTREMA_PHRASINGS[choice[2]].format(**places),
        }
    )


def _known(facet: str, labels: Mapping[str, object]) -> str:
    label = labels[facet]
    if not isinstance(label, str) or label not in FACETS[facet]:
        raise DataError(f"{facet} is {label!r}, expected one of {', '.join(FACETS[facet])}")
    return label
