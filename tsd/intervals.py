"""A share of rows with its 95 % interval: what every accuracy here is given with."""

from dataclasses import asdict, dataclass

from scipy.stats import binomtest

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        """The row of `tsd.schema.INTERVAL`."""
        return asdict(self)


def proportion(hits: int, rows: int) -> Interval:
    """The share of hits with its Wilson 95 % interval (Wilson 1927, which holds near 0 and 1 too).

    Raises ValueError where there is no row to judge by.
    """
    if rows == 0:
        raise ValueError("an accuracy needs at least one row, got none")
    ends = binomtest(hits, rows).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(hits / rows, float(ends.low), float(ends.high))
