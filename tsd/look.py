"""The series of a run -> one self-contained HTML page of their plots by class, for people to look at.

In: a folder that holds a finished `series` dataset. Out: the page's place. It draws what a teacher is shown.
"""

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import jinja2
import numpy as np
import pyarrow as pa

from tsd import store
from tsd.errors import DataError, InputError
from tsd.plots import Plotter, Style, choose_look
from tsd.recipe import PlotConfig, load, nearest
from tsd.schema import FACETS, SERIES

PAGE = "plots.html"
MOST = 50_000  # series that are looked through for those to show

Row = dict[str, Any]  # of `tsd.schema.SERIES`
Cell = tuple[str, str]  # a trend and a noise class


def show_plots(run: str, out: str | None = None, per_class: int = 6, style: str | None = None) -> str:
    """Write the page and say where it lies: RUN/plots.html unless `out` names a file.

    per_class: how many series of each trend × noise. style: how to draw them, if not as the run's recipe says.
    """
    run = run.rstrip("/")
    series = _open(run)
    config, seed = _config(run, style)
    chosen, counts = _choose(series, per_class)
    page = _write(run, series.rows, chosen, counts, config, seed)
    place = out or f"{run}/{PAGE}"
    folder, _, name = place.rpartition("/")
    store.write_bytes(folder or ".", name, page.encode())
    return place


def _open(run: str) -> store.Dataset:
    """The dataset of series that a run folder holds, or that the folder itself is."""
    for folder in (f"{run}/series", run):
        try:
            if store.read_json(folder, store.MANIFEST) is not None:
                return store.open_dataset(folder, SERIES)
        except DataError:
            raise InputError(f"{folder} holds another table than series: name a run folder") from None
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InputError(f"{folder} cannot be read: {str(error).splitlines()[0]}") from None
    raise InputError(f"{run} holds no finished series: name a run folder such as runs/laptop")


def _config(run: str, style: str | None) -> tuple[PlotConfig, int]:
    """How the run's teacher is shown its series, and the study's seed; another style where one is named."""
    if style is not None:
        if style not in get_args(Style):
            raise InputError(f"--style {style}: there is no such style{nearest(style, get_args(Style))}")
        return PlotConfig(style=style), 0  # type: ignore[arg-type]
    if os.path.isfile(f"{run}/recipe.yaml"):
        recipe = load(f"{run}/recipe.yaml")
        return recipe.plots, recipe.seed
    return PlotConfig(), 0


def _choose(series: store.Dataset, per_class: int) -> tuple[dict[Cell, list[Row]], dict[Cell, int]]:
    """The first series of each trend × noise, and how many of each there are among those looked through."""
    chosen: dict[Cell, list[Row]] = {(trend, noise): [] for trend in FACETS["trend"] for noise in FACETS["noise"]}
    counts = dict.fromkeys(chosen, 0)
    for index in range(series.parts):
        part = series.read_part(index)
        truth = part["truth"].to_pylist()
        for i, labels in enumerate(truth):
            cell = labels["trend"], labels["noise"]
            counts[cell] += 1
            if len(chosen[cell]) < per_class:
                chosen[cell] += part.slice(i, 1).to_pylist()
        if sum(counts.values()) >= MOST:
            break
    return chosen, counts


def _write(
    run: str,
    rows: int,
    chosen: dict[Cell, list[Row]],
    counts: dict[Cell, int],
    config: PlotConfig,
    seed: int,
) -> str:
    shown = [row for cell in chosen.values() for row in cell]
    looks = [choose_look(config, seed, row["series_id"]) for row in shown]
    pictures = Plotter()([np.array(row["values"], np.uint8) for row in shown], looks)
    cards = [_card(row, picture) for row, picture in zip(shown, pictures, strict=True)]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("look.html.j2").render(
        title=run.rpartition("/")[2] or run,
        rows=rows,
        lengths=sorted({len(row["values"]) for row in shown}),
        looked=sum(counts.values()),
        counts=counts,
        trends=FACETS["trend"],
        noises=FACETS["noise"],
        cards={cell: [cards[shown.index(row)] for row in found] for cell, found in chosen.items()},
        config=config,
        size=_range(config.sizes),
        tokens=round(config.image_tokens),
    )


def _card(row: Row, picture: bytes) -> Row:
    """What the page says of one series."""
    measures, values = row["measures"], row["values"]
    return {
        **row,
        "picture": base64.b64encode(picture).decode(),
        "size": np.frombuffer(picture[16:24], ">u4").tolist(),  # where a PNG has its width and height
        "places": [
            (facet, row["truth"][facet], values[measures[arg]], measures[arg])
            for facet, arg in (("maximum", "argmax"), ("minimum", "argmin"))
        ],
    }


def _range(sizes: Sequence[tuple[int, int]]) -> str:
    """One size, or the smallest and the largest."""
    return " to ".join(f"{width} × {height}" for width, height in sorted({min(sizes), max(sizes)}))
