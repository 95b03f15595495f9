"""Which descriptions become examples."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tsd.recipe.section import EVERY, Positive, Section, Share

AgainstTruth = Literal["drop", "correct", "keep"]


class NliConfig(Section):
    """A model of natural-language inference that compares each sentence with the measured truth."""

    model: str
    """A Hugging Face cross-encoder, by hub name or folder; one of its labels is contradiction."""
    threshold: Share = 0.5
    """A contradiction counts where it is the most probable label and at least this probable."""
    batch_size: Positive = 64
    """Pairs of sentences that are judged at once."""


class CurationConfig(Section):
    """Which annotations become training examples."""

    form: Literal["any", "json"] = "any"
    """`json` rejects a reply that is not the object of sentences that was asked for; `any` takes prose, too."""
    unstated: Literal["drop", "keep"] = "drop"
    """What to do with a reply that leaves a facet open."""
    against_truth: dict[str, AgainstTruth] = Field(default={EVERY: "drop"})
    """What to do, by facet, with a reply that contradicts what is measurable: reject it, put a sentence that
    states the truth in the place of the wrong one, or train on it all the same. `every` holds for the facets that
    are not named; a word alone holds for all."""
    length: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = (1, 4000)
    """The least and the most characters of what is learned."""
    nli: NliConfig | None = None
    """Reject what a model finds to contradict the truth; left out, no model is asked."""
    duplicates: Literal["drop", "keep"] = "drop"
    """What to do with an example whose series is already there, in the whole corpus: the first by id stays, and
    none is learned from that validation or test hold."""
    caps: dict[str, Annotated[float, Field(gt=0, le=1)]] = Field(default={EVERY: 1.0})
    """The largest share of the training examples that any class of a facet may have. `every` holds for the facets
    that are not named; a number alone holds for all."""

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
            raise ValueError(f"length must be least, most, not {list(self.length)}")
        return self

    def policy(self, facet: str) -> AgainstTruth:
        """What to do with a reply that contradicts the truth of this facet."""
        return self.against_truth.get(facet, self.against_truth[EVERY])

    def cap(self, facet: str) -> float:
        """The largest share of the training examples that a class of this facet may have."""
        return self.caps.get(facet, self.caps[EVERY])

    def named_facets(self) -> Iterator[tuple[str, str]]:
        """Each name that must be a facet of the task, with the field that names it."""
        for field in ("against_truth", "caps"):
            yield from ((field, name) for name in getattr(self, field) if name != EVERY)
