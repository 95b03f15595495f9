"""Tasks by name: the built-in ones, and `module:TASK` for one outside tsd."""

import json
from functools import cache

import numpy as np

from tsd.errors import InputError
from tsd.tasks import modules
from tsd.tasks.pair import PAIR
from tsd.tasks.single import SINGLE
from tsd.tasks.task import Task

TASKS = {task.name: task for task in (SINGLE, PAIR)}
TRIED = 32  # points of the series on which a task from outside is tried


@cache
def named(name: str) -> Task:
    """The task of this name: one of `TASKS`, or the object that `package.module:TASK` or `file.py:TASK` names.

    A task from outside is checked once. Raises InputError if there is none of this name, or if it cannot be used.
    """
    if name in TASKS:
        return TASKS[name]
    module, colon, attribute = name.rpartition(":")
    if not colon:
        raise InputError(f"there is no task {name!r}: name one of {', '.join(TASKS)}, or module:TASK")
    found = vars(modules.load(module))
    task = found.get(attribute)
    if not isinstance(task, Task):
        tasks = [each for each, value in found.items() if isinstance(value, Task)]
        known = f"it has {', '.join(tasks)}" if tasks else "assign a tsd.tasks.Task to it"
        raise InputError(f"{module} has no task {attribute!r}: {known}")
    if task.name in TASKS:
        raise InputError(
            f"{module}: the task {attribute} has the name of a built-in task, {task.name!r}: rename it"
        )
    try:
        _require_usable(task)
    except Exception as error:  # whatever code from outside raises
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"the task {attribute} of {module} cannot be used: {said}") from None
    return task


def _require_usable(task: Task) -> None:
    """Raise ValueError unless a task measures what it names and reads what it phrases."""
    values = np.arange(2 * task.curves * TRIED, dtype=np.uint8).reshape(2, -1) % 100
    measures = task.measure(values)
    if set(measures) != set(task.measures):
        raise ValueError(f"measure returns {sorted(measures)}, and measures names {sorted(task.measures)}")
    task.truth(measures, TRIED)
    task.margins(measures)
    for facet in task.facets:
        for name in facet.classes:
            for phrasing in facet.phrasings:
                said = phrasing.format(name)
                label = task.parse(json.dumps({facet.topic: said})).labels[facet.name]
                if label != name:
                    raise ValueError(f"{facet.name}: {said!r} is read as {label}, not {name}")
