"""Recipe section: which annotations become training examples."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SerializeAsAny, WithJsonSchema, field_validator, model_validator

from tsd.recipe import additions
from tsd.recipe.section import EVERY, MACHINE, Positive, Section, Share

BATCH = 64
AgainstTruth = Literal["drop", "correct", "keep"]


class NliConfig(Section):
    """A natural-language inference model that compares each text with the ground truth."""

    model: str
    """A Hugging Face cross-encoder, by hub name or folder; one of its labels must be contradiction."""
    threshold: Share = 0.5
    """Minimum probability of a contradiction, which must also be the most probable label."""
    batch_size: Annotated[Positive, MACHINE] = BATCH
    """Text pairs per forward pass."""


class CurationConfig(Section):
    """Which annotations become training examples."""

    form: Literal["any", "json"] = "any"
    """`json` rejects a response that is not the requested JSON object; `any` accepts prose as well."""
    unstated: Literal["drop", "keep"] = "drop"
    """What to do with a response that leaves a facet open."""
    against_truth: dict[str, AgainstTruth] = Field(default={EVERY: "drop"})
    """What to do, by facet, with a response that contradicts the ground truth: reject it (`drop`), replace the
    wrong text by a true phrasing (`correct`), or train on it as it is (`keep`). `every` is for the facets not
    named; a single word is for all."""
    length: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (1, 4000)
    """Minimum and maximum length of the training text, in characters."""
    nli: NliConfig | None = None
    """Reject responses that this model finds to contradict the ground truth. Default: no model is used."""
    duplicates: Literal["drop", "keep"] = "drop"
    """What to do with examples of identical series in the corpus: `drop` keeps the first by id, and removes
    training examples whose series is in validation or test."""
    caps: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(default={EVERY: 1.0})
    """Maximum fraction of the training examples that any class of a facet may have. `every` is for the facets not
    named; a single number is for all."""
    policies: dict[str, Annotated[SerializeAsAny[Section], WithJsonSchema({"type": ["object", "null"]})]] = Field(
        default={}
    )
    """Policies of plugins by name, each with its settings, such as {brief: {most_words: 40}}. They judge what the
    policies above keep."""

    @field_validator("policies", mode="before")
    @classmethod
    def _settings_of_policies(cls, value: Any) -> Any:
        return additions.policy_settings(value) if isinstance(value, Mapping) else value

    @model_validator(mode="before")
    @classmethod
    def _every_facet_has_one(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        whole = {}
        for name, usual in (("against_truth", "drop"), ("caps", 1.0)):
            given = value.get(name, {})
            whole[name] = {EVERY: usual, **given} if isinstance(given, dict) else {EVERY: given}
        return {**value, **whole}

    @model_validator(mode="after")
    def _shortest_first(self) -> Self:
        if self.length[0] > self.length[1]:
            raise ValueError(f"length must be [minimum, maximum], not {list(self.length)}")
        return self

    @property
    def keyed(self) -> dict[str, Any]:
        """The settings that determine verdicts. Where a key of old tables has a batch size, it is the default."""
        fields = self.model_dump()
        return {**fields, "nli": {**fields["nli"], "batch_size": BATCH} if fields["nli"] else None}

    def policy(self, facet: str) -> AgainstTruth:
        """What to do with a response that contradicts the ground truth of this facet."""
        return self.against_truth.get(facet, self.against_truth[EVERY])

    def cap(self, facet: str) -> float:
        """Maximum fraction of the training examples that a class of this facet may have."""
        return self.caps.get(facet, self.caps[EVERY])

    def named_facets(self) -> Iterator[tuple[str, str]]:
        """Each name in this section that must be a facet of the task, with its field."""
        for field in ("against_truth", "caps"):
            yield from ((field, name) for name in getattr(self, field) if name != EVERY)
