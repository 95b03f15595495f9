"""Choose candidates so that the classes of many facets have their shares: too many facets to fill joint cells."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

STRIDE = 797  # a prime; visits candidates in an order unrelated to theirs
ROUNDS = 12
TOGETHER = 4  # facets
TIE = 0.95  # weight of a near tie of the first facet, beside classes too frequent by this fraction
LATER = 0.85  # weight of a near tie of each further facet, of that of the facet before
EXPECTED = "expected"  # how many extrema lie where the trend has them: balanced beside the facets
SHARES: Mapping[str, tuple[float, ...]] = {  # of kept series by facet and class; equal for facets not named
    "trend": (0.35, 0.35, 0.30),
    "noise": (0.32, 0.31, 0.37),
    "season": (0.38, 0.31, 0.31),
    "shift": (0.34, 0.33, 0.33),
    "outlier": (0.40, 0.30, 0.30),
    "volatility": (0.32, 0.34, 0.34),
    "reversion": (0.5, 0.5),
    EXPECTED: (0.50, 0.29, 0.21),
}


def balanced(
    classes: Mapping[str, npt.NDArray[np.intp]],
    counts: Mapping[str, int],
    ties: npt.NDArray[np.int64],
    count: int,
) -> npt.NDArray[np.intp]:
    """Choose candidates greedily, so that every class of every facet comes close to its share in `SHARES`.

    In each of `ROUNDS` rounds, the same number of candidates is dropped: those with the largest sum, over the
    facets, of how much more frequent than wanted their class is, as a fraction. Candidates with a rare class have
    negative terms and stay. Facets are balanced one by one and not jointly: with nine of them there are more
    combinations of classes than candidates. Where the trend has the extrema is balanced as one more facet.

    classes: by facet, (candidates,) indices. counts: classes of each facet. ties: (candidates,), of
    `Task.near_ties`; near ties are dropped earlier, those of the first facets before others. Returns `count`
    indices, ascending.
    """
    penalty = np.zeros(len(ties))
    for bit in range(len(classes)):  # the first facet's is the highest
        penalty += TIE * LATER ** (len(classes) - 1 - bit) * (ties >> bit & 1)
    if classes.keys() >= {"trend", "maximum", "minimum"}:
        classes = {**classes, EXPECTED: expected(classes["trend"], classes["maximum"], classes["minimum"])}
        counts = {**counts, EXPECTED: 3}
    sizes = [counts[name] for name in classes]
    shares = [np.array(SHARES.get(name, (1.0,) * counts[name])) for name in classes]
    wanted = [each / each.sum() for each in shares]
    facets = list(classes.values())
    # A few facets together have one code: then a candidate's sum is looked up in few tables.
    groups = [slice(first, first + TOGETHER) for first in range(0, len(sizes), TOGETHER)]
    codes = [np.ravel_multi_index(facets[group], sizes[group]) for group in groups]
    tables = [_Combined.of(sizes[group], wanted[group]) for group in groups]
    left = np.arange(len(penalty))
    for remaining in np.linspace(len(penalty), count, ROUNDS + 1).round().astype(int)[1:]:
        score = penalty[left]
        for code, combined in zip(codes, tables, strict=True):
            here = code[left]
            score += combined.excess(here)[here]
        left = left[_least(score, remaining)]
    return left


@dataclass(frozen=True)
class _Combined:
    """The combinations of classes of a few facets, whose classes are numbered from one facet to the next.

    index: (facets, combinations) class of each facet. member: (combinations, classes) 1 where a combination has a
    class, else 0. wanted: (classes,) shares.
    """

    index: npt.NDArray[np.intp]
    member: npt.NDArray[np.float64]
    wanted: npt.NDArray[np.float64]

    @classmethod
    def of(cls, sizes: list[int], wanted: list[npt.NDArray[np.float64]]) -> "_Combined":
        """sizes, wanted: number of classes of each facet, and their shares."""
        before = np.cumsum([0, *sizes[:-1]])[:, None]
        index = np.indices(sizes).reshape(len(sizes), -1) + before
        return cls(index, np.eye(sum(sizes))[index].sum(axis=0), np.concatenate(wanted))

    def excess(self, codes: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        """How much more frequent than wanted the classes of each combination are, summed over the facets.

        codes: (candidates,) combination of each.
        """
        found = np.bincount(codes, minlength=len(self.member)) @ self.member  # whole numbers: exact in any order
        excess: npt.NDArray[np.float64] = (found / (len(codes) * self.wanted))[self.index].sum(axis=0)
        return excess


def expected(
    trend: npt.NDArray[np.intp], maximum: npt.NDArray[np.intp], minimum: npt.NDArray[np.intp]
) -> npt.NDArray[np.intp]:
    """How many extrema lie at the end of the series where a trend has them, (batch,): 0–2, none if it is flat.

    trend, maximum, minimum: (batch,) classes. Balanced as a facet of its own, so that the trend does not tell
    where the extrema are.
    """
    highest, lowest = np.array([[2, 0], [0, 2], [-1, -1]])[trend].T
    found: npt.NDArray[np.intp] = (maximum == highest).astype(np.intp) + (minimum == lowest)
    return found


def even_out(
    cells: npt.NDArray[np.intp], count: int, weights: npt.NDArray[np.uint16] | None = None
) -> npt.NDArray[np.intp]:
    """Stratified subsampling: fill every stratum to the same level, with its first candidates.

    cells: (candidates,) stratum of each candidate, preferred candidates first. weights: (candidates,) small whole
    numbers, the same within a stratum; one of twice the weight is filled to half the level. Returns `count`
    indices, ascending. Places that remain go to the first candidates of the larger strata.
    """
    by_cell = np.argsort(cells, kind="stable")
    sizes = np.bincount(cells)
    rank: npt.NDArray[np.unsignedinteger] = np.empty(len(cells), np.uint16)
    rank[by_cell] = np.arange(len(cells)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    if weights is not None:
        rank = rank * weights.astype(np.uint32)
    return _least(rank, count)


def _least(score: npt.NDArray[Any], count: int) -> npt.NDArray[np.intp]:
    """Indices of the `count` least scores, ascending; of equal ones the first."""
    most = np.partition(score, count - 1)[count - 1]
    stays = score <= most
    ties = np.flatnonzero(score == most)
    stays[ties[len(ties) - (np.count_nonzero(stays) - count) :]] = False
    return np.flatnonzero(stays)
