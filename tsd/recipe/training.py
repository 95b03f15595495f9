"""Which students are trained, how, on what they are measured, and where their runs are kept."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tsd.recipe.section import EVERY, MACHINE, Decay, Positive, Section, Shapes, Share, Uri, nearest

View = Literal["numbers", "plot"]


class Lora(Section):
    """Low-rank adapters instead of full fine-tuning."""

    r: Positive = 4
    alpha: Positive = 32
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    export: Literal["merged", "adapter"] = "merged"
    """A plain model with the adapters merged in, or the adapters alone, in peft's format: a few megabytes, which
    need the `source` wherever they are loaded."""


class Distil(Section):
    """Learn from the token distributions of a larger student too, and not from words alone."""

    teacher: str
    """Another student of the study, of which the run on most examples with the same seed teaches, or the hub name
    or folder of a model that is trained already."""
    divergence: Literal["forward", "reverse", "jensen_shannon"] = "forward"
    """How far two distributions are apart: KL(teacher ‖ student), KL(student ‖ teacher), or between the two."""
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """The divergence's share of the loss; the rest is that of the words."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """What both models' logits are divided by."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The teacher's share of the mixture in `jensen_shannon`: near 0 it acts as `forward`, near 1 as `reverse`."""


class Student(Section):
    """One student: an architecture of `models.students.SCRATCH` trained from scratch, or a model to start from."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
    """What tables and folders call it."""
    size: str | None = None
    """The built-in size to train from scratch; its name when left out."""
    source: str | None = None
    """A hub name or a folder to load instead of training from scratch."""
    lora: Lora | None = None
    """Train adapters only. Needs a `source`."""
    view: View = "numbers"
    """What it is given of a series; left out, what `students.view` says."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate; the size's own when left out."""
    workers: Annotated[Positive | None, MACHINE] = None
    """Ray Train workers of each of its runs, where it needs others than `training.workers`."""
    gpus: Annotated[Annotated[float, Field(gt=0, le=1)] | None, MACHINE] = None
    """The share of a GPU that its lone worker takes, so that several small students train on one."""
    distil: Distil | None = None
    """What it learns from besides words."""

    @model_validator(mode="before")
    @classmethod
    def _a_bare_name_is_a_student(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known_or_given(self) -> Self:
        if self.source is None:
            sizes = LOOKING_SIZES if self.looks else SCRATCH_SIZES
            if self.architecture not in sizes:
                kind = " of a student that looks" if self.looks else ""
                raise ValueError(
                    f"unknown size{kind} {self.architecture!r}{nearest(self.architecture, sizes)}; "
                    "a student of another name needs a `size` or a `source`"
                )
            if self.lora is not None:
                raise ValueError("lora needs a `source`: there is nothing to adapt in a model from scratch")
        elif self.looks:
            raise ValueError("a student with a `source` reads numbers: those that look are trained from scratch")
        elif self.size is not None:
            raise ValueError("a student has a `size` or a `source`, not both")
        elif self.learning_rate is None:
            raise ValueError("a student with a `source` needs a learning_rate")
        return self

    @property
    def looks(self) -> bool:
        """Whether it is shown plots."""
        return self.view == "plot"

    @property
    def architecture(self) -> str:
        """The built-in size of a student from scratch."""
        return self.size or self.name

    @property
    def start(self) -> tuple[Any, ...]:
        """What shapes it but its name and its objective: students of one start differ in what they learn from."""
        return self.source or self.architecture, self.view, self.lora, self.learning_rate


SCRATCH_SIZES = ("0.03M", "0.1M", "0.3M", "1M", "3M", "10M")
LOOKING_SIZES = ("0.03M", "0.1M", "0.3M", "1M")


Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
VolumeBound = Positive | Literal["every"]


class StudentsConfig(Section):
    """Which students are trained, on how much, how often."""

    sizes: Annotated[tuple[Student, ...], Field(min_length=1)] = (
        Student(name="0.03M"),
        Student(name="0.1M"),
        Student(name="0.3M"),
    )
    """The students. Sizes are parameters without embeddings."""
    view: View = "numbers"
    """What students are given of a series: its values as text, or a plot, at which they look. Students that look
    are trained from scratch."""
    volumes: Annotated[tuple[Positive, ...], Field(min_length=1)] = (500, 2000, 8000)
    """Numbers of training examples; each volume holds the smaller ones."""
    seeds: dict[VolumeBound, Seeds] = Field(default={EVERY: (0,)})
    """Every student is trained once for each seed. By volume where it differs: `{2000: [0, 1, 2], every: [0]}` is
    three seeds on volumes up to 2,000 and one on every other; small volumes vary most and cost least."""

    @model_validator(mode="before")
    @classmethod
    def _a_view_for_every_student(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "view" not in value:
            return value
        given = value.get("sizes", [student.name for student in cls.model_fields["sizes"].default])
        if not isinstance(given, list | tuple):
            return value
        named = [{"name": size} if isinstance(size, str) else size for size in given]
        sizes = [{"view": value["view"], **size} if isinstance(size, dict) else size for size in named]
        return {**value, "sizes": sizes}

    @model_validator(mode="before")
    @classmethod
    def _seeds_for_every_volume(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "seeds" not in value:
            return value
        seeds = value["seeds"]
        return {**value, "seeds": {EVERY: (0,), **seeds} if isinstance(seeds, dict) else {EVERY: seeds}}

    def seeds_for(self, volume: int) -> tuple[int, ...]:
        """The seeds with which students are trained on so many examples."""
        bounds = [bound for bound in self.seeds if bound != EVERY and volume <= bound]
        return self.seeds[min(bounds) if bounds else EVERY]

    def cells(self) -> Iterator[tuple[Student, int, int]]:
        """Every student, volume and seed for which there is a run."""
        for student in self.sizes:
            for volume in self.volumes:
                for seed in self.seeds_for(volume):
                    yield student, volume, seed

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for name, items in (
            ("sizes", [s.name for s in self.sizes]),
            ("volumes", self.volumes),
            *(("seeds", seeds) for seeds in self.seeds.values()),
        ):
            if len(set(items)) < len(items):
                raise ValueError(f"{name} names the same thing twice")
        return self

    @model_validator(mode="after")
    def _teachers_can_teach(self) -> Self:
        for student in self.sizes:
            if student.distil is None:
                continue
            teacher = self.teacher_of(student)
            if teacher is None and "/" not in student.distil.teacher:
                others = [other.name for other in self.sizes if other is not student]
                raise ValueError(
                    f"{student.name} has an unknown distil.teacher {student.distil.teacher!r}"
                    f"{nearest(student.distil.teacher, others) if others else ''}; "
                    "a folder's or a hub's name has a / in it"
                )
            self._refuse_a_circle(student)
            if student.view != (teacher.view if teacher else "numbers"):
                raise ValueError(
                    f"{student.name} cannot be distilled from {student.distil.teacher}: one looks at plots and "
                    "the other reads numbers"
                )
            if teacher is not None and (teacher.source is None) != (student.source is None):
                raise ValueError(
                    f"{student.name} cannot be distilled from {teacher.name}: one starts from scratch and the "
                    "other from a `source`, so their tokens differ"
                )
        return self

    def _refuse_a_circle(self, student: Student) -> None:
        above, teacher = [student.name], self.teacher_of(student)
        while teacher is not None:
            above.append(teacher.name)
            if teacher.name == student.name:
                raise ValueError(f"{student.name} would be its own teacher: {' ← '.join(above)}")
            if teacher.name in above[:-1]:
                return  # a circle further up, which is told of there
            teacher = self.teacher_of(teacher)

    def teacher_of(self, student: Student) -> Student | None:
        """The student of this study that a student is distilled from; None where there is no such."""
        wanted = student.distil.teacher if student.distil else None
        return next((other for other in self.sizes if other.name == wanted), None)

    def teachers_above(self, student: Student) -> int:
        """How many students of this study must be trained one after the other before this one."""
        teacher = self.teacher_of(student)
        return 0 if teacher is None else 1 + self.teachers_above(teacher)

    def in_words_of(self, student: Student) -> Student | None:
        """For a distilled student, the one that differs from it only in that it learns from words alone."""
        others = (other for other in self.sizes if student.distil and not other.distil)
        return next((other for other in others if other.start == student.start), None)

    def reading_like(self, student: Student) -> Student | None:
        """For a student that looks, the one of its size that reads numbers; both learn from words alone."""
        if not student.looks or student.distil:
            return None
        readers = (other for other in self.sizes if not (other.looks or other.source or other.distil))
        return next((other for other in readers if other.architecture == student.architecture), None)


class TrainingConfig(Section):
    """How every student is trained."""

    epochs: Positive = 1
    """Passes over a student's examples."""
    patience: Positive | None = None
    """Epochs without a lower held-out loss after which a run stops early, with the weights of its last step and
    before its learning rate has fallen to zero; laws are fitted without it. Left out, all run to their end."""
    batch_size: Positive = 8
    """Examples in a step, over all workers."""
    tokens_per_batch: Positive | None = None
    """Tokens in a step, over all workers, instead of `batch_size`: as many whole examples as they hold."""
    packing: Annotated[bool | None, MACHINE] = None
    """Whether a batch's examples stand one after the other in one row, or each in a padded row of its own. The
    same losses; left out, packed where more than a twentieth would be padding."""
    tokens_at_once: Annotated[Positive | None, MACHINE] = None
    """Tokens, padding included, that a worker takes forward and backward at once; a step of more adds up the
    gradients of several such passes. The same losses in less memory; left out, a step is one pass."""
    checkpoint_activations: Annotated[bool, MACHINE] = False
    """Whether layers keep only their inputs and run forward a second time in the backward pass: the same losses,
    in far less memory and about a third more time."""
    optimiser: Literal["adamw", "muon"] = "adamw"
    """AdamW; or Muon for layers' matrices, which at the same learning rate it moves three times as far, and AdamW
    for all else."""
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    """AdamW's decay rates."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup: Share = 0.05
    """Share of the steps in which the learning rate rises; a cosine then takes it to zero."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest norm of the gradient."""
    max_length: Positive = 2048
    """Longest example in tokens; a longer one is an error, never cut."""
    workers: Annotated[Positive, MACHINE] = 1
    """Ray Train workers for each trial; FSDP2 shards over them."""
    threads: Annotated[Positive, MACHINE] = 1
    """Threads of each worker on CPU."""
    gpu: Annotated[bool, MACHINE] = False
    """Train on GPUs (NCCL, bf16) rather than CPUs (gloo, float32)."""
    concurrent_trials: Annotated[Positive, MACHINE] = 3
    """Trials under way at once; one more than the machines can train gets ready while the others work."""
    checkpoint_every: Annotated[Positive, MACHINE] = 250
    """Steps between checkpoints, which are written while training goes on."""
    keep_checkpoints: Annotated[Positive, MACHINE] = 1
    """How many of a run's checkpoints are kept, the newest."""
    max_failures: Annotated[int, Field(ge=0), MACHINE] = 2
    """How often a trial whose worker died goes on from its last checkpoint."""

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        self.require_fair_shares(self.workers)
        return self

    @model_validator(mode="after")
    def _patience_can_run_out(self) -> Self:
        if self.patience and self.patience >= self.epochs:
            raise ValueError(f"patience {self.patience} never stops a run of {self.epochs} epochs")
        return self

    def require_fair_shares(self, workers: int) -> None:
        """Raise ValueError where so many workers could not share a batch evenly."""
        if self.tokens_per_batch is None and self.batch_size % workers:
            raise ValueError(f"batch_size {self.batch_size} cannot be shared by {workers} workers")


class EvaluationConfig(Section):
    """What every student is measured on."""

    series: Positive = 1000
    """Test series that are decoded and scored."""
    validation_examples: Annotated[Positive, Shapes("train")] = 512
    """Held-out examples for the loss."""
    batch_size: Positive = 250
    """Series decoded at once."""
    max_new_tokens: Positive | None = None
    """Longest reply, in tokens; left out, what the task's own sentences take in a small vocabulary."""
    workers: Annotated[Positive, MACHINE] = 2
    """Processes that decode."""
    vllm: Annotated[bool | None, MACHINE] = None
    """Whether students with a `source` reply from vLLM's engine; left out, on GPUs where it is installed."""


class TrackingConfig(Section):
    """Where MLflow keeps the runs."""

    uri: Uri = "sqlite:///runs/mlflow.db"
    """An MLflow tracking URI; credentials come from MLflow's own environment variables."""
    experiment: str = "tsd"
