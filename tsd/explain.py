"""What a trained student says of a series of one's own: a CSV file and a model folder in, sentences out."""

import contextlib
import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tsd.bare import draw
from tsd.errors import InputError
from tsd.recipe import nearest
from tsd.series.truth import TOP
from tsd.tasks import TASKS, Task

MOST_ROWS = 1_000_000
MAX_NEW_TOKENS = 128
LARGEST = 1e300  # sums of a million such values still fit a float64
CHUNK = 2**24  # bytes
NO_ANSWER = "The student gave no answer that can be read: it may need more training."


def explain(file: str, model: str, column: str | None, as_json: bool) -> str:
    """Describe one column of a CSV file as the student was taught to.

    The series is resampled to the student's length and mapped linearly onto 0–99, its minimum to 0 and its maximum
    to 99; the answer says what was done. Raises InputError for what cannot be read.
    """
    card = read_card(model)
    task = TASKS[card["task"]]
    if task.curves > 1:
        raise InputError(f"{model} was trained to read {task.curves} series at once: give a student of one series")
    name, raw = read_column(file, column)
    values, changes = fit_to_student(raw, fitting_length(card["length"], len(raw)))
    # The model is loaded last: whatever is wrong with the file is said at once.
    text = _ask(model, task, values)
    parsed = task.parse(text)
    said = task.sentences(text) if any(parsed.labels.values()) else []
    if as_json:
        answer = {
            "column": name,
            "rows": len(raw),
            "changes": changes,
            "labels": parsed.labels,
            "sentences": said,
            "not_stated": parsed.reason,
        }
        return json.dumps(answer, indent=1, ensure_ascii=False)
    notes = [f"column {name!r}, {len(raw):,} rows", *changes]
    return "\n".join([*(said or [NO_ANSWER]), *(f"({note})" for note in notes)])


def read_card(model: str) -> dict[str, Any]:
    """What a student's folder says of how it was trained. Raises InputError where there is no student."""
    folder = Path(model)
    if not folder.is_dir():
        what = "is a file and not a model folder" if folder.exists() else "is not there"
        raise InputError(f"{model} {what}: give a student's folder, such as runs/laptop/students/NAME")
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
        hint = f": name one of the {len(inner)} in it, such as {folder / inner[0]}" if inner else ""
        raise InputError(f"{model} is not a model folder, it has no config.json{hint}")
    card = folder / "tsd.json"
    if not card.is_file():
        raise InputError(
            f"{model} was not trained by tsd, it has no tsd.json to say how long its series were: "
            "give a student's folder, such as runs/laptop/students/NAME"
        )
    try:
        read: dict[str, Any] = json.loads(card.read_text())
        read["length"] = [int(length) for length in np.atleast_1d(read["length"])]
        if not read["length"] or min(read["length"]) < 2 or read["task"] not in TASKS:
            raise ValueError
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{card} is damaged: train or copy the student again") from None
    return read


def read_column(file: str, column: str | None) -> tuple[str, npt.NDArray[np.float64]]:
    """One numeric column of a CSV file, (rows,) float64. Raises InputError, naming the place and the fix."""
    path = Path(file)
    if not path.is_file():
        what = "is a folder and not a CSV file" if path.is_dir() else "is not there"
        raise InputError(f"{file} {what}: give the path of a CSV file")
    _require_readable(path)
    try:
        table = pl.read_csv(path, infer_schema_length=None)
    except (pl.exceptions.PolarsError, UnicodeDecodeError, OSError) as error:
        reason = _ragged_line(path) or f"it cannot be read as CSV ({str(error).strip().splitlines()[0]})"
        raise InputError(f"{file}: {reason}: mend the file, or save it as CSV again") from None
    if table.height < 2:
        rows = "one row" if table.height else "no row"
        raise InputError(f"{file} has {rows} of data below its header: a series needs at least 2")
    name = _choose(table, file, column)
    values = _numbers(table[name]).to_numpy()
    wrong = np.flatnonzero(~(np.abs(values) < LARGEST))
    if len(wrong):
        cell = table[name][int(wrong[0])]
        given = "the cell is empty" if not str(cell or "").strip() else f"{str(cell)!r} is not a finite number"
        more = f" (and {len(wrong) - 1:,} more such rows)" if len(wrong) > 1 else ""
        raise InputError(f"{file} line {wrong[0] + 2}, column {name!r}: {given}{more}: fill or drop the row")
    if values.min() == values.max():
        raise InputError(
            f"{file}, column {name!r} is {values[0]:g} throughout: there is nothing to describe, "
            "give one that varies"
        )
    return name, values


def fitting_length(lengths: Sequence[int], points: int) -> int:
    """Of the lengths that a student reads, the longest that needs no point made up, else the shortest."""
    return max((length for length in lengths if length <= points), default=min(lengths))


def fit_to_student(raw: npt.NDArray[np.float64], length: int) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Resample and rescale a series to what the student was trained on: (length,) integers 0–99.

    Returns the integers and a sentence for each thing that was done. A longer series is averaged over equal
    stretches of time, a shorter one interpolated linearly.
    """
    changes = []
    values = raw
    if len(raw) > length:
        values = _averaged(raw, length)
        changes.append(f"{len(raw):,} points were averaged down to the {length} that the student reads")
    elif len(raw) < length:
        values = np.interp(np.linspace(0, len(raw) - 1, length), np.arange(len(raw)), raw)
        changes.append(f"{len(raw):,} points were interpolated to the {length} that the student reads")
    low, high = values.min(), values.max()
    if (low, high) != (0, TOP):
        values = (values - low) / (high - low) * TOP if high > low else np.full(length, TOP / 2)
        changes.append(f"values from {low:g} to {high:g} were mapped onto 0–{TOP}, the student's range")
    return np.rint(values).astype(np.int64), changes


def _averaged(raw: npt.NDArray[np.float64], length: int) -> npt.NDArray[np.float64]:
    """Means over `length` stretches of equal width, whose ends may cut a point in parts."""
    sums = np.concatenate([[0.0], np.cumsum(raw - raw.mean())])
    edges = np.linspace(0, len(raw), length + 1)
    means = np.diff(np.interp(edges, np.arange(len(raw) + 1), sums)) * length / len(raw) + raw.mean()
    # A rounding error must not leave the series' range: it would be taken for a value outside 0–99.
    inside: npt.NDArray[np.float64] = np.clip(means, raw.min(), raw.max())
    return inside


def _ask(model: str, task: Task, values: npt.NDArray[np.int64]) -> str:
    """The student's reply to a series, or to its plot where it looks.

    Raises InputError where the folder's files do not make a whole model.
    """
    from transformers.utils import logging

    from tsd.decoding import decode, describe
    from tsd.sight import looks
    from tsd.students import load_model, load_tokenizer

    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)  # its reports of what does not fit run over pages
    try:
        tokenizer = load_tokenizer(model)
        student, info = load_model(model, output_loading_info=True)
        missing = sorted(info["missing_keys"])
        if missing:
            raise InputError(f"its weights lack {missing[0]}")
        if looks(student):
            ink = draw([[values.astype(np.uint8)]])
            return describe(student, tokenizer, task, ink, MAX_NEW_TOKENS)[0]
        return decode(student, tokenizer, [task.student_prompt(values.tolist())], MAX_NEW_TOKENS)[0]
    except Exception as error:  # whatever its file formats, layers and tokenizer make of a damaged file
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise InputError(f"the model folder {model} is damaged, copy or train it again: {reason}") from error


def _require_readable(path: Path) -> None:
    """Raise InputError for what is not UTF-8 text or has too many rows, in one pass that holds little of it."""
    lines = 0
    with path.open("rb") as source:
        start = source.read(CHUNK)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise InputError(f"{path} is UTF-16 text: save it as CSV in UTF-8")
        if b"\0" in start:
            raise InputError(f"{path} is a binary file: give a CSV file, that is text")
        if not start.strip():
            raise InputError(f"{path} is empty: a header line and at least 2 rows are needed")
        while start:
            lines += start.count(b"\n")
            start = source.read(CHUNK)
    if lines > MOST_ROWS + 1:
        raise InputError(
            f"{path} has {lines - 1:,} rows and at most {MOST_ROWS:,} are read: keep every "
            f"{-(-(lines - 1) // MOST_ROWS)}th row, or the part that matters"
        )


def _ragged_line(path: Path) -> str | None:
    """The first line with more cells than the header, in words; None where there is none."""
    with path.open(newline="", encoding="utf-8", errors="replace") as source:
        rows = csv.reader(source)
        columns = len(next(rows))
        for row in rows:
            if len(row) > columns:
                return f"line {rows.line_num} has {len(row)} cells and the header has {columns}"
    return None


def _numbers(series: pl.Series) -> pl.Series:
    """A column's values as Float64, NaN where a cell is not a number."""
    if series.dtype == pl.Boolean:
        return pl.Series(series.name, np.full(len(series), np.nan))
    if series.dtype == pl.String:
        series = series.str.strip_chars()
    return series.cast(pl.Float64, strict=False).fill_null(float("nan"))


def _choose(table: pl.DataFrame, file: str, column: str | None) -> str:
    if column is not None:
        if column not in table.columns:
            raise InputError(f"{file} has no column {column!r}{nearest(column, table.columns)}")
        return column
    # A column of numbers with a slip in it still counts: it is named rather than passed over for another.
    numeric = [name for name in table.columns if _numbers(table[name]).is_not_nan().sum() > table.height / 2]
    if not numeric and len(table.columns) > 1:
        raise InputError(f"{file} has no numeric column (its columns: {', '.join(table.columns)})")
    if len(numeric) > 1:
        raise InputError(f"{file} has several numeric columns, name one with --column: {', '.join(numeric)}")
    name = (numeric or table.columns)[0]
    with contextlib.suppress(ValueError):
        float(name)
        raise InputError(
            f"{file} line 1 is {name!r}, a number where a column's name is expected: "
            f"add a header line, or say --column {name} if that is its name"
        )
    return name
