"""The two-series task of arXiv 2507.07439: trend per third, noise, extrema, intersections, relative position."""

from functools import cache, partial

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
SHARES = (1 / 3, 2 / 3)  # limits of the fraction of points at which the first series is above

THIRD_PHRASINGS = (
    "The {third} third is {{}}.",
    "In the {third} third it is {{}}.",
    "The trend of the {third} third is {{}}.",
)
# "several times", "one time", "none": the label's word is where the classes diverge.
CROSSING_PHRASINGS = ("Number of crossings: {}.", "The count of crossings is {}.")


def measure(values: npt.NDArray[np.uint8], defined: Definitions) -> Measures:
    """Measure each pair.

    values: (batch, 2 × length) uint8. Returns by name, (batch,) each: what the definitions measure of either
    series, prefixed, and of the trend of each of its thirds; `intersections`, int32, sign changes of
    first − second, ignoring points where they are equal; `above_share`, float32, the fraction of the unequal
    points at which the first is above, 0.5 if there are none.
    """
    length = values.shape[1] // 2
    found: Measures = {}
    for number, whose in enumerate(WHOSE):
        curve = np.ascontiguousarray(values[:, number * length : (number + 1) * length])
        found |= {f"{whose}_{name}": column for name, column in defined.measure(curve).items()}
        edges = [round(length * third / 3) for third in range(4)]
        for third, low, high in zip(THIRDS, edges, edges[1:], strict=False):
            ends = defined.ends(curve[:, low:high])
            found |= {f"{whose}_{third}_{name}": column for name, column in ends.items()}
    sign = np.sign(values[:, :length].astype(np.int16) - values[:, length:])
    found["intersections"] = _sign_changes(sign)
    apart = np.count_nonzero(sign, axis=1)
    above = np.count_nonzero(sign > 0, axis=1)
    found["above_share"] = np.where(apart > 0, above / np.maximum(apart, 1), 0.5).astype(np.float32)
    return found


def _sign_changes(sign: npt.NDArray[np.int16]) -> npt.NDArray[np.int32]:
    """Sign changes per row of (batch, length) −1, 0, 1, ignoring zeros: (batch,)."""
    last = np.where(sign != 0, np.arange(sign.shape[1]), -1)
    np.maximum.accumulate(last, axis=1, out=last)  # index of the last nonzero sign, −1 before the first
    held = np.where(last >= 0, np.take_along_axis(sign, np.maximum(last, 0), axis=1), 0)
    changes: npt.NDArray[np.int32] = np.count_nonzero(held[:, 1:] * held[:, :-1] < 0, axis=1).astype(np.int32)
    return changes


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


@cache
def pair(defined: Definitions = DEFAULT) -> Task:
    """The two-series task with labels by these definitions."""
    return Task(
        name="pair",
        version=f"pair-2-{defined.version}",
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
            Facet(
                "intersections",
                ("none", "one", "several"),
                topic="intersections",
                question="whether the two series cross: none, one or several times",
                phrasings=CROSSING_PHRASINGS,
                read=read_intersections,
                classify=lambda measures, _: np.minimum(measures["intersections"], 2).astype(np.intp),
            ),
            Facet(
                "position",
                ("above", "below", "alternating"),
                topic="position",
                question="where the first series lies most of the time: above the second, below it, or "
                "alternating",
                phrasings=(
                    "Relative to the second series, the first is {}.",
                    "The first series is {} most of the time.",
                ),
                read=read_position,
                classify=lambda measures, _: np.where(
                    measures["above_share"] > SHARES[1], 0, np.where(measures["above_share"] < SHARES[0], 1, 2)
                ),
                margin=lambda measures: truth.distance(measures["above_share"], SHARES),
                tie=0.03,
            ),
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
            "intersections": pa.int32(),
            "above_share": pa.float32(),
        },
        shown=(
            "You are shown two time series, first and second, of {length} integers between 0 and 99 each, "
            "as a plot or as numbers, oldest first."
        ),
        asked="Describe the two series. First: {} Second: {}",
        reply_tokens=200,
        sheet=("position", "intersections"),
        defined=defined,
    )


PAIR = pair()
