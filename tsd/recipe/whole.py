"""The recipe of a whole study."""

from math import prod
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from tsd.errors import RecipeError
from tsd.recipe.learning import EvaluationConfig, StudentsConfig, TrackingConfig, TrainingConfig
from tsd.recipe.section import Section, Uri, nearest
from tsd.recipe.series import PlotConfig, SeriesConfig
from tsd.recipe.teaching import EVERY, ApiTeacher, CurationConfig, RulesTeacher, VllmTeacher
from tsd.schema import SPLITS
from tsd.tasks import TASKS, Task

# Over all tables, generously: the laptop study's series of 128 points take about 600 bytes each.
BYTES_PER_POINT, BYTES_PER_ROW, BYTES_PER_PIXEL = 10, 500, 0.1


def _known_task(name: str) -> str:
    if name not in TASKS:
        raise ValueError(f"unknown task{nearest(name, list(TASKS))}")
    return name


TaskName = Annotated[str, AfterValidator(_known_task)]


class Recipe(Section):
    """A whole study."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]
    """What the study's folder and MLflow run are called."""
    about: str = ""
    """What the recipe is for, in a line."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """The study's seed: with a series' id, all that a series depends on."""
    task: TaskName = "single"
    """What is asked: `single`, the paper's task about one series, or `pair`, its task about two."""
    out: Uri = "runs"
    """The folder that holds studies: a path, or a URI such as s3://bucket/studies."""
    series: SeriesConfig = SeriesConfig()
    plots: PlotConfig = PlotConfig()
    teacher: Annotated[RulesTeacher | ApiTeacher | VllmTeacher, Field(discriminator="kind")] = RulesTeacher()
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

    @model_validator(mode="after")
    def _pairs_have_one_length(self) -> Self:
        if self.asks.curves > 1 and len(self.series.lengths) > 1:
            raise ValueError(f"series.length must be one number for the task {self.task}, not a list")
        return self

    @model_validator(mode="after")
    def _errors_are_in_facets_of_the_task(self) -> Self:
        if isinstance(self.teacher, RulesTeacher):
            known = [EVERY, *self.asks.names]
            for name in self.teacher.error_rate:
                if name not in known:
                    raise ValueError(
                        f"teacher.error_rate.{name}: the task {self.task} has no such facet{nearest(name, known)}"
                    )
        return self

    @property
    def asks(self) -> Task:
        """The task that `task` names."""
        return TASKS[self.task]

    @property
    def folder(self) -> str:
        """Where this study lives."""
        return f"{self.out.rstrip('/')}/{self.name}"

    @property
    def max_new_tokens(self) -> int:
        """The longest reply of a student, in tokens."""
        return self.evaluation.max_new_tokens or self.asks.reply_tokens

    @property
    def kept_share(self) -> float:
        """The share of replies that curation keeps, as far as the recipe tells."""
        if not isinstance(self.teacher, RulesTeacher) or self.curation.against_truth == "keep":
            return 1.0
        rates = self.teacher.error_rate
        return prod(1 - rates.get(facet, rates[EVERY]) for facet in self.asks.names)

    def require_enough_series(self) -> None:
        """Raise RecipeError where more is asked of a split than it can hold, before the first series is drawn."""
        kept = (self.kept_share, self.kept_share, 1.0)
        asked = (max(self.students.volumes), self.evaluation.validation_examples, self.evaluation.series)
        fields = ("students.volumes", "evaluation.validation_examples", "evaluation.series")
        for field, wanted, *shares, split in zip(fields, asked, self.series.split, kept, SPLITS, strict=True):
            there = int(self.series.count * prod(shares))
            if wanted > there:
                after = ", once curated," if shares[1] < 1 else ""
                raise RecipeError(
                    f"{field} asks for {wanted:,} and the {split} split of {self.series.count:,} {self.asks.unit} "
                    f"holds{after} about {there:,}: raise series.count"
                )

    @property
    def bytes_needed(self) -> int:
        """About how much a study writes; the weights of students from scratch are too small to count."""
        each = BYTES_PER_POINT * self.series.points * self.asks.curves + BYTES_PER_ROW
        if self.plots.store:
            each += BYTES_PER_PIXEL * max(width * height for width, height in self.plots.sizes)
        return 16 * 2**20 + int(self.series.count * each)
