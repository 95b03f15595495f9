"""Paired comparisons of students that differ in one respect: SFT vs. distillation, text vs. image.

In: for each seed, both held-out losses and results on the same test series. Out: means over seeds, and 95 %
intervals of the differences. No tables are read and no models loaded.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import log

import numpy as np
import numpy.typing as npt

from tsd.evaluation.intervals import Interval, crossed_mean, small_mean


@dataclass(frozen=True)
class Learned:
    """The results of one run."""

    loss: float
    """Held-out SFT loss in nats."""
    right: npt.NDArray[np.float64]  # (series,) fraction of correct facets, the same series for all runs
    all_right: npt.NDArray[np.float64]  # (series,) 1 for an exact match of all facets, else 0
    flops: float
    """Training FLOPs, a teacher's forward passes included."""


@dataclass(frozen=True)
class Difference:
    """A score of two students: means over seeds, and their difference."""

    first: float
    second: float
    apart: Interval | None
    """The second minus the first; None for a single seed, which gives no interval."""

    @property
    def sign(self) -> int:
        """1 if the second is significantly higher, −1 if lower, 0 if there is no significant difference."""
        if self.apart is None:
            return 0
        return int(self.apart.low > 0) - int(self.apart.high < 0)


@dataclass(frozen=True)
class Comparison:
    """A student and its counterpart with one difference, on one number of training examples."""

    first: str
    second: str
    examples: int
    seeds: int
    loss: Difference
    right: Difference
    """Fraction of correct facets."""
    all_right: Difference
    """Exact match of all facets."""
    flops: float
    """Ratio of the second's FLOPs to the first's. The training of a teacher is not included."""


def compare(
    names: tuple[str, str], examples: int, first: Mapping[int, Learned], second: Mapping[int, Learned]
) -> Comparison | None:
    """Compare two students on one number of examples, paired by seed and series. None without common seeds.

    names: of both. first, second: runs by seed.
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
    """Iso-FLOP interpolation: the results of one student at a given number of training FLOPs.

    runs: of different numbers of examples. Linear in log FLOPs between the nearest runs on either side; None if
    there is none on one side.
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
    """The difference of paired scores. scores: (seeds, 2, series)."""
    first, second = scores.mean((0, 2)).tolist()
    return Difference(first, second, crossed_mean(scores[:, 1] - scores[:, 0]))
