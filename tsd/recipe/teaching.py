"""Who describes the series."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tsd.recipe.section import EVERY, Positive, Section, Share, Uri

ERROR_RATE = 0.04


class RulesTeacher(Section):
    """A teacher that is not a model: it states the measured facets in varied sentences."""

    kind: Literal["rules"] = "rules"
    error_rate: dict[str, Share] = Field(default={EVERY: ERROR_RATE})
    """The share of wrong labels, by facet; `every` is that of the facets which are not named."""

    @model_validator(mode="before")
    @classmethod
    def _every_facet_has_a_rate(cls, value: Any) -> Any:
        rates = value.get("error_rate") if isinstance(value, dict) else None
        if isinstance(rates, dict):
            value = {**value, "error_rate": {EVERY: ERROR_RATE, **rates}}
        return value

    @property
    def name(self) -> str:
        """What the tables call this teacher."""
        return "rules"

    @property
    def identity(self) -> dict[str, Any]:
        """All that shapes its replies."""
        return self.model_dump()


class ApiTeacher(Section):
    """A multimodal model behind an OpenAI-compatible API, shown the plot of each series."""

    kind: Literal["openai"]
    model: str
    """The model's name, as the server knows it."""
    base_url: Uri
    """Where the API is, ending in /v1."""
    key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key. The key itself stands nowhere else."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    max_tokens: Positive = 256
    """Longest reply, in tokens."""
    in_flight: Positive = 8
    """Requests under way at once in each worker."""
    timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds until a request counts as failed."""
    retries: Annotated[int, Field(ge=0)] = 4
    """How often a failed request is tried again."""
    usd_per_million_input: Annotated[float, Field(ge=0)] = 0.0
    usd_per_million_output: Annotated[float, Field(ge=0)] = 0.0

    @property
    def name(self) -> str:
        """What the tables call this teacher."""
        return self.model

    @property
    def identity(self) -> dict[str, Any]:
        """All that shapes its replies; how fast and how often it is asked does not."""
        return self.model_dump(include={"kind", "model", "base_url", "temperature", "max_tokens"})


# By kind, which is how pydantic names them in the place of an error.
TEACHERS: dict[str, type[Section]] = {"rules": RulesTeacher, "openai": ApiTeacher}
