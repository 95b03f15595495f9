"""Read one evenly spaced series from a user's data file, with notes on every change made to it.

`text` parses the file into a table of cells, `layout` selects the rows of the series, `numbers` and `times`
interpret its cells, `series` puts one column in temporal order. If the file can be interpreted in several ways
that give different series, it is rejected with a one-line error that names the option to decide.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from tsd.errors import InputError
from tsd.measurements import layout, numbers, series, time_counts, times
from tsd.measurements.numbers import Numbers
from tsd.measurements.table import Table
from tsd.measurements.text import MOST_ROWS, read_table
from tsd.measurements.time_column import ANOTHER, ROWS, FoundTime, Hints, find_time
from tsd.recipe import nearest

__all__ = ["MOST_ROWS", "Hints", "Measured", "read"]


@dataclass(frozen=True)
class Measured:
    """One series."""

    name: str
    values: npt.NDArray[np.float64]  # (points,), evenly spaced in time
    rows: int
    """Rows of the file that were used."""
    time: str | None
    """The column with the times; None if rows are in file order."""
    changes: list[str]
    """One sentence per change."""


def read(file: str, column: str | None = None, hints: Hints | None = None) -> Measured:
    """Read one numeric column of a file, in temporal order.

    column: its name; None if there is only one. Raises InputError, with the place and the fix, if the file cannot
    be read or is ambiguous.
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
    found = find_time(table, columns, column, hints)
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
        series.WorkerContext(table, table.names[index], found.label, found.kind),
        hints.missing,
        notes,
    )
    return Measured(table.names[index], one.values, one.rows, found.label, notes)


def _require_valid(hints: Hints) -> None:
    """Raise InputError for an invalid option."""
    if hints.decimal not in (None, numbers.POINT, numbers.COMMA):
        raise InputError(f"--decimal {hints.decimal!r} is not a decimal sign: say --decimal . or --decimal ,")
    if hints.dates is not None and hints.dates not in times.ORDERS:
        raise InputError(
            f"--dates {hints.dates!r} is not an order of dates{nearest(hints.dates, list(times.ORDERS))}"
        )


def _numbers(table: Table, hints: Hints) -> list[Numbers]:
    """Parse every column as numbers. A decimal sign that one column determines is used for all."""
    columns = [numbers.read(cells, table.decimal or hints.decimal) for cells in table.cells]
    shown = {
        column.decimal for column in columns if column.decimal and column.other is None and column.share > 0.5
    }
    if len(shown) == 1:
        (decimal,) = shown
        return [numbers.unambiguous(column, str(decimal), "as in the other columns") for column in columns]
    if table.separator == ";":  # spreadsheets use semicolons where the comma is the decimal sign
        why = "since semicolons separate the cells"
        return [
            numbers.unambiguous(column, numbers.COMMA, why) if column.same_shape and column.grouped else column
            for column in columns
        ]
    return columns


def _choose(table: Table, columns: Sequence[Numbers], found: FoundTime, column: str | None) -> int:
    """The index of the measured column. Raises InputError if it cannot be determined."""
    if column is not None:
        index = layout.column_named(table, column, "--column")
        if index in found.columns:
            raise InputError(
                f"{table.file}, column {column!r} holds the times: name what was measured with --column"
            )
        return index
    # A column of numbers with a few errors counts, so that it is reported rather than skipped for another column.
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
    if _counts(table, columns[numeric[0]], numeric[0]) and time_counts.is_named_count(table.names[numeric[0]]):
        raise InputError(
            f"{table.file}, column {table.names[numeric[0]]!r} only counts the rows, and no other column holds "
            f"numbers: {ANOTHER}"
        )
    return numeric[0]


def _counts(table: Table, column: Numbers, index: int) -> bool:
    """Whether a column only counts the rows."""
    name = table.names[index]
    return time_counts.numbers_rows(column.values) or (
        time_counts.is_named_count(name) and time_counts.count_of_time(name, column.values) is not None
    )


def _only(table: Table, columns: Sequence[Numbers], found: FoundTime) -> int:
    """The only candidate column, even if it has errors. Raises InputError if there are several."""
    left = [i for i in range(len(columns)) if i not in found.columns | found.like]
    if len(left) == 1 and table.names[left[0]]:
        _require_header(table, left[0])
        return left[0]
    for i in found.columns | found.like:
        _require_header(table, i)
    if len(table.names) == 1 and time_counts.is_named_count(table.names[0]):
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
    """Raise InputError if the column's name is itself a number, so that the file seems to have no header."""
    name = table.names[index]
    if numbers.is_bare_number(name) or (table.unit == "line" and times.looks_like_time([name])):
        raise InputError(
            f"{table.file} line {int(table.lines[0]) - 1} is {name!r}, a number where a column's name is "
            f"expected: add a header line, or say --column {name} if that is its name"
        )


def _without_untimed(
    table: Table, columns: list[Numbers], found: FoundTime, index: int
) -> tuple[Table, list[Numbers], FoundTime]:
    """Drop the rows at the end that have no time. Without times, everything is kept.

    Raises InputError for cells in other rows that cannot be read as times.
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
    """The selected rows of a column. kept: (rows,)."""
    return replace(column, values=column.values[kept], wrong=column.wrong[kept], missing=column.missing[kept])


def _require_plain(table: Table, column: Numbers, index: int) -> None:
    """Raise InputError if a cell of the column is not a number, or is ambiguous."""
    name = table.names[index]
    if table.names.count(name) > 1:
        raise InputError(f"{table.file} has {table.names.count(name)} columns named {name!r}: rename all but one")
    wrong = np.flatnonzero(column.wrong)
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
    """What most cells of the column are, for the message about a cell that is another kind of number."""
    wrong = table.cells[index].filter(pl.Series(column.wrong))
    if not numbers.is_number(str(wrong[0])):
        return ""
    if numbers.is_too_large(str(wrong[0])):
        return f" below {numbers.LARGEST:g}"
    return " like the others (they have another unit or decimal sign)"
