"""The metadata of a student's folder (`tsd.json`): what `tsd explain` needs of it, checked field by field."""

import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from tsd.errors import InputError
from tsd.recipe.series import LONGEST
from tsd.tasks import DEFAULT, TASKS, Definitions, PlaceNames, Truth, truths_of

FILE = "tsd.json"
GIVE = "give a student's folder, such as runs/laptop/students/NAME"
AGAIN = "train or copy the student again"
MOST_SHOWN = 40  # characters of a wrong value in a message


class About(BaseModel):
    """Where a student comes from, as far as it says by which definitions its labels are."""

    model_config = ConfigDict(strict=True)

    truth: Truth = DEFAULT.truth
    places: PlaceNames = DEFAULT.places


class Metadata(BaseModel):
    """What a student reads and says. Other entries are left out."""

    model_config = ConfigDict(strict=True)

    length: Annotated[
        list[Annotated[int, Field(ge=2, le=LONGEST)]],
        BeforeValidator(lambda value: value if isinstance(value, list) else [value]),
        Field(min_length=1),
    ]
    """Points of its series; several if it was trained on several lengths."""
    task: str
    """The name of its task, see `tsd.tasks.named`."""
    about: About = About()

    @model_validator(mode="after")
    def _known_task(self) -> Self:
        """Raise ValueError if there is no such task, or if it has no labels by this truth."""
        if ":" in self.task:
            return self
        if self.task not in TASKS:
            raise ValueError(f"task is {self.task!r}: name one of {', '.join(TASKS)}, or module:TASK")
        if self.about.truth not in truths_of(self.task):
            raise ValueError(f"about.truth is {self.about.truth!r}: the task {self.task} has no such truth")
        return self

    @property
    def defined(self) -> Definitions:
        """The definitions of its labels."""
        return Definitions(self.about.truth, self.about.places)


def read_metadata(path: str, model: str | None = None) -> Metadata:
    """The metadata of a student's folder. Raises InputError, of one line, if the folder holds no student.

    model: the user's name for the folder, if `path` is a copy.
    """
    model = model or path
    if not model:
        raise InputError(f"--model is empty: {GIVE}")
    folder = Path(path)
    if not folder.is_dir():
        what = "is a file and not a model folder" if folder.exists() else "does not exist"
        raise InputError(f"{model} {what}: {GIVE}")
    if not any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        inner = sorted(path.parent.name for path in folder.glob("*/config.json"))
        hint = f": name one of the {len(inner)} in it, such as {model.rstrip('/')}/{inner[0]}" if inner else ""
        raise InputError(f"{model} is not a model folder, it has no config.json{hint}")
    file = folder / FILE
    if not file.is_file():
        raise InputError(
            f"{model} was not trained by tsd, since it has no {FILE} with the length of its series: {GIVE}"
        )
    try:
        return Metadata.model_validate(json.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        wrong = _complaint(error.errors()[0])
    except (ValueError, RecursionError):
        wrong = "it is not JSON"
    except OSError as error:
        raise InputError(f"{model}/{FILE} cannot be read: {error.strerror}") from None
    raise InputError(f"{model}/{FILE} is damaged, {AGAIN}: {wrong}")


def _complaint(problem: ErrorDetails) -> str:
    """A validation error as half a line: the field, its value, and what is allowed."""
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"{place} is missing"
    said = problem["msg"].removeprefix("Value error, ")
    if not place and problem["type"] == "value_error":
        return said  # it names the field itself
    expected = "an object is expected" if problem["type"] == "model_type" else f"{said[0].lower()}{said[1:]}"
    return f"{place or 'its content'} is {_shown(problem['input'])}: {expected}"


def _shown(value: Any) -> str:
    """A value as JSON, cut if it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
