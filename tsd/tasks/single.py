"""The one-series task of arXiv 2507.07439: trend, noise, and positions of the two extrema."""

import numpy as np
import pyarrow as pa

from tsd.series import truth
from tsd.tasks.language import read_extrema, read_noise, read_trend
from tsd.tasks.task import Facet, Task

DIRECTIONS = ("increasing", "decreasing", "flat")
LEVELS = ("low", "medium", "high")
PLACES = ("beginning", "middle", "end")

# In all phrasings the classes diverge at the label's own word. No "an" before "increasing" and no "in" before
# "middle" reveals the label or splits the decision in two; small students then learn from fewer examples.
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
MAXIMUM_PHRASINGS = (
    "The maximum lies at the {}.",
    "The maximum is near the {}.",
    "The series is highest towards the {}.",
    "The maximum is around the {}.",
)
MINIMUM_PHRASINGS = (
    "The minimum lies at the {}.",
    "The minimum is near the {}.",
    "The series is lowest towards the {}.",
    "The minimum is around the {}.",
)


def noise_facet(whose: str = "") -> Facet:
    """Noise level of the series, or of the "first" or "second" one."""
    name, measured = _named(whose, "noise"), f"{whose}_noise_rms" if whose else "noise_rms"
    return Facet(
        name,
        LEVELS,
        topic=name,
        question=f"whether the noise intensity of the {_series(whose)} is low, medium or high",
        phrasings=NOISE_PHRASINGS,
        read=read_noise,
        classify=lambda measures, _: truth.level(measures[measured]),
        margin=lambda measures: truth.distance(measures[measured], truth.NOISE_LEVELS),
        tie=0.3,
    )


def extremum_facet(which: str, whose: str = "", given: str | None = None) -> Facet:
    """Position of the "maximum" or "minimum" of the series, or of the "first" or "second" one.

    given: the facet of the conditional majority baseline, see `Facet.given`.
    """
    prefix = f"{whose}_" if whose else ""
    return Facet(
        _named(whose, which),
        PLACES,
        topic=_named(whose, "extrema"),
        question=f"where the global {which} of the {_series(whose)} lies: "
        "at the beginning, in the middle or at the end",
        phrasings={"maximum": MAXIMUM_PHRASINGS, "minimum": MINIMUM_PHRASINGS}[which],
        read=lambda text: read_extrema(text)[which],
        classify=lambda measures, length: truth.place(measures[f"{prefix}arg{which[:3]}"], length),
        margin=lambda measures: measures[f"{prefix}{which}_lead"].astype(np.float32),
        tie=2.0,
        given=given,
    )


def _named(whose: str, what: str) -> str:
    return f"{whose} {what}" if whose else what


def _series(whose: str) -> str:
    return f"{whose} series" if whose else "series"


SINGLE = Task(
    name="single",
    version="single-2",
    curves=1,
    facets=(
        Facet(
            "trend",
            DIRECTIONS,
            topic="trend",
            question="whether the series is increasing, decreasing or flat overall",
            phrasings=TREND_PHRASINGS,
            read=read_trend,
            classify=lambda measures, _: truth.direction(measures["trend_delta"]),
            margin=lambda measures: truth.distance(np.abs(measures["trend_delta"]), (truth.TREND_MARGIN,)),
            tie=1.0,
        ),
        noise_facet(),
        extremum_facet("maximum", given="trend"),
        extremum_facet("minimum", given="trend"),
    ),
    measure=truth.measure,
    measures={
        "trend_delta": pa.float32(),
        "noise_rms": pa.float32(),
        "argmax": pa.int32(),
        "argmin": pa.int32(),
        "maximum_lead": pa.float32(),
        "minimum_lead": pa.float32(),
    },
    shown=(
        "You are shown one time series of {length} integers between 0 and 99, "
        "as a plot or as numbers, oldest first."
    ),
    asked="Describe the series: {}",
    reply_tokens=80,
    sheet=("trend", "noise"),
)
