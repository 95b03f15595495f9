"""A file of measurements -> one series, even in time, and a note of everything that was done to get it.

The file may be as people have them: text.py makes a table of it, layout.py finds which rows are the series,
numbers.py and times.py read its cells, series.py puts one column in order. Whatever would give another series if
it were read in another way is refused, in one line that names the option that settles it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from tsd.errors import InputError
from tsd.measurements import layout, numbers, series, times
from tsd.measurements.numbers import Numbers
from tsd.measurements.text import MOST_ROWS, Table, read_table
from tsd.measurements.times import Times
from tsd.recipe import nearest

__all__ = ["MOST_ROWS", "Hints", "Measured", "read"]

ANOTHER = "give a file with what was measured"
ROWS = "rows"  # what `--time` is given for the order of the file


@dataclass(frozen=True)
class Hints:
    """What the user says of a file that it does not say itself; the options of `tsd explain`."""

    time: str | None = None
    decimal: str | None = None
    dates: str | None = None
    where: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """One series."""

    name: str
    values: npt.NDArray[np.float64]  # (points,), even in time
    rows: int
    """How many rows of the file it was made from."""
    time: str | None
    """The column of times; None where rows are in the order of the file."""
    changes: list[str]
    """A sentence for each thing that was done."""


def read(file: str, column: str | None = None, hints: Hints | None = None) -> Measured:
    """One numeric column of a file, in the order of time.

    Raises InputError, naming the place and the fix, for what cannot be read or can be read in two ways.
    """
    hints = hints or Hints()
    _require_valid(hints)
    table = layout.selected(read_table(file), hints.where)
    columns_named = column is not None and column in table.names
    if not columns_named and (turned := layout.turned(table)) is not None:
        table = turned
    table = layout.without_footer(table)
    if table.height < 2:
        rows = "one row" if table.height else "no row"
        raise InputError(f"{file} has {rows} of data below its header: a series needs at least 2")
    columns = _numbers(table, hints)
    found = _find_time(table, columns, column, hints)
    index = _choose(table, columns, found, column)
    table, columns, found = _without_untimed(table, columns, found, index)
    if table.height < 2:
        raise InputError(f"{file} has fewer than 2 rows of data with a time: a series needs at least 2")
    _require_plain(table, columns[index], index)
    layout.require_one_series(
        table, index, columns[index].values, found.columns | found.like, found.seconds, hints.where
    )
    notes = [*table.notes, *columns[index].notes, *found.notes]
    one = series.arrange(
        columns[index].values,
        columns[index].missing,
        found.seconds,
        series.Place(table, table.names[index], found.label, found.kind),
        hints.missing,
        notes,
    )
    return Measured(table.names[index], one.values, one.rows, found.label, notes)


def _require_valid(hints: Hints) -> None:
    if hints.decimal not in (None, numbers.POINT, numbers.COMMA):
        raise InputError(f"--decimal {hints.decimal!r} is no decimal sign: say --decimal . or --decimal ,")
    if hints.dates is not None and hints.dates not in times.ORDERS:
        raise InputError(
            f"--dates {hints.dates!r} is no order of a date{nearest(hints.dates, list(times.ORDERS))}"
        )


@dataclass(frozen=True)
class _Found:
    """The time of a table's rows."""

    seconds: npt.NDArray[np.float64] | None  # (rows,)
    label: str | None
    kind: str
    columns: frozenset[int]
    """The columns that it was read from."""
    like: frozenset[int]
    """Further columns that hold times or parts of them."""
    notes: tuple[str, ...] = ()


def _numbers(table: Table, hints: Hints) -> list[Numbers]:
    """Every column as numbers, with one decimal sign for the whole file where one of them shows it."""
    columns = [numbers.read(cells, table.decimal or hints.decimal) for cells in table.cells]
    shown = {
        column.decimal for column in columns if column.decimal and column.other is None and column.share > 0.5
    }
    if len(shown) == 1:
        (decimal,) = shown
        return [numbers.unambiguous(column, str(decimal), "as in the other columns") for column in columns]
    if table.separator == ";":  # spreadsheets write it where the comma is the decimal sign
        why = "since semicolons separate the cells"
        return [
            numbers.unambiguous(column, numbers.COMMA, why) if column.same_shape and column.grouped else column
            for column in columns
        ]
    return columns


def _find_time(table: Table, columns: Sequence[Numbers], measured: str | None, hints: Hints) -> _Found:
    """The column of times, or the columns that make one together.

    Raises InputError where there may be one and it cannot be told.
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
        and (found := times.count_of_time(table.names[i], columns[i].values, hints.dates)) is not None
    }
    named = {i for i, found in counts.items() if found.named or times.is_named_count(table.names[i])}
    if read or named or len(numeric) == 1:  # numbers that look like years or seconds may have been measured
        counts = {i: found for i, found in counts.items() if i in named}
    parts = times.from_parts(table.names, [_part(table, columns, i) for i in range(len(columns))])
    like = {*read, *counts, *(parts[0] if parts else ())}
    if read or parts:
        like |= {i for i in numeric if times.is_part_of_date(table.names[i], columns[i].values)}
    like -= {i for i, name in enumerate(table.names) if name == measured}
    if hints.time is not None and (hints.time in table.names or hints.time != ROWS):
        return _named_time(table, columns, hints.time, hints.dates, read, like)
    if hints.time == ROWS:
        named = {i for i in numeric if times.is_named_time(table.names[i]) and table.names[i] != measured}
        like |= named if len(numeric - like) > len(named - like) else set()
        return _Found(None, None, "", frozenset(), frozenset(like), ("rows are taken in file order, as asked",))
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
            return _Found(None, None, "", frozenset(), frozenset(like), said)
        chosen, used = _agreeing(table, clocks or _named_first(counts))
    return _found(table, chosen, used, like)


def _part(table: Table, columns: Sequence[Numbers], index: int) -> npt.NDArray[np.float64]:
    """A column as a part of a date: its numbers, or its months' names as numbers."""
    if columns[index].share == 1.0 and not columns[index].missing.any():
        return columns[index].values
    months = table.cells[index].str.slice(0, 3).str.to_lowercase()
    order = times.MONTHS.split("|")
    if bool(months.is_in(order).fill_null(False).all()):
        return np.array([order.index(month) + 1.0 for month in months])
    return np.array([])


def _named_first(counts: dict[int, Times]) -> dict[int, Times]:
    return {i: found for i, found in counts.items() if found.named} or counts


def _date(table: Table, dates: dict[int, Times], parts: tuple[list[int], Times] | None) -> tuple[Times, list[int]]:
    if dates:
        return _agreeing(table, dates)
    assert parts is not None
    return parts[1], parts[0]


def _agreeing(table: Table, found: dict[int, Times]) -> tuple[Times, list[int]]:
    """The first of several columns of times. Raises InputError where another would order the rows differently."""
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
) -> _Found:
    """The column that the user names."""
    index = layout.column_named(table, name, "--time")
    if index in read:
        return _found(table, read[index], [index], like)
    if columns[index].share > 0.9:
        number = times.count_of_time(name, columns[index].values, order, asked=True) or Times(
            columns[index].values, "number"
        )
        return _found(table, number, [index], like)
    cell = table.cells[index].drop_nulls()
    example = f", such as {cell[0]!r}" if len(cell) else ""
    raise InputError(
        f"{table.file}, column {name!r} cannot be read as times{example}: write them as 2024-01-31T12:00, or keep "
        f"the order of the file with --time {ROWS}"
    )


def _found(table: Table, chosen: Times, used: Sequence[int], like: set[int]) -> _Found:
    label = " and ".join(repr(table.names[i]) for i in used) if len(used) > 1 else table.names[used[0]]
    if chosen.other is not None:
        both = np.flatnonzero(np.isfinite(chosen.seconds) & (chosen.seconds != chosen.other))
        a, b = chosen.readings
        raise InputError(
            f"{table.place(int(both[0]))}, column {label!r}: {table.cells[used[0]][int(both[0])]!r} can be read "
            f"{a} and {b}, and no row settles it: say --dates {a} or --dates {b}"
        )
    notes = (chosen.note,) if chosen.note else ()
    return _Found(chosen.seconds, label, chosen.kind, frozenset(used), frozenset(like), notes)


def _require_no_hidden_time(
    table: Table,
    columns: Sequence[Numbers],
    numeric: set[int],
    measured: str | None,
    counts: Collection[int],
) -> None:
    """Raise InputError where a column may hold times, by its name or its cells, and could not be read as such."""
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
            elif len(numeric) > 1 and (what := times.resembles(name, columns[i].values)):
                reason = f"looks like {what}, but is not named like times"
            else:
                continue
            raise InputError(f"{table.file}, column {name!r} {reason}: {number_fix}")
        if times.is_named_time(name):
            reason = f"is named like a time, but {cells[0]!r} cannot be read as one"
        elif columns[i].share == 0 and times.looks_like_time(cells.gather_every(1 + len(cells) // 50).to_list()):
            reason = f"looks like a time, but {cells[0]!r} cannot be read as one"
        elif columns[i].share == 0 and (order := times.label_order(table.cells[i])):
            reason = f"may hold times {order}, but {cells[0]!r} cannot be read as one"
        else:
            continue
        raise InputError(f"{table.file}, column {name!r} {reason}: {text_fix}")


def _choose(table: Table, columns: Sequence[Numbers], found: _Found, column: str | None) -> int:
    """The measured column's index."""
    if column is not None:
        index = layout.column_named(table, column, "--column")
        if index in found.columns:
            raise InputError(
                f"{table.file}, column {column!r} holds the times: name what was measured with --column"
            )
        return index
    # A column of numbers with a slip in it still counts: it is named rather than passed over for another.
    numeric = [i for i, one in enumerate(columns) if one.share > 0.5 and i not in found.columns | found.like]
    if len(numeric) > 1:
        counting = [i for i in numeric if _counts(table, columns[i], i)]
        keys = [i for i in numeric if layout.is_key(table, i) and i not in counting]
        if left := [i for i in numeric if i not in counting + keys]:
            numeric = left
            table.notes.extend(f"column {table.names[i]!r} only counts the rows" for i in counting)
    if not numeric:
        return _only(table, columns, found)
    if len(numeric) > 1:
        names = ", ".join(table.names[i] for i in numeric)
        fix = "rename one" if len({table.names[i] for i in numeric}) == 1 else "name one with --column"
        raise InputError(f"{table.file} has several numeric columns, {fix}: {names}")
    _require_header(table, numeric[0])
    if _counts(table, columns[numeric[0]], numeric[0]) and times.is_named_count(table.names[numeric[0]]):
        raise InputError(
            f"{table.file}, column {table.names[numeric[0]]!r} only counts the rows, and no other column holds "
            f"numbers: {ANOTHER}"
        )
    return numeric[0]


def _counts(table: Table, column: Numbers, index: int) -> bool:
    name = table.names[index]
    return times.numbers_rows(column.values) or (
        times.is_named_count(name) and times.count_of_time(name, column.values) is not None
    )


def _only(table: Table, columns: Sequence[Numbers], found: _Found) -> int:
    """The only column there is, whatever is wrong with it. Raises InputError where there are several."""
    left = [i for i in range(len(columns)) if i not in found.columns | found.like]
    if len(left) == 1 and table.names[left[0]]:
        _require_header(table, left[0])
        return left[0]
    for i in found.columns | found.like:
        _require_header(table, i)
    if len(table.names) == 1 and times.is_named_count(table.names[0]):
        raise InputError(f"{table.file}, column {table.names[0]!r} only counts the rows: {ANOTHER}")
    if len(table.names) == 1:
        raise InputError(
            f"{table.file} has one column, {table.names[0]!r}, and it holds times: {ANOTHER}, or say "
            f"--column {table.names[0]!r}"
        )
    times_too = " but for times" if found.columns | found.like else ""
    raise InputError(
        f"{table.file} has no numeric column{times_too} (its columns: {', '.join(table.names)}): "
        "name the one that was measured with --column"
    )


def _require_header(table: Table, index: int) -> None:
    name = table.names[index]
    if numbers.is_bare_number(name) or (table.unit == "line" and times.looks_like_time([name])):
        raise InputError(
            f"{table.file} line {int(table.lines[0]) - 1} is {name!r}, a number where a column's name is "
            f"expected: add a header line, or say --column {name} if that is its name"
        )


def _without_untimed(
    table: Table, columns: list[Numbers], found: _Found, index: int
) -> tuple[Table, list[Numbers], _Found]:
    """The rows that have a time, or everything where there is none.

    Raises InputError for a cell, other than in the last rows, that is no time as the others are.
    """
    if found.seconds is None:
        return table, columns, found
    lost = ~np.isfinite(found.seconds)
    if not lost.any():
        return table, columns, found
    empty = np.all([table.cells[i].is_null().to_numpy() for i in found.columns], axis=0)
    valued = ~columns[index].missing
    last = np.flatnonzero(~lost)[-1] if (~lost).any() else -1
    footer = lost & (np.arange(table.height) > last) & (valued | ~empty)
    inner = lost & (np.arange(table.height) < last)
    odd = np.flatnonzero(inner & ~empty)
    if footer.sum() > 5:
        odd = np.flatnonzero(footer)
    if len(odd):
        i = next((i for i in sorted(found.columns) if table.cells[i][int(odd[0])] is not None), index)
        raise InputError(
            f"{table.place(int(odd[0]))}, column {table.names[i]!r}: {table.cells[i][int(odd[0])]!r} cannot be "
            "read as a time like the others: correct or drop the row"
        )
    untimed = int((inner & valued).sum())
    if untimed > table.height // 20:
        raise InputError(
            f"{table.place(int(np.flatnonzero(inner & valued)[0]))}, column {found.label!r}: the cell is empty "
            f"(and {untimed - 1:,} more such rows): a value needs a time, drop these rows or say --time {ROWS}"
        )
    if untimed:
        table.notes.append(f"{untimed:,} rows without a time were left out")
    if footer.any():
        said = ", ".join(
            next((str(cells[int(row)]) for cells in table.cells if cells[int(row)] is not None), "")
            for row in np.flatnonzero(footer)
        )
        table.notes.append(f"rows at the end without a time were left out: {said[:80]}")
    kept = ~lost
    return (
        table.filter(kept),
        [_rows(column, kept) for column in columns],
        replace(found, seconds=found.seconds[kept]),
    )


def _rows(column: Numbers, kept: npt.NDArray[np.bool_]) -> Numbers:
    return replace(column, values=column.values[kept], wrong=column.wrong[kept], missing=column.missing[kept])


def _require_plain(table: Table, column: Numbers, index: int) -> None:
    """Raise InputError where a cell is no number, or may be two."""
    name = table.names[index]
    if table.names.count(name) > 1:
        raise InputError(f"{table.file} has {table.names.count(name)} columns named {name!r}: rename all but one")
    wrong = np.flatnonzero(column.wrong | (np.abs(column.values) >= series.LARGEST))
    if len(wrong):
        more = f" (and {len(wrong) - 1:,} more such rows)" if len(wrong) > 1 else ""
        cell = str(table.cells[index][int(wrong[0])])
        fix = "fill or drop the row"
        if table.separator is None and len(cell.split()) > 1:
            fix = "separate columns with commas, semicolons or tabs"
        raise InputError(
            f"{table.place(int(wrong[0]))}, column {name!r}: {cell!r} is not a finite number"
            f"{_likewise(table, column, index)}{more}: {fix}"
        )
    if column.ambiguous:
        cells = table.cells[index]
        shown = cells == column.example if column.example else cells.str.contains(r"\d[.,]\d")
        at = int(np.flatnonzero(shown.fill_null(False).to_numpy())[0])
        raise InputError(f"{table.place(at)}, column {name!r}: {column.ambiguous}")


def _likewise(table: Table, column: Numbers, index: int) -> str:
    """What most cells of the column are, where a wrong one is a number of another kind."""
    wrong = table.cells[index].filter(pl.Series(column.wrong))
    return " like the others (they have another unit or decimal sign)" if numbers.is_number(str(wrong[0])) else ""
