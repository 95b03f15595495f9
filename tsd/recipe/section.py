"""The base class of recipe sections, and common field types."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_core.core_schema import ErrorType

from tsd.errors import plugin_error

Share = Annotated[float, Field(ge=0, le=1)]
Shares = tuple[Share, Share, Share]
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
EVERY: Final = "every"  # key of mappings by facet, for the facets that they do not name


def nearest(name: str, valid: Sequence[str]) -> str:
    """ ", did you mean X?" for the closest valid name, else a list of the valid names."""
    close = difflib.get_close_matches(name, valid, n=1)
    return f", did you mean {close[0]!r}?" if close else f" (valid: {', '.join(valid)})"


def _no_password(uri: str) -> str:
    if "@" in urlsplit(uri).netloc:
        raise ValueError("must not hold a user or password, since recipes are stored: use environment variables")
    return uri


# Recipes are written to run folders, MLflow and reports, so their URIs must not hold secrets.
Uri = Annotated[str, AfterValidator(_no_password)]


@dataclass(frozen=True)
class Shapes:
    """Annotation of a field: the stage whose tables depend on it.

    Subsections inherit it unless annotated themselves. None: no table depends on it, as for fields about machines,
    speed and price.
    """

    stage: str | None


MACHINE = Shapes(None)


class Section(BaseModel):
    """A frozen section of a recipe. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # pydantic's own hash fails for sections with mappings

    @classmethod
    def shaped_by(cls, field: str) -> Shapes | None:
        """The annotation of a field, None if there is none."""
        return next((mark for mark in cls.model_fields[field].metadata if isinstance(mark, Shapes)), None)

    @classmethod
    def shaping(cls) -> set[str]:
        """The fields on which tables depend."""
        return {field for field in cls.model_fields if cls.shaped_by(field) != MACHINE}

    def shaped(self, stage: str | None = None, above: str = "") -> Iterator[tuple[str, Any, str]]:
        """Each value on which tables depend, with its path and stage.

        stage: of fields without an annotation. A section with an `identity` is represented by that alone.
        """
        identity = getattr(self, "current_identity", getattr(self, "identity", None))
        if identity is not None and stage is not None:
            yield from ((f"{above}{name}", value, stage) for name, value in identity.items())
            return
        for field in type(self).model_fields:
            mark, value = self.shaped_by(field), getattr(self, field)
            its = stage if mark is None else mark.stage
            if mark == MACHINE or its is None:
                continue
            if isinstance(value, Section):
                yield from value.shaped(its, f"{above}{field}.")
            else:
                yield f"{above}{field}", value, its


S = TypeVar("S", bound=Section)


def validated(section: type[S], value: Any, place: str) -> S:
    """Validate a section that a plugin defines.

    Raises ValidationError, with `place` before each location, and ValueError if a validator of the plugin fails.
    """
    try:
        return section.model_validate({} if value is None else value)
    except ValidationError as error:
        known = get_args(ErrorType)  # a validator may also raise an error of its own type
        found = [
            InitErrorDetails(
                type=each["type"] if each["type"] in known else PydanticCustomError("value_error", each["msg"]),
                loc=(place, *each["loc"]),
                input=each["input"],
                ctx=each.get("ctx", {}),
            )
            for each in error.errors()
        ]
        raise ValidationError.from_exception_data(section.__name__, found) from None
    except Exception as error:  # whatever code from outside raises
        failure = plugin_error(f"the settings of {place}", section, error)
        raise ValueError(str(failure)) from failure


Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
Size = Annotated[float, Field(ge=0)]
