"""Which students are trained, how, on what they are measured, and where their runs are kept."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tsd.recipe.section import Decay, Positive, Section, Share, Uri, nearest


class Lora(Section):
    """Low-rank adapters instead of full fine-tuning."""

    r: Positive = 4
    alpha: Positive = 32
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    export: Literal["merged", "adapter"] = "merged"
    """A plain model with the adapters merged in, or the adapters alone, in peft's format: a few megabytes, which
    need the `source` wherever they are loaded."""


class Student(Section):
    """One student: an architecture of `tsd.students.SCRATCH` trained from scratch, or a model to start from."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
    """What tables and folders call it; the name of a built-in size unless `source` is given."""
    source: str | None = None
    """A hub name or a folder to load instead of training from scratch."""
    lora: Lora | None = None
    """Train adapters only. Needs a `source`."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; the size's own when left out."""

    @model_validator(mode="before")
    @classmethod
    def _a_bare_name_is_a_student(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known_or_given(self) -> Self:
        if self.source is None:
            if self.name not in SCRATCH_SIZES:
                raise ValueError(
                    f"unknown size {self.name!r}{nearest(self.name, SCRATCH_SIZES)}; "
                    "a student of another name needs a `source`"
                )
            if self.lora is not None:
                raise ValueError("lora needs a `source`: there is nothing to adapt in a model from scratch")
        elif self.learning_rate is None:
            raise ValueError("a student with a `source` needs a learning_rate")
        return self


SCRATCH_SIZES = ("0.03M", "0.1M", "0.3M", "1M", "10M")


class StudentsConfig(Section):
    """Which students are trained, on how much, how often."""

    sizes: Annotated[tuple[Student, ...], Field(min_length=1)] = (
        Student(name="0.03M"),
        Student(name="0.1M"),
        Student(name="0.3M"),
    )
    """The students. Sizes are parameters without embeddings."""
    volumes: Annotated[tuple[Positive, ...], Field(min_length=1)] = (500, 2000, 8000)
    """Numbers of training examples; each volume holds the smaller ones."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0,)
    """Every student is trained once for each seed."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for name, items in (
            ("sizes", [s.name for s in self.sizes]),
            ("volumes", self.volumes),
            ("seeds", self.seeds),
        ):
            if len(set(items)) < len(items):
                raise ValueError(f"{name} names the same thing twice")
        return self


class TrainingConfig(Section):
    """How every student is trained."""

    epochs: Positive = 1
    """Passes over a student's examples."""
    batch_size: Positive = 8
    """Examples in a step, over all workers."""
    tokens_per_batch: Positive | None = None
    """Tokens in a step, over all workers, instead of `batch_size`: as many whole examples as they hold."""
    packing: bool | None = None
    """Whether a batch's examples stand one after the other in one row, or each in a padded row of its own. The
    same losses; left out, packed where more than a twentieth would be padding."""
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    """AdamW's decay rates."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup: Share = 0.05
    """Share of the steps in which the learning rate rises; a cosine then takes it to zero."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient."""
    max_length: Positive = 2048
    """Longest example in tokens; a longer one is an error, never cut."""
    workers: Positive = 1
    """Ray Train workers for each trial; FSDP2 shards over them."""
    threads: Positive = 1
    """Threads of each worker on CPU."""
    gpu: bool = False
    """Train on GPUs (NCCL, bf16) rather than CPUs (gloo, float32)."""
    concurrent_trials: Positive = 3
    """Trials under way at once; one more than the machines can train gets ready while the others work."""
    checkpoint_every: Positive = 250
    """Steps between checkpoints, which are written while training goes on."""
    keep_checkpoints: Positive = 1
    """How many of a run's checkpoints are kept, the newest."""
    max_failures: Annotated[int, Field(ge=0)] = 2
    """How often a trial whose worker died goes on from its last checkpoint."""

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.tokens_per_batch is None and self.batch_size % self.workers:
            raise ValueError(f"batch_size {self.batch_size} cannot be shared by {self.workers} workers")
        return self


class EvaluationConfig(Section):
    """What every student is measured on."""

    series: Positive = 1000
    """Test series that are decoded and scored."""
    validation_examples: Positive = 512
    """Held-out examples for the loss."""
    batch_size: Positive = 250
    """Series decoded at once."""
    max_new_tokens: Positive | None = None
    """Longest reply, in tokens; left out, what the task's own sentences take in a small vocabulary."""
    workers: Positive = 2
    """Processes that decode."""


class TrackingConfig(Section):
    """Where MLflow keeps the runs."""

    uri: Uri = "sqlite:///runs/mlflow.db"
    """An MLflow tracking URI; credentials come from MLflow's own environment variables."""
    experiment: str = "tsd"
