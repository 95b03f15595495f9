"""The recipe of a whole study: pydantic models, loading, `extends` and overrides.

A recipe is a YAML file. It may extend another, by name or by path, and then names only what differs.
Whatever is wrong with it is said in one line, before anything is spent: the field, the value, what was
expected, and the nearest valid name.
"""

import difflib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from tsd.errors import RecipeError
from tsd.schema import SPLITS
from tsd.series.processes import PROCESSES, own_ranges

Share = Annotated[float, Field(ge=0, le=1)]
Shares = tuple[Share, Share, Share]
Decay = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
BYTES_PER_SERIES = 2_000  # over all tables, generously: the laptop study's hold about 600


def _no_password(uri: str) -> str:
    if "@" in urlsplit(uri).netloc:
        raise ValueError("must not hold a user or a password: recipes are kept and shown; use the environment")
    return uri


# Recipes are written into run folders, MLflow and reports, so no address in one may hold a secret.
Uri = Annotated[str, AfterValidator(_no_password)]


class Section(BaseModel):
    """A frozen part of a recipe: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


Range = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
SHORTEST, LONGEST = 32, 1024  # points in a series
Size = Annotated[float, Field(ge=0)]


class SeriesConfig(Section):
    """Which series are drawn. The defaults give balanced classes; see docs/decisions.md."""

    count: Annotated[int, Field(gt=0, le=10**10)] = 12_500
    """How many series, over all splits."""
    length: int | tuple[int, ...] = 128
    """Points in each series; of several lengths, each series has one, all equally often."""
    split: Shares = (0.8, 0.1, 0.1)
    """Shares of train, validation and test."""
    mix: dict[str, Size] = {name: process.weight for name, process in PROCESSES.items()}
    """How often each process is drawn, relative to the others; tsd/series/processes.py has them all."""
    ranges: dict[str, tuple[float, float]] = {}
    """Other ranges for what only some processes have, such as season_period: [0.3, 2.0]."""
    own_range: Share = 0.4
    """The share of series that are mapped onto 0–99 by their own minimum and maximum; the others keep the
    one scale."""
    oversampling: Annotated[float, Field(ge=1, le=10)] = 1.25
    """Candidates for each series that is kept; the more, the more even are the classes, and the slower."""
    trend_shares: Shares = (0.34, 0.34, 0.32)
    """How often a rising, a falling and no drift is drawn; noise moves some of the last into the others."""
    noise_shares: Shares = (0.49, 0.33, 0.18)
    """How often low, medium and high noise is drawn."""
    own_trend_shares: Shares = (0.25, 0.25, 0.50)
    """trend_shares of series that fill their own range."""
    own_noise_shares: Shares = (0.75, 0.25, 0.0)
    """noise_shares of series that fill their own range, which makes flat ones noisier than they were drawn."""
    noise_rms: tuple[Range, Range, Range] = ((0.6, 1.75), (2.4, 10.2), (13.0, 17.0))
    """Residual around a cubic fit for low, medium and high noise, in value units."""
    tau: tuple[Range, Range, Range] = ((0.2, 0.8), (0.016, 0.31), (0.0055, 0.031))
    """Mean-reversion time for low, medium and high noise, as a fraction of the length. Slow reversion where
    noise is low lets the path wander, so that the trend does not give the extrema away."""
    drift: tuple[Size, Size] = (5.5, 11.0)
    """Size of a drift from first point to last, in value units."""
    drift_per_spread: Size = 0.3
    """Added to the drift for each value unit by which noise alone moves the two ends apart."""
    own_drift: tuple[Share, Share] = (0.05, 0.4)
    """Size of a drift where a series fills its own range, as a share of what the noise leaves of it."""
    swing: tuple[Size, Size] = (8.0, 40.0)
    """Size of the humps, seasons and switches that come on top of a drift, in value units."""
    swing_share: tuple[Share, Share] = (0.3, 0.9)
    """Share of the wanted residual's energy that such a swing may make; it is smaller where it would be more."""
    off_centre: Annotated[float, Field(ge=0, le=50)] = 20.0
    """How far from 49.5 the middle of a series on the one scale may lie, in value units, where it has room."""
    blocks_per_part: Positive = 1
    """Blocks of 1,024 series in one Parquet part."""

    def __hash__(self) -> int:
        return hash(json.dumps(self.model_dump(), sort_keys=True))  # a frozen section, but for its two mappings

    @property
    def lengths(self) -> tuple[int, ...]:
        """Every length, in ascending order."""
        return (self.length,) if isinstance(self.length, int) else tuple(sorted(set(self.length)))

    @property
    def points(self) -> float:
        """Points in a series on average."""
        return sum(self.lengths) / len(self.lengths)

    @field_validator("length", mode="before")
    @classmethod
    def _whole_lengths(cls, value: Any) -> Any:
        lengths = value if isinstance(value, list | tuple) else [value]
        if not lengths or not all(type(one) is int and SHORTEST <= one <= LONGEST for one in lengths):
            raise ValueError(f"must be a whole number from {SHORTEST} to {LONGEST}, or a list of such")
        return value

    @field_validator("mix")
    @classmethod
    def _known_processes(cls, mix: dict[str, float]) -> dict[str, float]:
        for name in mix:
            if name not in PROCESSES:
                raise ValueError(f"there is no process {name!r}{nearest(name, list(PROCESSES))}")
        if not sum(mix.values()) > 0:
            raise ValueError("at least one process must have a weight above 0")
        return mix

    @field_validator("ranges")
    @classmethod
    def _known_ranges(cls, ranges: dict[str, tuple[float, float]]) -> dict[str, tuple[float, float]]:
        spans = own_ranges()
        for name, (low, high) in ranges.items():
            if name not in spans:
                raise ValueError(f"no process has a {name!r}{nearest(name, list(spans))}")
            least, most = spans[name].least, spans[name].most
            if not least <= low <= high <= most:
                raise ValueError(f"{name} must be low, high within {least:g} to {most:g}, not {[low, high]}")
        return ranges

    @model_validator(mode="after")
    def _ranges_are_whole(self) -> Self:
        for name in ("split", "trend_shares", "noise_shares", "own_trend_shares", "own_noise_shares"):
            total = sum(getattr(self, name))
            if abs(total - 1) > 1e-6:
                raise ValueError(f"{name} must sum to 1, not {total:g}")
        for name in ("noise_rms", "tau"):
            if any(low > high for low, high in getattr(self, name)):
                raise ValueError(f"{name} must give each range as low, high")
        for name in ("drift", "own_drift", "swing", "swing_share"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"{name} must be low, high, not {[low, high]}")
        return self


class PlotConfig(Section):
    """How a series is drawn for a teacher that looks."""

    width: Annotated[int, Field(ge=128, le=4096)] = 448
    """Pixels; with fewer, the axes' words leave no room for the line."""
    height: Annotated[int, Field(ge=128, le=4096)] = 224
    """Pixels."""


class ErrorRates(Section):
    """How often the rules teacher states a wrong class, by facet."""

    trend: Share = 0.03
    noise: Share = 0.05
    maximum: Share = 0.04
    minimum: Share = 0.04


class RulesTeacher(Section):
    """A teacher that is not a model: it states the measured facets in varied sentences."""

    kind: Literal["rules"] = "rules"
    error_rate: ErrorRates = ErrorRates()
    """The share of wrong labels, by facet."""

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


class CurationConfig(Section):
    """Which annotations become training examples."""

    against_truth: Literal["drop", "keep"] = "drop"
    """What to do with a reply that contradicts what is measurable: reject it, or train on it all the same."""


class Lora(Section):
    """Low-rank adapters instead of full fine-tuning; merged into the model on export."""

    r: Positive = 4
    alpha: Positive = 32
    targets: tuple[str, ...] = ("q_proj", "v_proj")


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


SCRATCH_SIZES = ("0.03M", "0.1M", "0.3M", "1M")


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
    """Steps between checkpoints."""
    max_failures: Annotated[int, Field(ge=0)] = 2
    """How often a trial whose worker died goes on from its last checkpoint."""

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.batch_size % self.workers:
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
    max_new_tokens: Positive = 80
    """Longest reply, in tokens."""
    workers: Positive = 2
    """Processes that decode."""


class TrackingConfig(Section):
    """Where MLflow keeps the runs."""

    uri: Uri = "sqlite:///runs/mlflow.db"
    """An MLflow tracking URI; credentials come from MLflow's own environment variables."""
    experiment: str = "tsd"


class Recipe(Section):
    """A whole study."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
    """What the study's folder and MLflow run are called."""
    about: str = ""
    """What the recipe is for, in a line."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """The study's seed: with a series' id, all that a series depends on."""
    out: Uri = "runs"
    """The folder that holds studies: a path, or a URI such as s3://bucket/studies."""
    series: SeriesConfig = SeriesConfig()
    plots: PlotConfig = PlotConfig()
    teacher: Annotated[RulesTeacher | ApiTeacher, Field(discriminator="kind")] = RulesTeacher()
    curation: CurationConfig = CurationConfig()
    students: StudentsConfig = StudentsConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def _rules_unless_said(cls, value: Any) -> Any:
        teacher = value.get("teacher") if isinstance(value, dict) else None
        if isinstance(teacher, dict) and "kind" not in teacher:
            value = {**value, "teacher": {"kind": "rules", **teacher}}
        return value

    @property
    def folder(self) -> str:
        """Where this study lives."""
        return f"{self.out.rstrip('/')}/{self.name}"

    def require_enough_series(self) -> None:
        """Raise RecipeError where more is asked of a split than it can hold, before the first series is drawn."""
        asked = (max(self.students.volumes), self.evaluation.validation_examples, self.evaluation.series)
        fields = ("students.volumes", "evaluation.validation_examples", "evaluation.series")
        for field, wanted, share, split in zip(fields, asked, self.series.split, SPLITS, strict=True):
            there = int(self.series.count * share)
            if wanted > there:
                raise RecipeError(
                    f"{field} asks for {wanted:,} and the {split} split of {self.series.count:,} series "
                    f"holds about {there:,}: raise series.count"
                )

    @property
    def bytes_needed(self) -> int:
        """About how much a study writes; the weights of students from scratch are too small to count."""
        return 16 * 2**20 + self.series.count * BYTES_PER_SERIES


def load(source: str, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe by name or path and apply overrides such as `series.count=1000`.

    Raises RecipeError with one line that names the place, the value and the fix.
    """
    data = _resolve(source, ())
    for override in overrides:
        _apply(data, override)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"recipe {source}: {_first_problem(error)}") from None


def names() -> list[str]:
    """The recipes that come with tsd."""
    return sorted(Path(str(entry)).stem for entry in _folder().iterdir() if str(entry).endswith(".yaml"))


def to_yaml(recipe: Recipe) -> str:
    """The whole resolved recipe; loading it again gives the same recipe."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, width=100)


def nearest(name: str, valid: Sequence[str]) -> str:
    """ ", did you mean X?" where a valid name is close, else the valid names."""
    close = difflib.get_close_matches(name, valid, n=1)
    return f", did you mean {close[0]!r}?" if close else f" (valid: {', '.join(valid)})"


def _folder() -> Any:
    return resources.files("tsd") / "recipes"


def _resolve(source: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """The recipe's data with everything that it extends merged in."""
    if source.endswith((".yaml", ".yml")):
        source = os.path.normpath(source)  # one spelling for each file, so that a circle is seen
    if source in seen:
        raise RecipeError(f"recipe {source} extends itself: {' → '.join((*seen, source))}")
    data = _read(source)
    parent = data.pop("extends", None)
    if parent is None:
        return data
    if not isinstance(parent, str):
        raise RecipeError(f"recipe {source}: extends must be the name or path of a recipe, not {parent!r}")
    if parent.endswith((".yaml", ".yml")):
        parent = str(Path(source).parent / parent)
    return _merged(_resolve(parent, (*seen, source)), data)


def _read(source: str) -> dict[str, Any]:
    if source.endswith((".yaml", ".yml")):
        path = Path(source)
        if not path.is_file():
            raise RecipeError(
                f"there is no recipe file {source}: give a path that exists, or one of {', '.join(names())}"
            )
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {source} cannot be read: {_why(error)}") from None
    elif source in names():
        text = (_folder() / f"{source}.yaml").read_text()
    else:
        raise RecipeError(
            f"there is no recipe {source!r}{nearest(source, names())} (the path of a file ends in .yaml)"
        )
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        place = getattr(error, "problem_mark", None)
        line = f" line {place.line + 1}" if place else ""
        raise RecipeError(f"recipe {source}{line} is not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"recipe {source} must be a mapping of sections, not {type(data).__name__}")
    return data


def _why(error: OSError | UnicodeDecodeError) -> str:
    return f"not UTF-8 at byte {error.start}" if isinstance(error, UnicodeDecodeError) else str(error.strerror)


def _merged(base: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """A section merges key by key, but for a teacher of another kind, which replaces the old one whole."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = value
        if isinstance(old, dict) and isinstance(value, Mapping):
            kind = old.get("kind")
            if value.get("kind", kind) == kind:
                merged[key] = _merged(old, value)
    return merged


def _apply(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise RecipeError(f"--set {override}: expected a.b=value")
    said = " ".join(override.split())  # a message is one line, whatever was typed
    *sections, last = path.split(".")
    place = data
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {said}: {section} is a value, not a section")
        place = inner
    try:
        place[last] = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # a date that no calendar has is a ValueError
        raise RecipeError(f"--set {said}: {text!r} is not a YAML value") from None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    location = [part for part in problem["loc"] if part not in TEACHERS]
    place = ".".join(str(part) for part in location) or "the recipe"
    if problem["type"] == "extra_forbidden":
        fields = list(_fields_at(problem["loc"][:-1]))
        return f"unknown key {place}{nearest(str(location[-1]), fields)}"
    if problem["type"] == "missing":
        return f"{place} is missing"
    given = problem["input"]
    # An address is refused for the password in it, which a message must not repeat.
    shown = "" if isinstance(given, Mapping | BaseModel) or "://" in str(given) else f" is {given!r}:"
    message = problem["msg"].removeprefix("Value error, ")
    # A tuple that lost its only item is too short as well: what follows from a problem is not another one.
    more = sum(other["loc"] != problem["loc"][: len(other["loc"])] for other in error.errors()[1:])
    return f"{place}{shown or ':'} {message[0].lower()}{message[1:]}" + (f" (and {more} more)" if more else "")


def _fields_at(location: Sequence[int | str]) -> Iterator[str]:
    """The names of the fields that are valid at a place in the recipe, as pydantic spells the place."""
    models: list[Any] = [Recipe]
    for part in location:
        if part in TEACHERS:
            models = [TEACHERS[str(part)]]
        elif isinstance(part, str):
            models = [inner for model in models for inner in _models_in(model.model_fields[part].annotation)]
    for model in models:
        yield from model.model_fields


def _models_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models_in(inner)
