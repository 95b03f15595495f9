"""Series -> plots, as PNG bytes for a teacher that looks.

`figure` says what a plot is, in matplotlib's words. `Plotter` draws the same picture some hundred times faster:
what is the same for all series of a length is drawn once, then only the line is, by matplotlib's own rasteriser.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.path import Path
from matplotlib.transforms import Affine2D, Bbox, Transform

from tsd import png
from tsd.draws import LOOKS, generator
from tsd.recipe import PlotConfig

VERSION = "plots-2"  # part of a request's key: change it with anything that changes a pixel
DPI = 100
NAMES = ("first", "second")  # what the legend calls the curves of a pair
COLOURS = ("black", "tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")
LINE_WIDTHS = (0.8, 2.4)  # points, where looks vary
SHEETS = 32  # backgrounds that are kept, 0.5 to 5 MB each

Style: TypeAlias = Literal["paper", "compact"]
Curve: TypeAlias = npt.NDArray[np.uint8]  # (length,) 0–99


@dataclass(frozen=True)
class Look:
    """All that a plot depends on besides its curves. Sizes in pixels, the line's width in points."""

    style: Style
    width: int
    height: int
    colours: tuple[str, str]
    """Of the first and the second curve."""
    line_width: float


def choose_look(config: PlotConfig, seed: int, series_id: int) -> Look:
    """How a series is shown: the style's own look or, where looks vary, one drawn for this series alone."""
    if not config.vary:
        as_in_paper = config.style == "paper"  # matplotlib's own first colours and width
        colours, line_width = (("tab:blue", "tab:orange"), 1.5) if as_in_paper else (("black", "tab:red"), 1.2)
        return Look(config.style, *config.sizes[0], colours, line_width)
    rng = generator(seed, LOOKS, series_id)
    width, height = config.sizes[rng.integers(len(config.sizes))]
    first, second = rng.choice(len(COLOURS), 2, replace=False)
    return Look(config.style, width, height, (COLOURS[first], COLOURS[second]), float(rng.uniform(*LINE_WIDTHS)))


class Plotter:
    """Draws plots as PNGs and keeps what they share. A picture depends on its curves and its look alone."""

    def __init__(self) -> None:
        self._sheet = lru_cache(maxsize=SHEETS)(_sheet)

    def __call__(self, batch: Sequence[Curve | Sequence[Curve]], looks: Sequence[Look]) -> list[bytes]:
        """Draw each item in its look, in order.

        batch: a series, (length,) uint8, or one or two of them to be drawn into one plot; lengths may differ.
        Returns PNGs of `look.width` × `look.height` pixels: 8-bit palette for one curve, RGBA for two.
        """
        plots = [[item] if isinstance(item, np.ndarray) and item.ndim == 1 else list(item) for item in batch]
        keys = [
            (len(curves), look.style, look.width, look.height, max(map(len, curves)))
            for curves, look in zip(plots, looks, strict=True)
        ]
        pictures = [b""] * len(plots)
        for i in sorted(range(len(plots)), key=keys.__getitem__):  # so that each sheet is made once
            pictures[i] = self._sheet(*keys[i]).draw(plots[i], looks[i])
        return pictures


def _sheet(count: int, *layout: Any) -> "_Sheet | _PairSheet":
    return _Sheet(*layout) if count == 1 else _PairSheet(*layout)


def figure(curves: Sequence[Curve], look: Look) -> Figure:
    """The plot of one or two series, from scratch: what `Plotter` must draw, and what its sheets are made of."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # a plot is the same whatever this machine's own settings
        return _figure(curves, look)


def _figure(curves: Sequence[Curve], look: Look) -> Figure:
    pair, last = len(curves) > 1, max(map(len, curves)) - 1
    drawn = Figure(figsize=(look.width / DPI, look.height / DPI), dpi=DPI)
    if look.style == "paper":
        # As in the code that accompanies arXiv 2507.07439: matplotlib's own sizes, and for its 128 points a unit
        # of value as long as a unit of time. Other lengths get the same box.
        small = None
        axes = drawn.add_subplot(xlim=(-0.05 * last, 1.05 * last), box_aspect=100 / (1.1 * 127))
        axes.set(xlabel="Time", ylabel="X(t)", title="Time Series")
        axes.grid(True)
    else:
        small, point = 8.0, 72 / DPI  # a font and a pixel, in points: thin lines a pixel wide stay sharp
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
    """A plot without its lines: the background, where lines go, and the legend's samples of them."""

    def __init__(self, style: Style, width: int, height: int, length: int, count: int) -> None:
        empty = figure([np.zeros(length, np.uint8)] * count, Look(style, width, height, ("black", "black"), 1.0))
        axes = empty.axes[0]
        legend: Any = axes.get_legend()
        samples = legend.legend_handles if legend else []
        for artist in (*axes.lines, *samples):
            artist.set_visible(False)
        canvas = FigureCanvasAgg(empty)
        canvas.draw()  # type: ignore[no-untyped-call]
        self.background = np.array(canvas.buffer_rgba())  # type: ignore[no-untyped-call]  # (height, width, 4)
        self.samples = [(sample.get_path(), sample.get_transform().frozen()) for sample in samples]
        self.transform: Any = axes.transData.frozen()
        self.box: Any = axes.bbox.frozen()
        x0, y0, x1, y1 = (round(edge) for edge in self.box.extents)
        self.columns = slice(x0, x1)  # of pixels, between the axes' ends
        self.inside = np.zeros((height, width), bool)
        self.inside[height - y1 : height - y0, x0:x1] = True
        # The frame lies above a line, and nothing else that is dark lies where lines go.
        self.open = self.inside & (self.background[..., 0] > 128)  # (height, width), where a line changes a pixel


class _PairSheet:
    """Draws two curves over a background in their own colours."""

    def __init__(self, style: Style, width: int, height: int, length: int) -> None:
        self.empty = _Empty(style, width, height, length, count=2)
        self.renderer = RendererAgg(width, height, DPI)  # type: ignore[no-untyped-call]
        self.ink = np.asarray(self.renderer.buffer_rgba())  # type: ignore[no-untyped-call]  # a view
        self.pixels = self.ink.view("<u4").reshape(-1)  # the same memory, a number a pixel
        self.closed = np.flatnonzero(self.empty.inside & ~self.empty.open)
        self.frame = self.empty.background.view("<u4").reshape(-1)[self.closed]

    def draw(self, curves: Sequence[Curve], look: Look) -> bytes:
        """One plot as a PNG."""
        empty = self.empty
        self.ink[:] = empty.background
        for curve, colour in zip(curves, look.colours, strict=True):
            _stroke(self.renderer, _path(curve), empty.transform, colour, look.line_width, empty.box)
        self.pixels[self.closed] = self.frame
        for (path, transform), colour in zip(empty.samples, look.colours, strict=True):
            _stroke(self.renderer, path, transform, colour, look.line_width, None)
        rows = np.zeros((look.height, 1 + 4 * look.width), np.uint8)
        rows[:, 1:] = self.ink.reshape(look.height, -1)
        return png.head(look.width, look.height, png.RGBA) + png.body([png.deflate(rows, last=True)])


# The palette of a plot with one curve says how much of the line lies over which shade of the background: white
# with 128 degrees of cover; then groups of eight, a group a degree of 16: four rarer shades (the grid, the faint
# edges of grid and frame), four greys that no line changes. So a mask and an offset turn a cover into an entry.
RARE = 4
GREYS = 128 + np.flatnonzero(np.arange(128) % 8 >= RARE)  # the entries of 64 greys, black to white
BARE = np.array([0, *range(128, 128 + RARE)])  # the entries of the shades without any line
BLACK = 0xFF000000  # red, green, blue and alpha as one little-endian number


class _Sheet:
    """Draws one curve: only the line, only the rows that it touches, and a byte a pixel.

    A line is drawn alone, in red on black, so that a pixel's red says to what degree the line covers it. That
    and the background's shade are an entry of the palette: no colours are mixed.

    It is drawn lying on its side, which is the same picture and takes a quarter less: the rasteriser sorts what
    a line crosses in each row, and a spiky line crosses fewer columns than rows.
    """

    def __init__(self, style: Style, width: int, height: int, length: int) -> None:
        empty = _Empty(style, width, height, length, count=1)
        self.renderer = RendererAgg(height, width, DPI)  # type: ignore[no-untyped-call]
        ink = np.asarray(self.renderer.buffer_rgba())  # type: ignore[no-untyped-call]  # a view
        self.pixels = ink.view("<u4")[empty.columns, :, 0].T  # (height, columns), the same memory
        # The renderer's y points up: the picture's row becomes its x, and the picture's column its row.
        turn = Affine2D([[0, -1, height], [-1, 0, width], [0, 0, 1]])
        self.transform = Affine2D((empty.transform + turn).get_matrix())
        self.box = Bbox(np.sort(turn.transform(empty.box.get_points()), axis=0))
        self.rows_of = [height - y for _, y in empty.transform.transform([(0, v) for v in range(100)])]
        self._lay_out(empty)
        self.heads: dict[str, bytes] = {}
        self.above: dict[int, png.Piece] = {}
        self.below: dict[int, png.Piece] = {}

    def _lay_out(self, empty: _Empty) -> None:
        """Turn the background into entries of the palette, and note where a line may change them."""
        grey = empty.background[..., 0]  # (height, width); without lines, all is grey
        shades, counts = np.unique(grey[empty.open], return_counts=True)
        self.shades = shades[np.argsort(-counts)][: 1 + RARE].astype(int)
        nearest = np.abs(np.arange(256)[:, None] - self.shades).argmin(axis=1)  # (256,); where grid lines cross
        greys = GREYS[np.rint(grey / 255 * (len(GREYS) - 1)).astype(int)]
        entries = np.where(empty.open, BARE[nearest[grey]], greys).astype(np.uint8)
        room = np.where(empty.open, np.where(nearest[grey] == 0, 127, 120), 0)  # the bits of the cover that count
        self.base = entries[:, empty.columns].copy()  # (height, columns)
        self.room = room[:, empty.columns].astype(np.uint8)
        self.columns = slice(1 + empty.columns.start, 1 + empty.columns.stop)
        self.empty = png.filter_up(entries)
        self.rows = self.empty.copy()

    def draw(self, curves: Sequence[Curve], look: Look) -> bytes:
        """One plot as a PNG."""
        (curve,) = curves
        reach = look.line_width * DPI / 72 / 2 + 2  # pixels: the first and the last row stay as they were
        start = max(0, int(self.rows_of[curve.max()] - reach))
        stop = min(len(self.rows), int(self.rows_of[curve.min()] + reach) + 1)
        self.pixels[start:stop] = BLACK
        _stroke(self.renderer, _path(curve), self.transform, "red", look.line_width, self.box)
        entries = self.pixels[start:stop].astype(np.uint8, order="C")  # red, the lowest byte; (rows, columns)
        entries >>= 1
        entries &= self.room[start:stop]
        entries |= self.base[start:stop]
        self.rows[start, self.columns] = self.empty[start, self.columns]
        np.subtract(entries[1:], entries[:-1], out=self.rows[start + 1 : stop, self.columns])  # as png.filter_up
        touched = png.deflate(self.rows[start:stop])
        return self._head(look) + png.body([self._above(start), touched, self._below(stop)])

    def _above(self, row: int) -> png.Piece:
        """The background's rows above this one, compressed once."""
        if row not in self.above:
            self.above[row] = png.deflate(self.empty[:row])
        return self.above[row]

    def _below(self, row: int) -> png.Piece:
        """The background's rows from this one on."""
        if row not in self.below:
            self.below[row] = png.deflate(self.empty[row:], last=True)
        return self.below[row]

    def _head(self, look: Look) -> bytes:
        colour = look.colours[0]
        if colour not in self.heads:
            line = np.array(to_rgb(colour)) * 255
            palette = np.zeros((256, 3))
            palette[GREYS] = np.linspace(0, 255, len(GREYS))[:, None]
            for number, shade in enumerate(self.shades):
                entries = slice(128) if number == 0 else slice(127 + number, None, 8)
                palette[entries] = _mixed(shade, line, 128 if number == 0 else 16)
            self.heads[colour] = png.head(look.width, look.height, png.PALETTE, np.rint(palette).astype(np.uint8))
        return self.heads[colour]


def _mixed(shade: int, line: npt.NDArray[np.float64], degrees: int) -> npt.NDArray[np.float64]:
    """A shade under more and more of a line's colour, (degrees, 3).

    Each stands in the middle of the covers that fall to it, but none stays none and full stays full.
    """
    cover = (np.arange(degrees)[:, None] + 0.5) / degrees
    cover[[0, -1]] = [[0], [1]]
    mixed: npt.NDArray[np.float64] = shade * (1 - cover) + line * cover
    return mixed


def _stroke(
    renderer: RendererAgg, path: Path, transform: Transform, colour: str, line_width: float, box: Bbox | None
) -> None:
    """Draw a line as `Line2D` does."""
    pen = renderer.new_gc()
    pen.set_foreground((*to_rgb(colour), 1.0), isRGBA=True)
    pen.set_linewidth(line_width)
    pen.set_joinstyle("round")
    pen.set_capstyle("projecting")
    pen.set_clip_rectangle(box)
    renderer.draw_path(pen, path, transform)  # type: ignore[no-untyped-call]


def _path(curve: Curve) -> Path:
    points = np.empty((len(curve), 2))
    points[:, 0] = np.arange(len(curve))
    points[:, 1] = curve
    return Path(points)
