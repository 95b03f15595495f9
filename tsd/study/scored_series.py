"""The test series on which every student of a study is scored."""

import pyarrow as pa
import pyarrow.compute as pc

from tsd.errors import InputError
from tsd.recipe import Recipe
from tsd.storage import datasets


def test_series(recipe: Recipe, series: datasets.Dataset) -> pa.Table:
    """Return the first test series by id, as many as the recipe evaluates.

    Raises InputError if there are fewer.
    """
    wanted = recipe.evaluation.series
    found: list[pa.Table] = []
    for rows in series.each_part(["series_id", "split", "values", "truth", "margins", "measures"]):
        found.append(rows.filter(pc.equal(rows["split"], "test")))
        if sum(map(len, found)) >= wanted:
            return pa.concat_tables(found).slice(0, wanted).combine_chunks()
    raise InputError(
        f"evaluation.series asks for {wanted:,} test series and there are {sum(map(len, found)):,}: "
        "raise series.count"
    )
