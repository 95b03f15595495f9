"""What the sections of a recipe are made of."""

import difflib
from collections.abc import Sequence
from typing import Annotated, Final
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


class Section(BaseModel):
    """A frozen part of a recipe: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    def __hash__(self) -> int:
        return hash(self.model_dump_json())  # pydantic's own stops at the mappings that some sections hold


Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
Size = Annotated[float, Field(ge=0)]
