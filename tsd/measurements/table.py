"""Lines of text -> a table of cells: which separator, header, units and width it has."""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import polars as pl

from tsd.errors import InputError
from tsd.measurements import numbers
from tsd.measurements.times import looks_like_time

SAMPLE = 200  # lines used to find separator and header
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}
COMMENTS = ("#", "%", "//", "!")
# Words for values that a device could not measure. They are not units.
FLAWS = numbers.words(
    "bad error err fault fail failed invalid off on true false yes no trace traces nd n.d. bdl lod loq low high"
    " over under overflow underflow ovf saturated inf infinity x xx xxx nodata no_data unknown void"
)
SEP_LINE = re.compile(r"""^["']?sep=(.)["']?$""", re.IGNORECASE)


@dataclass(frozen=True)
class Table:
    """A file's cells as text: stripped, null for missing values."""

    file: str
    names: list[str]
    cells: list[pl.Series]  # one per column, (rows,) String
    lines: npt.NDArray[np.int64]
    """The line (or row) number in the file of each row, (rows,)."""
    unit: str = "line"
    separator: str | None = None
    decimal: str | None = None
    """The decimal sign, if the format determines it."""
    notes: list[str] = field(default_factory=list)

    @property
    def height(self) -> int:
        """The number of rows."""
        return len(self.lines)

    def filter(self, kept: npt.NDArray[np.bool_]) -> "Table":
        """The selected rows. kept: (rows,)."""
        mask = pl.Series(kept)
        cells = [column.filter(mask) for column in self.cells]
        return Table(
            self.file,
            self.names,
            cells,
            self.lines[kept],
            self.unit,
            self.separator,
            self.decimal,
            self.notes,
        )

    def place(self, row: int) -> str:
        """The place of a row in the file, for messages."""
        return f"{self.file} {self.unit} {self.lines[row]}"


class Lines:
    """A file's lines with their numbers, without comments and without blank lines at both ends."""

    def __init__(self, lines: list[str]) -> None:
        """lines: of the file, in order."""
        self.separator: str | None = None
        self.comments: list[str] = []
        kept: list[int] = []
        for number, line in enumerate(lines):
            bare = line.strip()
            if not kept:
                if not bare:
                    continue
                if self.separator is None and (named := SEP_LINE.match(bare)):
                    self.separator = named[1]
                    continue
            if bare.startswith("#" if kept else COMMENTS) and not re.match(r"""^#["']?[;,|\t]""", bare):
                self.comments.append(bare)
                continue
            kept.append(number)
        while kept and not lines[kept[-1]].strip():
            kept.pop()
        blank = sum(not lines[number].strip() for number in kept)
        if blank and blank >= len(kept) // 2:  # alternating blank lines are line endings, not missing rows
            kept = [number for number in kept if lines[number].strip()]
        self.text = [lines[number] for number in kept]
        self.numbers = np.array(kept, np.int64) + 1


@dataclass(frozen=True)
class _Layout:
    """One interpretation of the first lines: position of the header, and separator."""

    separator: str | None
    header: int  # index of the header line
    names: list[str]
    rows: list[list[str]]
    score: float
    """Fraction of rows as long as the header, times that of their cells that are numbers, times or missing."""

    @property
    def headed(self) -> bool:
        """Whether the header holds a name, rather than only numbers and times."""
        return any(_is_word(name) for name in self.names)


def parse_table(file: str, lines: Lines, notes: list[str]) -> Table:
    """Parse the lines into a table, with notes on what was left out. Raises InputError if there are no rows."""
    if not lines.text:
        raise InputError(f"{file} holds nothing but comments: a header line and at least 2 rows are needed")
    if lines.comments:
        notes.append(f"{len(lines.comments)} comment line{'s' * (len(lines.comments) > 1)} left out")
    layout = _layout(file, lines)
    if layout.header > 0:
        said = ", ".join(repr(line.strip(" ;,|\t")) for line in lines.text[: layout.header][:3])
        notes.append(f"the text above the header was left out: {said[:120]}")
    if layout.separator not in (None, ","):
        notes.append(f"cells are separated by {SEPARATORS.get(layout.separator, repr(layout.separator))}")
    body, at = lines.text[layout.header + 1 :], lines.numbers[layout.header + 1 :]
    names = [name.strip() or f"column {i + 1}" for i, name in enumerate(layout.names)]
    if not body:
        raise InputError(f"{file} has no row of data below its header: a series needs at least 2")
    cells = [numbers.stripped(column) for column in _cells(file, body, layout.separator, len(names))]
    if len(cells[0]) != len(at):
        at = _without_breaks(file, cells, at, layout.separator, notes)
    cells = _without_spare_columns(file, layout, lines.text, names, cells, at)
    table = Table(file, names, cells, at, "line", layout.separator, notes=notes)
    return _without_units(table)


def _without_breaks(
    file: str, cells: list[pl.Series], at: npt.NDArray[np.int64], separator: str | None, notes: list[str]
) -> npt.NDArray[np.int64]:
    """The first line of each row, if quoted cells contain line breaks, which is noted.

    Raises InputError if such a cell contains whole rows, as after a stray quote.
    """
    breaks = sum((column.str.count_matches("\n").fill_null(0) for column in cells), pl.Series([0] * len(cells[0])))
    begins = np.concatenate([[0], np.cumsum(1 + breaks.to_numpy())[:-1]])
    lines: npt.NDArray[np.int64] = at[np.minimum(begins, len(at) - 1)]
    for column in cells:
        held = column.str.count_matches("\n").fill_null(0).to_numpy()
        signs = column.str.count_matches(separator or ",", literal=True).fill_null(0).to_numpy()
        if len(rows := np.flatnonzero((held > 0) & (signs >= held * (len(cells) - 1)))):
            below = f"{held[rows[0]]:,} line{'s' if held[rows[0]] > 1 else ''} below"
            raise InputError(
                f'{file} line {lines[rows[0]]}: a cell opens with " and ends {below}, so that rows are lost in '
                'it: remove the " or close it on its line'
            )
    notes.append(f"cells in quotes hold line breaks: {len(at):,} lines were read as {len(lines):,} rows")
    return lines


def _layout(file: str, lines: Lines) -> _Layout:
    """The layout of the file. Raises InputError if two separators fit equally."""
    sample = lines.text[:SAMPLE]
    if lines.separator is not None:
        return _laid_out(sample, lines.separator) or _single(sample)
    single = _single(sample)
    found = [layout for separator in SEPARATORS if (layout := _laid_out(sample, separator))]
    headed = [layout for layout in found if layout.headed and len(layout.names) > 1]
    if not headed:
        # Numbers with a decimal comma below a name: the comma is not a separator.
        if found and single.headed and single.score >= 0.8:
            _require_one_number(file, sample, lines)
            return single
        _require_no_spaces(file, single)
        commented = _commented_header(lines, found)
        return commented or (max(found, key=lambda one: one.score) if found and not single.headed else single)
    best = max(headed, key=lambda one: one.score)
    rivals = [one for one in headed if one is not best and one.score > best.score - 0.05 and best.score >= 0.5]
    if rivals:
        raise InputError(
            f"{file} can be read with cells separated by {SEPARATORS[str(best.separator)]} and by "
            f"{SEPARATORS[str(rivals[0].separator)]}: make its first line sep={best.separator} or "
            f"sep={rivals[0].separator}"
        )
    return best


def _split(lines: Sequence[str], separator: str | None) -> list[list[str]]:
    """Split lines at a separator, with quotes. None: one cell per line."""
    rows = csv.reader(lines, delimiter=separator or "\x1f")
    try:
        return [[cell.strip() for cell in row] or [""] for row in rows]
    except csv.Error:
        return [line.split(separator) for line in lines]


def _laid_out(sample: Sequence[str], separator: str) -> _Layout | None:
    """The layout with this separator; None if it separates nothing."""
    rows = _split(sample, separator)
    counts = Counter(len(row) for row in rows[len(rows) // 4 :] or rows)
    width = max(counts, key=lambda count: (counts[count], count))
    if width < 2 and not any(len(row) > 1 for row in rows[:2]):
        return None
    header = _header(rows, width)
    names, body = rows[header], [row for row in rows[header + 1 :] if any(row)]
    while len(names) > width and not names[-1]:
        names = names[:-1]
    if not body or (len(names) < 2 and width < 2):
        return None
    named = len(names) != width - 1 or not any(row[-1] for row in body if len(row) == width)
    if not named and not all(map(_may_be_one_number, body)):
        names = ["", *names]  # a header without a name for row names, as R writes it
    fitting = [row for row in body if len(row) == len(names) or (len(row) == len(names) + 1 and not row[-1])]
    score = len(fitting) / len(body) * _typed(body)
    if any(sign in name for sign in SEPARATORS if sign not in (separator, ",") for name in names):
        score /= 2  # a name that contains another separator is two names
    return _Layout(separator, header, names, body, score)


def _header(rows: Sequence[Sequence[str]], width: int) -> int:
    """The index of the header row: the last one before the data, after titles with fewer cells."""
    for index, row in enumerate(rows[:30]):
        full = len(row) == width or (len(row) == width + 1 and not row[-1])
        if not full or (width > 1 and row[0] and not any(row[1:])):
            continue
        dated = sum(bool(re.fullmatch(r"(1[5-9]|2[01])\d\d", cell)) or looks_like_time([cell]) for cell in row)
        if _is_text(row) or (_is_word(row[0]) and (dated >= 3 or index == 0)):
            return index
        return max(index - 1, 0)
    return 0


def _may_be_one_number(row: Sequence[str]) -> bool:
    """Whether two adjacent cells of a row may be one number with a decimal comma."""
    return any(
        a.lstrip("+-").isdigit() and b.isdigit() and numbers.is_number(f"{a},{b}") for a, b in pairwise(row)
    )


def _single(sample: Sequence[str]) -> _Layout:
    """The layout of a file with one column."""
    rows = [[cell] for (cell, *_) in _split(sample, None)]
    header = 0
    while (
        header < len(rows) - 2
        and _is_text(rows[header])
        and " " in rows[header][0]
        and _is_text(rows[header + 1])
        and _is_unit(rows[header + 1][0])
    ):
        header += 1
    body = [row for row in rows[header + 1 :] if row[0]]
    return _Layout(None, header, rows[header], body, _typed(body) if body else 0.0)


def _typed(rows: Sequence[Sequence[str]]) -> float:
    """Fraction of the cells that are numbers, times or missing."""
    cells = [cell for row in rows for cell in row]
    typed = sum(not _is_word(cell) and not any(sign in cell for sign in ";|\t") for cell in cells)
    return typed / max(len(cells), 1)


def _is_word(cell: str) -> bool:
    """Whether a cell is neither a number, a time nor a missing value."""
    if numbers.is_missing(cell) or cell.lower().lstrip("+-") in ("inf", "infinity"):
        return False
    return not (numbers.is_number(cell) or looks_like_time([cell]))


def _is_unit(cell: str) -> bool:
    """Whether a word may be a unit, rather than a flawed value such as <0.5 or 12*."""
    return not re.match(r"[<>≤≥~≈±=+-]|\d(?!0?[/^])", cell) and cell.lower() not in FLAWS


def _is_text(row: Sequence[str]) -> bool:
    """Whether a row holds words and no values."""
    return any(map(_is_word, row)) and all(_is_word(cell) for cell in row if cell)


def _commented_header(lines: Lines, found: Sequence[_Layout]) -> _Layout | None:
    """The layout of a file whose header is its last comment line, as numpy and gnuplot write it."""
    for layout in sorted(found, key=lambda one: -one.score):
        if layout.separator is None or not lines.comments:
            continue
        names = _split([lines.comments[-1].lstrip("#%!/ ")], layout.separator)[0]
        if len(names) == len(layout.names) and _is_text(names):
            return _Layout(layout.separator, -1, names, layout.rows, layout.score)
    return None


def _require_one_number(file: str, sample: Sequence[str], lines: Lines) -> None:
    """Raise InputError if the comma in a column of numbers may separate row numbers from values."""
    rows = _split(sample[1:], ",")
    counted = [row[0] for row in rows]
    if len(rows) > 2 and all(len(row) == 2 for row in rows):
        first = int(counted[0]) if counted[0].isdigit() else -1
        if first in (0, 1) and counted == [str(first + i) for i in range(len(rows))]:
            raise InputError(
                f"{file} line {lines.numbers[1]}: {sample[1].strip()!r} may be one number with a decimal comma or "
                "a row number and a value: name both columns in the header line, or put the numbers in quotes"
            )


def _require_no_spaces(file: str, single: _Layout) -> None:
    """Raise InputError if spaces separate as many cells in each row as there are names."""
    words = len(single.names[0].split())
    if words > 1 and single.rows and all(len(row[0].split()) == words for row in single.rows):
        raise InputError(f"{file} has columns separated by spaces: separate them with commas, semicolons or tabs")


def _cells(file: str, body: list[str], separator: str | None, width: int) -> list[pl.Series]:
    """The columns below the header, as many as the widest row has; null where a row is shorter."""
    blank = (separator or "") * (width - 1) or '""'
    body = [line if line.strip() else blank for line in body]
    if separator is None:
        return [pl.Series(row[0] for row in _split([f"{line}\n" for line in body], None))]
    try:
        widest = max(map(len, csv.reader(body, delimiter=separator)))
    except csv.Error as error:
        raise InputError(f"{file} cannot be read as CSV ({error}): save it as CSV again") from None
    columns = {str(i): pl.String for i in range(max(widest, width))}
    if body[0].count('"') % 2 == 0:  # polars takes the number of columns from the first row
        body[0] += separator * (len(columns) - len(_split(body[:1], separator)[0]))
    try:
        table = pl.read_csv(
            "\n".join(body).encode(),
            has_header=False,
            new_columns=list(columns),
            infer_schema=False,
            separator=separator,
        )
    except pl.exceptions.PolarsError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{file} cannot be read as CSV ({reason}): correct it, or save it as CSV again") from None
    return table.get_columns()


def _without_spare_columns(
    file: str,
    layout: _Layout,
    text: list[str],
    names: list[str],
    cells: list[pl.Series],
    at: npt.NDArray[np.int64],
) -> list[pl.Series]:
    """Drop unnamed empty columns, which result from separators at line ends.

    Returns as many columns as names. Raises InputError if rows have more cells than the header.
    """
    while len(cells) > len(names) and cells[-1].null_count() == len(cells[-1]):
        cells = cells[:-1]
    while (
        len(cells) == len(names) > 1
        and not layout.names[len(names) - 1].strip()
        and cells[-1].null_count() == len(cells[-1])
    ):
        cells = cells[:-1]
        names.pop()
    if len(cells) == len(names):
        return cells
    row = int(np.flatnonzero(cells[len(names)].is_not_null().to_numpy())[0])
    found = sum(cell[row] is not None for cell in cells)
    reason = f"line {at[row]} has {found} cells and the header has {len(names)}"
    if layout.separator == ",":
        pair = f"{cells[len(names) - 1][row]},{cells[len(names)][row]}"
        reason += f"; {pair} may be two cells, or one number with a decimal comma"
        raise InputError(f"{file}: {reason}: separate the cells with semicolons, or put the numbers in quotes")
    raise InputError(f"{file}: {reason}: correct the file, or save it as CSV again")


def _without_units(table: Table) -> Table:
    """The table without a row of units below the header."""
    if table.height < 3:
        return table
    first = [column[0] for column in table.cells]
    given = [cell for cell in first if cell is not None]
    valued = [
        index
        for index, column in enumerate(table.cells)
        if looks_like_time(column[1:40].drop_nulls().to_list())
        or (len(rest := column[1:40].drop_nulls()) and sum(map(numbers.is_number, rest)) > len(rest) / 2)
    ]
    if not given or not valued or not _is_text(given) or any(len(cell) > 30 for cell in given):
        return table
    if not any(first[index] is not None for index in valued):
        return table
    if not all(_is_unit(str(first[index])) for index in valued if first[index] is not None):
        return table
    said = ", ".join(given)
    table.notes.append(f"{table.unit} {table.lines[0]}, {said[:80]!r}, was taken for units and left out")
    return table.filter(np.arange(table.height) > 0)
