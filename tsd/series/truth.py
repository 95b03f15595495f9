"""What is measurably true of a series of integers 0–99: values in, labels and the measures behind them out.

The formulas are those of the code that accompanies arXiv 2507.07439, which reads 128 points. For another
length the windows scale: 20 of 128 points are a fraction, quarters stay quarters.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tsd.schema import FACETS, LABELS

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
    }


def classify(measures: dict[str, npt.NDArray[Any]], length: int) -> dict[str, npt.NDArray[np.intp]]:
    """Turn measures into class indices into `FACETS`, (batch,) each."""
    delta = measures["trend_delta"]
    return {
        "trend": np.where(delta > TREND_MARGIN, 0, np.where(delta < -TREND_MARGIN, 1, 2)),
        # exactly 2 and exactly 12 are still medium
        "noise": np.where(measures["noise_rms"] < NOISE_LEVELS[0], 0, 1)
        + (measures["noise_rms"] > NOISE_LEVELS[1]),
        "maximum": _place(measures["argmax"], length),
        "minimum": _place(measures["argmin"], length),
    }


def label_structs(classes: dict[str, npt.NDArray[np.intp]]) -> pa.StructArray:
    """Name the classes: a struct array of labels, one a series."""
    names = [pa.array(np.array(FACETS[facet])[classes[facet]], pa.string()) for facet in FACETS]
    return pa.StructArray.from_arrays(names, fields=list(LABELS))


@lru_cache(maxsize=64)
def cubic_basis(length: int) -> npt.NDArray[np.float64]:
    """An orthonormal basis of the cubic polynomials on `length` points, (length, min(4, length))."""
    t = np.linspace(-1.0, 1.0, length)
    basis, _ = np.linalg.qr(np.vander(t, min(4, length)))
    return basis


def _place(index: npt.NDArray[np.int32], length: int) -> npt.NDArray[np.intp]:
    place: npt.NDArray[np.intp] = np.where(index < PLACES[0] * length, 0, 1) + (index > PLACES[1] * length)
    return place
