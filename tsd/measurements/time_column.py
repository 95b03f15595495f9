"""Which column of a table is its time, or which columns are together."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tsd.errors import InputError
from tsd.measurements import layout, time_counts, times
from tsd.measurements.numbers import Numbers
from tsd.measurements.table import Table
from tsd.measurements.times import Times

ANOTHER = "give a file with what was measured"
ROWS = "rows"  # the value of `--time` for file order


@dataclass(frozen=True)
class Hints:
    """The user's hints on how to interpret a file: the options of `tsd explain`."""

    time: str | None = None
    decimal: str | None = None
    dates: str | None = None
    where: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoundTime:
    """The times of a table's rows, and how they were found."""

    seconds: npt.NDArray[np.float64] | None  # (rows,); None for file order
    label: str | None
    kind: str
    columns: frozenset[int]
    """The columns of the times."""
    like: frozenset[int]
    """Other columns with times or parts of times."""
    notes: tuple[str, ...] = ()


def find_time(table: Table, columns: Sequence[Numbers], measured: str | None, hints: Hints) -> FoundTime:
    """Find the column of times, or the columns that form a date together.

    measured: name of the measured column, if given. Raises InputError if columns may hold times but cannot be read
    as such, or disagree.
    """
    numeric = {i for i, column in enumerate(columns) if column.share > 0.5}
    read = {
        i: found
        for i, cells in enumerate(table.cells)
        if i not in numeric and (found := times.read_dates(cells, hints.dates)) is not None
    }
    counts = {
        i: found
        for i in sorted(numeric)
        if table.names[i] != measured
        and (found := time_counts.count_of_time(table.names[i], columns[i].values, hints.dates)) is not None
    }
    named = {i for i, found in counts.items() if found.named or time_counts.is_named_count(table.names[i])}
    if read or named or len(numeric) == 1:  # numbers that resemble years or seconds may be measurements
        counts = {i: found for i, found in counts.items() if i in named}
    parts = time_counts.from_parts(table.names, [_part(table, columns, i) for i in range(len(columns))])
    like = {*read, *counts, *(parts[0] if parts else ())}
    if read or parts:
        like |= {i for i in numeric if time_counts.is_part_of_date(table.names[i], columns[i].values)}
    like -= {i for i, name in enumerate(table.names) if name == measured}
    if hints.time is not None and (hints.time in table.names or hints.time != ROWS):
        return _named_time(table, columns, hints.time, hints.dates, read, like)
    if hints.time == ROWS:
        named = {i for i in numeric if times.is_named_time(table.names[i]) and table.names[i] != measured}
        like |= named if len(numeric - like) > len(named - like) else set()
        return FoundTime(None, None, "", frozenset(), frozenset(like), ("rows are taken in file order, as asked",))
    dates = {i: found for i, found in read.items() if found.kind == "date"}
    clocks = {i: found for i, found in read.items() if found.kind == "clock"}
    if dates or parts:
        chosen, used = _date(table, dates, parts)
        if clocks and bool((chosen.seconds[np.isfinite(chosen.seconds)] % times.DAY == 0).all()):
            at, clock = next(iter(clocks.items()))
            chosen = replace(chosen, seconds=chosen.seconds + clock.seconds % times.DAY)
            used = [*used, at]
    else:
        if not clocks and not any(found.named for found in counts.values()):
            _require_no_hidden_time(table, columns, numeric, measured, counts)
        if not clocks and not counts:
            said = ("no column was found to hold times: rows are taken in file order",) * (len(columns) > 1)
            return FoundTime(None, None, "", frozenset(), frozenset(like), said)
        chosen, used = _agreeing(table, clocks or _named_first(counts))
    return _found(table, chosen, used, like)


def _part(table: Table, columns: Sequence[Numbers], index: int) -> npt.NDArray[np.float64]:
    """A column as a component of a date: its numbers, or month names as numbers. Empty if it is neither."""
    if columns[index].share == 1.0 and not columns[index].missing.any():
        return columns[index].values
    months = table.cells[index].str.slice(0, 3).str.to_lowercase()
    order = times.MONTHS.split("|")
    if bool(months.is_in(order).fill_null(False).all()):
        return np.array([order.index(month) + 1.0 for month in months])
    return np.array([])


def _named_first(counts: dict[int, Times]) -> dict[int, Times]:
    """The columns whose names indicate times; all of them if there are none."""
    return {i: found for i, found in counts.items() if found.named} or counts


def _date(table: Table, dates: dict[int, Times], parts: tuple[list[int], Times] | None) -> tuple[Times, list[int]]:
    """The dates of the rows, from a column of dates or from component columns, and the columns used."""
    if dates:
        return _agreeing(table, dates)
    assert parts is not None
    return parts[1], parts[0]


def _agreeing(table: Table, found: dict[int, Times]) -> tuple[Times, list[int]]:
    """The first of several columns of times. Raises InputError if another one gives a different row order."""
    (first, chosen), *others = found.items()
    for other, times_of in others:
        both = np.isfinite(chosen.seconds) & np.isfinite(times_of.seconds)
        a, b = chosen.seconds[both], times_of.seconds[both]
        order = np.lexsort((b, a))
        if (np.diff(b[order]) < 0).any():
            one, two = table.names[first], table.names[other]
            raise InputError(
                f"{table.file} has two columns of times that order its rows differently, {one!r} and {two!r}: "
                f"say --time {one!r} or --time {two!r}"
            )
    return chosen, [first]


def _named_time(
    table: Table,
    columns: Sequence[Numbers],
    name: str,
    order: str | None,
    read: dict[int, Times],
    like: set[int],
) -> FoundTime:
    """The times in the column that the user names. Raises InputError if it cannot be read as times."""
    index = layout.column_named(table, name, "--time")
    if index in read:
        return _found(table, read[index], [index], like)
    if columns[index].share > 0.9:
        number = time_counts.count_of_time(name, columns[index].values, order, asked=True) or Times(
            columns[index].values, "number"
        )
        return _found(table, number, [index], like)
    cell = table.cells[index].drop_nulls()
    example = f", such as {cell[0]!r}" if len(cell) else ""
    raise InputError(
        f"{table.file}, column {name!r} cannot be read as times{example}: write them as 2024-01-31T12:00, or keep "
        f"the order of the file with --time {ROWS}"
    )


def _found(table: Table, chosen: Times, used: Sequence[int], like: set[int]) -> FoundTime:
    """Combine chosen times and their columns. Raises InputError if dates are ambiguous."""
    label = " and ".join(repr(table.names[i]) for i in used) if len(used) > 1 else table.names[used[0]]
    if chosen.other is not None:
        both = np.flatnonzero(np.isfinite(chosen.seconds) & (chosen.seconds != chosen.other))
        a, b = chosen.readings
        raise InputError(
            f"{table.place(int(both[0]))}, column {label!r}: {table.cells[used[0]][int(both[0])]!r} can be read "
            f"{a} and {b}, and no row decides it: say --dates {a} or --dates {b}"
        )
    notes = (chosen.note,) if chosen.note else ()
    return FoundTime(chosen.seconds, label, chosen.kind, frozenset(used), frozenset(like), notes)


def _require_no_hidden_time(
    table: Table,
    columns: Sequence[Numbers],
    numeric: set[int],
    measured: str | None,
    counts: Collection[int],
) -> None:
    """Raise InputError if a column may hold times, by its name or cells, that could not be read."""
    for i, name in enumerate(table.names):
        if name == measured or i in counts or columns[i].missing.all():
            continue
        cells = table.cells[i].drop_nulls()
        number_fix = (
            f"say --time {name!r} to sort by it, --time {ROWS} to keep the order of the file, or name the "
            "measured column with --column"
        )
        text_fix = f"write times as 2024-01-31T12:00, or keep the order of the file with --time {ROWS}"
        if i in numeric:
            if times.is_named_time(name):
                reason = "is named like a time, but its numbers are in no order and not evenly spaced"
            elif len(numeric) > 1 and (what := time_counts.resembles(name, columns[i].values)):
                reason = f"looks like {what}, but is not named like times"
            else:
                continue
            raise InputError(f"{table.file}, column {name!r} {reason}: {number_fix}")
        if times.is_named_time(name):
            reason = f"is named like a time, but {cells[0]!r} cannot be read as one"
        elif columns[i].share == 0 and times.looks_like_time(cells.gather_every(1 + len(cells) // 50).to_list()):
            reason = f"looks like a time, but {cells[0]!r} cannot be read as one"
        elif columns[i].share == 0 and (order := time_counts.label_order(table.cells[i])):
            reason = f"may hold times {order}, but {cells[0]!r} cannot be read as one"
        else:
            continue
        raise InputError(f"{table.file}, column {name!r} {reason}: {text_fix}")
