"""By which definitions the built-in tasks label a series."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tsd.series import robust
from tsd.series import truth as paper

Truth: TypeAlias = Literal["paper", "robust"]
PlaceNames: TypeAlias = Literal["quarters", "thirds"]

BORDERS: Mapping[PlaceNames, paper.Places] = {"quarters": paper.QUARTERS, "thirds": paper.THIRDS}
TREND_TIES = {"paper": 1.0, "robust": robust.trend.TIE}  # margins below which a trend is a near tie
LEVELS = (
    "start",
    "end",
    "mean",
    "maximum",
    "minimum",
)  # measured beside the robust truth, to be stated in sentences
ROBUST_TREND = {"trend_strength": pa.float32(), "trend_change": pa.float32()}
STRUCTURE: Mapping[str, pa.DataType] = {  # what the robust truth measures beside the task `single`
    "season": pa.int8(),
    "season_cycles": pa.float32(),
    "season_height": pa.float32(),
    "shift": pa.int8(),
    "shift_place": pa.int32(),
    "shift_size": pa.float32(),
    "outlier": pa.int8(),
    "outlier_place": pa.int32(),
    "outlier_size": pa.float32(),
    "volatility": pa.int8(),
    "volatility_place": pa.int32(),
    "volatility_ratio": pa.float32(),
    "reversion": pa.int8(),
    "reversion_memory": pa.float32(),
}


@dataclass(frozen=True)
class Definitions:
    """By which formulas trend and noise are measured, and which parts of a series its places are.

    truth: `paper`, the formulas of arXiv 2507.07439; `robust`, see `tsd.series.robust`. places: `quarters`, a
    quarter at either end and half in the middle, as in the paper; or `thirds`.
    """

    truth: Truth = "robust"
    places: PlaceNames = "quarters"

    @classmethod
    def of(cls, about: Mapping[str, str]) -> Self:
        """The definitions that a student's folder names; the default for one without."""
        named: dict[str, Any] = {field.name: about[field.name] for field in fields(cls) if field.name in about}
        return cls(**named)

    @property
    def shortest(self) -> int:
        """The fewest points of a series, or of a third of one, whose trend can be measured."""
        return robust.SHORTEST if self.truth == "robust" else 1

    @property
    def version(self) -> str:
        """Part of the version of each task, and so of every key."""
        return f"{self.truth}-{self.places}"

    @property
    def borders(self) -> paper.Places:
        """The fractions of a series between beginning, middle and end."""
        return BORDERS[self.places]

    @property
    def measures(self) -> dict[str, pa.DataType]:
        """Names and Arrow types of what `measure` returns."""
        found = {
            "argmax": pa.int32(),
            "argmin": pa.int32(),
            "maximum_lead": pa.float32(),
            "minimum_lead": pa.float32(),
        }
        if self.truth == "paper":
            return {**self.trend_measures, "noise_rms": pa.float32(), **found}
        return {**self.trend_measures, "noise": pa.float32(), **dict.fromkeys(LEVELS, pa.float32()), **found}

    def measure(self, values: npt.NDArray[np.uint8], beside: Iterable[str] = ()) -> dict[str, npt.NDArray[Any]]:
        """Measure each series. values: (batch, length) uint8. Returns the measures by name, (batch,) each.

        beside: names in `STRUCTURE` that are returned as well; of the robust truth only.
        """
        if self.truth == "paper":
            return paper.measure(values, self.borders)
        return {
            **robust.columns(values, (*ROBUST_TREND, "noise", *beside)),
            **paper.levels(values),
            "mean": values.mean(axis=1, dtype=np.float32),
            **paper.extrema(values, self.borders),
        }

    def ends(self, values: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """What `trend` needs of each series, by name, (batch,) each. values: (batch, length) uint8."""
        if self.truth == "paper":
            return {"trend_delta": paper.ends(values)}
        return robust.columns(values, tuple(ROBUST_TREND))

    @property
    def trend_measures(self) -> dict[str, pa.DataType]:
        """Names and Arrow types of what `ends` returns."""
        return {"trend_delta": pa.float32()} if self.truth == "paper" else dict(ROBUST_TREND)

    def trend(self, measures: Mapping[str, npt.NDArray[Any]], whose: str = "") -> npt.NDArray[np.intp]:
        """Direction of each series, (batch,): 0 increasing, 1 decreasing, 2 flat. whose: prefix of measures."""
        if self.truth == "paper":
            return paper.direction(measures[f"{whose}trend_delta"])
        sign = robust.trend.direction(measures[f"{whose}trend_strength"])
        return np.where(sign > 0, 0, np.where(sign < 0, 1, 2))

    def trend_margin(self, measures: Mapping[str, npt.NDArray[Any]], whose: str = "") -> npt.NDArray[np.float32]:
        """How far each series is from another direction, (batch,), in value units or, if robust, of strength."""
        name, border = ("trend_delta", paper.TREND_MARGIN) if self.truth == "paper" else ("trend_strength", 1.0)
        return paper.distance(np.abs(measures[whose + name]), (border,))

    @property
    def trend_means(self) -> str:
        """The definition of a direction, in one line."""
        if self.truth == "paper":
            return (
                "increasing or decreasing if the mean of the last 20 of 128 points is more than 3 units of 0-99 "
                "above or below the mean of the first 20, otherwise flat"
            )
        return (
            "increasing or decreasing if the series as a whole changes by at least a quarter of its range, beyond "
            "what noise and cycles would do, or its level shifts by as much; otherwise flat"
        )

    @property
    def noise_means(self) -> str:
        """The definition of the levels of noise, in one line."""
        around = "a cubic fit" if self.truth == "paper" else "trend, cycles, level shifts and slow bends"
        low, high = paper.NOISE_LEVELS if self.truth == "paper" else robust.noise.LEVELS
        return (
            f"the standard deviation around {around}, in units of 0-99: low below {low:g}, high above {high:g}, "
            "otherwise medium"
        )

    @property
    def places_mean(self) -> str:
        """The definition of the places of an extremum, in one line."""
        part = "quarter" if self.places == "quarters" else "third"
        return (
            f"the beginning is the first {part} of the points, the end the last {part}, the middle what is between"
        )

    @property
    def trend_tie(self) -> float:
        """The margin below which a trend is a near tie."""
        return TREND_TIES[self.truth]

    def noise(self, measures: Mapping[str, npt.NDArray[Any]], whose: str = "") -> npt.NDArray[np.intp]:
        """The level of noise of each series, (batch,): 0 low, 1 medium, 2 high. whose: prefix of measures."""
        if self.truth == "paper":
            return paper.level(measures[f"{whose}noise_rms"])
        return robust.noise.level(measures[f"{whose}noise"]).astype(np.intp)

    def noise_margin(self, measures: Mapping[str, npt.NDArray[Any]], whose: str = "") -> npt.NDArray[np.float32]:
        """Distance of each series to the nearest border between levels, (batch,) in value units."""
        name, borders = (
            ("noise_rms", paper.NOISE_LEVELS) if self.truth == "paper" else ("noise", robust.noise.LEVELS)
        )
        return paper.distance(measures[whose + name], borders)


DEFAULT = Definitions()
PAPER = Definitions("paper")
