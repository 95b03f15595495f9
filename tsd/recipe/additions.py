"""Curation policies, metrics and teachers that plugins add to recipes, by name. See `tsd.plugins`."""

import inspect
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import pyarrow as pa

from tsd.errors import source
from tsd.recipe.section import Section, nearest, validated
from tsd.series.processes import ADDED as PROCESSES
from tsd.storage.schemas import ALL_RIGHT, RUN, VALID
from tsd.tasks import Case, Task

NAME = re.compile(r"[a-z][a-z0-9_]*")
KINDS = ("rules", "local", "openai", "vllm")  # of built-in teachers
REASONS = ("form", "invalid", "error", "refused", "truncated")  # with which built-in policies reject

# Arguments: task, case, the policy's settings. Returns the reason for a rejection, or None.
Policy: TypeAlias = Callable[[Task, Case, Any], str | None]
# Arguments: a run's predictions (series_id, text, labels, truth), and their column truth. Returns a number from
# 0 to 1, the more the better.
Metric: TypeAlias = Callable[[pa.Table, pa.ChunkedArray], float]


class Annotator(Protocol):
    """A teacher that runs in the pipeline's own processes, part by part."""

    def annotate(self, series: pa.Table) -> pa.Table:
        """Map a table of series to the task's annotations table, one row per series in the same order."""
        ...


class NoSettings(Section):
    """The settings of a policy without any."""


class AddedTeacher(Section):
    """Settings of a teacher that a plugin adds: subclass it, with one field per key of the recipe."""

    kind: str
    """The name under which the teacher was added."""

    @property
    def name(self) -> str:
        """The teacher's name in tables."""
        return self.kind

    @property
    def identity(self) -> dict[str, Any]:
        """The settings that determine its responses, and the version of its code."""
        return {**self.model_dump(include=self.shaping()), "version": TEACHERS[self.kind].version}


@dataclass(frozen=True)
class PolicyEntry:
    """A policy of a plugin. version: of its code, part of the key of what it curates."""

    reject: Policy
    settings: type[Section]
    version: str


@dataclass(frozen=True)
class MetricEntry:
    """A metric of a plugin. version: of its code, part of the key of the runs table."""

    measure: Metric
    version: str


@dataclass(frozen=True)
class TeacherEntry:
    """A teacher of a plugin. version: of its code, part of the key of its annotations."""

    build: Callable[[Any, Task, int], Annotator]
    settings: type[AddedTeacher]
    version: str


POLICIES: dict[str, PolicyEntry] = {}
METRICS: dict[str, MetricEntry] = {}
TEACHERS: dict[str, TeacherEntry] = {}


def add_policy(name: str, reject: Policy, version: str, settings: type[Section] = NoSettings) -> None:
    """Add a policy, so that `curation.policies` can name it. Raises ValueError if it cannot be used."""
    before = POLICIES.get(name)
    _require_free("policy", name, reject, before and before.reject)
    _require_call("policy", name, reject, "task", "case", "settings")
    if name in REASONS:
        raise ValueError(f"the policy {name!r} has the name of a built-in reason for a rejection: give it another")
    _require_section("policy", name, settings, Section)
    POLICIES[name] = PolicyEntry(reject, settings, version)


def add_metric(name: str, measure: Metric, version: str) -> None:
    """Add a metric, so that `evaluation.metrics` can name it. Raises ValueError if it cannot be used."""
    before = METRICS.get(name)
    _require_free("metric", name, measure, before and before.measure)
    _require_call("metric", name, measure, "predictions", "truth")
    if name in (ALL_RIGHT, VALID, *(field.name for field in RUN)):
        raise ValueError(f"the metric {name!r} has the name of a column of the runs table: give it another")
    METRICS[name] = MetricEntry(measure, version)


def add_teacher(
    name: str, build: Callable[[Any, Task, int], Annotator], version: str, settings: type[AddedTeacher]
) -> None:
    """Add a teacher, so that `teacher.kind` can name it. Raises ValueError if it cannot be used."""
    before = TEACHERS.get(name)
    if name in KINDS:
        raise ValueError(f"there is a built-in teacher of kind {name!r}: give yours another name")
    _require_free("teacher", name, build, before and before.build)
    _require_call("teacher", name, build, "settings", "task", "seed")
    annotate = getattr(build, "annotate", None)
    if not callable(annotate):
        raise ValueError(f"the teacher {name!r} must be a class with a method annotate(series)")
    _require_call("teacher", f"{name}.annotate", annotate, "self", "series")
    _require_section("teacher", name, settings, AddedTeacher)
    TEACHERS[name] = TeacherEntry(build, settings, version)


def of_module(name: str) -> list[str]:
    """What a loaded module, or a package, adds, such as "metric balanced_trend". name: its `__name__`."""
    added: dict[str, dict[str, object]] = {
        "process": {key: process.curve for key, process in PROCESSES.items()},
        "policy": {key: entry.reject for key, entry in POLICIES.items()},
        "metric": {key: entry.measure for key, entry in METRICS.items()},
        "teacher": {key: entry.build for key, entry in TEACHERS.items()},
    }
    return [
        f"{what} {key}"
        for what, codes in added.items()
        for key, code in codes.items()
        if f"{getattr(code, '__module__', '')}.".startswith(f"{name}.")
    ]


def policy_settings(given: Mapping[str, Any]) -> dict[str, Section]:
    """The settings of the policies that a recipe names. Raises ValueError or ValidationError for wrong ones."""
    for name in given:
        if name not in POLICIES:
            raise ValueError(f"there is no policy {name!r}{_nearest(name, POLICIES)}")
        require_found_by_name("policy", name, POLICIES[name].settings)
    return {name: validated(POLICIES[name].settings, value, name) for name, value in given.items()}


def require_metric(name: str) -> str:
    """The name of a metric. Raises ValueError if no plugin adds it."""
    if name not in METRICS:
        raise ValueError(f"there is no metric {name!r}{_nearest(name, METRICS)}")
    return name


def require_found_by_name(what: str, name: str, settings: type[Section]) -> None:
    """Raise ValueError unless a process that loads the module finds the settings' class under its name there.

    A recipe reaches workers with the names of its classes alone.
    """
    found: object = sys.modules.get(settings.__module__)
    for part in settings.__qualname__.split("."):
        found = getattr(found, part, None)
    if found is not settings:
        raise ValueError(
            f"the settings of the {what} {name!r} are a class {settings.__qualname__} that {source(settings)} "
            "does not have under this name, where workers look for it: give each class a name of its own"
        )


def _nearest(name: str, known: Mapping[str, object]) -> str:
    return nearest(name, list(known)) if known else ": name the plugin that adds it in plugins"


def _require_free(what: str, name: str, new: object, before: object) -> None:
    """Raise ValueError for a name that no recipe could hold, or that another plugin has taken."""
    if not NAME.fullmatch(name):
        raise ValueError(f"the {what} {name!r} must be called by small letters, digits and _, a letter first")
    owner = getattr(before, "__module__", None)
    if before and owner in sys.modules and owner != getattr(new, "__module__", None):  # it did not fail to load
        raise ValueError(f"{source(before)} adds a {what} {name!r} as well: give yours another name")


def _require_call(what: str, name: str, function: Callable[..., object], *arguments: str) -> None:
    """Raise ValueError unless a function can be called with so many arguments."""
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as error:
        raise ValueError(f"the {what} {name!r} must take ({', '.join(arguments)}): {error}") from None


def _require_section(what: str, name: str, settings: object, base: type[Section]) -> None:
    """Raise ValueError unless settings are a section whose fields hide nothing of the base class."""
    if not (isinstance(settings, type) and issubclass(settings, base)):
        raise ValueError(f"the settings of the {what} {name!r} must be a subclass of {base.__name__}")
    if "<locals>" in settings.__qualname__:
        raise ValueError(
            f"the settings of the {what} {name!r} are the class {settings.__name__} of a function, which workers "
            "cannot load: define it at the top of the module"
        )
    for field in settings.model_fields:
        if field not in base.model_fields and hasattr(base, field):
            raise ValueError(f"the settings of the {what} {name!r} cannot have a field {field!r}: rename it")
