"""Plots of series as a table, as a teacher sees them."""

from functools import lru_cache
from typing import TYPE_CHECKING

import pyarrow as pa

from tsd.recipe import Recipe

if TYPE_CHECKING:
    from tsd.plots.plotter import Plotter


def plot_table(recipe: Recipe, series: pa.Table) -> pa.Table:
    """Render the plot of each series as a teacher sees it. Returns columns series_id and png."""
    from tsd.plots.plotter import choose_look

    items = recipe.asks.items(series)
    looks = [choose_look(recipe.plots, recipe.seed, series_id) for series_id in series["series_id"].to_pylist()]
    return pa.table({"series_id": series["series_id"], "png": pa.array(_plotter()(items, looks), pa.binary())})


@lru_cache(maxsize=1)
def _plotter() -> "Plotter":
    from tsd.plots.plotter import Plotter

    return Plotter()
