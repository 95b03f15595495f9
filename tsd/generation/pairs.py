"""Pairs of series that intersect never, once or several times, in equal shares."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tsd.generation.blocks import BLOCK, Block, draw_block, stratum
from tsd.recipe import SeriesConfig
from tsd.rng import PAIRS, PARTNERS, generator
from tsd.series.processes import SCALED
from tsd.series.truth import TOP
from tsd.tasks.definitions import DEFAULT, Definitions
from tsd.tasks.pair import SHARES
from tsd.tasks.single import single

OFFSETS = 24  # vertical offsets tried per pair


class Wish(NamedTuple):
    """Target of a pair: number of intersections (2 for several), and position of the first series."""

    crossings: int
    position: int | None  # 0 above, 1 below, 2 alternating; None for any
    share: float
    heights: tuple[float, float]  # range of each series' height as a fraction of 0–99


WISHES = (
    Wish(0, 0, 1 / 6, (0.3, 0.6)),
    Wish(0, 1, 1 / 6, (0.3, 0.6)),
    Wish(1, None, 1 / 3, (0.4, 0.9)),
    Wish(2, 2, 1 / 6, (0.6, 1.0)),
    Wish(2, 0, 1 / 12, (0.6, 0.9)),
    Wish(2, 1, 1 / 12, (0.6, 0.9)),
)

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class PairBlock:
    """Pairs of a block.

    values: (BLOCK, 2 × length) uint8. series: both blocks, with the parameters that their series have in the pair.
    """

    values: npt.NDArray[np.uint8]
    series: tuple[Block, Block]


def draw_pairs(config: SeriesConfig, seed: int, block: int, defined: Definitions = DEFAULT) -> PairBlock:
    """Generate one block of pairs. Both series have the recipe's single length.

    defined: by which definitions the series of a block are balanced before they are paired.
    """
    rng = generator(seed, PAIRS, block)
    task = single(defined)
    series = draw_block(task, config, seed, block), draw_block(task, config, seed, block, PARTNERS)
    targets = stratum(np.array([wish.share for wish in WISHES]), rng.permutation(BLOCK) / BLOCK)
    low, high = np.array([wish.heights for wish in WISHES])[targets].T
    heights = rng.uniform(low, high, (2, BLOCK)).astype(np.float32)  # (2, BLOCK)
    squeezed = [
        one.values.reshape(BLOCK, -1) * height[:, None] for one, height in zip(series, heights, strict=True)
    ]
    room = TOP * (1 - heights)
    offset = _offset(rng, targets, squeezed[0] - squeezed[1], room)
    # The first series is shifted up by `offset` relative to the second; both stay within 0–99.
    lowest, highest = np.maximum(offset, 0), np.minimum(room[0], room[1] + offset)
    first = lowest + (highest - lowest) * rng.random(BLOCK, np.float32)
    floors = np.stack([first, first - offset])
    values = [np.rint(one + floor[:, None]) for one, floor in zip(squeezed, floors, strict=True)]
    laid = tuple(_laid(*each) for each in zip(series, heights, floors, strict=True))
    return PairBlock(np.hstack(values).astype(np.uint8), (laid[0], laid[1]))


def _laid(block: Block, height: Floats, floor: Floats) -> Block:
    """The block with the parameters of its series after scaling and shifting."""
    squeezed = {name: block.parameters[name] * height for name in SCALED}
    return replace(block, parameters={**block.parameters, **squeezed, "level": squeezed["level"] + floor})


def _offset(rng: np.random.Generator, targets: npt.NDArray[np.intp], apart: Floats, room: Floats) -> Floats:
    """Vertical offset of the first series over the second, (BLOCK,), that meets the target if any tried does.

    wishes: (BLOCK,) index into WISHES. apart: (BLOCK, length) first minus second before shifting. room: (2, BLOCK)
    how far each series can be shifted.
    """
    crossings = np.array([wish.crossings for wish in WISHES])[targets]
    position = np.array([-1 if wish.position is None else wish.position for wish in WISHES])[targets]
    # tried: (OFFSETS, BLOCK)
    tried = -room[1] + (room[0] + room[1]) * (np.arange(OFFSETS)[:, None] + rng.random(BLOCK)) / OFFSETS
    fits = np.empty(tried.shape, np.bool_)
    for fit, lifted in zip(fits, tried, strict=True):
        above = apart + lifted[:, None].astype(np.float32) > 0
        crossed = np.minimum(np.count_nonzero(above[:, 1:] != above[:, :-1], axis=1), 2)
        share = above.mean(axis=1)
        lies = np.where(share > SHARES[1], 0, np.where(share < SHARES[0], 1, 2))
        fit[:] = (crossed == crossings) & ((position < 0) | (lies == position))
    chosen = np.argmax(fits + rng.random(fits.shape), axis=0)
    offset: Floats = tried[chosen, np.arange(BLOCK)].astype(np.float32)
    return offset
