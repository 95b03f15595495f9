"""The interface for plugins: add a process, a curation policy, a metric or a teacher without changing tsd.

A plugin is a module that a recipe names in `plugins`. Its decorators give each addition a name, by which recipes
refer to it, and a version, which is part of the key of every artefact that the addition shapes: change it with
the code. A decorator raises ValueError, which ends the command in one line, if the name is taken or the addition
cannot be used. What an addition raises or returns wrong later ends it in one line as well. docs/extending.md is a
tutorial. A new task is no plugin: a recipe's `task` names it directly.
"""

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import TypeVar

import pyarrow as pa

from tsd.recipe import additions
from tsd.recipe.additions import AddedTeacher, Metric, NoSettings, Policy
from tsd.recipe.section import Section
from tsd.series import processes
from tsd.series.processes import Curve, Process, Span
from tsd.tasks import Case, Task
from tsd.teachers import Reply, annotations, request_keys

__all__ = [
    "AddedTeacher",
    "Case",
    "Reply",
    "Section",
    "Span",
    "Task",
    "add_metric",
    "add_policy",
    "add_process",
    "add_teacher",
    "to_annotations",
]

C = TypeVar("C", bound=Curve)
P = TypeVar("P", bound=Policy)
M = TypeVar("M", bound=Metric)
T = TypeVar("T", bound=type)


def add_process(
    name: str, *, version: str, ranges: Mapping[str, Span | tuple[float, ...]] | None = None, swings: bool = False
) -> Callable[[C], C]:
    """Add a process, which `series.mix` can name: a function of (own, time, shocks, rng).

    As in `tsd.series.processes`, the function gets `own`, the parameters by name, (batch,) each; `time` from 0
    to 1, (length, 1); `shocks` of unit variance, (length, batch). It returns the mean curve, (length, batch) or
    (length, 1), finite floats of size about 1, and draws from `rng` alone. It may change the shocks in place, and
    nothing else. ranges: of its parameters, which become columns of the series table. swings: add the curve to a
    linear drift rather than make it the drift.
    """

    def add(curve: C) -> C:
        spans = {key: _span(name, key, span) for key, span in (ranges or {}).items()}
        processes.add(name, Process(curve, spans, swings=swings, version=_known(version)))
        return curve

    return add


def add_policy(name: str, *, version: str, settings: type[Section] = NoSettings) -> Callable[[P], P]:
    """Add a curation policy, which `curation.policies` can name: a function of (task, case, settings).

    It returns the reason why a response is rejected, or None. It sees responses that all built-in policies keep,
    after correction. settings: a subclass of `Section` whose fields are the policy's keys in the recipe.
    """

    def add(reject: P) -> P:
        additions.add_policy(name, reject, _known(version), settings)
        return reject

    return add


def add_metric(name: str, *, version: str) -> Callable[[M], M]:
    """Add a metric of a run, which `evaluation.metrics` can name: a function of (predictions, truth).

    predictions: a table with `series_id`, `text`, `labels` and `truth`, of which the last two are structs with
    one field per facet; a label that is not stated is null. truth: its column of that name. The function returns
    a number from 0 to 1, the more the better. It is called again on resampled rows, for the interval.
    """

    def add(measure: M) -> M:
        additions.add_metric(name, measure, _known(version))
        return measure

    return add


def add_teacher(name: str, *, version: str, settings: type[AddedTeacher] = AddedTeacher) -> Callable[[T], T]:
    """Add a teacher, which `teacher.kind` can name: a class that is built from (settings, task, seed).

    Its method `annotate(series)` maps a table of series to their annotations; `to_annotations` makes these from
    replies. It is called once per part, in a worker. A row must depend on its own series, the settings and the
    seed alone. settings: a subclass of `AddedTeacher` whose fields are the teacher's keys in the recipe.
    """

    def add(build: T) -> T:
        additions.add_teacher(name, build, _known(version), settings)
        return build

    return add


def to_annotations(
    settings: AddedTeacher, task: Task, seed: int, series: pa.Table, replies: Sequence[Reply]
) -> pa.Table:
    """Convert replies to the annotations table, with the labels that the task reads in them.

    series: the rows that the teacher was given. replies: one per row. Raises ValueError for another number of
    them, TypeError for anything else than replies.
    """
    replies = list(replies)
    if len(replies) != series.num_rows:
        raise ValueError(
            f"{len(replies):,} replies for {series.num_rows:,} series: give one Reply per series, in their order"
        )
    for i, reply in enumerate(replies):
        if not isinstance(reply, Reply):
            raise TypeError(f"reply {i} is {reply!r:.60}: give Reply(text) for each series")
    keys = request_keys(task, [settings.identity, seed], series)
    return annotations(task, settings.name, series, keys, replies)


def _span(process: str, name: str, span: Sequence[float]) -> Span:
    """The range of a parameter; a plain tuple will do. Raises ValueError for anything but four numbers."""
    if not isinstance(span, tuple | list) or len(span) != 4 or not all(isinstance(one, Real) for one in span):
        raise ValueError(f"the process {process!r}: {name} is {span!r}, and must be Span(low, high, least, most)")
    return Span(*span)


def _known(version: str) -> str:
    """A version. Raises ValueError unless it is a text."""
    if not isinstance(version, str) or not version:
        raise ValueError(f'a version must be a text such as "1", not {version!r}')
    return version
