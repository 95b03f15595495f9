"""Pairs of series that cross never, once or several times in each third, in shares as equal as they can be.

Both series of a pair are drawn like any other. Then each is compressed to a part of 0–99, and the first is shifted
over the second: a layout. Crossings, relative position and noise depend on it. `LAYOUTS` random ones are tried for
each pair, and the pairs of a block choose in turn, each the layout whose classes are the furthest below their
share so far: see `_chosen`. The classes of a third are tied. A series that is above throughout does not cross, and
one crossing leaves it alternating only if it is near the middle.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tsd.generation.blocks import BLOCK, Block, draw_block
from tsd.recipe import SeriesConfig
from tsd.rng import PAIRS, PARTNERS, generator
from tsd.series.processes import SCALED
from tsd.series.truth import TOP
from tsd.tasks.definitions import DEFAULT, Definitions
from tsd.tasks.pair import POSITION_TIE, SHARES, crossings_of, position_of, thirds
from tsd.tasks.single import single

LAYOUTS = 48  # tried per pair
HEIGHTS = (0.3, 1.0)  # range of a series' height as a fraction of 0–99
CLASSES = 3  # of each facet that a layout decides
TIE = 3.0  # a near tie of a position counts like a class of which so many pairs too many were chosen

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

    defined: by which definitions the series of a block are balanced before they are paired, and their noise in the
    pair.
    """
    rng = generator(seed, PAIRS, block)
    task = single(defined)
    series = draw_block(task, config, seed, block), draw_block(task, config, seed, block, PARTNERS)
    heights, offset = _layouts(rng, series, defined)
    room = TOP * (1 - heights)  # (2, BLOCK) how far each series can be shifted
    # The first series is shifted up by `offset` relative to the second; both stay within 0–99.
    lowest, highest = np.maximum(offset, 0), np.minimum(room[0], room[1] + offset)
    first = lowest + (highest - lowest) * rng.random(BLOCK, np.float32)
    floors = np.stack([first, first - offset])
    values = [
        np.rint(one.values.reshape(BLOCK, -1) * height[:, None] + floor[:, None])
        for one, height, floor in zip(series, heights, floors, strict=True)
    ]
    laid = tuple(_laid(*each) for each in zip(series, heights, floors, strict=True))
    return PairBlock(np.hstack(values).astype(np.uint8), (laid[0], laid[1]))


def _laid(block: Block, height: Floats, floor: Floats) -> Block:
    """The block with the parameters of its series after scaling and shifting."""
    squeezed = {name: block.parameters[name] * height for name in SCALED}
    return replace(block, parameters={**block.parameters, **squeezed, "level": squeezed["level"] + floor})


def _layouts(rng: np.random.Generator, series: Sequence[Block], defined: Definitions) -> tuple[Floats, Floats]:
    """The layout of each pair: heights, (2, BLOCK), and the first series' offset over the second, (BLOCK,)."""
    heights = rng.uniform(*HEIGHTS, (LAYOUTS, 2, BLOCK)).astype(np.float32)
    room = TOP * (1 - heights)
    strata = (np.arange(LAYOUTS)[:, None] + rng.random((LAYOUTS, BLOCK))) / LAYOUTS
    offsets = (-room[:, 1] + room.sum(axis=1) * strata).astype(np.float32)  # (LAYOUTS, BLOCK)
    values = [block.values.reshape(BLOCK, -1).astype(np.float32) for block in series]
    noises = [
        {name: each for name, each in block.measures.items() if name.startswith("noise")} for block in series
    ]
    tried, ties = [], []
    for height, offset in zip(heights, offsets, strict=True):
        apart = values[0] * height[0][:, None] - values[1] * height[1][:, None] + offset[:, None]
        related, tie = _relation(apart)
        noise = [
            defined.noise({name: each * scale for name, each in measures.items()})
            for measures, scale in zip(noises, height, strict=True)
        ]
        tried.append(np.stack([*related, *noise], axis=1))
        ties.append(tie)
    chosen = _chosen(np.stack(tried, axis=1), np.stack(ties, axis=1) + rng.random((BLOCK, LAYOUTS)) / 8)
    pairs = np.arange(BLOCK)
    return heights[chosen, :, pairs].T, offsets[chosen, pairs]


def _relation(apart: Floats) -> tuple[list[npt.NDArray[np.intp]], npt.NDArray[np.float64]]:
    """The classes of crossings and position in each third, (BLOCK,) each, and the penalty for near ties, (BLOCK,).

    apart: (BLOCK, length) first minus second before rounding, when hardly any points are equal. This is faster
    than `tsd.tasks.pair.relation`.
    """
    above = apart > 0
    changed = np.zeros_like(above)
    np.not_equal(above[:, 1:], above[:, :-1], out=changed[:, 1:])
    found, ties = [], np.zeros(len(apart))
    for points in thirds(apart.shape[1]).values():
        share = above[:, points].mean(axis=1)
        found += [crossings_of(np.count_nonzero(changed[:, points], axis=1)), position_of(share)]
        ties += TIE * (np.abs(share[:, None] - SHARES).min(axis=1) < POSITION_TIE)
    return found, ties


def _chosen(classes: npt.NDArray[np.intp], penalty: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """The layout that each pair chooses, (BLOCK,), so that the classes of every facet are about equally frequent.

    Each pair takes the one with the largest sum, over the facets, of how many pairs its class lacks to an equal
    share of those before it: greedy minimisation of a quadratic imbalance, as max-weight scheduling (Tassiulas and
    Ephremides 1992). A class that is hard to get lacks more and more, until the others give way.

    classes: (BLOCK, LAYOUTS, facets). penalty: (BLOCK, LAYOUTS) taken off the sum.
    """
    facets = classes.shape[2]
    codes = classes + CLASSES * np.arange(facets)  # into all classes
    lacks = np.zeros(CLASSES * facets)
    chosen = np.empty(len(codes), np.intp)
    for pair, (options, cost) in enumerate(zip(codes, penalty, strict=True)):
        chosen[pair] = best = np.argmax(lacks[options].sum(axis=1) - cost)
        lacks += 1 / CLASSES
        lacks[options[best]] -= 1
    return chosen
