"""What a trained student says of a series of one's own: a CSV file and a model folder in, sentences out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tsd.errors import InputError
from tsd.language import parse_reply, sentences, student_prompt
from tsd.recipe import nearest

MOST_ROWS = 1_000_000
TOP = 99
MAX_NEW_TOKENS = 128


def explain(file: str, model: str, column: str | None, as_json: bool) -> str:
    """Describe one column of a CSV file as the student was taught to.

    The series is resampled to the student's length and, unless it already lies within 0–99, mapped linearly
    onto that range; the answer says what was done. Raises InputError for what cannot be read.
    """
    card = read_card(model)
    name, raw = read_column(file, column)
    values, changes = fit_to_student(raw, int(card["length"]))
    # The model is loaded last: whatever is wrong with the file is said at once.
    from transformers.utils import logging

    from tsd.decoding import decode
    from tsd.students import load_model, load_tokenizer

    logging.disable_progress_bar()
    prompt = student_prompt(values.tolist())
    text = decode(load_model(model), load_tokenizer(model), [prompt], MAX_NEW_TOKENS)[0]
    parsed = parse_reply(text)
    if as_json:
        answer = {
            "column": name,
            "rows": len(raw),
            "changes": changes,
            "labels": parsed.labels,
            "sentences": sentences(text),
            "not_stated": parsed.reason,
        }
        return json.dumps(answer, indent=1, ensure_ascii=False)
    said = sentences(text) or ["The student gave no answer that can be read."]
    return "\n".join([*said, *(f"({change})" for change in changes)])


def read_card(model: str) -> dict[str, Any]:
    """What a student's folder says of how it was trained. Raises InputError where there is no student."""
    folder = Path(model)
    if not folder.is_dir():
        raise InputError(f"there is no model folder {model}: give one such as runs/laptop/students/NAME")
    if not (folder / "config.json").is_file():
        inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
        hint = f"; it holds the students {', '.join(inner[:3])}" if inner else ""
        raise InputError(f"{model} is not a model folder, it has no config.json{hint}")
    card = folder / "tsd.json"
    if not card.is_file():
        raise InputError(f"{model} was not trained by tsd: it has no tsd.json to say how long its series were")
    try:
        read: dict[str, Any] = json.loads(card.read_text())
        int(read["length"])
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{card} is damaged: train or copy the student again") from None
    return read


def read_column(file: str, column: str | None) -> tuple[str, npt.NDArray[np.float64]]:
    """One numeric column of a CSV file, (rows,) float64. Raises InputError, naming the place and the fix."""
    path = Path(file)
    if not path.is_file():
        raise InputError(f"there is no file {file}")
    try:
        table = pl.read_csv(path, n_rows=MOST_ROWS + 1, infer_schema_length=None)
    except (pl.exceptions.PolarsError, UnicodeDecodeError, OSError) as error:
        raise InputError(f"{file} cannot be read as CSV: {str(error).strip().splitlines()[0]}") from None
    name = _choose(table, file, column)
    if table.height > MOST_ROWS:
        rows = pl.scan_csv(path).select(pl.len()).collect().item()
        raise InputError(
            f"{file} has {rows:,} rows and at most {MOST_ROWS:,} are read: keep every "
            f"{-(-rows // MOST_ROWS)}th row, or the part that matters"
        )
    series = table[name]
    if not series.dtype.is_numeric():
        numbers = series.str.strip_chars().cast(pl.Float64, strict=False)
        bad = int(numbers.is_null().arg_max() or 0)
        raise InputError(f"{file} line {bad + 2}, column {name!r}: {str(series[bad])!r} is not a number")
    values = series.cast(pl.Float64).to_numpy()
    wrong = np.flatnonzero(~np.isfinite(values))
    if len(wrong):
        raise InputError(
            f"{file} line {wrong[0] + 2}, column {name!r}: no finite number there "
            f"({len(wrong):,} such rows): fill or drop them"
        )
    if len(values) < 2:
        raise InputError(f"{file} has {len(values)} rows of data and a series needs at least 2")
    if values.min() == values.max():
        raise InputError(f"{file}, column {name!r} is {values[0]:g} throughout: there is nothing to describe")
    return name, values


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
    if low < 0 or high > TOP:
        values = (values - low) / (high - low) * TOP if high > low else np.full(length, TOP / 2)
        changes.append(f"values from {low:g} to {high:g} were mapped onto 0–{TOP}")
    return np.rint(values).astype(np.int64), changes


def _averaged(raw: npt.NDArray[np.float64], length: int) -> npt.NDArray[np.float64]:
    """Means over `length` stretches of equal width, whose ends may cut a point in parts."""
    sums = np.concatenate([[0.0], np.cumsum(raw - raw.mean())])
    edges = np.linspace(0, len(raw), length + 1)
    means: npt.NDArray[np.float64] = np.diff(np.interp(edges, np.arange(len(raw) + 1), sums)) * length / len(raw)
    return means + raw.mean()


def _choose(table: pl.DataFrame, file: str, column: str | None) -> str:
    if column is not None:
        if column not in table.columns:
            raise InputError(f"{file} has no column {column!r}{nearest(column, table.columns)}")
        return column
    numeric = [name for name in table.columns if table[name].dtype.is_numeric()]
    if len(numeric) == 1 or len(table.columns) == 1:
        return (numeric or table.columns)[0]
    if not numeric:
        raise InputError(f"{file} has no numeric column (its columns: {', '.join(table.columns)})")
    raise InputError(f"{file} has several numeric columns, name one with --column: {', '.join(numeric)}")
