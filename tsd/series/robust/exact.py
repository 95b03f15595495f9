"""Matrix products in which the numbers of a row do not depend on its neighbours.

A kernel of BLAS adds up in an order that depends on where a row lies in its matrix, and on the processor. Sums of
integers up to 2**24 are exact in float32, in any order. So both factors are rounded to integers of a small unit.
"""

from dataclasses import dataclass
from math import floor, log2

import numpy as np
import numpy.typing as npt

ROW, COLUMN = 11, 12  # bits of their Euclidean lengths: no sum of products is larger than one by the other


@dataclass(frozen=True)
class Weights:
    """The right factor of a product: integers in float32, (points, columns), and their unit."""

    integers: npt.NDArray[np.float32]
    unit: float

    def product(self, rows: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
        """The weighted sums of each row, (batch, columns), and the unit in which they are, (batch,).

        rows: (batch, points). Each is rounded to a fraction of its length of 2**-11 or less.
        """
        length = np.sqrt(np.vecdot(rows, rows, dtype=np.float64))
        digits = ROW - np.frexp(length)[1]  # length < 2**(ROW - digits)
        fine = rows * np.exp2(digits).astype(np.float32)[:, None]
        np.rint(fine, out=fine)
        return fine @ self.integers, np.exp2(-digits) * self.unit


def weights(table: npt.NDArray[np.floating]) -> Weights:
    """Round a table, (points, columns), as finely as its sums stay exact."""
    digits = COLUMN - 1 - floor(log2(np.linalg.norm(table, axis=0).max()))
    return Weights(np.rint(table * 2.0**digits).astype(np.float32), 2.0**-digits)
