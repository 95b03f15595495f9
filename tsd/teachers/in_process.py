"""Teachers that annotate a part of the series in a stage's own process: rules, and those of plugins."""

from functools import lru_cache

import pyarrow as pa

from tsd.errors import DataError, PluginError, plugin_error, source
from tsd.recipe import AddedTeacher, Recipe, RulesTeacher
from tsd.recipe.additions import TEACHERS, Annotator
from tsd.storage.schemas import conform
from tsd.teachers.rules import Rules

KINDS = (RulesTeacher, AddedTeacher)


def annotate(recipe: Recipe, series: pa.Table) -> pa.Table:
    """Annotate series with the teacher of a recipe, which must be one of `KINDS`.

    Raises PluginError if a plugin's teacher fails, or returns no annotations of these series.
    """
    if isinstance(recipe.teacher, RulesTeacher):
        return _annotator(recipe).annotate(series)
    assert isinstance(recipe.teacher, AddedTeacher)
    build = TEACHERS[recipe.teacher.kind].build
    what = f"the teacher {recipe.teacher.kind}"
    try:
        table = _annotator(recipe).annotate(series)
    except Exception as error:  # whatever code from outside raises
        raise plugin_error(what, build, error) from error
    what = f"{what}, in {source(build)},"
    if not isinstance(table, pa.Table):
        raise PluginError(f"{what} returned {type(table).__name__}: return the table that to_annotations makes")
    try:
        table = conform(table, recipe.asks.tables.annotations)
    except (DataError, pa.ArrowException) as error:
        raise PluginError(f"{what} returned no table of annotations: {error}") from None
    if table["series_id"].to_pylist() != series["series_id"].to_pylist():
        raise PluginError(
            f"{what} returned {table.num_rows:,} rows for {series.num_rows:,} series: return one row per series, "
            "in their order"
        )
    return table


@lru_cache(maxsize=1)  # a worker reuses a teacher that is slow to build for all parts
def _annotator(recipe: Recipe) -> Annotator:
    teacher = recipe.teacher
    if isinstance(teacher, RulesTeacher):
        return Rules(teacher, recipe.asks, recipe.seed)
    assert isinstance(teacher, AddedTeacher)
    return TEACHERS[teacher.kind].build(teacher, recipe.asks, recipe.seed)
