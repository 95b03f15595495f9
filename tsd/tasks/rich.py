"""The one-series task of all that the robust truth measures: `single`, and five facets of its structure."""

from dataclasses import replace
from functools import cache, partial

import numpy as np
import numpy.typing as npt

from tsd.errors import InputError
from tsd.series.robust import outlier, reversion, season, shift, volatility
from tsd.tasks import reversion_sentences
from tsd.tasks import structure_sentences as sentences
from tsd.tasks.definitions import DEFAULT, STRUCTURE, Definitions
from tsd.tasks.facet import Facet, Number
from tsd.tasks.language import read_outlier, read_reversion, read_season, read_shift, read_volatility
from tsd.tasks.language.quantities import read_cycles, read_point, read_step
from tsd.tasks.single import single
from tsd.tasks.task import Task

SEASON = Facet(
    "season",
    ("none", "weak", "strong"),
    topic="season",
    question="whether a season, a cycle that repeats in the same rhythm, is absent (none), weak or strong",
    phrasings=("Season: {}.", "Seasonality: {}.", "The seasonality is {}.", "The seasonal pattern is {}."),
    read=read_season,
    classify=lambda measures, _: measures["season"].astype(np.intp),
    definition=(
        f"a wave of {season.LEAST_CYCLES:g} cycles or more in one phase that goes against the trend, of at least "
        f"{season.LEAST_SHARE:.0%} of the variance around the line and {season.LEAST_HEIGHT:g} units from trough "
        f"to crest; strong from {season.STRONG_SHARE:.0%} on"
    ),
    sentences=sentences.SEASON,
    numbers=(Number("cycles", "cycles", lambda measures, _: measures["season_cycles"], read_cycles, digits=1),),
)
SHIFT = Facet(
    "shift",
    ("none", "up", "down"),
    topic="shift",
    question="whether the level shifts at once and stays there: none, up or down",
    phrasings=("Shift: {}.", "Level shift: {}.", "The level shift is {}.", "Shift of the level: {}."),
    read=read_shift,
    classify=lambda measures, _: _signed(measures["shift"]),
    definition=(
        f"from one point to the next the series goes to another level, by at least {shift.LEAST_SIZE:.0%} of its "
        "range, and two levels fit better than a line and cycles do"
    ),
    sentences=sentences.SHIFT,
    numbers=(
        Number("shift_at", "point", lambda measures, _: measures["shift_place"] + 1, read_point),
        Number("shift_size", "value", lambda measures, _: np.abs(measures["shift_size"]), read_step),
    ),
)
OUTLIER = Facet(
    "outlier",
    ("none", "spike", "dip"),
    topic="outlier",
    question="whether a point lies far off what is around it: none, a spike upwards or a dip downwards",
    phrasings=("Outlier: {}.", "Outliers: {}.", "The outlier is: {}.", "Kind of outlier: {}."),
    read=read_outlier,
    classify=lambda measures, _: _signed(measures["outlier"]),
    definition=(
        f"one point, or up to {outlier.SEVERAL} of like size, at least {outlier.LEAST_SIZE:.0%} of the range and "
        f"{outlier.LEAST_DEVIATIONS:g} of the usual distances away from the points around it"
    ),
    sentences=sentences.OUTLIER,
    numbers=(
        Number("outlier_at", "point", lambda measures, _: measures["outlier_place"] + 1, read_point),
        Number("outlier_size", "value", lambda measures, _: measures["outlier_size"], read_step),
    ),
)
VOLATILITY = Facet(
    "volatility",
    ("steady", "growing", "shrinking"),
    topic="volatility",
    question="whether the size of the fluctuations is steady, growing or shrinking",
    phrasings=(
        "Volatility: {}.",
        "The volatility: {}.",
        "Volatility over time: {}.",
        "Course of the volatility: {}.",
    ),
    read=read_volatility,
    classify=lambda measures, _: measures["volatility"].astype(np.intp),
    definition=(
        f"growing or shrinking if the noise from some point on is at least {volatility.LEAST_RATIO:g} times that "
        "before it, or that before it as many times the noise from there on; otherwise steady"
    ),
    sentences=sentences.VOLATILITY,
)
REVERSION = Facet(
    "reversion",
    ("fast", "slow"),
    topic="reversion",
    question="whether values off the course of trend and cycles return to it fast, within a point, or slow",
    phrasings=("Reversion: {}.", "Mean reversion: {}.", "The mean reversion is {}.", "Speed of reversion: {}."),
    read=read_reversion,
    classify=lambda measures, _: measures["reversion"].astype(np.intp),
    margin=lambda measures: np.abs(measures["reversion_memory"] - np.float32(reversion.BORDER)),
    tie=reversion.TIE,
    definition=(
        "fast if what trend, cycles and shifts leave halves its distance to the mean within a point, that is, if "
        f"its autocorrelation at lag 1 is below {reversion.BORDER:g}; otherwise slow"
    ),
    sentences=reversion_sentences.REVERSION,
)
FACETS = (SEASON, SHIFT, OUTLIER, VOLATILITY, REVERSION)


def _signed(directions: npt.NDArray[np.int8]) -> npt.NDArray[np.intp]:
    """The class of each direction, (batch,): 0 none, 1 above zero, 2 below."""
    return np.where(directions > 0, 1, np.where(directions < 0, 2, 0))


@cache
def rich(defined: Definitions = DEFAULT) -> Task:
    """The task `single` and five facets more. Raises InputError for the paper's truth, which has none of them."""
    if defined.truth != "robust":
        raise InputError(f"the task rich has no {defined.truth} truth: leave truth out, or name another task")
    base = single(defined)
    return replace(
        base,
        name="rich",
        version=f"rich-3-{defined.version}",
        facets=(*base.facets, *FACETS),
        measure=partial(defined.measure, beside=tuple(STRUCTURE)),
        measures={**defined.measures, **STRUCTURE},
        reply_tokens=208,
        added=tuple(facet.name for facet in FACETS),
    )


RICH = rich(DEFAULT)
