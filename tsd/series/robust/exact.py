"""Matrix products in which the numbers of a row do not depend on its neighbours.

A kernel of BLAS adds up in an order that depends on where a row lies in its matrix, and on the processor. Sums of
integers below 2**53 are exact in float64, in any order. So both factors are rounded to integers of a small unit.
"""

from dataclasses import dataclass
from math import floor, log2

import numpy as np
import numpy.typing as npt

UNIT = 2.0**-10  # value units to which rows are rounded: float32 holds values of 0–99 about as finely
EXACT = 52  # bits of a sum, one less than float64 holds


@dataclass(frozen=True)
class Weights:
    """The right factor of a product: integers in float64, (points, columns), and the unit of the product."""

    integers: npt.NDArray[np.float64]
    unit: float

    def product(self, rows: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        """The weighted sums of each row, (batch, columns). rows: (batch, points)."""
        fine = np.multiply(rows, 1 / UNIT, dtype=np.float64)
        np.rint(fine, out=fine)
        sums: npt.NDArray[np.float64] = fine @ self.integers
        sums *= self.unit
        return sums


def weights(table: npt.NDArray[np.floating], largest: float) -> Weights:
    """Round a table, (points, columns), as finely as its sums stay exact.

    largest: size that no number in a row exceeds, in value units.
    """
    total = np.abs(table).sum(axis=0).max()
    bits = floor(EXACT - log2(largest / UNIT * max(total, 1.0)))
    return Weights(np.rint(table.astype(np.float64) * 2.0**bits), 2.0**-bits * UNIT)
