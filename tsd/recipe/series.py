"""Which series are drawn, and how they look."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tsd.recipe.section import Positive, Range, Section, Share, Shares, Size, nearest
from tsd.series.processes import PROCESSES, own_ranges

SHORTEST, LONGEST = 32, 1024  # points in a series
RASTERISED_SIDE, RASTERISED_TOKEN = 128, 32  # pixels of a rasterised plot's side, and of a token's
FIXED = {"paper": (1000, 500), "bare": (RASTERISED_SIDE,) * 2}  # pixels of the styles that have one size
PATCH = 28  # pixels of a picture's side that a Qwen-VL takes for one token


class SeriesConfig(Section):
    """Which series are drawn. The defaults give balanced classes; see docs/decisions.md."""

    count: Annotated[int, Field(gt=0, le=10**10)] = 12_500
    """How many series, over all splits."""
    length: int | tuple[int, ...] = 128
    """Points in each series; of several lengths, each series has one, all equally often."""
    split: Shares = (0.8, 0.1, 0.1)
    """Shares of train, validation and test."""
    mix: dict[str, Size] = Field(default={name: process.weight for name, process in PROCESSES.items()})
    """How often each process is drawn, relative to the others; a process that is not named is not drawn."""
    ranges: dict[str, tuple[float, float]] = Field(default={})
    """Other ranges for what only some processes have, such as season_period: [0.3, 2.0]."""
    own_range: Share = 0.4
    """The share of series that are mapped onto 0–99 by their own minimum and maximum; the others keep the
    one scale."""
    oversampling: Annotated[float, Field(ge=1, le=10)] = 1.25
    """Candidates for each series that is kept; the more, the more even are the classes, and the slower."""
    trend_shares: Shares = (0.34, 0.34, 0.32)
    """How often a rising, a falling and no drift is drawn; noise moves some of the last into the others."""
    noise_shares: Shares = (0.49, 0.33, 0.18)
    """How often low, medium and high noise is drawn."""
    own_trend_shares: Shares = (0.28, 0.28, 0.44)
    """trend_shares of series that fill their own range."""
    own_noise_shares: Shares = (0.60, 0.40, 0.0)
    """noise_shares of series that fill their own range, which makes flat ones noisier than they were drawn."""
    noise_rms: tuple[Range, Range, Range] = ((0.6, 1.75), (2.4, 10.2), (13.0, 17.0))
    """Residual around a cubic fit for low, medium and high noise, in value units."""
    tau: tuple[Range, Range, Range] = ((0.2, 0.8), (0.016, 0.31), (0.0055, 0.031))
    """Mean-reversion time for low, medium and high noise, as a fraction of the length. Slow reversion where
    noise is low lets the path wander, so that the trend does not give the extrema away."""
    drift: tuple[Size, Size] = (6.0, 10.0)
    """Size of a drift from first point to last, in value units."""
    drift_per_spread: Size = 1.0
    """Added to the drift for each value unit by which noise alone moves the two ends apart."""
    own_drift: tuple[Share, Share] = (0.05, 0.4)
    """Size of a drift where a series fills its own range, as a share of what the noise leaves of it."""
    swing: tuple[Size, Size] = (8.0, 40.0)
    """Size of the humps, seasons and switches that come on top of a drift, in value units."""
    swing_share: tuple[Share, Share] = (0.3, 0.9)
    """Share of the wanted residual's energy that such a swing may make; it is smaller where it would be more."""
    off_centre: Annotated[float, Field(ge=0, le=50)] = 20.0
    """How far from 49.5 the middle of a series on the one scale may lie, in value units, where it has room."""
    blocks_per_part: Positive = 1
    """Blocks of 1,024 series in one Parquet part."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Every length, in ascending order."""
        return (self.length,) if isinstance(self.length, int) else tuple(sorted(set(self.length)))

    @property
    def points(self) -> float:
        """Points in a series on average."""
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
            if name not in PROCESSES:
                raise ValueError(f"there is no process {name!r}{nearest(name, list(PROCESSES))}")
        if not sum(mix.values()) > 0:
            raise ValueError("at least one process must have a weight above 0")
        return mix

    @field_validator("ranges")
    @classmethod
    def _known_ranges(cls, ranges: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        spans = own_ranges()
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
    """How a series is drawn for a teacher that looks."""

    style: Literal["paper", "compact", "bare"] = "compact"
    """The paper's figure, 1000 × 500 pixels; one in the size that a Qwen-VL teacher takes as it is; or the line
    alone, 128 × 128 pixels, which a teacher of one's own looks at and which is then the default."""
    width: Annotated[int, Field(ge=140, le=4088)] = 448
    """Pixels of a compact plot, a multiple of 28; with fewer, the axes' words leave no room for the line."""
    height: Annotated[int, Field(ge=140, le=4088)] = 224
    """Pixels of a compact plot, a multiple of 28."""
    vary: bool = False
    """Vary the line's colour and width, and a compact plot's size, from series to series."""
    store: bool = False
    """Keep the plots on disk, too."""

    @model_validator(mode="after")
    def _whole_patches(self) -> Self:
        for name, pixels in (("width", self.width), ("height", self.height)):
            if pixels % PATCH:
                below = pixels // PATCH * PATCH
                raise ValueError(
                    f"{name} must be a multiple of {PATCH}, the patches that a Qwen-VL looks at: "
                    f"{below} or {below + PATCH}, not {pixels}"
                )
        return self

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Every size that a plot may have, each as likely as the others: (width, height) in pixels."""
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
        """Tokens that a plot costs a Qwen-VL on average: one a patch, after scaling to whole patches."""
        if self.style == "bare":
            return (RASTERISED_SIDE / RASTERISED_TOKEN) ** 2
        tokens = [round(width / PATCH) * round(height / PATCH) for width, height in self.sizes]
        return sum(tokens) / len(tokens)

    @property
    def identity(self) -> dict[str, Any]:
        """All that shapes a plot; whether it is kept does not, nor a size that the style does not ask for."""
        return self.model_dump(exclude={"store", *(("width", "height") if self.style in FIXED else ())})
