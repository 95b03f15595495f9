"""The recipe of a study: pydantic models, loading, `extends` and overrides.

A recipe is a YAML file. It may extend another one, by name or path, and then sets only what differs. Errors are
reported before any work starts, in one line: the field, its value, what was expected, and the closest valid name.
"""

from tsd.recipe.additions import AddedTeacher
from tsd.recipe.curation import CurationConfig, NliConfig
from tsd.recipe.loading import load, names, to_yaml
from tsd.recipe.section import EVERY, nearest
from tsd.recipe.series import PlotConfig, SeriesConfig
from tsd.recipe.study import Recipe
from tsd.recipe.teachers import ApiTeacher, LocalTeacher, ModelTeacher, RulesTeacher, Training, VllmTeacher
from tsd.recipe.training import SCRATCH_SIZES, Distil, Lora, Student, TrainingConfig

__all__ = [
    "EVERY",
    "SCRATCH_SIZES",
    "AddedTeacher",
    "ApiTeacher",
    "CurationConfig",
    "Distil",
    "LocalTeacher",
    "Lora",
    "ModelTeacher",
    "NliConfig",
    "PlotConfig",
    "Recipe",
    "RulesTeacher",
    "SeriesConfig",
    "Student",
    "Training",
    "TrainingConfig",
    "VllmTeacher",
    "load",
    "names",
    "nearest",
    "to_yaml",
]
