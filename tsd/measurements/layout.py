"""Select the rows of one series: from stacked series, from wide tables, without summary rows."""

import re
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from tsd.errors import InputError
from tsd.measurements import numbers, time_counts, times
from tsd.measurements.numbers import words
from tsd.measurements.table import Table
from tsd.recipe import nearest

ANY = "*"  # in `--where COLUMN=*`: rows of all values belong to one series
FOOTER = re.compile(
    r"^(grand |sub)?(totals?|sum|summe|gesamt|average|avg|mean|mittelwert|mittel|durchschnitt|somme|moyenne|suma"
    r"|promedio|totale|media|minimum|maximum|median|std|stdev|count)\b",
    re.IGNORECASE,
)
# Column names that identify what a row belongs to.
KEYS = words(
    "sensor station device id tag symbol ticker variable parameter metric channel series location site country"
    " region city item product store customer user probe node asset machine entity geo element indicator meter"
    " stationsname messstelle land name label"
)
LEAST_DATES = 3
APART = 0.2  # maximum fraction of variance within groups for groups to be several series


def column_named(table: Table, name: str, option: str) -> int:
    """The index of the column with this name. Raises InputError if there is none, or more than one."""
    found = [i for i, one in enumerate(table.names) if one == name.strip()]
    if not found:
        raise InputError(f"{table.file} has no column {name!r}{nearest(name, table.names)} ({option})")
    if len(found) > 1:
        raise InputError(f"{table.file} has {len(found)} columns named {name!r}: rename all but one")
    return found[0]


def selected(table: Table, where: Sequence[str]) -> Table:
    """The rows in which each column of `--where` has its value. Raises InputError for invalid conditions."""
    for condition in where:
        splits = [(condition[: at.start()], condition[at.end() :]) for at in re.finditer("=", condition)]
        if not splits:
            raise InputError(f"--where {condition!r} is not a condition: say --where COLUMN=VALUE")
        name, value = next((pair for pair in splits if pair[0].strip() in table.names), splits[0])
        cells = table.cells[column_named(table, name, "--where")]
        if value.strip() == ANY:
            continue
        kept = (cells == value.strip()).fill_null(False).to_numpy()
        if not kept.any():
            valid = [str(cell) for cell in cells.drop_nulls().unique(maintain_order=True)[:20]]
            raise InputError(f"{table.file}, column {name!r} is {value!r} in no row{nearest(value, valid)}")
        table.notes.append(f"{int(kept.sum()):,} of {table.height:,} rows have {name} {value}")
        table = table.filter(kept)
    return table


def turned(table: Table) -> Table | None:
    """Convert a wide table, whose columns are time steps, to two columns. None if the columns are not times.

    Raises InputError if it has several rows.
    """
    names = [re.sub(r"^(\d{4}) \[YR\1\]$", r"\1", name) for name in table.names]
    dated = [i for i, name in enumerate(names) if name and _is_date(name)]
    if len(dated) < max(LEAST_DATES, len(names) / 2):
        return None
    labels = pl.Series([names[i] for i in dated])
    found = times.read_dates(labels, None)
    seconds = found.seconds if found else numbers.read(labels, numbers.POINT).values
    steps = np.diff(seconds)
    if not (np.isfinite(seconds).all() and ((steps > 0).all() or (steps < 0).all())):
        return None
    others = [i for i in range(len(names)) if i not in dated]
    if table.height != 1:
        keyed = [
            i for i in others if table.cells[i].n_unique() == table.height and not table.cells[i].null_count()
        ]
        if not keyed:
            name = next((table.names[i] for i in others), None)
            fix = f"choose rows with --where {name}=…" if name else "keep one row, or write one line a time step"
            raise InputError(f"{table.file} has the steps of time as columns and {table.height:,} rows: {fix}")
        cells, name = table.cells[keyed[0]], table.names[keyed[0]]
        raise InputError(
            f"{table.file} has the steps of time as columns and {table.height:,} rows ({_some(cells)}): "
            f"choose one with --where {name}={cells[0]}"
        )
    label = next((str(table.cells[i][0]) for i in others if table.cells[i][0] is not None), "value")
    table.notes.append(f"the {len(dated)} columns named with times were taken for its steps")
    values = pl.Series([table.cells[i][0] for i in dated], dtype=pl.String)
    return Table(
        table.file,
        ["time", label],
        [labels, values],
        np.array(dated) + 1,
        "column",
        table.separator,
        table.decimal,
        table.notes,
    )


def _is_date(name: str) -> bool:
    """Whether a column name is a date or a year."""
    return bool(re.fullmatch(r"(1[5-9]|2[01])\d\d", name)) or times.looks_like_time([name])


def without_footer(table: Table) -> Table:
    """The table without summary rows at the end."""
    kept = table.height
    while kept > 2 and table.height - kept < 5:
        first = next((str(cells[kept - 1]) for cells in table.cells if cells[kept - 1] is not None), "")
        if not FOOTER.match(first):
            break
        kept -= 1
    if kept == table.height:
        return table
    said = next(str(cells[kept]) for cells in table.cells if cells[kept] is not None)
    table.notes.append(f"{table.unit} {table.lines[kept]}, {said!r}, is the sum of the others and was left out")
    return table.filter(np.arange(table.height) < kept)


def is_key(table: Table, index: int) -> bool:
    """Whether a column's name identifies what a row belongs to, and some of its values repeat."""
    found = re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", table.names[index]).lower())
    cells = table.cells[index].drop_nulls()
    distinct = cells.n_unique()
    return bool(KEYS & set(found)) and 2 <= distinct <= len(cells) / 2 and not _fractional(cells)


def require_one_series(
    table: Table,
    index: int,
    values: npt.NDArray[np.float64],
    skip: Collection[int],
    seconds: npt.NDArray[np.float64] | None,
    where: Sequence[str],
) -> None:
    """Raise InputError if rows of several series are stacked or interleaved, as a grouping column shows."""
    settled = {condition.partition("=")[0].strip() for condition in where}
    others = [i for i in range(len(table.names)) if i != index and i not in skip and table.names[i] not in settled]
    key = next((i for i in others if is_key(table, i)), None)
    if seconds is not None:
        distinct = pl.DataFrame(
            [pl.Series("t", seconds), *(table.cells[i].alias(str(i)) for i in [*others, index])]
        )
        distinct = distinct.unique()  # duplicate rows count once
        doubled = len(distinct) - distinct["t"].n_unique()
        apart = {
            i: len(distinct) - distinct.select("t", str(i)).n_unique()
            for i in others
            if 2 <= table.cells[i].n_unique() <= len(distinct) / 2 and not _fractional(table.cells[i].drop_nulls())
        }
        if doubled and apart and min(apart.values()) <= doubled / 2:
            key = min(apart, key=lambda i: (apart[i], table.cells[i].n_unique()))
    if key is None:
        key = next((i for i in others if _parts(table.cells[i], values, seconds is not None)), None)
    if key is not None:
        cells, name = table.cells[key].drop_nulls(), table.names[key]
        raise InputError(
            f"{table.file} holds several series, one for each {name!r} ({_some(cells)}): choose one with "
            f"--where {name}={cells[0]}, or say --where {name}={ANY} if all rows are one"
        )


def _parts(cells: pl.Series, values: npt.NDArray[np.float64], timed: bool) -> bool:
    """Whether repeating words divide the values into several series, regardless of the column's name.

    With times, rows are one series unless words alternate with distinct levels. Without times, they are several
    series if words alternate, form one block each, or have distinct levels.
    """
    kinds = cells.n_unique()
    if cells.null_count() or not 2 <= kinds <= len(cells) / 2 or _fractional(cells):
        return False
    if bool(cells.str.to_lowercase().str.slice(0, 3).is_in(time_counts.CYCLE_STARTS).all()):
        return False
    words_of = cells.rank("dense").to_numpy().astype(np.int64) - 1  # (rows,), 0 to number of words − 1
    known = np.isfinite(values)
    count = np.maximum(np.bincount(words_of[known], minlength=kinds), 1)
    level = np.bincount(words_of[known], values[known], kinds) / count
    apart = np.var((values - level[words_of])[known]) < APART * np.var(values[known])
    turns = bool((words_of[kinds:] == words_of[:-kinds]).all()) and len(np.unique(words_of[:kinds])) == kinds
    if timed or bool(cells.str.contains(r"^[+-]?\d+$").any()):
        return turns and bool(apart)
    blocks = int((np.diff(words_of) != 0).sum()) == kinds - 1
    return turns or blocks or bool(apart)


def _fractional(cells: pl.Series) -> bool:
    """Whether a column holds fractional numbers, which are measurements rather than names."""
    return 2 * int(cells.str.contains(r"^[+-]?\d*[.,]\d+([eE].*)?$").sum()) > len(cells)


def _some(cells: pl.Series) -> str:
    """The first distinct values of a column, for a message."""
    values = [str(cell) for cell in cells.drop_nulls().unique(maintain_order=True)]
    return ", ".join(values[:4]) + (f" and {len(values) - 4:,} more" if len(values) > 4 else "")
