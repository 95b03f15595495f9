"""Tasks: the facets about which teachers and students are prompted."""

from tsd.tasks.definitions import DEFAULT, PAPER, Definitions, PlaceNames, Truth
from tsd.tasks.facet import STYLES, Facet, Labels, Measures, Number, wording_of
from tsd.tasks.names import TASKS, is_module, named, require_measurable, tasks_of, truths_of, variants
from tsd.tasks.pair import PAIR, pair
from tsd.tasks.rich import RICH, rich
from tsd.tasks.single import SINGLE, single
from tsd.tasks.task import PARAMETERS, Case, Parsed, Task

__all__ = [
    "DEFAULT",
    "PAIR",
    "PAPER",
    "PARAMETERS",
    "RICH",
    "SINGLE",
    "STYLES",
    "TASKS",
    "Case",
    "Definitions",
    "Facet",
    "Labels",
    "Measures",
    "Number",
    "Parsed",
    "PlaceNames",
    "Task",
    "Truth",
    "is_module",
    "named",
    "pair",
    "require_measurable",
    "rich",
    "single",
    "tasks_of",
    "truths_of",
    "variants",
    "wording_of",
]
