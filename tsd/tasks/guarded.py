"""A task from outside tsd whose functions are checked whenever they are called.

What one of them raises, or returns in another shape, ends the command in one line that names it.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from tsd.errors import PluginError, plugin_error, source
from tsd.tasks.facet import Facet
from tsd.tasks.language import Reading
from tsd.tasks.task import Task


@dataclass(frozen=True)
class Guarded:
    """A function of a task, with a check of what it returns."""

    what: str
    """What messages call it."""
    function: Callable[..., Any]
    fault: Callable[..., str | None]
    """Arguments: what the function returned, then its own. Returns what is wrong with it, or None."""

    def __call__(self, *arguments: Any) -> Any:
        """Call the function. Raises PluginError if it raises, or returns something wrong."""
        try:
            made = self.function(*arguments)
            fault = self.fault(made, *arguments)
        except Exception as error:  # whatever code from outside raises
            raise plugin_error(self.what, self.function, error) from error
        if fault:
            raise PluginError(f"{self.what}, in {source(self.function)}, returned {fault}")
        return made


def guarded(task: Task) -> Task:
    """The task with every function guarded that is not tsd's own."""

    def facet(one: Facet) -> Facet:
        what = f"of the facet {one.name} of the task {task.name}"

        def fault(made: Any, measures: Mapping[str, Any], *_: Any) -> str | None:
            return _fault_of_classes(made, len(next(iter(measures.values()))), len(one.classes))

        def fault_of_reading(made: Any, _: str) -> str | None:
            return _fault_of_reading(made, one.classes)

        return replace(
            one,
            read=_guard(f"read {what}", one.read, fault_of_reading),
            classify=_guard(f"classify {what}", one.classify, fault),
            margin=one.margin and _guard(f"margin {what}", one.margin, _fault_of_margin),
        )

    def fault(made: Any, values: Any) -> str | None:
        return _fault_of_measures(made, len(values), task.measures)

    measure = _guard(f"measure of the task {task.name}", task.measure, fault)
    return replace(task, measure=measure, facets=tuple(map(facet, task.facets)))


def _guard(what: str, function: Callable[..., Any], fault: Callable[..., str | None]) -> Callable[..., Any]:
    ours = str(getattr(function, "__module__", "")).startswith("tsd.")
    return function if ours or isinstance(function, Guarded) else Guarded(what, function, fault)


def _fault_of_reading(made: Any, classes: Collection[str]) -> str | None:
    """Why something is not a reading of one of these classes, or of none; None if it is."""
    if not isinstance(made, Reading):
        return f"{made!r}: return a Reading"
    if made.label is None or (isinstance(made.label, str) and made.label in classes):
        return None
    return f"the label {made.label!r}: return one of {', '.join(classes)}, or None"


def _fault_of_classes(made: Any, batch: int, classes: int) -> str | None:
    """Why something is not an index of a class for each item; None if it is."""
    if not isinstance(made, np.ndarray):
        return f"{type(made).__name__}: return an array of integers of shape ({batch},)"
    if made.shape != (batch,) or made.dtype.kind not in "iu":
        return f"{made.dtype} of shape {made.shape}: return integers of shape ({batch},)"
    if batch and not 0 <= made.min() <= made.max() < classes:
        return f"indices from {made.min()} to {made.max()}: the facet has {classes} classes, from 0 on"
    return None


def _fault_of_margin(made: Any, measures: Mapping[str, Any]) -> str | None:
    """Why something is not a distance for each item; None if it is."""
    batch = len(next(iter(measures.values())))
    if not isinstance(made, np.ndarray):
        return f"{type(made).__name__}: return an array of numbers of shape ({batch},)"
    if made.shape != (batch,) or made.dtype.kind not in "fiu":
        return f"{made.dtype} of shape {made.shape}: return numbers of shape ({batch},)"
    return None


def _fault_of_measures(made: Any, batch: int, named: Mapping[str, pa.DataType]) -> str | None:
    """Why something does not hold every named measure as finite numbers, one per item; None if it does."""
    if not isinstance(made, Mapping):
        return f"{type(made).__name__}: return a mapping of arrays"
    for name in made:
        found, kind = np.asarray(made[name]), named.get(name, pa.float64())
        if found.shape != (batch,) or found.dtype.kind not in ("fiub" if pa.types.is_floating(kind) else "iub"):
            return f"{name} as {found.dtype} of shape {found.shape}: return {kind} of shape ({batch},)"
        if found.dtype.kind == "f" and not np.isfinite(found).all():
            return f"{name} with NaN or infinities: return finite numbers"
    return None
