"""Words or a bigger student, numbers or a plot: students that differ in one thing alone, side by side.

In: for each seed, the held-out loss of both and what they got right on the same test series. Out: means and the
95 % intervals of their differences. It reads no table and loads no model.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import log

import numpy as np
import numpy.typing as npt

from tsd.evaluation.intervals import Interval, crossed_mean, small_mean


@dataclass(frozen=True)
class Learned:
    """What came of a run."""

    loss: float
    """Held out, of words, in nats."""
    right: npt.NDArray[np.float64]  # (series,) the share of facets, the series in an order that all runs share
    all_right: npt.NDArray[np.float64]  # (series,) 1 where all facets are, else 0
    flops: float
    """Of its training, its teacher's forward passes included."""


@dataclass(frozen=True)
class Difference:
    """A measure of one student and of another: means over seeds."""

    first: float
    second: float
    apart: Interval | None
    """The second minus the first; None where a single seed tells nothing of others."""

    @property
    def sign(self) -> int:
        """1 where the second's is higher, −1 where it is lower, 0 where that cannot be told."""
        if self.apart is None:
            return 0
        return int(self.apart.low > 0) - int(self.apart.high < 0)


@dataclass(frozen=True)
class Comparison:
    """A student beside one that differs from it in one thing alone, on one volume."""

    first: str
    second: str
    examples: int
    seeds: int
    loss: Difference
    right: Difference
    """The share of facets that are right."""
    all_right: Difference
    """The share of series of which all facets are right."""
    flops: float
    """How many times the FLOPs of the first the second took, without the own training of a teacher that it had."""


def compare(
    names: tuple[str, str], examples: int, first: Mapping[int, Learned], second: Mapping[int, Learned]
) -> Comparison | None:
    """Two students on one volume, paired by seed and by series; None where they share no seed.

    names: of both. first, second: their runs by seed.
    """
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    pairs = [(first[seed], second[seed]) for seed in seeds]
    losses = np.array([[one.loss for one in pair] for pair in pairs])  # (seeds, 2)
    right = np.array([[one.right for one in pair] for pair in pairs])  # (seeds, 2, series)
    whole = np.array([[one.all_right for one in pair] for pair in pairs])
    over_seeds = small_mean(losses[:, 1] - losses[:, 0]) if len(seeds) > 1 else None
    flops = np.array([[one.flops for one in pair] for pair in pairs]).sum(0)
    return Comparison(
        *names,
        examples,
        len(seeds),
        loss=Difference(float(losses[:, 0].mean()), float(losses[:, 1].mean()), over_seeds),
        right=_crossed(right),
        all_right=_crossed(whole),
        flops=float(flops[1] / flops[0]),
    )


def at_flops(runs: Iterable[Learned], flops: float) -> Learned | None:
    """What runs of one student on several volumes say of one that takes so many FLOPs.

    Linear in the logarithm of the FLOPs, between the nearest runs on either side; None where one side has none.
    """
    below, above = None, None
    for run in sorted(runs, key=lambda run: run.flops):
        if run.flops <= flops:
            below = run
        elif above is None:
            above = run
    if below is None or above is None:
        return None
    share = log(flops / below.flops) / log(above.flops / below.flops)
    return Learned(
        loss=(1 - share) * below.loss + share * above.loss,
        right=(1 - share) * below.right + share * above.right,
        all_right=(1 - share) * below.all_right + share * above.all_right,
        flops=flops,
    )


def _crossed(scores: npt.NDArray[np.float64]) -> Difference:
    """scores: (seeds, 2, series)."""
    first, second = scores.mean((0, 2)).tolist()
    return Difference(first, second, crossed_mean(scores[:, 1] - scores[:, 0]))
