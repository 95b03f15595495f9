"""Recipe sections: students, training, evaluation and tracking."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from tsd.recipe import additions
from tsd.recipe.section import EVERY, MACHINE, Decay, Positive, Section, Shapes, Share, Uri, nearest

Modality = Literal["text", "image"]


class Lora(Section):
    """Low-rank adapters (LoRA) instead of full fine-tuning."""

    r: Positive = 4
    """Rank of the adapters."""
    alpha: Positive = 32
    """Their scale is alpha / r."""
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    """Names of the layers that are adapted."""
    export: Literal["merged", "adapter"] = "merged"
    """`merged`: a plain model with the adapters merged. `adapter`: the small adapters only, in peft's format,
    which need the `source` whenever they are loaded."""


class Distil(Section):
    """Knowledge distillation: train on a teacher's token distributions in addition to SFT."""

    teacher: str
    """Another student of this study, of which the run with most examples and the same seed is the teacher, or the
    hub name or folder of a trained model."""
    divergence: Literal["forward", "reverse", "jensen_shannon"] = "forward"
    """Divergence of the distributions: KL(teacher ‖ student), KL(student ‖ teacher), or generalised
    Jensen-Shannon."""
    weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Weight of the divergence in the loss. The rest is the SFT loss."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Divisor of both models' logits."""
    beta: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """The teacher's weight in the mixture of `jensen_shannon`: near 0 like `forward`, near 1 like `reverse`."""


class Student(Section):
    """A student: an architecture of `models.students.SCRATCH` trained from scratch, or a pretrained model."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
    """Name in tables and folders."""
    size: str | None = None
    """Built-in size to train from scratch. Default: the student's name."""
    source: str | None = None
    """Hub name or folder of a model to start from, instead of training from scratch."""
    lora: Lora | None = None
    """Train adapters only. Needs a `source`."""
    modality: Modality = "text"
    """Input modality: the values as text, or a plot. Default: `students.modality`."""
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """Peak learning rate. Default: that of the size."""
    workers: Annotated[Positive | None, MACHINE] = None
    """Ray Train workers per run. Default: `training.workers`."""
    gpus: Annotated[Annotated[float, Field(gt=0, le=1)] | None, MACHINE] = None
    """Fraction of a GPU for its single worker, so that several small students share one."""
    distil: Distil | None = None
    """Knowledge distillation in addition to SFT."""

    @model_validator(mode="before")
    @classmethod
    def _a_bare_name_is_a_student(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _known_or_given(self) -> Self:
        """A known size, or a source with what it needs. Raises ValueError otherwise."""
        if self.source is None:
            sizes = VISION_SIZES if self.is_multimodal else SCRATCH_SIZES
            if self.architecture not in sizes:
                kind = " of a vision student" if self.is_multimodal else ""
                raise ValueError(
                    f"unknown size{kind} {self.architecture!r}{nearest(self.architecture, sizes)}; "
                    "a student of another name needs a `size` or a `source`"
                )
            if self.lora is not None:
                raise ValueError("lora needs a `source`: a model from scratch has nothing to adapt")
        elif self.is_multimodal:
            raise ValueError("vision students are trained from scratch: leave out the `source` or the modality")
        elif self.size is not None:
            raise ValueError("a student has a `size` or a `source`, not both")
        elif self.learning_rate is None:
            raise ValueError("a student with a `source` needs a learning_rate")
        return self

    @property
    def is_multimodal(self) -> bool:
        """Whether it is a vision student."""
        return self.modality == "image"

    @property
    def architecture(self) -> str:
        """The built-in size of a student from scratch."""
        return self.size or self.name

    @property
    def start(self) -> tuple[Any, ...]:
        """What defines it except name and objective. Students with equal starts differ in their loss only."""
        return self.source or self.architecture, self.modality, self.lora, self.learning_rate


SCRATCH_SIZES = ("0.03M", "0.1M", "0.3M", "1M", "3M", "10M")
VISION_SIZES = ("0.03M", "0.1M", "0.3M", "1M")


Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
TrainSizeBound = Positive | Literal["every"]


class StudentsConfig(Section):
    """Which students are trained, on how many examples, with which seeds."""

    models: Annotated[tuple[Student, ...], Field(min_length=1)] = (
        Student(name="0.03M"),
        Student(name="0.1M"),
        Student(name="0.3M"),
    )
    """The students. A built-in size is the number of parameters without embeddings."""
    modality: Modality = "text"
    """Input modality of students: the values as text, or a plot. Vision students are trained from scratch only."""
    train_sizes: Annotated[tuple[Positive, ...], Field(min_length=1)] = (500, 2000, 8000)
    """Numbers of training examples. Larger training sets contain the smaller ones."""
    seeds: dict[TrainSizeBound, Seeds] = Field(default={EVERY: (0,)})
    """Each student is trained once per seed. Seeds can depend on the number of examples:
    `{2000: [0, 1, 2], every: [0]}` is three seeds up to 2,000 examples and one above. Small training sets vary
    most and cost least."""

    @model_validator(mode="before")
    @classmethod
    def _a_modality_for_every_student(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("modality") not in get_args(Modality):
            return value
        given = value.get("models", [student.name for student in cls.model_fields["models"].default])
        if not isinstance(given, list | tuple):
            return value
        named = [{"name": model} if isinstance(model, str) else model for model in given]
        models = [
            {"modality": value["modality"], **model} if isinstance(model, dict) else model for model in named
        ]
        return {**value, "models": models}

    @model_validator(mode="before")
    @classmethod
    def _seeds_for_every_train_size(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "seeds" not in value:
            return value
        seeds = value["seeds"]
        return {**value, "seeds": {EVERY: (0,), **seeds} if isinstance(seeds, dict) else {EVERY: seeds}}

    def seeds_for(self, train_size: int) -> tuple[int, ...]:
        """The seeds for a number of training examples."""
        bounds = [bound for bound in self.seeds if bound != EVERY and train_size <= bound]
        return self.seeds[min(bounds) if bounds else EVERY]

    def cells(self) -> Iterator[tuple[Student, int, int]]:
        """The grid of runs: every student, number of examples and seed."""
        for student in self.models:
            for train_size in self.train_sizes:
                for seed in self.seeds_for(train_size):
                    yield student, train_size, seed

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for name, items in (
            ("models", [s.name for s in self.models]),
            ("train_sizes", self.train_sizes),
            *(("seeds", seeds) for seeds in self.seeds.values()),
        ):
            if len(set(items)) < len(items):
                raise ValueError(f"{name} has the same entry twice: remove one")
        return self

    @model_validator(mode="after")
    def _teachers_can_teach(self) -> Self:
        """Check each `distil.teacher`: known, without cycles, and with the student's modality and vocabulary.

        Raises ValueError otherwise.
        """
        for student in self.models:
            if student.distil is None:
                continue
            teacher = self.teacher_of(student)
            if teacher is None and "/" not in student.distil.teacher:
                others = [other.name for other in self.models if other is not student]
                raise ValueError(
                    f"{student.name} has an unknown distil.teacher {student.distil.teacher!r}"
                    f"{nearest(student.distil.teacher, others) if others else ''}; "
                    "the name of a folder or hub model contains a /"
                )
            self._refuse_a_circle(student)
            if student.modality != (teacher.modality if teacher else "text"):
                raise ValueError(
                    f"{student.name} cannot be distilled from {student.distil.teacher}: their modalities differ"
                )
            if teacher is not None and (teacher.source is None) != (student.source is None):
                raise ValueError(
                    f"{student.name} cannot be distilled from {teacher.name}: one starts from scratch and the "
                    "other from a `source`, so their tokens differ"
                )
        return self

    def _refuse_a_circle(self, student: Student) -> None:
        """Raise ValueError if a student is distilled from itself, directly or through others."""
        above, teacher = [student.name], self.teacher_of(student)
        while teacher is not None:
            above.append(teacher.name)
            if teacher.name == student.name:
                raise ValueError(f"{student.name} would be its own teacher: {' ← '.join(above)}")
            if teacher.name in above[:-1]:
                return  # a cycle further up, reported for its own members
            teacher = self.teacher_of(teacher)

    def teacher_of(self, student: Student) -> Student | None:
        """The student of this study that is the teacher of another one; None if there is none."""
        wanted = student.distil.teacher if student.distil else None
        return next((other for other in self.models if other.name == wanted), None)

    def teachers_above(self, student: Student) -> int:
        """Number of students of this study that must be trained before this one, one after the other."""
        teacher = self.teacher_of(student)
        return 0 if teacher is None else 1 + self.teachers_above(teacher)

    def sft_counterpart(self, student: Student) -> Student | None:
        """For a distilled student, its counterpart that is trained by SFT only."""
        others = (other for other in self.models if student.distil and not other.distil)
        return next((other for other in others if other.start == student.start), None)

    def text_counterpart(self, student: Student) -> Student | None:
        """For a vision student, the text student of its size. Both are trained by SFT only; None otherwise."""
        if not student.is_multimodal or student.distil:
            return None
        text_students = (
            other for other in self.models if not (other.is_multimodal or other.source or other.distil)
        )
        return next((other for other in text_students if other.architecture == student.architecture), None)


class TrainingConfig(Section):
    """How every student is trained."""

    epochs: Positive = 1
    """Passes over a student's examples."""
    early_stopping_patience: Positive | None = None
    """Early stopping: epochs without a lower held-out loss after which a run stops. It keeps the weights of its
    last step, before the learning rate has decayed to zero, so fit scaling laws without it. Default: never."""
    batch_size: Positive = 8
    """Examples per step, over all workers."""
    tokens_per_batch: Positive | None = None
    """Tokens per step, over all workers, instead of `batch_size`: as many whole examples as fit."""
    packing: Annotated[bool | None, MACHINE] = None
    """Pack a batch's examples into one row rather than pad them to one row each. The losses are the same. Default:
    pack if padding exceeds 5 %."""
    micro_batch_tokens: Annotated[Positive | None, MACHINE] = None
    """Tokens per micro-batch and worker, padding included. Larger steps accumulate gradients, with the same losses
    in less memory. Default: one micro-batch per step."""
    activation_checkpointing: Annotated[bool, MACHINE] = False
    """Activation checkpointing: recompute activations in the backward pass, with the same losses in less memory
    and more time."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW, or Muon for the matrices of layers and AdamW for the rest. At the same learning rate, Muon's updates
    are three times as large as AdamW's."""
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    """AdamW's decay rates of the moments."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled weight decay, of matrices."""
    warmup_ratio: Share = 0.05
    """Fraction of the steps with a linear warmup. A cosine then decays the learning rate to zero."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Maximum gradient norm."""
    max_length: Positive = 2048
    """Maximum length of an example in tokens. A longer one is an error, never truncated."""
    workers: Annotated[Positive, MACHINE] = 1
    """Ray Train workers per trial. FSDP2 shards over them."""
    threads: Annotated[Positive, MACHINE] = 1
    """CPU threads per worker."""
    gpu: Annotated[bool, MACHINE] = False
    """Train on GPUs (NCCL, bfloat16) rather than CPUs (gloo, float32)."""
    concurrent_trials: Annotated[Positive, MACHINE] = 3
    """Concurrent trials. With one more than the machines can train, one starts up while the others train."""
    checkpoint_every: Annotated[Positive, MACHINE] = 250
    """Steps between checkpoints, which are written in the background."""
    keep_checkpoints: Annotated[Positive, MACHINE] = 1
    """Number of latest checkpoints kept per run."""
    max_failures: Annotated[int, Field(ge=0), MACHINE] = 2
    """Maximum restarts of a trial from its last checkpoint after a worker has died."""

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        self.require_fair_shares(self.workers)
        return self

    @model_validator(mode="after")
    def _patience_can_run_out(self) -> Self:
        patience = self.early_stopping_patience
        if patience and patience >= self.epochs:
            raise ValueError(
                f"early_stopping_patience {patience} never stops a run of {self.epochs} epochs: lower it"
            )
        return self

    def require_fair_shares(self, workers: int) -> None:
        """Raise ValueError if so many workers cannot divide a batch evenly."""
        if self.tokens_per_batch is None and self.batch_size % workers:
            raise ValueError(f"batch_size {self.batch_size} must be a multiple of the {workers} workers")


MetricName = Annotated[str, AfterValidator(additions.require_metric)]


class EvaluationConfig(Section):
    """How every student is evaluated."""

    series: Positive = 1000
    """Test series that are decoded and scored."""
    validation_examples: Annotated[Positive, Shapes("train")] = 512
    """Validation examples for the held-out loss."""
    batch_size: Positive = 250
    """Series per decoded batch."""
    max_new_tokens: Positive | None = None
    """Maximum length of a response in tokens. Default: enough for the task's own phrasings in a small
    vocabulary."""
    workers: Annotated[Positive, MACHINE] = 2
    """Decoding processes."""
    vllm: Annotated[bool | None, MACHINE] = None
    """Decode students with a `source` by vLLM. Default: on GPUs, if vLLM is installed."""
    metrics: Annotated[tuple[MetricName, ...], Shapes("report")] = ()
    """Metrics of plugins, by name. They may be added to a finished study: `tsd evaluate` measures them."""


class TrackingConfig(Section):
    """Where MLflow stores the runs."""

    uri: Uri = "sqlite:///runs/mlflow.db"
    """MLflow tracking URI. Credentials come from MLflow's environment variables."""
    experiment: str = "tsd"
    """Name of the MLflow experiment."""
