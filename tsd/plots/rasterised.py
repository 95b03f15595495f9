"""Rasterised plots, the input of small vision models: a line and its grey shadow on white, square.

In: series. Out: pixel intensities, or a PNG of them. matplotlib is not imported, so that workers start sooner. The
shadow makes a peak of a single point as visible as a broad one.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from tsd.plots import png
from tsd.recipe.series import RASTERISED_SIDE, RASTERISED_TOKEN
from tsd.series.truth import TOP

VERSION = "bare-2"  # part of a request's key; change it with anything that changes a pixel
SIDE, MERGE = RASTERISED_SIDE, 2  # pixels of an image's side, patches of a token's side
PATCH = RASTERISED_TOKEN // MERGE  # pixels of a patch's side
GRID = SIDE // PATCH  # patches of an image's side
PICTURE_TOKENS = (GRID // MERGE) ** 2
# Qwen's special tokens around an image and in its place. The last is required by Qwen3-VL.
PICTURE_START, PICTURE, PICTURE_END, VIDEO = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>", "<|video_pad|>"
LINE, MARGIN = 2.0, 4.0  # pixels: the line's height where it is level; space above and below it
SHADOW, SHADE = 3, 103  # pixels of the shadow to either side; its intensity in 256ths of the line's
BLACK = 255
SLAB = 64  # images rendered together
SECOND = 2  # divisor of the second curve's intensity

Pixels = npt.NDArray[np.uint8]  # (batch, SIDE, SIDE), 0 for white to 255 for black
Heights = npt.NDArray[np.float32]  # (batch, columns), in value units
Curve = npt.NDArray[np.uint8]  # (length,) 0–99


def draw(items: Sequence[Sequence[Curve]]) -> Pixels:
    """Rasterise items of one or two series each. Lengths may differ. An image depends on its item only.

    Returns (items, SIDE, SIDE) uint8.
    """
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


def _strokes(values: npt.NDArray[np.uint8]) -> Pixels:
    """The pixels of series of equal length, (batch, length) -> (batch, SIDE, SIDE)."""
    low, high = _spans(values.astype(np.float32))
    ink = _between(low, high)
    shadow = _between(_over_neighbours(np.min, low), _over_neighbours(np.max, high))
    shadow *= SHADE
    shadow >>= 8
    return np.maximum(ink, shadow, out=ink).astype(np.uint8)


def _spans(values: Heights) -> tuple[Heights, Heights]:
    """The lowest and highest value of the line in each pixel column, (batch, SIDE) each. values: (batch, length).

    The series spans the full width, with each point in the middle of its interval. So a quarter of the series is a
    quarter of the image tokens.
    """
    length = values.shape[1]
    places = (np.arange(length) + 0.5) * (SIDE / length)
    edges = np.arange(SIDE + 1)
    after = np.clip(np.searchsorted(places, edges), 1, length - 1)  # (SIDE + 1,) index of the next point
    share = np.clip((edges - places[after - 1]) * (length / SIDE), 0, 1).astype(np.float32)
    crossed = values[:, after - 1] * (1 - share) + values[:, after] * share  # (batch, SIDE + 1), at column edges
    low, high = (bound(crossed[:, :-1], crossed[:, 1:]) for bound in (np.minimum, np.maximum))
    columns, starts = np.unique(places.astype(np.intp), return_index=True)
    low[:, columns] = np.minimum(low[:, columns], np.minimum.reduceat(values, starts, axis=1))
    high[:, columns] = np.maximum(high[:, columns], np.maximum.reduceat(values, starts, axis=1))
    return low, high


def _over_neighbours(bound: Callable[..., Heights], values: Heights) -> Heights:
    """Minimum or maximum of each column and its neighbours within the shadow, (batch, SIDE)."""
    wider = np.pad(values, ((0, 0), (SHADOW, SHADOW)), mode="edge")
    return bound([wider[:, first : first + SIDE] for first in range(2 * SHADOW + 1)], axis=0)


def _between(low: Heights, high: Heights) -> npt.NDArray[np.int16]:
    """Coverage of each pixel by its column's span plus half a line on either side: (batch, SIDE, SIDE), 0–255."""
    unit = (SIDE - 2 * MARGIN) / TOP
    bottom = (SIDE - MARGIN + LINE / 2 - low * unit) * BLACK
    top = (SIDE - MARGIN - LINE / 2 - high * unit - 1) * BLACK  # of the first pixel above the span
    rows = np.arange(0, SIDE * BLACK, BLACK, dtype=np.int16)[:, None]
    covered = bottom.round().astype(np.int16)[:, None] - rows
    np.minimum(covered, rows - top.round().astype(np.int16)[:, None], out=covered)
    return np.clip(covered, 0, BLACK, out=covered)


def as_png(ink: npt.NDArray[np.uint8]) -> bytes:
    """One image, (SIDE, SIDE), as an 8-bit greyscale PNG."""
    rows = png.deflate(png.filter_up(255 - ink), last=True)
    return png.head(SIDE, SIDE, png.GREY) + png.body([rows])
