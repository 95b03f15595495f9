"""The picture that a small model of one's own looks at: the line alone, black on white, square.

In: series. Out: how much ink lies on each pixel, or the same as a PNG. It needs no matplotlib, so that workers
which train on pictures or look at them are ready sooner.
"""

from collections.abc import Sequence

import celiagg
import numpy as np
import numpy.typing as npt

from tsd import png
from tsd.series.truth import TOP

VERSION = "bare-1"  # part of a request's key: change it with anything that changes a pixel
SIDE, PATCH, MERGE = 128, 16, 2  # pixels of a picture's side, of a patch's, and patches of a token's side
GRID = SIDE // PATCH  # patches of a picture's side
PICTURE_TOKENS = (GRID // MERGE) ** 2
# The tokens round a picture and in its place, by Qwen's names; the last is there since Qwen3-VL asks for it.
PICTURE_START, PICTURE, PICTURE_END, VIDEO = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"
LINE, MARGIN = 2.0, 4.0  # pixels: the line's width, and what is free above and below it
SECOND = 2  # the second of two curves has this part of the first one's ink

Ink = npt.NDArray[np.uint8]  # (batch, SIDE, SIDE), 0 where the paper is white, 255 where it is black
Curve = npt.NDArray[np.uint8]  # (length,) 0–99


class Pen:
    """Draws series, each by itself. A picture depends on its series alone."""

    def __init__(self) -> None:
        self._page = np.zeros((SIDE, SIDE), np.uint8)
        self._canvas = celiagg.CanvasG8(self._page)
        self._state = celiagg.GraphicsState(
            drawing_mode=celiagg.DrawingMode.DrawStroke,
            line_cap=celiagg.LineCap.CapRound,
            line_join=celiagg.LineJoin.JoinRound,
            line_width=LINE,
        )
        self._paint, self._still = celiagg.SolidPaint(1.0, 1.0, 1.0), celiagg.Transform()

    def __call__(self, items: Sequence[Sequence[Curve]]) -> Ink:
        """Draw items of one or two series each; lengths may differ."""
        ink = np.empty((len(items), SIDE, SIDE), np.uint8)
        for picture, curves in zip(ink, items, strict=True):
            picture[:] = self._stroke(curves[0])
            for curve in curves[1:]:
                np.maximum(picture, self._stroke(curve) // SECOND, out=picture)
        return ink

    def _stroke(self, curve: Curve) -> npt.NDArray[np.uint8]:
        """The ink of one series, (SIDE, SIDE); the next stroke wipes it away."""
        room = SIDE - 2 * MARGIN
        points = np.empty((len(curve), 2))
        # From edge to edge: each point in the middle of its share, so that a quarter of the time is one of tokens.
        points[:, 0] = (np.arange(len(curve)) + 0.5) * (SIDE / len(curve))
        points[:, 1] = MARGIN + room - curve * (room / TOP)
        line = celiagg.Path()
        line.lines(points)
        self._page.fill(0)
        self._canvas.draw_shape(line, self._still, self._state, stroke=self._paint)
        return self._page


def as_png(ink: npt.NDArray[np.uint8]) -> bytes:
    """One picture, (SIDE, SIDE), as a PNG of 8-bit grey."""
    rows = png.deflate(png.filter_up(255 - ink), last=True)
    return png.head(SIDE, SIDE, png.GREY) + png.body([rows])
