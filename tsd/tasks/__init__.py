"""Tasks: the facets about which teachers and students are prompted."""

from tsd.tasks.names import TASKS, is_module, named, require_measurable, tasks_of
from tsd.tasks.pair import PAIR
from tsd.tasks.single import SINGLE
from tsd.tasks.task import PARAMETERS, Case, Facet, Labels, Measures, Parsed, Task

__all__ = [
    "PAIR",
    "PARAMETERS",
    "SINGLE",
    "TASKS",
    "Case",
    "Facet",
    "Labels",
    "Measures",
    "Parsed",
    "Task",
    "is_module",
    "named",
    "require_measurable",
    "tasks_of",
]
