"""The one-series task of arXiv 2507.07439: trend, noise, and positions of the two extrema."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import numpy.typing as npt

from tsd.series import truth
from tsd.series.truth import Lengths
from tsd.tasks import sentences
from tsd.tasks.definitions import DEFAULT, Definitions
from tsd.tasks.facet import Facet, Measures, Number
from tsd.tasks.language import read_extrema, read_noise, read_trend
from tsd.tasks.language.quantities import read_extremum_numbers, read_levels, read_size
from tsd.tasks.task import Task

DIRECTIONS = ("increasing", "decreasing", "flat")
LEVELS = ("low", "medium", "high")
PLACES = ("beginning", "middle", "end")
LEAST_CHANGE = 1.0  # in value units; a smaller one is not called a change

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


def trend_facet(defined: Definitions) -> Facet:
    """Direction of the series as a whole."""
    return Facet(
        "trend",
        DIRECTIONS,
        topic="trend",
        question="whether the series is increasing, decreasing or flat overall",
        phrasings=TREND_PHRASINGS,
        read=read_trend,
        classify=lambda measures, _: defined.trend(measures),
        margin=defined.trend_margin,
        tie=defined.trend_tie,
        definition=defined.trend_means,
    )


def noise_facet(defined: Definitions, whose: str = "") -> Facet:
    """Noise level of the series, or of the "first" or "second" one."""
    name, prefix = _named(whose, "noise"), f"{whose}_" if whose else ""
    return Facet(
        name,
        LEVELS,
        topic=name,
        question=f"whether the noise intensity of the {_series(whose)} is low, medium or high",
        phrasings=NOISE_PHRASINGS,
        read=read_noise,
        classify=lambda measures, _: defined.noise(measures, prefix),
        margin=lambda measures: defined.noise_margin(measures, prefix),
        tie=0.3,
        definition=defined.noise_means,
    )


def extremum_facet(defined: Definitions, which: str, whose: str = "", given: str | None = None) -> Facet:
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
        classify=lambda measures, length: truth.place(
            measures[f"{prefix}arg{which[:3]}"], length, defined.borders
        ),
        margin=lambda measures: measures[f"{prefix}{which}_lead"].astype(np.float32),
        tie=2.0,
        definition=defined.places_mean,
        given=given,
    )


def _named(whose: str, what: str) -> str:
    return f"{whose} {what}" if whose else what


def _series(whose: str) -> str:
    return f"{whose} series" if whose else "series"


def _varied(facet: Facet) -> Facet:
    """A facet with varied sentences that state numbers of the series."""
    return replace(facet, sentences=SENTENCES[facet.name], numbers=NUMBERS[facet.name])


def _extremum_numbers(which: str) -> tuple[Number, ...]:
    """Value and point of an extremum, and how many points there are."""
    index = f"arg{which[:3]}"
    return (
        Number(
            which,
            "value",
            lambda measures, _: measures[which],
            lambda text: read_extremum_numbers(text)[which].value,
        ),
        Number(
            f"{which}_at",
            "point",
            lambda measures, _: measures[index] + 1,
            lambda text: read_extremum_numbers(text)[which].point,
        ),
        Number("length", "point", lambda measures, length: np.broadcast_to(length, measures[index].shape)),
    )


def _change(measures: Measures) -> npt.NDArray[np.floating]:
    """The change from start to end, (batch,), without its sign."""
    found: npt.NDArray[np.floating] = np.abs(measures["end"] - measures["start"])
    return found


def _within_noise(measures: Measures, _: Lengths) -> npt.NDArray[np.bool_]:
    """Where a change, of at least the one unit that is stated, is at most the noise's standard deviation."""
    change = _change(measures)
    found: npt.NDArray[np.bool_] = (change >= LEAST_CHANGE) & (change <= measures["noise"])
    return found


SENTENCES = {
    "trend": sentences.TREND,
    "noise": sentences.NOISE,
    "maximum": sentences.MAXIMUM,
    "minimum": sentences.MINIMUM,
}
NUMBERS: Mapping[str, tuple[Number, ...]] = {
    "trend": (
        Number("start", "value", lambda measures, _: measures["start"], lambda text: read_levels(text).start),
        Number("end", "value", lambda measures, _: measures["end"], lambda text: read_levels(text).end),
        Number("change", "value", lambda measures, _: _change(measures), holds=_within_noise),
        Number("mean", "value", lambda measures, _: measures["mean"]),
    ),
    "noise": (Number("noise", "value", lambda measures, _: measures["noise"], read_size, digits=1),),
    "maximum": _extremum_numbers("maximum"),
    "minimum": _extremum_numbers("minimum"),
}


@cache
def single(defined: Definitions = DEFAULT) -> Task:
    """The one-series task with labels by these definitions."""
    facets = (
        trend_facet(defined),
        noise_facet(defined),
        extremum_facet(defined, "maximum", given="trend"),
        extremum_facet(defined, "minimum", given="trend"),
    )
    return Task(
        name="single",
        version=f"single-4-{defined.version}",
        curves=1,
        facets=facets if defined.truth == "paper" else tuple(map(_varied, facets)),
        measure=defined.measure,
        measures=defined.measures,
        shown=(
            "You are shown one time series of {length} integers between 0 and 99, "
            "as a plot or as numbers, oldest first."
        ),
        asked="Describe the series: {}",
        reply_tokens=80 if defined.truth == "paper" else 128,
        sheet=("trend", "noise"),
        defined=defined,
    )


SINGLE = single(DEFAULT)
