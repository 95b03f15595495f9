"""Choose candidates so that the classes of many facets have their shares: too many facets to fill joint cells."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

ROUNDS = 12
TOGETHER = 4  # facets
TIE = 1.1  # weight of a near tie of the first facet, beside classes too frequent by this fraction
SHARES: Mapping[str, tuple[float, ...]] = {  # of kept series by facet and class; equal for facets not named
    "trend": (0.35, 0.35, 0.30),
    "noise": (0.32, 0.32, 0.36),
    "season": (0.38, 0.31, 0.31),
    "shift": (0.36, 0.32, 0.32),
    "outlier": (0.42, 0.29, 0.29),
    "volatility": (0.38, 0.31, 0.31),
    "reversion": (0.5, 0.5),
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
    combinations of classes than candidates.

    classes: by facet, (candidates,) indices. counts: classes of each facet. ties: (candidates,), of
    `Task.near_ties`; near ties are dropped earlier, those of the first facets before others. Returns `count`
    indices, ascending.
    """
    sizes = [counts[name] for name in classes]
    shares = [np.array(SHARES.get(name, (1.0,) * counts[name])) for name in classes]
    wanted = [each / each.sum() for each in shares]
    facets = list(classes.values())
    penalty = ties * (TIE / 2 ** (len(sizes) - 1))
    # A few facets together have one code: then a candidate's sum is looked up in few tables.
    groups = [slice(first, first + TOGETHER) for first in range(0, len(sizes), TOGETHER)]
    codes = [np.ravel_multi_index(facets[group], sizes[group]) for group in groups]
    classes_of = [np.indices(sizes[group]).reshape(len(sizes[group]), -1) for group in groups]
    left = np.arange(len(penalty))
    for remaining in np.linspace(len(penalty), count, ROUNDS + 1).round().astype(int)[1:]:
        score = penalty[left]
        for group, code, combined in zip(groups, codes, classes_of, strict=True):
            here = code[left]
            found = np.bincount(here, minlength=combined.shape[1])
            excess = np.zeros(len(found))  # by combination of classes
            for shares, of in zip(wanted[group], combined, strict=True):
                excess += (np.bincount(of, found) / (len(left) * shares))[of]
            score += excess[here]
        most = np.partition(score, remaining - 1)[remaining - 1]
        spare = np.flatnonzero(score == most)[remaining - np.count_nonzero(score < most) :]
        stays = score <= most
        stays[spare] = False
        left = left[stays]
    return left
