"""Series -> plots as PNG bytes, for teachers with a vision encoder.

`figure` defines a plot in terms of matplotlib. `Plotter` renders the same image much faster
(`benchmarks/plots.py`): the background, shared by all series of a length, is rendered once, and only the line per
series. The line is rendered by celiagg, a binding of Anti-Grain Geometry, which matplotlib uses too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import celiagg
import numpy as np
import numpy.typing as npt

from tsd.plots import png, rasterised
from tsd.plots.figures import Affine2D, Figure, FigureCanvasAgg, Path, style, to_rgb
from tsd.plots.rasterised import Curve
from tsd.recipe import PlotConfig
from tsd.rng import LOOKS, generator

VERSION = "plots-3"  # part of a request's key; change it with anything that changes a pixel
DPI = 100
NAMES = ("first", "second")  # legend labels of the curves of a pair
COLOURS = ("black", "tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")
LINE_WIDTHS = (0.8, 2.4)  # points, for varied plots
VALUES = 100  # 0–99
UNCLIPPED = celiagg.Rect(0, 0, -1, -1)
SIMPLIFIED, THRESHOLD = 128, 1 / 9  # matplotlib's line simplification: least points, tolerance in pixels
SHEETS = 32  # cached backgrounds

Style: TypeAlias = Literal["paper", "compact", "bare"]


@dataclass(frozen=True)
class Look:
    """Everything a plot depends on except its curves. Sizes in pixels, line width in points."""

    style: Style
    width: int
    height: int
    colours: tuple[str, str]
    """Of the first and the second curve."""
    line_width: float


def versions(config: PlotConfig) -> list[str]:
    """The versions of the code that determines the pixels of these plots."""
    return [VERSION, *([rasterised.VERSION] if config.style == "bare" else [])]


def choose_look(config: PlotConfig, seed: int, series_id: int) -> Look:
    """The look of a series: the style's default or, with `vary`, a random one that depends on the series' id."""
    if not config.vary or config.style == "bare":
        as_in_paper = config.style == "paper"  # matplotlib's default colours and line width
        colours, line_width = (("tab:blue", "tab:orange"), 1.5) if as_in_paper else (("black", "tab:red"), 1.2)
        return Look(config.style, *config.sizes[0], colours, line_width)
    rng = generator(seed, LOOKS, series_id)
    width, height = config.sizes[rng.integers(len(config.sizes))]
    first, second = rng.choice(len(COLOURS), 2, replace=False)
    return Look(config.style, width, height, (COLOURS[first], COLOURS[second]), float(rng.uniform(*LINE_WIDTHS)))


class Plotter:
    """Renders plots as PNGs, with cached backgrounds. An image depends on its curves and its look only."""

    def __init__(self) -> None:
        self._sheet = lru_cache(maxsize=SHEETS)(_sheet)

    def __call__(self, batch: Sequence[Curve | Sequence[Curve]], looks: Sequence[Look]) -> list[bytes]:
        """Render each item with its look, in order.

        batch: items of one series, (length,) uint8, or a sequence of one or two series for a shared plot. Lengths
        may differ.
        Returns PNGs of `look.width` × `look.height` pixels: 8-bit palette for one curve, RGBA for two, greyscale
        for the bare style, which ignores the rest of the look.
        """
        plots = [[item] if isinstance(item, np.ndarray) and item.ndim == 1 else list(item) for item in batch]
        keys = [
            (len(curves), look.style, look.width, look.height, max(map(len, curves)))
            for curves, look in zip(plots, looks, strict=True)
        ]
        pictures = [b""] * len(plots)
        for i in sorted(range(len(plots)), key=keys.__getitem__):  # each background is rendered once
            if looks[i].style == "bare":
                pictures[i] = rasterised.as_png(rasterised.draw([plots[i]])[0])
                continue
            pictures[i] = self._sheet(*keys[i]).draw(plots[i], looks[i])
        return pictures


def _sheet(count: int, *layout: Any) -> "_Sheet | _PairSheet":
    """The background of a plot. count: curves; layout: style, width, height and length."""
    with style():  # ticks and their labels are created during rendering
        return _Sheet(*layout) if count == 1 else _PairSheet(*layout)


def figure(curves: Sequence[Curve], look: Look) -> Figure:
    """The matplotlib figure of one or two series: reference for `Plotter` and source of its backgrounds."""
    with style():  # independent of the user's matplotlib settings
        return _figure(curves, look)


def _figure(curves: Sequence[Curve], look: Look) -> Figure:
    """Build the figure with the current matplotlib settings. curves: one or two, (length,) 0–99."""
    pair, last = len(curves) > 1, max(map(len, curves)) - 1
    drawn = Figure(figsize=(look.width / DPI, look.height / DPI), dpi=DPI)
    if look.style == "paper":
        # As in the code of arXiv 2507.07439: matplotlib's default sizes and, for its 128 points, equal scales on
        # both axes. Other lengths get the same box.
        small = None
        axes = drawn.add_subplot(xlim=(-0.05 * last, 1.05 * last), box_aspect=100 / (1.1 * 127))
        axes.set(xlabel="Time", ylabel="X(t)", title="Time Series")
        axes.grid(True)
    else:
        small, point = 8.0, 72 / DPI  # font size, and one pixel in points: thin lines of one pixel stay sharp
        axes = drawn.add_subplot(xlim=(0, last))
        axes.set_xlabel("time", fontsize=small, labelpad=1)
        axes.set_ylabel("value", fontsize=small, labelpad=1)
        axes.tick_params(labelsize=small, width=point, length=3, pad=2)
        axes.grid(color="0.85", linewidth=point)
        axes.spines[:].set_linewidth(point)
        drawn.subplots_adjust(
            left=44 / look.width,
            right=1 - 12 / look.width,
            bottom=32 / look.height,
            top=1 - (20 if pair else 8) / look.height,
        )
    axes.set_ylim(0, 100)
    for curve, colour, name in zip(curves, look.colours, NAMES, strict=False):
        axes.plot(curve, color=colour, linewidth=look.line_width, label=name)
    if pair:  # above the axes, where it hides no line
        axes.legend(
            loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False, borderaxespad=0.2, fontsize=small
        )
    return drawn


class _Empty:
    """A plot without its lines: background, pixel coordinates of points and values, legend positions."""

    def __init__(self, style: Style, width: int, height: int, length: int, count: int) -> None:
        """Render the background with matplotlib and compute the transform from data to pixels.

        count: 1 or 2 curves. length: points of the longest.
        """
        empty = figure([np.zeros(length, np.uint8)] * count, Look(style, width, height, ("black", "black"), 1.0))
        axes = empty.axes[0]
        legend: Any = axes.get_legend()
        samples = legend.legend_handles if legend else []
        for artist in (*axes.lines, *samples):
            artist.set_visible(False)
        canvas = FigureCanvasAgg(empty)
        canvas.draw()  # type: ignore[no-untyped-call]
        self.background = np.array(canvas.buffer_rgba())  # type: ignore[no-untyped-call]  # (height, width, 4)
        down = Affine2D().scale(1, -1).translate(0, height)  # moves the origin to the top left
        self.samples = [(line.get_transform() + down).transform(line.get_path().vertices) for line in samples]
        diagonal = np.arange(max(length, VALUES))[:, None].repeat(2, axis=1)
        places = (axes.transData + down).transform(diagonal)
        self.column_of, self.row_of = places[:length, 0], places[:VALUES, 1]  # by time index, by value
        x0, y0, x1, y1 = (round(edge) for edge in axes.bbox.extents)
        self.columns = slice(x0, x1)  # pixel columns inside the axes
        self.box = celiagg.Rect(x0, height - y1, x1 - x0, y1 - y0)
        self.inside = np.zeros((height, width), bool)
        self.inside[height - y1 : height - y0, x0:x1] = True
        # The frame is above a line. Nothing else inside the axes is that dark.
        self.open = self.inside & (self.background[..., 0] > 128)  # (height, width), pixels that a line may change


class _PairSheet:
    """Renders two curves over a background, each in its colour."""

    def __init__(self, style: Style, width: int, height: int, length: int) -> None:
        self.empty = _Empty(style, width, height, length, count=2)
        self.ink = np.empty_like(self.empty.background)
        self.canvas = celiagg.CanvasRGBA32(self.ink)
        self.pixels = self.ink.view("<u4").reshape(-1)  # the same memory, one number per pixel
        self.closed = np.flatnonzero(self.empty.inside & ~self.empty.open)
        self.frame = self.empty.background.view("<u4").reshape(-1)[self.closed]

    def draw(self, curves: Sequence[Curve], look: Look) -> bytes:
        """One plot as an RGBA PNG. curves: two of them, (length,) uint8."""
        empty = self.empty
        self.ink[:] = empty.background
        for curve, colour in zip(curves, look.colours, strict=True):
            points = np.stack([empty.column_of[: len(curve)], empty.row_of[curve]], axis=1)
            _stroke(self.canvas, points, look, colour, empty.box)
        self.pixels[self.closed] = self.frame
        for points, colour in zip(empty.samples, look.colours, strict=True):
            _stroke(self.canvas, points, look, colour)
        rows = np.zeros((look.height, 1 + 4 * look.width), np.uint8)
        rows[:, 1:] = self.ink.reshape(look.height, -1)
        return png.head(look.width, look.height, png.RGBA) + png.body([png.deflate(rows, last=True)])


# The palette of a plot with one curve encodes line coverage and background shade. Even entries: white background,
# 128 levels of coverage (its upper seven bits). Odd entries are in groups of eight, one per level of 16: four
# rarer background shades (grid, faint edges of grid and frame), then four greys that no line changes. A bit mask
# and an offset thus turn coverage into an entry.
RARE = 4
BARE = np.array([0, *range(1, 2 * RARE, 2)])  # entries of the shades without a line
GREYS = np.arange(1, 256, 2).reshape(16, 8)[:, RARE:].ravel()  # entries of 64 greys, black to white
WHITE_BITS, RARE_BITS = 0b11111110, 0b11110000  # bits of the coverage that count


class _Sheet:
    """Renders one curve over a background: only the line, in the rows that it touches, one byte per pixel.

    The line is rendered white on black, so that a byte is the line's coverage of a pixel. Coverage and background
    shade select a palette entry, so no colours are blended.

    The canvas is transposed. The image is the same, but rendering is faster: the rasteriser sorts the crossings of
    each row, and a noisy line crosses fewer columns than rows.
    """

    def __init__(self, style: Style, width: int, height: int, length: int) -> None:
        empty = _Empty(style, width, height, length, count=1)
        self.cover = np.zeros((empty.columns.stop - empty.columns.start, height), np.uint8)  # transposed
        self.canvas = celiagg.CanvasG8(self.cover)
        self.row_of = empty.row_of
        self.points = np.empty((length, 2))
        self.points[:, 1] = empty.column_of - empty.columns.start
        self._lay_out(empty)
        self.heads: dict[str, bytes] = {}
        self.above: dict[int, png.Piece] = {}
        self.below: dict[int, png.Piece] = {}

    def _lay_out(self, empty: _Empty) -> None:
        """Convert the background to palette entries, and mark the bits that a line may change."""
        grey = empty.background[..., 0]  # (height, width); without lines all colours are grey
        shades, counts = np.unique(grey[empty.open], return_counts=True)
        self.shades = shades[np.argsort(-counts)][: 1 + RARE].astype(int)
        nearest = np.abs(np.arange(256)[:, None] - self.shades).argmin(axis=1)  # (256,), of shade
        greys = GREYS[np.rint(grey / 255 * (len(GREYS) - 1)).astype(int)]
        entries = np.where(empty.open, BARE[nearest[grey]], greys).astype(np.uint8)
        room = np.where(empty.open, np.where(nearest[grey] == 0, WHITE_BITS, RARE_BITS), 0)
        self.base = entries[:, empty.columns].copy()  # (height, columns)
        self.room = room[:, empty.columns].astype(np.uint8)
        self.columns = slice(1 + empty.columns.start, 1 + empty.columns.stop)
        self.empty = png.filter_up(entries)
        self.rows = self.empty.copy()

    def draw(self, curves: Sequence[Curve], look: Look) -> bytes:
        """One plot as a palette PNG. curves: a single one, (length,) uint8."""
        (curve,) = curves
        reach = look.line_width * DPI / 72 / 2 + 2  # pixels; one more row on either side stays unchanged
        start = max(0, int(self.row_of[curve.max()] - reach))
        stop = min(len(self.rows), int(self.row_of[curve.min()] + reach) + 1)
        self.points[:, 0] = self.row_of[curve]
        self.cover.fill(0)
        _stroke(self.canvas, self.points, look, "white")
        entries = self.cover.T[start:stop].copy()  # (rows, columns)
        entries &= self.room[start:stop]
        entries |= self.base[start:stop]
        self.rows[start, self.columns] = self.empty[start, self.columns]
        np.subtract(entries[1:], entries[:-1], out=self.rows[start + 1 : stop, self.columns])  # Up filter
        touched = png.deflate(self.rows[start:stop])
        return self._head(look) + png.body([self._above(start), touched, self._below(stop)])

    def _above(self, row: int) -> png.Piece:
        """The compressed background above a row, cached."""
        if row not in self.above:
            self.above[row] = png.deflate(self.empty[:row])
        return self.above[row]

    def _below(self, row: int) -> png.Piece:
        """The compressed background from a row on, cached."""
        if row not in self.below:
            self.below[row] = png.deflate(self.empty[row:], last=True)
        return self.below[row]

    def _head(self, look: Look) -> bytes:
        """PNG header with the palette of this look's colour, cached by colour."""
        colour = look.colours[0]
        if colour not in self.heads:
            line = np.array(to_rgb(colour)) * 255
            palette = np.zeros((256, 3))
            palette[GREYS] = np.linspace(0, 255, len(GREYS))[:, None]
            for number, shade in enumerate(self.shades):
                entries = slice(0, None, 2) if number == 0 else slice(BARE[number], None, 16)
                palette[entries] = _mixed(shade, line, 128 if number == 0 else 16)
            self.heads[colour] = png.head(look.width, look.height, png.PALETTE, np.rint(palette).astype(np.uint8))
        return self.heads[colour]


def _mixed(shade: int, line: npt.NDArray[np.float64], degrees: int) -> npt.NDArray[np.float64]:
    """A background shade blended with the line's colour at `degrees` levels of coverage, (degrees, 3).

    Each level stands for the middle of its interval, but the first is no and the last full coverage.
    """
    cover = (np.arange(degrees)[:, None] + 0.5) / degrees
    cover[[0, -1]] = [[0], [1]]
    mixed: npt.NDArray[np.float64] = shade * (1 - cover) + line * cover
    return mixed


def _stroke(canvas: Any, points: npt.NDArray[np.float64], look: Look, colour: str, box: Any = UNCLIPPED) -> None:
    """Draw a polyline with the settings of matplotlib's `Line2D`. points: (length, 2), canvas pixels (x, y)."""
    width = look.line_width * DPI / 72
    wanted = Path(points)
    wanted.simplify_threshold = THRESHOLD
    drawn = wanted.cleaned(simplify=len(points) >= SIMPLIFIED, snap=None, stroke_width=width)
    line = celiagg.Path()
    line.lines(np.asarray(drawn.vertices)[:-1])  # the last vertex only ends the path
    pen = celiagg.GraphicsState(
        drawing_mode=celiagg.DrawingMode.DrawStroke,
        line_cap=celiagg.LineCap.CapSquare,
        line_join=celiagg.LineJoin.JoinRound,
        line_width=width,
        clip_box=box,
    )
    canvas.draw_shape(line, celiagg.Transform(), pen, stroke=celiagg.SolidPaint(*to_rgb(colour)))
