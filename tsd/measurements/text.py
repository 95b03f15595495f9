"""Parse a file into a table of text cells: compression, encoding, separators, header.

Cells are interpreted by `numbers` and `times`.
"""

import gzip
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import polars as pl

from tsd.errors import InputError
from tsd.measurements import numbers
from tsd.measurements.table import Lines, Table, parse_table

MOST_ROWS = 1_000_000
MOST_BYTES = 2**30  # maximum size of the text, checked while decompressing
CHUNK = 2**24  # bytes
# Binary formats and what to do about them.
FORMATS = (
    (b"PK\x03\x04", "is a spreadsheet or a zip archive: save the sheet, or unpack the file, as CSV"),
    (b"\xd0\xcf\x11\xe0", "is an Excel workbook: save the sheet as CSV"),
    (b"BZh", "is compressed with bzip2: unpack it first, or compress it with gzip"),
    (b"\xfd7zXZ", "is compressed with xz: unpack it first, or compress it with gzip"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: unpack it first, or compress it with gzip"),
    (b"%PDF", "is a PDF: give a CSV file"),
)


def read_table(file: str) -> Table:
    """All cells of a CSV file, plain or gzipped, or of a Parquet file. Raises InputError for other files."""
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
    """The path of a file. One behind a URI is downloaded for the duration of the context."""
    if "://" not in file:
        path = Path(file)
        if not file:
            raise InputError("the name of the file is empty: give the path of a CSV file")
        if not path.is_file():
            what = "is a folder and not a CSV file" if path.is_dir() else "does not exist"
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
            raise InputError(f"{file} does not exist: give the path of a CSV file") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{file} cannot be fetched: {str(error).splitlines()[0]}") from None
        yield local


def _parquet(file: str, path: Path) -> Table:
    """The cells of a Parquet file. Raises InputError if it cannot be read."""
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
    """The cells of a text file."""
    text = _decoded(file, source, notes)
    start = text[:200].lstrip().lower()
    is_list = re.match(r'\[\s*(-?\d|"|null)', start) and text.rstrip().endswith("]")  # of plain values
    if is_list or start.startswith(("<!doctype", "<html", "<?xml", "{", "[{", "[[")):
        raise InputError(f"{file} is {'JSON' if start[0] in '[{' else 'HTML or XML'} and not CSV: save it as CSV")
    lines = text.replace("\r\r\n", "\n").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return parse_table(file, Lines(lines), notes)


def _decoded(file: str, source: BinaryIO, notes: list[str]) -> str:
    """The decoded text. Raises InputError for binary or damaged files and for too much text."""
    chunks: list[bytes] = []
    count, held = 0, 0
    try:
        while chunk := source.read(CHUNK):
            count += chunk.count(b"\n")
            held += len(chunk)
            # Files that are too large are read to the end for their row count, but not kept in memory.
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
    """The encoding: UTF-8 unless the first bytes indicate another. Raises InputError for binary files."""
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
    """Raise InputError for too many rows."""
    if rows > MOST_ROWS:
        raise InputError(
            f"{file} has {rows:,} rows and at most {MOST_ROWS:,} are read: keep every "
            f"{-(-rows // MOST_ROWS)}th row, or the part that matters"
        )
