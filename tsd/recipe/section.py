"""What the sections of a recipe are made of."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, le=1)]
Shares = tuple[Share, Share, Share]
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
EVERY: Final = "every"  # in a mapping by facet, the facets that it does not name


def nearest(name: str, valid: Sequence[str]) -> str:
    """ ", did you mean X?" where a valid name is close, else the valid names."""
    close = difflib.get_close_matches(name, valid, n=1)
    return f", did you mean {close[0]!r}?" if close else f" (valid: {', '.join(valid)})"


def _no_password(uri: str) -> str:
    if "@" in urlsplit(uri).netloc:
        raise ValueError("must not hold a user or a password: recipes are kept and shown; use the environment")
    return uri


# Recipes are written into run folders, MLflow and reports, so no address in one may hold a secret.
Uri = Annotated[str, AfterValidator(_no_password)]


@dataclass(frozen=True)
class Shapes:
    """Beside a field's type: the stage whose tables the field shapes; what it holds goes for all below it that say
    nothing else. None: no table's bytes depend on it, only where, how fast and at what price they are made."""

    stage: str | None


MACHINE = Shapes(None)


class Section(BaseModel):
    """A frozen part of a recipe: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # pydantic's own stops at the mappings that some sections hold

    @classmethod
    def shaped_by(cls, field: str) -> Shapes | None:
        """What a field shapes, as far as it says so itself."""
        return next((mark for mark in cls.model_fields[field].metadata if isinstance(mark, Shapes)), None)

    @classmethod
    def shaping(cls) -> set[str]:
        """The fields that are not for the machines alone."""
        return {field for field in cls.model_fields if cls.shaped_by(field) != MACHINE}

    def shaped(self, stage: str | None = None, above: str = "") -> Iterator[tuple[str, Any, str]]:
        """Each value that shapes tables, with its path and the stage whose they are.

        stage: of fields that say nothing. A section with an `identity` is known by that alone.
        """
        identity = getattr(self, "identity", None)
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


Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
Size = Annotated[float, Field(ge=0)]
