"""The recipe of a whole study."""

import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cache
from math import prod
from typing import Annotated, Any, Self, SupportsIndex

from pydantic import BeforeValidator, Field, model_validator

from tsd.errors import InputError, RecipeError
from tsd.recipe.additions import TEACHERS
from tsd.recipe.curation import CurationConfig
from tsd.recipe.section import EVERY, MACHINE, Section, Shapes, Uri, nearest
from tsd.recipe.series import PlotConfig, SeriesConfig, defaults_by
from tsd.recipe.teacher_kinds import Teacher
from tsd.recipe.teachers import ModelTeacher, RulesTeacher
from tsd.recipe.training import EvaluationConfig, StudentsConfig, TrackingConfig, TrainingConfig
from tsd.series.processes import added, own_ranges
from tsd.storage.schemas import SPLITS
from tsd.tasks import (
    DEFAULT,
    TASKS,
    Definitions,
    PlaceNames,
    Task,
    Truth,
    is_module,
    modules,
    named,
    require_measurable,
    truths_of,
)

# Generous bounds on the bytes over all tables.
BYTES_PER_POINT, BYTES_PER_ROW, BYTES_PER_PIXEL = 10, 500, 0.1


def located(task: str, folder: str = "") -> str:
    """The name of a task, with the absolute path of its file if a file has it. folder: of relative paths."""
    module, colon, attribute = task.rpartition(":")
    return f"{modules.located(module, folder)}:{attribute}" if colon else modules.located(task, folder)


def _folder_name(name: Any) -> Any:
    """A name as it is. Raises ValueError for a text that is not the name of a folder in `out`."""
    if isinstance(name, str) and not re.fullmatch(NAME, name):
        raise ValueError("must be letters, digits, points, _ and -, and not begin with a point: it names a folder")
    return name


def _known_task(name: object) -> str:
    """The name of a task, with the absolute path of its file. Raises ValueError if there is none of this name."""
    if not isinstance(name, str):
        raise ValueError(f"name one of {', '.join(TASKS)}, or module:TASK")
    if is_module(name):  # it is not loaded here: a stored recipe may come from someone else
        raise ValueError(f"a module needs the name of its task, such as {name}:TASK")
    if ":" not in name and name not in TASKS:
        raise ValueError(f"unknown task{nearest(name, list(TASKS))}")
    try:
        module, colon, attribute = name.rpartition(":")
        whole = f"{modules.found(module)}{colon}{attribute}" if colon else name
        named(whole)
    except InputError as error:
        raise ValueError(str(error)) from error
    return whole


@cache
def _extended(task: str, defined: Definitions, processes: tuple[str, ...], metrics: tuple[str, ...]) -> Task:
    """A task whose tables have columns for plugins. processes: of plugins, in alphabetical order."""
    built = named(task, defined=defined)
    if not processes and not metrics:
        return built
    return replace(built, parameters=(*built.parameters, *own_ranges(added(processes))), metrics=metrics)


def _unpickled(kind: type["Recipe"], plugins: tuple[modules.Sent, ...], state: bytes) -> "Recipe":
    """A recipe in another process. Its plugins are loaded before anything that refers to them is unpickled."""
    for plugin in plugins:
        plugin.load()
    recipe = kind.__new__(kind)
    recipe.__setstate__(pickle.loads(state))
    return recipe


def _of_a_kind(teacher: Any, folder: str) -> Any:
    """A teacher's section with defaults: `rules` for no kind; `local`, stored with the study, for a trained one.

    Raises ValueError for a teacher with both `model` and `train`.
    """
    if not isinstance(teacher, dict) or _is_added(teacher):
        return teacher
    if teacher.get("train") is None:
        return {"kind": "rules", **teacher}
    if teacher.get("model") is not None:
        raise ValueError(
            "a teacher is either a named model or trained and stored with the study: leave out model or train"
        )
    return {"kind": "local", **teacher, "model": f"{folder}/teacher"}


def _is_own(teacher: Any) -> bool:
    """Whether a teacher is trained by the study or run locally."""
    if not isinstance(teacher, dict) or _is_added(teacher):
        return False
    return teacher.get("train") is not None or teacher.get("kind") == "local"


def _is_added(teacher: Mapping[str, Any]) -> bool:
    """Whether a teacher is of a kind that a plugin adds, whose fields have meanings of their own."""
    return isinstance(teacher.get("kind"), str) and teacher["kind"] in TEACHERS


def _with_teachers(fields: dict[str, Any]) -> dict[str, Any]:
    """Fill in the defaults that depend on the teacher: its kind, its folder, and the plot style."""
    folder = f"{str(fields.get('out', OUT)).rstrip('/')}/{fields.get('name')}"
    said = {name: fields[name] for name in ("teacher", "teachers") if isinstance(fields.get(name), dict)}
    if "teacher" in said:
        said["teacher"] = _of_a_kind(said["teacher"], folder)
    if "teachers" in said:
        said["teachers"] = {
            name: _of_a_kind(one, f"{folder}/teachers/{name}") for name, one in said["teachers"].items()
        }
    own = any(map(_is_own, said.get("teachers", {}).values() or [said.get("teacher")]))
    plots = fields.get("plots", {})
    if own and isinstance(plots, dict):
        said["plots"] = {"style": "bare", **plots}
    return {**fields, **said}


def _with_definitions(fields: dict[str, Any]) -> dict[str, Any]:
    """Fill in the defaults of the series that depend on the task, or on how their truth is measured."""
    series = fields.get("series", {})
    usual = defaults_by(fields.get("task"), fields.get("truth"))
    return {**fields, "series": {**usual, **series}} if usual and isinstance(series, dict) else fields


def _with_plugins(fields: dict[str, Any]) -> dict[str, Any]:
    """Load the plugins, whose names the sections use, and make their paths absolute. Raises ValueError."""
    if "plugins" not in fields:
        return fields
    try:
        plugins = [modules.found(one) for one in modules.listed(fields["plugins"])]
        for one in plugins:
            modules.load(one)
    except InputError as error:
        raise ValueError(f"plugins: {error}") from error
    return {**fields, "plugins": plugins}


def _fault_of_definitions(recipe: "Recipe") -> str | None:
    """Why the definitions of labels do not fit the task or the length of the series; None if they do."""
    # A printed recipe names the defaults, whatever its task.
    named = [field for field in ("truth", "places") if getattr(recipe, field) != getattr(DEFAULT, field)]
    if recipe.task not in TASKS:
        return f"{named[0]}: the task {recipe.asks.name} has its own definitions: leave it out" if named else None
    if recipe.truth not in truths_of(recipe.task):
        return (
            f"truth: the task {recipe.task} has no {recipe.truth} truth: set truth: robust, or name another task"
        )
    least = (3 if recipe.task == "pair" else 1) * Definitions(recipe.truth, recipe.places).shortest
    if recipe.series.lengths[0] >= least:
        return None
    return (
        f"series.length must be at least {least} for the task {recipe.task} with truth: robust, not "
        f"{recipe.series.lengths[0]}: make it longer, or set truth: paper"
    )


OUT = "runs"
TaskName = Annotated[str, BeforeValidator(_known_task)]
NAME = r"^[A-Za-z0-9_-][A-Za-z0-9._-]*$"
Name = Annotated[str, Field(pattern=NAME), BeforeValidator(_folder_name)]


class Recipe(Section):
    """A whole study."""

    name: Annotated[Name, MACHINE]
    """The name of the study's folder and MLflow run."""
    about: Annotated[str, MACHINE] = ""
    """A one-line description."""
    seed: Annotated[int, Field(ge=0, lt=2**63), Shapes("generate")] = 0
    """The study's seed. A series depends only on it and on the series' id."""
    task: Annotated[TaskName, Shapes("generate")] = "single"
    """The tasks of arXiv 2507.07439: `single` is about one series, `pair` about two. `rich` is `single` with
    season, level shift, outliers, volatility and reversion. `package.module:TASK` or `./file.py:TASK` is a task
    outside tsd."""
    truth: Annotated[Truth, Shapes("generate")] = "robust"
    """How the true trend and noise of a series are measured, for a built-in task. `robust`: a trend has a
    direction only where its change is large and beyond what noise and cycles would do, and noise is what is left
    around trend, season, shifts and bends. `paper`: the formulas of arXiv 2507.07439; not for `rich`."""
    places: Annotated[PlaceNames, Shapes("generate")] = "quarters"
    """What is called the beginning and the end of a series, for a built-in task: the first and the last quarter of
    its points (`quarters`), as in arXiv 2507.07439, or the first and the last third (`thirds`)."""
    plugins: Annotated[tuple[str, ...], MACHINE] = ()
    """Modules, or paths of .py files, that add processes, policies, metrics or teachers. A relative path starts at
    the recipe's folder."""
    out: Annotated[Uri, MACHINE] = OUT
    """The folder for studies: a path, or a URI such as s3://bucket/studies."""
    series: Annotated[SeriesConfig, Shapes("generate")] = SeriesConfig()
    plots: Annotated[PlotConfig, Shapes("annotate")] = PlotConfig()
    teacher: Annotated[Teacher, Shapes("annotate")] = RulesTeacher()
    teachers: Annotated[dict[Name, Teacher], Shapes("annotate")] = Field(default={})
    """Several teachers by name, instead of one. Every student is trained with each, on the same series."""
    curation: Annotated[CurationConfig, Shapes("curate")] = CurationConfig()
    students: Annotated[StudentsConfig, Shapes("train")] = StudentsConfig()
    training: Annotated[TrainingConfig, Shapes("train")] = TrainingConfig()
    evaluation: Annotated[EvaluationConfig, Shapes("evaluate")] = EvaluationConfig()
    tracking: Annotated[TrackingConfig, MACHINE] = TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def _plugins_come_first(cls, value: Any) -> Any:
        return _with_teachers(_with_definitions(_with_plugins(value))) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _the_task_measures_the_series(self) -> Self:
        try:
            require_measurable(self.task, self.series.lengths[0])
        except InputError as error:
            raise ValueError(str(error)) from error
        return self

    @model_validator(mode="after")
    def _definitions_fit_the_task(self) -> Self:
        if fault := _fault_of_definitions(self):
            raise ValueError(fault)
        return self

    @model_validator(mode="after")
    def _local_teachers_see_bare_plots(self) -> Self:
        for teacher in self.teachers.values() or [self.teacher]:
            if isinstance(teacher, ModelTeacher) and teacher.own and self.plots.style != "bare":
                raise ValueError(
                    f"plots.style is {self.plots.style!r}, but a locally trained teacher needs bare plots: "
                    "leave plots.style out"
                )
        return self

    @model_validator(mode="after")
    def _pairs_have_one_length(self) -> Self:
        if self.asks.curves > 1 and len(self.series.lengths) > 1:
            raise ValueError(f"series.length must be one number for the task {self.asks.name}, not a list")
        return self

    @model_validator(mode="after")
    def _facets_are_those_of_the_task(self) -> Self:
        named = [(f"curation.{field}", facet) for field, facet in self.curation.named_facets()]
        asked = {"teacher": self.teacher} | {f"teachers.{name}": one for name, one in self.teachers.items()}
        for place, teacher in asked.items():
            if isinstance(teacher, RulesTeacher):
                named += [(f"{place}.error_rate", facet) for facet in teacher.error_rate if facet != EVERY]
        for field, facet in named:
            if facet not in self.asks.names:
                known = nearest(facet, [EVERY, *self.asks.names])
                raise ValueError(f"{field}.{facet}: the task {self.asks.name} has no such facet{known}")
        return self

    @model_validator(mode="after")
    def _metrics_have_names_of_their_own(self) -> Self:
        for name in self.evaluation.metrics:
            if name in self.asks.names or self.evaluation.metrics.count(name) > 1:
                raise ValueError(f"evaluation.metrics: {name} is a facet of the task, or is named twice")
        return self

    @model_validator(mode="after")
    def _machines_fit_students(self) -> Self:
        for student in self.students.models:
            workers = student.workers or self.training.workers
            self.training.require_fair_shares(workers)
            if student.gpus is not None and (not self.training.gpu or (workers > 1 and student.gpus < 1)):
                why = f"{workers} workers cannot share one" if self.training.gpu else "training.gpu is false"
                raise ValueError(
                    f"students.models: {student.name} requests {student.gpus:g} of a GPU, but {why}: "
                    "leave out its gpus"
                )
        return self

    @model_validator(mode="after")
    def _caps_leave_room(self) -> Self:
        for facet, classes in self.asks.classes.items():
            cap = self.curation.cap(facet)
            if cap * len(classes) < 1:
                raise ValueError(
                    f"curation.caps of {facet} must be at least {1 / len(classes):.3g}, not {cap:g}: "
                    f"its {len(classes)} classes could not fill the corpus"
                )
        return self

    @property
    def by_teacher(self) -> dict[str, Self]:
        """One recipe per teacher of a study with several: a study in a subfolder."""
        return {
            name: self.model_copy(
                update={"name": name, "out": f"{self.folder}/teachers", "teacher": teacher, "teachers": {}}
            )
            for name, teacher in self.teachers.items()
        }

    @property
    def asks(self) -> Task:
        """The task object that `task` names. Its tables have columns for what the recipe uses of plugins."""
        defined = Definitions(self.truth, self.places)
        return _extended(self.task, defined, tuple(added(self.series.mix)), self.evaluation.metrics)

    @property
    def outside(self) -> tuple[str, ...]:
        """The modules outside tsd that a process must load to work for the study."""
        module, colon, _ = self.task.rpartition(":")
        return tuple(dict.fromkeys((*self.plugins, *([module] if colon else []))))

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """Pickle the recipe with the files of its plugins, which are loaded wherever it is unpickled."""
        if not self.outside:
            return super().__reduce_ex__(protocol)
        sent = tuple(modules.sent(one) for one in self.outside)
        return _unpickled, (type(self), sent, pickle.dumps(self.__getstate__()))

    def shaped(self, stage: str | None = None, above: str = "") -> Iterator[tuple[str, Any, str]]:
        """As of any section. A task outside tsd counts by its own name, wherever its file is."""
        for path, value, its in super().shaped(stage, above):
            yield path, self.asks.name if path == "task" else value, its

    @property
    def folder(self) -> str:
        """The study's folder."""
        return f"{self.out.rstrip('/')}/{self.name}"

    @property
    def max_new_tokens(self) -> int:
        """Maximum length of a student's response in tokens."""
        return self.evaluation.max_new_tokens or self.asks.reply_tokens

    @property
    def kept_share(self) -> float:
        """Estimated fraction of responses that curation keeps."""
        if self.teachers:
            return min(one.kept_share for one in self.by_teacher.values())
        if not isinstance(self.teacher, RulesTeacher):
            return 1.0
        rates = self.teacher.error_rate
        dropped = [facet for facet in self.asks.names if self.curation.policy(facet) == "drop"]
        return prod(1 - rates.get(facet, rates[EVERY]) for facet in dropped)

    def require_enough_series(self) -> None:
        """Raise RecipeError if a split has too few series for what the recipe asks of it."""
        kept = (self.kept_share, self.kept_share, 1.0)
        asked = (max(self.students.train_sizes), self.evaluation.validation_examples, self.evaluation.series)
        fields = ("students.train_sizes", "evaluation.validation_examples", "evaluation.series")
        for field, wanted, *shares, split in zip(fields, asked, self.series.split, kept, SPLITS, strict=True):
            there = int(self.series.count * prod(shares))
            if wanted > there:
                after = " after curation" if shares[1] < 1 else ""
                raise RecipeError(
                    f"{field} needs {wanted:,}, but the {split} split of {self.series.count:,} {self.asks.unit} "
                    f"has about {there:,}{after}: raise series.count"
                )

    def require_own_teacher(self) -> None:
        """Raise RecipeError if the recipe has no teacher to train."""
        for teacher in self.teachers.values() or [self.teacher]:
            if not isinstance(teacher, ModelTeacher) or teacher.train is None:
                raise RecipeError(
                    f"the teacher of {self.name} is not trained locally: set teacher.train, such as "
                    "teacher={kind: local, train: {pictures: 60000}}"
                )

    @property
    def bytes_needed(self) -> int:
        """Estimated bytes that a study writes, without the small weights of students from scratch."""
        each = BYTES_PER_POINT * self.series.points * self.asks.curves + BYTES_PER_ROW
        if self.plots.store:
            each += BYTES_PER_PIXEL * max(width * height for width, height in self.plots.sizes)
        return 16 * 2**20 + int(self.series.count * each * max(1, len(self.teachers)))
