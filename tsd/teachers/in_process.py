"""Teachers that annotate a part of the series in a stage's own process: rules, and those of plugins."""

from functools import lru_cache

import pyarrow as pa

from tsd.errors import DataError, InputError
from tsd.recipe import AddedTeacher, Recipe, RulesTeacher
from tsd.recipe.additions import TEACHERS, Annotator
from tsd.storage.schemas import conform
from tsd.teachers.rules import Rules

KINDS = (RulesTeacher, AddedTeacher)


def annotate(recipe: Recipe, series: pa.Table) -> pa.Table:
    """Annotate series with the teacher of a recipe, which must be one of `KINDS`.

    Raises InputError if a plugin's teacher returns no annotations of these series.
    """
    table = _annotator(recipe).annotate(series)
    if isinstance(recipe.teacher, RulesTeacher):
        return table
    try:
        table = conform(table, recipe.asks.tables.annotations)
    except DataError as error:
        raise InputError(f"the teacher {recipe.teacher.name} returned no table of annotations: {error}") from None
    if table["series_id"].to_pylist() != series["series_id"].to_pylist():
        raise InputError(f"the teacher {recipe.teacher.name} must return one row per series, in their order")
    return table


@lru_cache(maxsize=1)  # a worker reuses a teacher that is slow to build for all parts
def _annotator(recipe: Recipe) -> Annotator:
    teacher = recipe.teacher
    if isinstance(teacher, RulesTeacher):
        return Rules(teacher, recipe.asks, recipe.seed)
    assert isinstance(teacher, AddedTeacher)
    return TEACHERS[teacher.kind].build(teacher, recipe.asks, recipe.seed)
