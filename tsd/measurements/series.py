"""Put one column's values in temporal order: sentinel values, missing cells, duplicate times, uneven steps.

Each change is recorded in a note. What would require inventing data is rejected.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tsd.errors import InputError
from tsd.measurements.numbers import words
from tsd.measurements.table import Table
from tsd.measurements.text import MOST_ROWS

FILLED = 0.05  # maximum fraction of rows that may be interpolated
ONE_OF = 10  # in this many rows, one may be interpolated regardless of the fraction
# Common sentinel values of loggers and file formats for "no value".
CODES = tuple(
    float(code)
    for code in words(
        "-99 -99.9 -99.99 -999 -999.9 -999.99 -999.25 -9999 -9999.9 -9999.99 -99999 -99999.9 -99999.99 -999999"
        " 999 999.9 999.99 9999 9999.9 9999.99 99999 99999.9 999999 -888 -888.8 -8888 -88888 8888 -777 -7777 -6999"
        " -9997 -9998 -1000 -10000 -32767 32767 -32768 65535 2147483647 -2147483647 -2147483648 4294967295"
        " -9.99e8 9.99e8 9.99e20 -9.99e20 1e10 -1e10 1e15 1e20 -1e20 1e30 -1e30 1e31 -1e31 -9e33 1e34 -1e34 1e35"
        " 1e36 9.96921e36 1e37 1e38"
    )
)
APART, NEARLY = 3.0, 0.3  # distance from the other values, in their ranges: a sentinel; possibly one
FAR = 10.0
SPREAD = 0.25  # fraction of the range: values at one time that differ by more are from several series
UNITS = ((86_400.0 * 365.25, "years"), (86_400.0, "days"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"))


@dataclass(frozen=True)
class WorkerContext:
    """Names for errors and notes."""

    table: Table
    column: str
    time: str | None
    kind: str
    """Kind of times: date, clock or number."""

    def __str__(self) -> str:
        return f"{self.table.file}, column {self.column!r}"


@dataclass(frozen=True)
class Arranged:
    """Values evenly spaced in time."""

    values: npt.NDArray[np.float64]  # (points,)
    rows: int


def arrange(
    values: npt.NDArray[np.float64],
    missing: npt.NDArray[np.bool_],
    seconds: npt.NDArray[np.float64] | None,
    place: WorkerContext,
    codes: Sequence[str],
    notes: list[str],
) -> Arranged:
    """Sort values by time, fill missing ones and make the steps even. Changes are appended to `notes`.

    values, missing, seconds: (rows,). codes: sentinel values named by the user. Raises InputError if too many
    values are missing or all are equal.
    """
    values = _without_codes(values, place, codes, notes)
    rows = np.arange(len(values))
    if seconds is not None:
        order = _order(seconds, place, notes)
        rows, values, seconds = rows[order], values[order], seconds[order]
        rows, values, seconds = _one_a_time(rows, values, seconds, place, notes)
    first, last = _ends(values, place, notes)
    rows, values = rows[first:last], values[first:last]
    seconds = seconds[first:last] if seconds is not None else None
    known = np.isfinite(values)
    _require_few_missing(known, rows, place)
    if values[known].min() == values[known].max():
        raise InputError(
            f"{place} is {values[known][0]:g} throughout: there is nothing to describe, give one that varies"
        )
    if not known.all():
        count = int((~known).sum())
        notes.append(f"{count:,} missing value{'s were' if count > 1 else ' was'} filled in linearly")
    even = np.arange(len(values), dtype=np.float64)
    filled = np.interp(even, even[known], values[known])
    if seconds is not None and len(values) > 2:
        filled = _evened(seconds, known, values, filled, place, notes)
    _say_outlier(values[known], notes)
    return Arranged(filled, int(known.sum()))


def _without_codes(
    values: npt.NDArray[np.float64], place: WorkerContext, codes: Sequence[str], notes: list[str]
) -> npt.NDArray[np.float64]:
    """Replace sentinel values by NaN: those named by the user, or else common ones far from the other values.

    values: (rows,). Raises InputError if a value may be a sentinel but it is not certain.
    """
    values = values.copy()
    if codes:
        for code in codes:
            if code.lower() == "none":
                continue
            try:
                marked = np.isclose(values, float(code.replace(",", ".")), rtol=1e-9, atol=0)
            except ValueError:
                raise InputError(
                    f"--missing {code!r} is not a number: say one such as --missing -999, or none"
                ) from None
            _mark(values, marked, notes, "as asked")
        return values
    known = values[np.isfinite(values)]
    distinct = np.unique(known)
    rest = distinct[~_is_code(distinct)]
    if len(rest) < 2:
        return values
    spread = np.ptp(rest)
    for value in distinct[_is_code(distinct)]:
        gap = max(rest[0] - value, value - rest[-1])
        if gap > APART * spread:
            _mark(values, values == value, notes, "a usual code, far from the other values")
        elif gap > NEARLY * spread:
            raise _either(place, f"{value:g}", value)
    # Any other value that repeats and is far to one side of all others.
    for at in (0, -1):
        value, others = rest[at], np.delete(rest, at)
        marked, gap, spread = known == value, np.abs(others - rest[at]).min(), np.ptp(others)
        gapped = value == -1 and others[0] >= 0 and gap > APART * np.diff(others).max(initial=0.0)
        apart = NEARLY if gapped else APART
        count = int(marked.sum())
        runs = int(marked[0]) + int((np.diff(marked.astype(np.int8)) == 1).sum())
        if runs > 1 and 2 * count < len(known) and spread > 0 and gap > apart * spread:
            raise _either(place, f"{value:g}, in {count:,} of {len(known):,} rows and far from the rest,", value)
    return values


def _either(place: WorkerContext, said: str, value: float) -> InputError:
    """The error about a value that may be a sentinel."""
    return InputError(
        f"{place}: {said} may be a value or a code for a missing one: say --missing {value:g} or --missing none"
    )


def _is_code(distinct: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Which of some sorted values are common sentinels, to six digits."""
    found = np.zeros(len(distinct), np.bool_)
    for code in CODES:
        low, high = np.searchsorted(distinct, sorted((code * (1 - 1e-6), code * (1 + 1e-6))))
        found[low:high] = True
    return found


def _mark(values: npt.NDArray[np.float64], marked: npt.NDArray[np.bool_], notes: list[str], why: str) -> None:
    """Set values to NaN and add a note with the reason."""
    if marked.any():
        count = int(marked.sum())
        notes.append(f"{values[marked][0]:g} ({count:,} row{'s' * (count > 1)}) was taken for missing: {why}")
        values[marked] = np.nan


def _order(seconds: npt.NDArray[np.float64], place: WorkerContext, notes: list[str]) -> npt.NDArray[np.int64]:
    """The order of rows by time, (rows,), with a note if it differs from the file's."""
    steps = np.diff(seconds)
    if (steps >= 0).all():
        notes.append(f"the time is column {_quoted(place.time)}")
        return np.arange(len(seconds))
    was = "newest first" if (steps <= 0).all() else "in no order"
    notes.append(f"rows were sorted by {_quoted(place.time)}, they were {was}")
    if was == "newest first":  # rows of equal times are reversed as well
        return np.arange(len(seconds))[::-1]
    return np.argsort(seconds, kind="stable")


def _quoted(name: str | None) -> str:
    """A name in quotes, or a general term if there is none."""
    return str(name) if name and "'" in name else repr(name)


def _one_a_time(
    rows: npt.NDArray[np.int64],
    values: npt.NDArray[np.float64],
    seconds: npt.NDArray[np.float64],
    place: WorkerContext,
    notes: list[str],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Combine rows with equal times by their mean. Raises InputError if they differ too much."""
    unique, start, group, count = np.unique(seconds, return_index=True, return_inverse=True, return_counts=True)
    if len(unique) == len(seconds):
        return rows, values, seconds
    if len(unique) < 2:
        raise InputError(
            f"{place}: all rows have the same time in {_quoted(place.time)}: name another column with --time, or "
            "say --time rows"
        )
    known = np.isfinite(values)
    sums = np.bincount(group, np.where(known, values, 0.0), len(unique))
    counts = np.bincount(group, known, len(unique))
    with np.errstate(invalid="ignore"):
        means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    lowest, highest = np.full(len(unique), np.inf), np.full(len(unique), -np.inf)
    np.minimum.at(lowest, group[known], values[known])
    np.maximum.at(highest, group[known], values[known])
    differ = (counts > 1) & (highest > lowest)
    means[(counts > 1) & ~differ] = lowest[(counts > 1) & ~differ]  # avoids rounding errors for equal values
    means[counts == 1] = lowest[counts == 1]
    doubled = int((count > 1).sum())
    if not differ.any():
        notes.append(f"rows that share a time: {doubled:,} times, each with one value, which was kept once")
        return rows[start], means, unique
    spread = np.median((highest - lowest)[differ])
    if differ.sum() > 0.1 * len(unique) and spread > SPREAD * np.ptp(values[known]):
        row = int(rows[np.flatnonzero(seconds == unique[differ][0])[0]])
        raise InputError(
            f"{place.table.place(row)}: {int(differ.sum()):,} times in {_quoted(place.time)} occur in several "
            "rows with very different values, as if several series were stacked: keep one row a time, or "
            "say --time rows"
        )
    notes.append(f"rows that share a time: {doubled:,} times, the mean of each one's values was taken")
    return rows[start], means, unique


def _ends(values: npt.NDArray[np.float64], place: WorkerContext, notes: list[str]) -> tuple[int, int]:
    """The first row with a value, and the one after the last."""
    known = np.flatnonzero(np.isfinite(values))
    if len(known) < 2:
        have = "one row has" if len(known) else "no row has"
        raise InputError(f"{place}: {have} a value: a series needs at least 2, fill or drop the rows")
    first, last = int(known[0]), int(known[-1]) + 1
    if last - first < len(values) and len(values) >= ONE_OF:
        cut = [f"{first:,} at the beginning"] * (first > 0) + [f"{len(values) - last:,} at the end"] * (
            last < len(values)
        )
        notes.append(f"rows without a value were left out: {', '.join(cut)}")
        return first, last
    return 0, len(values)


def _require_few_missing(known: npt.NDArray[np.bool_], rows: npt.NDArray[np.int64], place: WorkerContext) -> None:
    """Raise InputError if too many values are missing."""
    count, most = int((~known).sum()), max(int(FILLED * len(known)), int(len(known) >= ONE_OF))
    if count > most:
        row = int(rows[np.flatnonzero(~known)[0]])
        more = f" (and {count - 1:,} more such rows of {len(known):,})" if count > 1 else ""
        raise InputError(
            f"{place.table.place(row)}, column {place.column!r}: the cell is empty or says NaN, NA or a code for "
            f"missing{more}: at most {FILLED:.0%} of the rows are filled in, fill or drop the others"
        )


def _evened(
    seconds: npt.NDArray[np.float64],
    known: npt.NDArray[np.bool_],
    values: npt.NDArray[np.float64],
    filled: npt.NDArray[np.float64],
    place: WorkerContext,
    notes: list[str],
) -> npt.NDArray[np.float64]:
    """Interpolate values linearly at even steps, of the 10 % quantile of the steps' lengths.

    seconds, known, values, filled: (rows,). Times that are evenly spaced already give `filled`.
    """
    from tsd.measurements.times import is_even

    if is_even(seconds):
        return filled
    steps = np.diff(seconds)
    step, span = float(np.quantile(steps, 0.1)), float(seconds[-1] - seconds[0])
    points = int(min(max(round(span / step) + 1, len(seconds)), MOST_ROWS))
    said = f"{_length(steps.min(), place.kind)} to {_length(steps.max(), place.kind)}"
    notes.append(f"its steps are {said}: resampled linearly in time to {points:,} even ones")
    if steps.max() > span / 3 and len(seconds) > 10:
        notes.append(
            f"a gap of {_length(steps.max(), place.kind)} is {steps.max() / span:.0%} of the time: it was filled "
            "with a straight line"
        )
    grid = np.linspace(0.0, span, points)
    return np.interp(grid, (seconds - seconds[0])[known], values[known])


def _length(seconds: float, kind: str) -> str:
    """A duration in words; a number if the unit is unknown."""
    if kind == "number":
        return f"{seconds:g}"
    size, unit = next((pair for pair in UNITS if seconds >= pair[0]), UNITS[-1])
    length = f"{seconds / size:.3g}"
    return f"{length} {unit.rstrip('s') if length == '1' and size > 60 else unit}"


def _say_outlier(known: npt.NDArray[np.float64], notes: list[str]) -> None:
    """Add a note if one or two outliers make the rest of the series look flat."""
    distinct, counts = np.unique(known, return_counts=True)
    if len(known) < ONE_OF:
        return
    for outer in (slice(0, 1), slice(-1, None), slice(0, 2), slice(-2, None)):
        rest = np.delete(distinct, outer)
        if len(rest) < 2:
            continue
        gap, spread = np.abs(rest[:, None] - distinct[outer]).min(), np.ptp(rest)
        if gap > FAR * spread:
            value = " and ".join(f"{one:g}" for one in distinct[outer])
            missing = " ".join(f"--missing {one:g}" for one in distinct[outer])
            verb, stands = ("are", "they stand") if " and " in value else ("is", "it stands")
            notes.append(
                f"{value} ({counts[outer].sum():,} of {len(known):,} rows) {verb} far from the rest, which looks "
                f"flat in comparison: if {stands} for a missing value, say {missing}"
            )
