"""Describe a user's own series with a trained student: a data file and a model folder in, sentences out.

`tsd.measurements` reads the file.
"""

import contextlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from tsd import measurements
from tsd.errors import InputError
from tsd.inference.metadata import GIVE, read_metadata
from tsd.plots.rasterised import draw
from tsd.series.truth import TOP
from tsd.storage import folders
from tsd.tasks import Task, named, trust

MAX_NEW_TOKENS = 128  # more for tasks whose replies are longer
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?")
NO_ANSWER = "The student's reply cannot be parsed: it may need more training."


def explain(
    file: str,
    model: str,
    column: str | None,
    as_json: bool,
    hints: measurements.Hints | None = None,
    trusted: bool = False,
) -> tuple[str, bool]:
    """Describe one column of a data file. model: a student's folder, or the URI of one.

    The series is sorted by time, resampled to the student's length and min-max scaled to 0–99. The text lists
    these changes. as_json: return a JSON object rather than text. trusted: run the module
    that the student's folder names for its task.
    Returns the answer, and whether the response contained any label. Raises InputError for a file or folder that
    cannot be read, or a file that is ambiguous.
    """
    with _at_hand(model) as folder:
        card = read_metadata(folder, model)
        module = card.task.rpartition(":")[0]
        if module and not trusted:
            trust.require([module], folder, model)
        task = named(card.task, folder, card.defined)
        if task.curves > 1:
            raise InputError(
                f"{model} was trained to read {task.curves} series at once: give a student of one series"
            )
        measured = measurements.read(file, column, hints)
        length = fitting_length(card.length, min(measured.rows, len(measured.values)))
        values, resized = fit_to_student(measured.values, length)
        # The model is loaded last, so that errors in the file are reported at once.
        text = _ask(folder, model, task, values)
    parsed = task.parse(text)
    said = task.sentences(text) if any(parsed.labels.values()) else []
    numbers = {name: number for name, number in task.numbers_in(text).items() if number is not None}
    changes = [*measured.changes, *resized, *units_of(said, numbers, task, length)]
    if as_json:
        answer = {
            "column": measured.name,
            "rows": measured.rows,
            "time": measured.time,
            "changes": changes,
            "labels": parsed.labels,
            "numbers": numbers,
            "sentences": said,
            "not_stated": parsed.reason,
        }
        return json.dumps(answer, indent=1, ensure_ascii=False), bool(said)
    order = "" if measured.time else " in file order, there is no column of times"
    notes = [f"column {measured.name!r}, {measured.rows:,} rows{order}", *changes]
    return "\n".join([*(said or [NO_ANSWER]), *(f"({note})" for note in notes)]), bool(said)


def units_of(said: Sequence[str], numbers: Mapping[str, float], task: Task, length: int) -> list[str]:
    """A sentence on the units of the numbers in a description, which are not those of the file; none without any.

    said: its sentences. numbers: those that were read, by name. length: points that the student was given.
    """
    units = {number.name: number.unit for facet in task.facets for number in facet.numbers}
    points = [number for name, number in numbers.items() if units[name] == "point"]
    cycles = [number for name, number in numbers.items() if units[name] == "cycles"]
    text = re.sub(rf"(?<=\d) (?:out )?of {length}\b", "", " ".join(said))  # "point 88 of 128"
    # What is not known to be a point or cycles counts as a value, also where no reader looks for it.
    values = Counter(map(float, NUMBER.findall(text))) - Counter(points + cycles)
    if not values:
        return [f"points in the description are those of {length}"] if points else []
    return [f"numbers in the description are on 0–{TOP}{f', and points are those of {length}' if points else ''}"]


@contextlib.contextmanager
def _at_hand(model: str) -> Iterator[str]:
    """The path of a model folder. One behind a URI is downloaded for the duration of the context."""
    if "://" not in model:
        yield model
        return
    with contextlib.ExitStack() as held:
        try:
            folder = held.enter_context(folders.local_copy(model.rstrip("/")))
        except FileNotFoundError:
            raise InputError(f"{model} does not exist: {GIVE}") from None
        except (OSError, ValueError) as error:  # wrong credentials, no network, unknown storage scheme
            raise InputError(f"{model} cannot be fetched: {str(error).splitlines()[0]}") from None
        yield folder


def fitting_length(lengths: Sequence[int], points: int) -> int:
    """The longest of the student's lengths that needs no interpolation for this many points, else the shortest."""
    return max((length for length in lengths if length <= points), default=min(lengths))


def fit_to_student(raw: npt.NDArray[np.float64], length: int) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Resample and rescale a series to the student's input: (length,) integers 0–99.

    A longer series is averaged over equal intervals, a shorter one is interpolated linearly. Values are then
    min-max scaled to 0–99. Returns the integers and one sentence for each change.
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
    """Means over `length` intervals of equal width. A point on a boundary counts in part on either side."""
    sums = np.concatenate([[0.0], np.cumsum(raw - raw.mean())])
    edges = np.linspace(0, len(raw), length + 1)
    means = np.diff(np.interp(edges, np.arange(len(raw) + 1), sums)) * length / len(raw) + raw.mean()
    # Rounding errors must not exceed the range: values outside 0–99 would result.
    inside: npt.NDArray[np.float64] = np.clip(means, raw.min(), raw.max())
    return inside


def _ask(folder: str, model: str, task: Task, values: npt.NDArray[np.int64]) -> str:
    """The student's response to a series, given as text or, for a vision student, as a plot.

    Raises InputError if the folder's files do not form a complete model.
    """
    from transformers.utils import logging

    from tsd.inference.decoding import decode, describe
    from tsd.models.students import load_model
    from tsd.models.tokenizer import load_tokenizer
    from tsd.models.vision import is_vision_model

    most = max(MAX_NEW_TOKENS, task.reply_tokens)
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)  # its loading reports span pages
    try:
        tokenizer = load_tokenizer(folder)
        student, info = load_model(folder, output_loading_info=True)
        missing = sorted(info["missing_keys"])
        if missing:
            raise InputError(f"its weights lack {missing[0]}")
        if is_vision_model(student):
            ink = draw([[values.astype(np.uint8)]])
            return describe(student, tokenizer, task, ink, most)[0]
        return decode(student, tokenizer, [task.student_prompt(values.tolist())], most)[0]
    except Exception as error:  # file formats, layers and tokenizers raise any exception for a damaged file
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise InputError(f"the model folder {model} is damaged, copy or train it again: {reason}") from error
