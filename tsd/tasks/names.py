"""Tasks by name: the built-in ones, and `module:TASK` for one outside tsd."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import product
from typing import get_args

from tsd.errors import HOW, InputError, PluginError, place, raised, trace
from tsd.tasks import modules, usable
from tsd.tasks.definitions import DEFAULT, Definitions, PlaceNames, Truth
from tsd.tasks.guarded import guarded
from tsd.tasks.pair import pair
from tsd.tasks.rich import rich
from tsd.tasks.single import single
from tsd.tasks.task import Task
from tsd.tasks.usable import require_usable

TASKS: Mapping[str, Callable[[Definitions], Task]] = {"single": single, "pair": pair, "rich": rich}


def truths_of(task: str) -> tuple[Truth, ...]:
    """By which truths a built-in task can label series."""
    return ("robust",) if task == "rich" else get_args(Truth)


def variants() -> list[Task]:
    """The built-in tasks, by all definitions."""
    return [
        task(Definitions(truth, places))
        for name, task in TASKS.items()
        for truth, places in product(truths_of(name), get_args(PlaceNames))
    ]


@cache
def named(name: str, folder: str = "", defined: Definitions = DEFAULT) -> Task:
    """The task of this name: one of `TASKS`, or the object that `package.module:TASK` or `file.py:TASK` names.

    A task from outside is checked once, but for its measures (see `require_measurable`), and its functions at
    every call. folder: where its file is looked for if the name has a digest, see `modules.found`. defined: by
    which definitions a built-in task labels series. Raises InputError if there is none of this name, or if it
    cannot be used.
    """
    if name in TASKS:
        return TASKS[name](defined)
    module, colon, attribute = name.rpartition(":")
    if not colon:
        raise InputError(f"there is no task {name!r}: name one of {', '.join(TASKS)}, or module:TASK")
    module = modules.found(module, folder, changed=True)
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
    with _one_line(f"the task {attribute} of {module} cannot be used", module):
        task = guarded(task)
        require_usable(task)
    return task


@cache
def require_measurable(name: str, points: int) -> None:
    """Try a task from outside once on a few series of so many points. name: as `named` takes it.

    Raises InputError if its functions raise, or return something wrong.
    """
    if name not in TASKS:
        module, _, attribute = name.rpartition(":")
        with _one_line(f"the task {attribute} of {module} cannot be used on series of {points:,} points", module):
            usable.require_measurable(named(name), points)


@contextmanager
def _one_line(what: str, module: str) -> Iterator[None]:
    """Turn whatever a task's code raises into an InputError of one line. what: is wrong."""
    try:
        yield
    except PluginError as error:
        raise PluginError(f"{what}: {error}", error.trace) from error
    except ValueError as error:
        raise InputError(f"{what}: {raised(error).removeprefix('ValueError: ')}") from None
    except Exception as error:  # whatever code from outside raises
        raise PluginError(f"{what}: {raised(error)} ({place(error, module)}; {HOW})", trace(error)) from error


def is_module(name: str) -> bool:
    """Whether the name of a task is that of a module, without the task in it."""
    return ":" not in name and name not in TASKS and ("." in name or "/" in name)


def tasks_of(module: str) -> list[str]:
    """The names of a module's own tasks: the built-in ones that it imports are left out. Loads the module."""
    found = vars(modules.load(modules.found(module)))
    return [name for name, task in found.items() if isinstance(task, Task) and task.name not in TASKS]
