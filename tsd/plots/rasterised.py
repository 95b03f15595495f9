"""The picture that a small model of one's own looks at: the line and a grey shadow round it, on white, square.

In: series. Out: how much ink lies on each pixel, or the same as a PNG. It needs no matplotlib, so that workers
which train on pictures or look at them are ready sooner. The shadow makes a peak of one point as easy to see as a
broad one.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from tsd.plots import png
from tsd.recipe.series import RASTERISED_SIDE, RASTERISED_TOKEN
from tsd.series.truth import TOP

VERSION = "bare-2"  # part of a request's key: change it with anything that changes a pixel
SIDE, MERGE = RASTERISED_SIDE, 2  # pixels of a picture's side, and patches of a token's side
PATCH = RASTERISED_TOKEN // MERGE  # pixels of a patch's side
GRID = SIDE // PATCH  # patches of a picture's side
PICTURE_TOKENS = (GRID // MERGE) ** 2
# The tokens round a picture and in its place, by Qwen's names; the last is there since Qwen3-VL asks for it.
PICTURE_START, PICTURE, PICTURE_END, VIDEO = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"
LINE, MARGIN = 2.0, 4.0  # pixels: the line's height where it is level, and what is free above and below it
SHADOW, SHADE = 3, 103  # pixels that the shadow reaches to either side, and its ink of 256 of the line's
BLACK = 255
SLAB = 64  # pictures drawn together
SECOND = 2  # the second of two curves has this part of the first one's ink

Ink = npt.NDArray[np.uint8]  # (batch, SIDE, SIDE), 0 where the paper is white, 255 where it is black
Heights = npt.NDArray[np.float32]  # (batch, columns), in the series' unit
Curve = npt.NDArray[np.uint8]  # (length,) 0–99


def draw(items: Sequence[Sequence[Curve]]) -> Ink:
    """Draw items of one or two series each; lengths may differ. A picture depends on its item alone."""
    ink = np.empty((len(items), SIDE, SIDE), np.uint8)
    alike = defaultdict(list)
    for place, curves in enumerate(items):
        alike[tuple(map(len, curves))].append(place)
    for places in alike.values():
        for first in range(0, len(places), SLAB):
            slab = places[first : first + SLAB]
            for second, curves in enumerate(zip(*(items[place] for place in slab), strict=True)):
                strokes = _strokes(np.stack(curves))
                ink[slab] = np.maximum(ink[slab], strokes // SECOND) if second else strokes
    return ink


def _strokes(values: npt.NDArray[np.uint8]) -> Ink:
    """The ink of series of one length, (batch, length)."""
    low, high = _spans(values.astype(np.float32))
    ink = _between(low, high)
    shadow = _between(_over_neighbours(np.min, low), _over_neighbours(np.max, high))
    shadow *= SHADE
    shadow >>= 8
    return np.maximum(ink, shadow, out=ink).astype(np.uint8)


def _spans(values: Heights) -> tuple[Heights, Heights]:
    """The lowest and the highest value that the line has in each column of pixels, (batch, SIDE) each.

    From edge to edge: each point in the middle of its share of the time, so that a quarter of it is one of tokens.
    """
    length = values.shape[1]
    places = (np.arange(length) + 0.5) * (SIDE / length)
    edges = np.arange(SIDE + 1)
    after = np.clip(np.searchsorted(places, edges), 1, length - 1)
    share = np.clip((edges - places[after - 1]) * (length / SIDE), 0, 1).astype(np.float32)
    crossed = values[:, after - 1] * (1 - share) + values[:, after] * share  # where it crosses the edges
    low, high = (bound(crossed[:, :-1], crossed[:, 1:]) for bound in (np.minimum, np.maximum))
    columns, starts = np.unique(places.astype(np.intp), return_index=True)
    low[:, columns] = np.minimum(low[:, columns], np.minimum.reduceat(values, starts, axis=1))
    high[:, columns] = np.maximum(high[:, columns], np.maximum.reduceat(values, starts, axis=1))
    return low, high


def _over_neighbours(bound: Callable[..., Heights], values: Heights) -> Heights:
    """The least or the greatest of each column and those that the shadow reaches."""
    wider = np.pad(values, ((0, 0), (SHADOW, SHADOW)), mode="edge")
    return bound([wider[:, first : first + SIDE] for first in range(2 * SHADOW + 1)], axis=0)


def _between(low: Heights, high: Heights) -> npt.NDArray[np.int16]:
    """How much of each pixel lies in its column's span and half a line beyond, of 255: (batch, SIDE, SIDE)."""
    unit = (SIDE - 2 * MARGIN) / TOP
    bottom = (SIDE - MARGIN + LINE / 2 - low * unit) * BLACK
    top = (SIDE - MARGIN - LINE / 2 - high * unit - 1) * BLACK  # of the pixel that the span just does not reach
    rows = np.arange(0, SIDE * BLACK, BLACK, dtype=np.int16)[:, None]
    covered = bottom.round().astype(np.int16)[:, None] - rows
    np.minimum(covered, rows - top.round().astype(np.int16)[:, None], out=covered)
    return np.clip(covered, 0, BLACK, out=covered)


def as_png(ink: npt.NDArray[np.uint8]) -> bytes:
    """One picture, (SIDE, SIDE), as a PNG of 8-bit grey."""
    rows = png.deflate(png.filter_up(255 - ink), last=True)
    return png.head(SIDE, SIDE, png.GREY) + png.body([rows])
