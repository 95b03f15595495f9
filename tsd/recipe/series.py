"""Recipe sections: which series are generated, and how they are plotted."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tsd.recipe.section import Positive, Range, Section, Share, Shares, Size, nearest
from tsd.series.processes import PROCESSES, known, own_ranges

SHORTEST, LONGEST = 32, 1024  # points in a series
RASTERISED_SIDE, RASTERISED_TOKEN = 128, 32  # pixels of a rasterised plot's side and of an image token's side
FIXED = {"paper": (1000, 500), "bare": (RASTERISED_SIDE,) * 2}  # pixels of the styles with a fixed size
PATCH = 28  # pixels of an image token's side in a Qwen-VL


# Defaults with `truth: paper` that differ from those of SeriesConfig: they give balanced classes too.
OF_PAPERS_TRUTH: Mapping[str, Any] = {
    "oversampling": 1.25,
    "trend_shares": (0.34, 0.34, 0.32),
    "noise_shares": (0.49, 0.33, 0.18),
    "own_trend_shares": (0.28, 0.28, 0.44),
    "own_noise_shares": (0.60, 0.40, 0.0),
    "noise_rms": ((0.6, 1.75), (2.4, 10.2), (13.0, 17.0)),
    "drift": (6.0, 10.0),
    "own_drift": (0.05, 0.4),
}

# Those of the task `rich`: more room for seasons, shifts, outliers and changes of volatility, which are added. The
# reversion that is wanted changes tau.
OF_RICH: Mapping[str, Any] = {
    "oversampling": 1.25,
    "mix": {
        **{"linear": 1.5, "fixed": 1.0, "saturating": 0.75, "piecewise": 0.75, "switching": 0.4, "shift": 0.5},
        **{"season": 1.0, "student_t": 0.6, "volatile": 0.6},
    },
    "trend_shares": (0.36, 0.36, 0.28),
    "noise_shares": (0.33, 0.13, 0.54),
    "own_trend_shares": (0.36, 0.36, 0.28),
    "own_noise_shares": (0.33, 0.13, 0.54),
    "noise_rms": ((0.4, 1.6), (2.5, 8.5), (11.8, 16.0)),
    "tau": ((0.2, 0.8), (0.016, 0.31), (0.0008, 0.008)),  # high noise that does not wander leaves room
}


def defaults_by(task: object, truth: object) -> Mapping[str, Any]:
    """The defaults, by field, that a task and a truth have in place of those of SeriesConfig."""
    return OF_RICH if task == "rich" else OF_PAPERS_TRUTH if truth == "paper" else {}


class SeriesConfig(Section):
    """Which series are generated. The defaults give balanced classes, so that others hold with `truth: paper` and
    with `task: rich`: `tsd recipes show` prints them."""

    count: Annotated[int, Field(gt=0, le=10**10)] = 12_500
    """Number of series over all splits."""
    length: int | tuple[int, ...] = 128
    """Points per series. With several lengths, each series has one of them, in equal proportions."""
    split: Shares = (0.8, 0.1, 0.1)
    """Fractions of train, validation and test."""
    mix: dict[str, Size] = Field(default={name: process.weight for name, process in PROCESSES.items()})
    """Relative frequencies of the processes. A process that is not named is not used."""
    ranges: dict[str, tuple[float, float]] = Field(default={})
    """Other ranges for parameters that only some processes have, such as season_period: [0.3, 2.0]."""
    own_range: Share = 0.4
    """Fraction of series that are min-max scaled to 0–99. The others share a common scale."""
    oversampling: Annotated[float, Field(ge=1, le=10)] = 1.65
    """Candidates generated per series kept. More candidates give more balanced classes and take longer. With the
    robust truth, of the task `single`, a quarter of the spare ones is measured in full."""
    trend_shares: Shares = (0.39, 0.39, 0.22)
    """Fractions of series generated with a rising, a falling and no drift. Noise moves some of the last to the
    others."""
    noise_shares: Shares = (0.36, 0.25, 0.39)
    """Fractions of series generated with low, medium and high noise."""
    own_trend_shares: Shares = (0.41, 0.41, 0.18)
    """trend_shares of min-max scaled series."""
    own_noise_shares: Shares = (0.32, 0.25, 0.43)
    """noise_shares of min-max scaled series. Scaling makes flat series noisier than they were generated."""
    noise_rms: tuple[Range, Range, Range] = ((0.4, 1.7), (2.5, 8.0), (12.0, 14.5))
    """Ranges of the RMS of the noise for low, medium and high noise, in value units: around all structure, or of a
    cubic fit with `truth: paper`."""
    tau: tuple[Range, Range, Range] = ((0.2, 0.8), (0.016, 0.31), (0.0055, 0.031))
    """Ranges of the mean-reversion time for low, medium and high noise, as a fraction of the length. Slow
    reversion at low noise lets the path wander, so that the trend does not determine the extrema."""
    drift: tuple[Size, Size] = (8.0, 24.0)
    """Range of the drift from first to last point, in value units. A larger one is taken where `own_drift` needs
    it."""
    drift_per_spread: Size = 1.0
    """Additional drift per value unit by which noise alone separates the two ends; with `truth: paper` only."""
    own_drift: tuple[Share, Share] = (0.31, 0.43)
    """Range of the drift as a fraction of the series' range. With `truth: paper`, that of min-max scaled series,
    as a fraction of the range left by the noise."""
    swing: tuple[Size, Size] = (8.0, 40.0)
    """Range of the height of humps, seasons and switches that are added to a drift, in value units."""
    swing_share: tuple[Share, Share] = (0.3, 0.9)
    """Range of the fraction of the target residual's energy due to such a swing; larger swings are reduced."""
    off_centre: Annotated[float, Field(ge=0, le=50)] = 20.0
    """Maximum distance between the middle of a series on the common scale and 49.5, in value units, if there is
    room."""
    blocks_per_part: Positive = 1
    """Blocks of 1,024 series per Parquet part."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Every length, in ascending order."""
        return (self.length,) if isinstance(self.length, int) else tuple(sorted(set(self.length)))

    @property
    def points(self) -> float:
        """Mean number of points per series."""
        return sum(self.lengths) / len(self.lengths)

    @field_validator("length", mode="before")
    @classmethod
    def _whole_lengths(cls, value: Any) -> Any:
        lengths = value if isinstance(value, list | tuple) else [value]
        if not lengths or not all(type(one) is int and SHORTEST <= one <= LONGEST for one in lengths):
            raise ValueError(f"must be a whole number from {SHORTEST} to {LONGEST}, or a list of such")
        return value

    @field_validator("mix")
    @classmethod
    def _known_processes(cls, mix: dict[str, float]) -> dict[str, float]:
        for name in mix:
            if name not in known():
                raise ValueError(f"there is no process {name!r}{nearest(name, list(known()))}")
        if not sum(mix.values()) > 0:
            raise ValueError("at least one process must have a weight above 0")
        return mix

    @field_validator("ranges")
    @classmethod
    def _known_ranges(cls, ranges: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        spans = own_ranges(known())
        for name, (low, high) in ranges.items():
            if name not in spans:
                raise ValueError(f"no process has a {name!r}{nearest(name, list(spans))}")
            least, most = spans[name].least, spans[name].most
            if not least <= low <= high <= most:
                raise ValueError(f"{name} must be low, high within {least:g} to {most:g}, not {[low, high]}")
        return ranges

    @model_validator(mode="after")
    def _ranges_are_whole(self) -> Self:
        for name in ("split", "trend_shares", "noise_shares", "own_trend_shares", "own_noise_shares"):
            total = sum(getattr(self, name))
            if abs(total - 1) > 1e-6:
                raise ValueError(f"{name} must sum to 1, not {total:g}")
        for name in ("noise_rms", "tau"):
            if any(low > high for low, high in getattr(self, name)):
                raise ValueError(f"{name} must give each range as low, high")
        for name in ("drift", "own_drift", "swing", "swing_share"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must be low, high, not {[low, high]}")
        return self


class PlotConfig(Section):
    """How a series is plotted for a teacher with a vision encoder."""

    style: Literal["paper", "compact", "bare"] = "compact"
    """`paper`: the figure of arXiv 2507.07439, 1000 × 500 pixels. `compact`: a size that a Qwen-VL teacher uses
    without resizing. `bare`: a rasterised plot of the line alone, 128 × 128 pixels, for locally trained teachers,
    whose default it is."""
    width: Annotated[int, Field(ge=140, le=4088)] = 448
    """Width of a compact plot in pixels, a multiple of 28. A smaller one leaves no room for the line beside the
    labels."""
    height: Annotated[int, Field(ge=140, le=4088)] = 224
    """Height of a compact plot in pixels, a multiple of 28."""
    vary: bool = False
    """Vary line colour and width, and the size of compact plots, between series."""
    store: bool = False
    """Also store the plots on disk."""

    @model_validator(mode="after")
    def _whole_patches(self) -> Self:
        for name, pixels in (("width", self.width), ("height", self.height)):
            if pixels % PATCH:
                below = pixels // PATCH * PATCH
                raise ValueError(
                    f"{name} must be a multiple of {PATCH}, the patch size of a Qwen-VL: "
                    f"{below} or {below + PATCH}, not {pixels}"
                )
        return self

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Every possible size of a plot, equally probable: (width, height) in pixels."""
        if self.style != "compact":
            return [FIXED[self.style]]
        if not self.vary:
            return [(self.width, self.height)]
        return [
            (width, height)
            for width in (self.width + PATCH * step for step in (-2, -1, 0, 1, 2))
            for height in (self.height + PATCH * step for step in (-1, 0, 1))
            if width >= 140 and height >= 140
        ]

    @property
    def image_tokens(self) -> float:
        """Mean number of Qwen-VL image tokens per plot, after resizing to multiples of the token size."""
        if self.style == "bare":
            return (RASTERISED_SIDE / RASTERISED_TOKEN) ** 2
        tokens = [round(width / PATCH) * round(height / PATCH) for width, height in self.sizes]
        return sum(tokens) / len(tokens)

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that determine a plot's pixels. Excludes `store`, and sizes that the style does not use."""
        return self.model_dump(exclude={"store", *(("width", "height") if self.style in FIXED else ())})
