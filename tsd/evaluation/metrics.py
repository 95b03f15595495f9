"""Metrics of plugins: one number per run, with a bootstrap interval over its series."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from tsd.errors import PluginError, plugin_error, source
from tsd.evaluation.intervals import CONFIDENCE, Interval

RESAMPLES = 200


def measure(name: str, metric: Callable[[pa.Table, pa.ChunkedArray], float], predictions: pa.Table) -> Interval:
    """Compute a metric with its percentile bootstrap interval (Efron 1979), the same for the same predictions.

    metric: a function of predictions and of their column `truth` that returns a number from 0 to 1. predictions:
    at least one row. Raises PluginError if the metric fails, or if its number is none from 0 to 1.
    """
    value = _fraction(name, metric, predictions)
    rng, rows = np.random.default_rng(0), predictions.num_rows
    drawn = (predictions.take(pa.array(rng.integers(rows, size=rows))) for _ in range(RESAMPLES))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile([_fraction(name, metric, table) for table in drawn], (tail, 1 - tail))
    return Interval(value, min(value, float(low)), max(value, float(high)))


def _fraction(name: str, metric: Callable[[pa.Table, pa.ChunkedArray], float], predictions: pa.Table) -> float:
    """The number of a metric. Raises PluginError if there is none."""
    what = f"the metric {name}"
    try:
        found = metric(predictions, predictions["truth"])
    except Exception as error:  # whatever code from outside raises
        raise plugin_error(f"{what}, given {predictions.num_rows:,} predictions,", metric, error) from error
    value = _number(found)
    if value is None or not 0 <= value <= 1:
        shown = f"{value:g}" if value is not None else " ".join(repr(found).split())[:60]
        raise PluginError(
            f"{what}, in {source(metric)}, returned {shown}: return a number from 0 to 1, the more the better"
        )
    return value


def _number(found: object) -> float | None:
    """What a metric returned as a number, None if it is none."""
    if isinstance(found, str | bytes):
        return None
    try:
        return float(found)  # type: ignore[arg-type]  # whatever has __float__
    except Exception:  # whatever __float__ raises
        return None
