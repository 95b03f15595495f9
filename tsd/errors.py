"""Exceptions of tsd.

    TsdError
    ├── UserError            invalid input: exit code 2, one line, no traceback
    │   ├── RecipeError      a recipe or an override
    │   ├── InputError       an input file, a model folder
    │   └── StorageError     a folder that cannot be written, a full disk, a dataset of another recipe
    ├── DataError            a table that violates its schema or manifest: a bug or a damaged file
    ├── ClusterError         Ray does not start
    ├── TeacherError         a teacher that stops responding (its engine does not start, or died)
    └── TrainingError        a run that cannot continue (the loss is NaN, a trial failed)

A row's failure never raises: it is a `status` and a `reason` in its table.
"""

import shlex
from pathlib import Path

EXTRAS = {"vllm": "vllm==0.29.0"}  # requirement that each extra of pyproject.toml installs


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


class StorageError(UserError):
    """A dataset folder cannot be written, or holds other content than expected."""


class DataError(TsdError):
    """A table violates its schema, or a dataset does not match its manifest."""


class ClusterError(TsdError):
    """Ray does not start."""


class TeacherError(TsdError):
    """A teacher does not respond any more."""


class TrainingError(TsdError):
    """A training run cannot continue."""
