"""A file's text and its table of cells: what was compressed, encoded, separated and headed in whatever way.

No cell is interpreted here: numbers.py and times.py do that.
"""

import csv
import gzip
import re
import shutil
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import numpy.typing as npt
import polars as pl

from tsd.errors import InputError
from tsd.measurements import numbers
from tsd.measurements.times import looks_like_time

MOST_ROWS = 1_000_000
MOST_BYTES = 2**30  # of text; a compressed file's is counted before it is held
CHUNK = 2**24  # bytes
SAMPLE = 200  # lines that separator and header are found from
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}
COMMENTS = ("#", "%", "//", "!")
# What stands for a value that a device could not give; no unit.
FLAWS = numbers.words(
    "bad error err fault fail failed invalid off on true false yes no trace traces nd n.d. bdl lod loq low high"
    " over under overflow underflow ovf saturated inf infinity x xx xxx nodata no_data unknown void"
)
SEP_LINE = re.compile(r"""^["']?sep=(.)["']?$""", re.IGNORECASE)
# What other programs write; none of it is text.
FORMATS = (
    (b"PK\x03\x04", "is a spreadsheet or a zip archive: save the sheet, or unpack the file, as CSV"),
    (b"\xd0\xcf\x11\xe0", "is an Excel workbook: save the sheet as CSV"),
    (b"BZh", "is compressed with bzip2: unpack it first, or compress it with gzip"),
    (b"\xfd7zXZ", "is compressed with xz: unpack it first, or compress it with gzip"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: unpack it first, or compress it with gzip"),
    (b"%PDF", "is a PDF: give a CSV file"),
)


@dataclass(frozen=True)
class Table:
    """A file's cells as they stand there: text, stripped, null where a cell says that it is missing."""

    file: str
    names: list[str]
    cells: list[pl.Series]  # one a column, (rows,) String
    lines: npt.NDArray[np.int64]
    """The line, or the row, that each row has in the file."""
    unit: str = "line"
    separator: str | None = None
    decimal: str | None = None
    """The decimal sign, where the format leaves no choice."""
    notes: list[str] = field(default_factory=list)

    @property
    def height(self) -> int:
        """How many rows there are."""
        return len(self.lines)

    def filter(self, kept: npt.NDArray[np.bool_]) -> "Table":
        """The rows that are kept."""
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
        """Where a row stands, in words."""
        return f"{self.file} {self.unit} {self.lines[row]}"


def read_table(file: str) -> Table:
    """All cells of a CSV file, plain or gzipped, or of a Parquet file. Raises InputError for what is neither."""
    with _at_hand(file) as path, path.open("rb") as source:
        start = source.read(8)
        if start.startswith(b"PAR1"):
            return _parquet(file, path)
        for magic, what in FORMATS:
            if start.startswith(magic):
                raise InputError(f"{file} {what}")
        source.seek(0)
        if start.startswith(b"\x1f\x8b"):
            with gzip.open(source) as unpacked:
                return _text_table(file, cast(BinaryIO, unpacked), ["unpacked with gzip"])
        return _text_table(file, source, [])


@contextmanager
def _at_hand(file: str) -> Iterator[Path]:
    """The file's path on this machine; one behind a URI is copied for as long as the context lasts."""
    if "://" not in file:
        path = Path(file)
        if not path.is_file():
            what = "is a folder and not a CSV file" if path.is_dir() else "is not there"
            raise InputError(f"{file} {what}: give the path of a CSV file")
        yield path
        return
    from tsd.storage.folders import filesystem

    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "file"
        try:
            files, path_there = filesystem(file)
            with files.open_input_stream(path_there, compression=None) as source, local.open("wb") as copy:
                shutil.copyfileobj(source, copy, CHUNK)
        except FileNotFoundError:
            raise InputError(f"{file} is not there: give the path of a CSV file") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{file} cannot be fetched: {str(error).splitlines()[0]}") from None
        yield local


def _parquet(file: str, path: Path) -> Table:
    try:
        lazy = pl.scan_parquet(path)
        schema = lazy.collect_schema()
        rows = int(lazy.select(pl.len()).collect().item())
        _require_rows(file, rows)
        flat = [name for name, kind in schema.items() if not kind.is_nested() and kind != pl.Binary]
        table = lazy.select(flat).collect()
        text = [column.cast(pl.String) for column in table.get_columns()]
    except pl.exceptions.PolarsError as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{file} is a damaged Parquet file, write it again: {reason}") from None
    cells = [numbers.stripped(column) for column in text]
    return Table(file, flat, cells, np.arange(1, rows + 1), "row", decimal=".", notes=["read as Parquet"])


def _text_table(file: str, source: BinaryIO, notes: list[str]) -> Table:
    text = _decoded(file, source, notes)
    start = text[:200].lstrip().lower()
    if start.startswith(("<!doctype", "<html", "<?xml", "{", "[{", "[[")):
        raise InputError(f"{file} is {'JSON' if start[0] in '[{' else 'HTML or XML'} and not CSV: save it as CSV")
    lines = text.replace("\r\r\n", "\n").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return _table(file, _Lines(lines), notes)


def _decoded(file: str, source: BinaryIO, notes: list[str]) -> str:
    """The whole text. Raises InputError, holding little of it, for what is no text or too much."""
    chunks: list[bytes] = []
    count, held = 0, 0
    try:
        while chunk := source.read(CHUNK):
            count += chunk.count(b"\n")
            held += len(chunk)
            # Too much of it is counted to its end, so that the advice is right, but no longer kept.
            if count > 2 * MOST_ROWS or held > MOST_BYTES:
                chunks = chunks[:1]
            chunks.append(chunk)
            if held > 16 * MOST_BYTES:
                break
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file} is damaged, copy it again: {error}") from None
    raw = b"".join(chunks)
    if not raw.strip():
        raise InputError(f"{file} is empty: a header line and at least 2 rows are needed")
    encoding = _encoding(file, raw[:CHUNK])
    _require_rows(file, count - 1)
    if held > MOST_BYTES:
        raise InputError(f"{file} holds {held / 2**30:.1f} GiB of text and at most 1 is read: keep fewer columns")
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError:
        if encoding != "utf-8-sig":
            raise InputError(f"{file} is damaged {encoding} text: save it as CSV in UTF-8") from None
    notes.append("text that is not UTF-8 was read as Windows-1252, as Excel writes it")
    try:
        return raw.decode("cp1252")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _encoding(file: str, start: bytes) -> str:
    """UTF-8 unless the first bytes say otherwise."""
    if start.startswith((b"\xff\xfe\0\0", b"\0\0\xfe\xff")):
        return "utf-32"
    if start.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    if b"\0" in start:
        even, odd = start[0:4096:2], start[1:4096:2]  # plain text in UTF-16 has a zero in every second byte
        for encoding, zeros, others in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
            if zeros.count(0) > 0.9 * len(zeros) and not others.count(0):
                return encoding
        raise InputError(f"{file} is a binary file: give a CSV file, that is text")
    return "utf-8-sig"


def _require_rows(file: str, rows: int) -> None:
    if rows > MOST_ROWS:
        raise InputError(
            f"{file} has {rows:,} rows and at most {MOST_ROWS:,} are read: keep every "
            f"{-(-rows // MOST_ROWS)}th row, or the part that matters"
        )


class _Lines:
    """A file's lines without comments and the blank ones at both ends, each with its number in the file."""

    def __init__(self, lines: list[str]) -> None:
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
        if blank and blank >= len(kept) // 2:  # every second line is blank: a way to end lines, no missing rows
            kept = [number for number in kept if lines[number].strip()]
        self.text = [lines[number] for number in kept]
        self.numbers = np.array(kept, np.int64) + 1


@dataclass(frozen=True)
class _Layout:
    """One way to read the first lines: where the header is and how cells are separated."""

    separator: str | None
    header: int  # how many lines stand before it
    names: list[str]
    rows: list[list[str]]
    score: float
    """Share of the rows that are as long as the header, and of their cells that are numbers, times or missing."""

    @property
    def headed(self) -> bool:
        """Whether the header holds a name: it is no row of numbers and times."""
        return any(_is_word(name) for name in self.names)


def _table(file: str, lines: _Lines, notes: list[str]) -> Table:
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
    """The line that each row begins on, where cells in quotes hold line breaks; said in `notes`.

    Raises InputError where such a cell holds whole rows: its quote was never meant to open.
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


def _layout(file: str, lines: _Lines) -> _Layout:
    """How the file is laid out. Raises InputError where two separators fit equally."""
    sample = lines.text[:SAMPLE]
    if lines.separator is not None:
        return _laid_out(sample, lines.separator) or _single(sample)
    single = _single(sample)
    found = [layout for separator in SEPARATORS if (layout := _laid_out(sample, separator))]
    headed = [layout for layout in found if layout.headed and len(layout.names) > 1]
    if not headed:
        # Numbers with a decimal comma below a name: the comma separates nothing.
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
    rows = csv.reader(lines, delimiter=separator or "\x1f")
    try:
        return [[cell.strip() for cell in row] or [""] for row in rows]
    except csv.Error:
        return [line.split(separator) for line in lines]


def _laid_out(sample: Sequence[str], separator: str) -> _Layout | None:
    """The layout with this separator, None where it separates nothing."""
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
        names = ["", *names]  # the names of rows, as R writes them
    fitting = [row for row in body if len(row) == len(names) or (len(row) == len(names) + 1 and not row[-1])]
    score = len(fitting) / len(body) * _typed(body)
    if any(sign in name for sign in SEPARATORS if sign not in (separator, ",") for name in names):
        score /= 2  # a name that holds another separator is two names
    return _Layout(separator, header, names, body, score)


def _header(rows: Sequence[Sequence[str]], width: int) -> int:
    """The row of names: the last one before the data, after titles of fewer cells."""
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
    """Whether two neighbouring cells of a row may be one number with a decimal comma."""
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
    """Share of the cells that are numbers, times or missing."""
    cells = [cell for row in rows for cell in row]
    typed = sum(not _is_word(cell) and not any(sign in cell for sign in ";|\t") for cell in cells)
    return typed / max(len(cells), 1)


def _is_word(cell: str) -> bool:
    """Whether a cell holds something that is no number, no time and no sign for a missing value."""
    if numbers.is_missing(cell) or cell.lower().lstrip("+-") in ("inf", "infinity"):
        return False
    return not (numbers.is_number(cell) or looks_like_time([cell]))


def _is_unit(cell: str) -> bool:
    """Whether a word may be a unit, and is no value with a flaw such as <0.5 or 12*."""
    return not re.match(r"[<>≤≥~≈±=+-]|\d(?!0?[/^])", cell) and cell.lower() not in FLAWS


def _is_text(row: Sequence[str]) -> bool:
    """Whether a row holds words and nothing that is a value."""
    return any(map(_is_word, row)) and all(_is_word(cell) for cell in row if cell)


def _commented_header(lines: _Lines, found: Sequence[_Layout]) -> _Layout | None:
    """The layout of a file whose names stand in its last comment, as numpy and gnuplot write them."""
    for layout in sorted(found, key=lambda one: -one.score):
        if layout.separator is None or not lines.comments:
            continue
        names = _split([lines.comments[-1].lstrip("#%!/ ")], layout.separator)[0]
        if len(names) == len(layout.names) and _is_text(names):
            return _Layout(layout.separator, -1, names, layout.rows, layout.score)
    return None


def _require_one_number(file: str, sample: Sequence[str], lines: _Lines) -> None:
    """Raise InputError where the comma in a column of numbers may separate a count of the rows from them."""
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
    """Raise InputError where spaces separate as many cells in each row as there are names."""
    words = len(single.names[0].split())
    if words > 1 and single.rows and all(len(row[0].split()) == words for row in single.rows):
        raise InputError(f"{file} has columns separated by spaces: separate them with commas, semicolons or tabs")


def _cells(file: str, body: list[str], separator: str | None, width: int) -> list[pl.Series]:
    """The columns below the header, as many as the widest row has, null where a row is shorter."""
    blank = (separator or "") * (width - 1) or '""'
    body = [line if line.strip() else blank for line in body]
    if separator is None:
        return [pl.Series(row[0] for row in _split([f"{line}\n" for line in body], None))]
    try:
        widest = max(map(len, csv.reader(body, delimiter=separator)))
    except csv.Error as error:
        raise InputError(f"{file} cannot be read as CSV ({error}): save it as CSV again") from None
    columns = {str(i): pl.String for i in range(max(widest, width))}
    if body[0].count('"') % 2 == 0:  # polars counts the first row's
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
    """Columns and names, both as many: separators at the ends of lines leave columns without any name or cell.

    Raises InputError where rows have more cells than the header.
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
    """The table without the row of units that may stand below the names."""
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
