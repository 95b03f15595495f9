"""Exceptions of tsd.

    TsdError
    ├── UserError            invalid input: exit code 2, one line, no traceback
    │   ├── RecipeError      a recipe or an override
    │   ├── InputError       an input file, a model folder
    │   │   └── PluginError  code from outside: it raised an exception, or returned something wrong
    │   └── StorageError     a folder that cannot be written, a full disk, a dataset of another recipe
    ├── DataError            a table that violates its schema or manifest: a bug or a damaged file
    ├── ClusterError         Ray does not start, or its worker processes die again and again
    ├── TeacherError         a teacher that stops responding (its engine does not start, or died)
    └── TrainingError        a run that cannot continue (the loss is NaN, a trial failed)

A row's failure never raises: it is a `status` and a `reason` in its table.
"""

import os
import shlex
import sys
import traceback
from pathlib import Path

EXTRAS = {"vllm": "vllm==0.29.0"}  # requirement that each extra of pyproject.toml installs
TRACEBACK = "TSD_TRACEBACK"  # environment variable; if it is set, the tracebacks of plugins are printed
HOW = f"{TRACEBACK}=1 prints the traceback"


def how_to_install(extra: str) -> str:
    """Return the command that installs an extra: from tsd's checkout if there is one, else the package itself.

    It never names tsd in a package index, where someone else could own that name.
    """
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "pyproject.toml").is_file():
        return f"pip install -e {shlex.quote(f'{checkout}[{extra}]')}"
    return f"pip install {EXTRAS[extra]}"


class TsdError(Exception):
    """Base class: `except TsdError` catches all errors that tsd raises deliberately, and no others."""


class UserError(TsdError):
    """Invalid input. The message names what, where and the fix."""


class RecipeError(UserError):
    """A recipe, one of its fields or an override is invalid."""


class InputError(UserError):
    """An input file or a model folder cannot be used."""


class PluginError(InputError):
    """The code of a plugin, or of a task outside tsd, raised an exception or returned something wrong.

    trace: the traceback of the exception; "" if there was none.
    """

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message, trace)  # both, so that the error can be pickled
        self.trace = trace

    def __str__(self) -> str:
        return str(self.args[0])


class StorageError(UserError):
    """A dataset folder cannot be written, or holds other content than expected."""


class DataError(TsdError):
    """A table violates its schema, or a dataset does not match its manifest."""


class ClusterError(TsdError):
    """Ray does not start, or its worker processes die again and again."""


class TeacherError(TsdError):
    """A teacher does not respond any more."""


class TrainingError(TsdError):
    """A training run cannot continue."""


def plugin_error(what: str, code: object, error: BaseException) -> PluginError:
    """Describe an exception of code from outside in one line: what failed, where, and what was raised.

    what: such as "the policy brief". code: the function or class that was called. An error that already names the
    code at fault keeps its text.
    """
    if isinstance(error, PluginError):
        return PluginError(str(error), error.trace or trace(error))
    return PluginError(f"{what} failed in {place(error, source(code))}: {raised(error)}; {HOW}", trace(error))


def raised(error: BaseException) -> str:
    """The type of an exception and the first line of its text."""
    said = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def trace(error: BaseException) -> str:
    """The traceback of an exception as Python prints it."""
    return "".join(traceback.format_exception(error))


def show_trace(error: BaseException | None) -> None:
    """Print the traceback of a plugin's exception that led to an error, if the environment asks for it."""
    while os.environ.get(TRACEBACK) and error is not None:
        if isinstance(error, PluginError) and error.trace:
            print(error.trace, file=sys.stderr)
            return
        error = error.__cause__ or error.__context__


def source(code: object) -> str:
    """The file of a function or class, or the name of its module if it has no file."""
    name = str(getattr(code, "__module__", ""))
    return str(getattr(sys.modules.get(name), "__file__", None) or name)


def place(error: BaseException, file: str) -> str:
    """The innermost line of a file in an exception's traceback: "FILE line 3, in FUNCTION".

    If the traceback has none, the innermost line that is neither tsd's nor the import system's; else the file.
    """
    ours = str(Path(__file__).parent)
    frames = [(frame.f_code, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    inside = [one for one in frames if one[0].co_filename == file]
    outside = [one for one in frames if not one[0].co_filename.startswith((ours, "<frozen"))]
    if not (chosen := inside or outside):
        return file
    code, line = chosen[-1]
    return f"{code.co_filename} line {line}, in {code.co_name}"
