"""What is measurably true of a series of integers 0–99: values in, labels and the measures behind them out.

The formulas are those of the code that accompanies arXiv 2507.07439, which reads 128 points. For another
length the windows scale: 20 of 128 points are a fraction, quarters stay quarters.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

TREND_MARGIN = 3.0  # value units between the means of the two ends
NOISE_LEVELS = (2.0, 12.0)  # value units of the residual's root mean square
WINDOW = 20 / 128  # share of the series that each end's mean is taken over
PLACES = (
    32 / 128,
    96 / 128,
)  # an extremum before the first lies at the beginning, past the second at the end


def measure(values: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
    """Measure each series.

    values: (batch, length) uint8, 0–99.
    Returns trend_delta (mean of the last window minus mean of the first) and noise_rms (root mean square of
    the residual of a cubic fit), (batch,) float32 in value units; argmax and argmin (first occurrence),
    (batch,) int32 indices.
    """
    length = values.shape[1]
    window = max(1, round(WINDOW * length))
    exact = values.astype(np.float64)
    # The cubic's residual is what its orthonormal basis does not explain: |x|² − |Qᵀx|², no fit per series.
    # Centring first keeps the subtraction from cancelling digits.
    centred = exact - exact.mean(axis=1, keepdims=True)
    explained = centred @ cubic_basis(length)  # (batch, 4)
    energy = np.maximum((centred**2).sum(axis=1) - (explained**2).sum(axis=1), 0.0)
    return {
        "trend_delta": (exact[:, -window:].mean(axis=1) - exact[:, :window].mean(axis=1)).astype(np.float32),
        "noise_rms": np.sqrt(energy / length).astype(np.float32),
        "argmax": values.argmax(axis=1).astype(np.int32),
        "argmin": values.argmin(axis=1).astype(np.int32),
        "maximum_lead": np.zeros(len(values), np.float32),
        "minimum_lead": np.zeros(len(values), np.float32),
    }


def ends(values: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Mean of the last window minus mean of the first, (batch,) in value units; values: (batch, length)."""
    window = max(1, round(WINDOW * values.shape[1]))
    delta: npt.NDArray[np.float32] = (values[:, -window:].mean(axis=1) - values[:, :window].mean(axis=1)).astype(
        np.float32
    )
    return delta


def direction(delta: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """0 increasing, 1 decreasing, 2 flat, from the difference of the two ends in value units."""
    return np.where(delta > TREND_MARGIN, 0, np.where(delta < -TREND_MARGIN, 1, 2))


def level(rms: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """0 low, 1 medium, 2 high noise; exactly 2 and exactly 12 are still medium."""
    found: npt.NDArray[np.intp] = np.where(rms < NOISE_LEVELS[0], 0, 1) + (rms > NOISE_LEVELS[1])
    return found


def place(index: npt.NDArray[np.int32], length: int) -> npt.NDArray[np.intp]:
    """0 beginning, 1 middle, 2 end."""
    found: npt.NDArray[np.intp] = np.where(index < PLACES[0] * length, 0, 1) + (index > PLACES[1] * length)
    return found


def distance(measure: npt.NDArray[np.float32], borders: Sequence[float]) -> npt.NDArray[np.float32]:
    """How far each measure is from the nearest border between two classes, (batch,) in its own unit."""
    nearest: npt.NDArray[np.float32] = np.min([np.abs(measure - border) for border in borders], axis=0)
    return nearest.astype(np.float32)


@lru_cache(maxsize=64)
def cubic_basis(length: int) -> npt.NDArray[np.float64]:
    """An orthonormal basis of the cubic polynomials on `length` points, (length, min(4, length))."""
    t = np.linspace(-1.0, 1.0, length)
    basis, _ = np.linalg.qr(np.vander(t, min(4, length)))
    return basis
