"""The two-series task of arXiv 2507.07439: noise and extrema of two series, and their relation third by third.

For each third: the trend of either series, how often they cross, and which of them lies above.
"""

from functools import cache, partial
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tsd.series import truth
from tsd.tasks.definitions import DEFAULT, Definitions
from tsd.tasks.facet import Facet, Measures
from tsd.tasks.language import read_intersections, read_position, read_thirds
from tsd.tasks.single import DIRECTIONS, extremum_facet, noise_facet
from tsd.tasks.task import Task

WHOSE = ("first", "second")
THIRDS = ("beginning", "middle", "end")
ORDINALS = {"beginning": "first", "middle": "middle", "end": "last"}
CROSSINGS = ("none", "one", "several")
POSITIONS = ("above", "below", "alternating")
SHARES = (1 / 3, 2 / 3)  # limits of the fraction of points of a third at which the first series is above
POSITION_TIE = 0.03  # a fraction closer to a limit is a near tie: about one point of 43

THIRD_PHRASINGS = (
    "The {third} third is {{}}.",
    "In the {third} third it is {{}}.",
    "The trend of the {third} third is {{}}.",
)
# "several times", "one time", "none": the label's word is where the classes diverge.
CROSSING_PHRASINGS = (
    "In the {third} third, the number of crossings is {{}}.",
    "Crossings in the {third} third: {{}}.",
)
POSITION_PHRASINGS = (
    "In the {third} third, the first series is {{}}.",
    "The first series is {{}} in the {third} third.",
)


def measure(values: npt.NDArray[np.uint8], defined: Definitions) -> Measures:
    """Measure each pair.

    values: (batch, 2 × length) uint8. Returns by name, (batch,) each: what the definitions measure of either
    series, prefixed; and of each third, prefixed, what they measure of the trend of either series, and what
    `relation` does.
    """
    length = values.shape[1] // 2
    found: Measures = {}
    for number, whose in enumerate(WHOSE):
        curve = np.ascontiguousarray(values[:, number * length : (number + 1) * length])
        found |= {f"{whose}_{name}": column for name, column in defined.measure(curve).items()}
        for third, points in thirds(length).items():
            ends = defined.ends(curve[:, points])
            found |= {f"{whose}_{third}_{name}": column for name, column in ends.items()}
    return found | relation(values[:, :length].astype(np.int16) - values[:, length:])


def thirds(length: int) -> dict[str, slice]:
    """The points of each third of a series by name."""
    edges = [round(length * third / 3) for third in range(4)]
    return {third: slice(*ends) for third, ends in zip(THIRDS, pairwise(edges), strict=True)}


def relation(apart: npt.NDArray[np.int16]) -> Measures:
    """Measure how often two series cross and which of them lies above, in each third.

    apart: (batch, length) first minus second. Returns by name, prefixed by the third, (batch,) each:

      intersections  int32: sign changes, ignoring points where the series are equal. Each counts once, in the
                     third of the first point with the new sign, also if the old sign is of another third
      above_share    float32: fraction of the third's unequal points at which the first is above, 0.5 if none is
    """
    sign = np.sign(apart)
    last = np.where(sign != 0, np.arange(sign.shape[1]), -1)
    np.maximum.accumulate(last, axis=1, out=last)  # index of the last nonzero sign, −1 before the first
    held = np.where(last >= 0, np.take_along_axis(sign, np.maximum(last, 0), axis=1), 0)
    changes = np.zeros(sign.shape, np.bool_)
    changes[:, 1:] = held[:, 1:] * held[:, :-1] < 0
    found: Measures = {}
    for third, points in thirds(sign.shape[1]).items():
        unequal = np.count_nonzero(sign[:, points], axis=1)
        above = np.count_nonzero(sign[:, points] > 0, axis=1)
        share = np.where(unequal > 0, above / np.maximum(unequal, 1), 0.5)
        found[f"{third}_intersections"] = np.count_nonzero(changes[:, points], axis=1).astype(np.int32)
        found[f"{third}_above_share"] = share.astype(np.float32)
    return found


def crossings_of(count: npt.NDArray[np.integer]) -> npt.NDArray[np.intp]:
    """The class of a number of crossings, an index into `CROSSINGS`. count: (batch,)."""
    found: npt.NDArray[np.intp] = np.minimum(count, 2).astype(np.intp)
    return found


def position_of(share: npt.NDArray[np.floating]) -> npt.NDArray[np.intp]:
    """The class of a fraction of points at which the first is above, an index into `POSITIONS`. (batch,)."""
    return np.where(share > SHARES[1], 0, np.where(share < SHARES[0], 1, 2))


def _third_facet(defined: Definitions, whose: str, third: str) -> Facet:
    prefix = f"{whose}_{third}_"
    return Facet(
        f"{whose} trend {third}",
        DIRECTIONS,
        topic=f"{whose} trend",
        question=f"whether the {whose} series is increasing, decreasing or flat in its {ORDINALS[third]} third",
        phrasings=tuple(phrasing.format(third=ORDINALS[third]) for phrasing in THIRD_PHRASINGS),
        read=lambda text: read_thirds(text)[third],
        classify=lambda measures, _: defined.trend(measures, prefix),
        margin=lambda measures: defined.trend_margin(measures, prefix),
        tie=defined.trend_tie,
        definition=defined.trend_means,
    )


def _crossings_facet(third: str) -> Facet:
    return Facet(
        f"intersections {third}",
        CROSSINGS,
        topic="intersections",
        question=f"how often the two series cross in their {ORDINALS[third]} third: none, one or several times",
        phrasings=tuple(phrasing.format(third=ORDINALS[third]) for phrasing in CROSSING_PHRASINGS),
        read=lambda text: read_intersections(text)[third],
        classify=lambda measures, _: crossings_of(measures[f"{third}_intersections"]),
        definition=(
            "how often the other series becomes the higher one: none, one, or several for two or more; a crossing "
            "on the border of two thirds counts in the later one"
        ),
    )


def _position_facet(third: str) -> Facet:
    share = f"{third}_above_share"
    return Facet(
        f"position {third}",
        POSITIONS,
        topic="position",
        question=f"where the first series lies most of the time in their {ORDINALS[third]} third: above the "
        "second, below it, or alternating",
        phrasings=tuple(phrasing.format(third=ORDINALS[third]) for phrasing in POSITION_PHRASINGS),
        read=lambda text: read_position(text)[third],
        classify=lambda measures, _: position_of(measures[share]),
        margin=lambda measures: truth.distance(measures[share], SHARES),
        tie=POSITION_TIE,
        definition=(
            "above or below if the first series lies so at more than two thirds of the points of that third, not "
            "counting those where the series are equal; otherwise alternating"
        ),
    )


@cache
def pair(defined: Definitions = DEFAULT) -> Task:
    """The two-series task with labels by these definitions."""
    return Task(
        name="pair",
        version=f"pair-4-{defined.version}",
        curves=2,
        facets=(
            *(
                facet
                for whose in WHOSE
                for facet in (
                    *(_third_facet(defined, whose, third) for third in THIRDS),
                    noise_facet(defined, whose),
                    extremum_facet(defined, "maximum", whose),
                    extremum_facet(defined, "minimum", whose),
                )
            ),
            *(_crossings_facet(third) for third in THIRDS),
            *(_position_facet(third) for third in THIRDS),
        ),
        measure=partial(measure, defined=defined),
        measures={
            **{f"{whose}_{name}": kind for whose in WHOSE for name, kind in defined.measures.items()},
            **{
                f"{whose}_{third}_{name}": kind
                for whose in WHOSE
                for third in THIRDS
                for name, kind in defined.trend_measures.items()
            },
            **{
                f"{third}_{name}": kind
                for third in THIRDS
                for name, kind in (("intersections", pa.int32()), ("above_share", pa.float32()))
            },
        },
        shown=(
            "You are shown two time series, first and second, of {length} integers between 0 and 99 each, "
            "as a plot or as numbers, oldest first."
        ),
        asked="Describe the two series. First: {} Second: {}",
        reply_tokens=256,
        sheet=("position middle", "intersections middle"),
        defined=defined,
    )


PAIR = pair(DEFAULT)
