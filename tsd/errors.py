"""Every error that tsd raises on purpose.

    TsdError
    ├── UserError            something that was given is wrong: exit code 2, one line, no traceback
    │   ├── RecipeError      a recipe or an override
    │   ├── InputError       a file to explain, a model folder
    │   └── StorageError     a folder that cannot be written, a full disk, a dataset of another recipe
    ├── DataError            a table that breaks its schema or its manifest: a bug or a damaged file
    ├── ClusterError         Ray does not start
    ├── TeacherError         a teacher that gives no more replies (its engine does not start, or died)
    └── TrainingError        a run that cannot go on (the loss is not a number, a trial failed)

A row's failure is never an error: it is a `status` and a `reason` in its table.
"""

import shlex
from pathlib import Path

EXTRAS = {"vllm": "vllm==0.29.0"}  # what each extra of pyproject.toml installs


def how_to_install(extra: str) -> str:
    """The command that installs an extra: from the checkout in which tsd lies, else the package itself.

    Never by a name of ours in an index: whoever holds it there could be a stranger.
    """
    checkout = Path(__file__).resolve().parents[1]
    if (checkout / "pyproject.toml").is_file():
        return f"pip install -e {shlex.quote(f'{checkout}[{extra}]')}"
    return f"pip install {EXTRAS[extra]}"


class TsdError(Exception):
    """The root: `except TsdError` catches what tsd raises on purpose and nothing else."""


class UserError(TsdError):
    """What was given is wrong; the message names the thing, the place and the fix."""


class RecipeError(UserError):
    """A recipe, a field of it or an override is wrong."""


class InputError(UserError):
    """A file or a model folder that was handed in cannot be used."""


class StorageError(UserError):
    """A dataset folder cannot be written, or holds something else than was asked for."""


class DataError(TsdError):
    """A table does not have its schema, or a dataset does not match its manifest."""


class ClusterError(TsdError):
    """Ray does not start."""


class TeacherError(TsdError):
    """A teacher gives no more replies."""


class TrainingError(TsdError):
    """A training run cannot go on."""
