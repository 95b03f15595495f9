"""Reversion that is wanted: the mean-reversion times of paths, fast or slow and seldom between the two.

In: wanted classes and the sizes of each series, as designed. Out: the same sizes with another tau, and the sigma
that keeps the noise at its level. The actual class is measured on the integers afterwards.
"""

import numpy as np
import numpy.typing as npt

from tsd.generation.parameters import Floats
from tsd.generation.visible import noise_of

AS_DESIGNED, FAST, SLOW = 0, 1, 2  # wanted
FASTEST, SLOWEST = (0.05, 0.5), (4.0, 25.0)  # points: tau of a fast and of a slow series, log-uniform
LONGEST = 0.2  # of the length, for tau of a slow series
WIDEST = 24.0  # value units: standard deviation of a path, whose range is four to five times as large


def retimed(
    wanted: npt.NDArray[np.intp], rng: np.random.Generator, sizes: dict[str, Floats], length: int
) -> dict[str, Floats]:
    """Give each series a tau of its wanted class. One that is slow already keeps its own.

    wanted: (batch,) AS_DESIGNED, FAST or SLOW. sizes: parameters by name, (batch,) each.
    """
    tau, sigma = sizes["tau"], sizes["sigma"]
    share = rng.random(len(wanted))
    longest = max(min(SLOWEST[1], LONGEST * length), SLOWEST[0])
    fast, slow = (
        np.exp(np.log(low) + share * np.log(high / low)) for low, high in (FASTEST, (SLOWEST[0], longest))
    )
    new = np.where(wanted == FAST, fast, np.where((wanted == SLOW) & (tau < SLOWEST[0]), slow, tau))
    wide = sigma * noise_of(np.ones_like(tau), tau, length) / noise_of(np.ones_like(tau), new, length)
    kept = np.where(new == tau, sigma, np.minimum(wide, np.maximum(WIDEST, sigma)))
    return {**sizes, "tau": new, "sigma": kept}
