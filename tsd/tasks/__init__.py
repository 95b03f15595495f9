"""Tasks: the facets about which teachers and students are prompted."""

from tsd.tasks.pair import PAIR
from tsd.tasks.single import SINGLE
from tsd.tasks.task import PARAMETERS, Facet, Labels, Measures, Parsed, Task

TASKS = {task.name: task for task in (SINGLE, PAIR)}

__all__ = ["PAIR", "PARAMETERS", "SINGLE", "TASKS", "Facet", "Labels", "Measures", "Parsed", "Task"]
