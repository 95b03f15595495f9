"""Training runs: the specification that identifies one, and the record of one that is finished."""

from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any, Final, Literal

from tsd.plots import rasterised
from tsd.recipe import Student, TrainingConfig
from tsd.recipe.section import Section
from tsd.storage.keys import digest

VERSION: Final = (
    3  # raise it with whatever changes weights: tokenizer, architectures, initialisation, training loop
)
Precision = Literal["float32", "bfloat16"]
LATE = ("ready_seconds", "decode_seconds")


@dataclass(frozen=True)
class RunSpec:
    """Everything that shapes the weights of one run, and nothing else. `run_id` changes with each part of it."""

    student: Student
    """Fields marked `MACHINE` in the recipe's models are not part of the id."""
    examples: int
    """Training examples: the first so many of the corpus."""
    seed: int
    training: TrainingConfig
    """Fields marked `MACHINE` are not part of the id."""
    validation_examples: int
    corpus: str
    """Digest of the examples table."""
    tokenizer: str
    """Key of the tokenizer; the source of a student that brings its own."""
    precision: Precision
    teacher_run: str | None = None
    """Id of the run of this study that it is distilled from."""

    @property
    def identity(self) -> dict[str, Any]:
        """The fields that shape weights, as JSON holds them, and the version of the code that uses them."""
        values: dict[str, Any] = {"version": VERSION, **self._drawn}
        for field in fields(self):
            value = getattr(self, field.name)
            shaping = type(value).shaping() if isinstance(value, Section) else set()
            values[field.name] = value.model_dump(mode="json", include=shaping) if shaping else value
        return values

    @property
    def _drawn(self) -> dict[str, str]:
        """The version of the plots that a vision student sees."""
        return {"plots": rasterised.VERSION} if self.student.is_multimodal else {}

    @cached_property
    def tokens(self) -> str:
        """Key of the token parts that it is trained on: those of its tokenizer, modality and corpus."""
        shown = [self.student.is_multimodal, *self._drawn.values()]
        return digest(["tokens", VERSION, self.tokenizer, *shown, self.corpus])

    @cached_property
    def run_id(self) -> str:
        """Name of the run in tables, folders and MLflow."""
        return f"{self.student.name}-{self.examples}-s{self.seed}-{digest(self.identity)[:8]}"


@dataclass(frozen=True)
class RunRecord:
    """What is known of a finished run. Written last into `records/`, and shown in the runs table."""

    run_id: str
    student: str
    modality: str
    precision: Precision
    parameters: int
    parameters_without_embeddings: int
    examples: int
    tokens: int
    """Tokens trained on, all epochs together, padding left out."""
    supervised_tokens: int
    flops: float
    flops_6nd: float
    """6 N D, with N the parameters without embeddings and D the tokens."""
    distilled_from: str | None
    teacher_flops: float | None
    steps: int
    stopped_early: bool
    seed: int
    validation_loss: float
    """Mean over the supervised tokens of held-out examples, in nats a token."""
    label_loss: float | None
    """The same over the tokens that carry a label or a number; None if the vocabulary has none."""
    wording_loss: float | None
    """The same over the other tokens."""
    train_seconds: float
    tokens_per_second: float
    utilisation: float
    """Share of the device's peak rate of matrix products."""
    ready_seconds: float | None = None
    """Seconds from the start of the run's process to its first step; a model card does not keep them."""
    decode_seconds: float | None = None

    def as_dict(self) -> dict[str, str | int | float | None]:
        """As JSON and tables hold it; the last two fields are left out where they are not known."""
        values = asdict(self)
        return {name: value for name, value in values.items() if value is not None or name not in LATE}
