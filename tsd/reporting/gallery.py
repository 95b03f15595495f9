"""The series of a run -> a gallery: one self-contained HTML page with plots by class.

In: a folder with a finished `series` dataset. Out: the page's path. Series are plotted as for the teacher.
"""

import base64
import os
from collections.abc import Callable, Sequence
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from tsd.errors import InputError
from tsd.plots.plotter import Plotter, Style, choose_look
from tsd.recipe import PlotConfig, load, nearest
from tsd.reporting.pages import template
from tsd.storage import datasets, folders, manifests
from tsd.storage.schemas import fingerprint
from tsd.tasks import Task, variants

PAGE = "plots.html"
MOST = 50_000  # series searched for those shown

Row = dict[str, Any]  # of a task's series table
Cell = tuple[str, str]  # classes of the two facets of `Task.sheet`


def show_plots(
    run: str, out: str | None = None, per_class: int = 6, style: str | None = None, trusted: bool = False
) -> str:
    """Write the gallery to `out`, by default RUN/plots.html. Returns its path.

    per_class: series per combination of classes, such as trend × noise. style: plot style, by default the
    recipe's. trusted: run the modules that the recipe names. Raises InputError if there is no finished dataset,
    RecipeError if the recipe names modules that may not be run.
    """
    run = run.rstrip("/")
    require_there(run)
    task, series = _open(run, trusted)
    config, seed = _config(run, style, trusted)
    chosen, counts = _choose(task, series, per_class)
    page = _write(task, run, series.rows, chosen, counts, config, seed)
    place = out or f"{run}/{PAGE}"
    folder, _, name = place.rpartition("/")
    folders.write_bytes(folder or ".", name, page.encode())
    return place


def require_there(run: str) -> None:
    """Raise InputError if a run folder on this machine does not exist."""
    if "://" not in run and not os.path.exists(run):
        raise InputError(f"{run} does not exist: name a run folder such as runs/laptop")


def _open(run: str, trusted: bool) -> tuple[Task, datasets.Dataset]:
    """The series dataset of a run folder, or that the folder itself is, and its task."""
    for folder in (f"{run}/series", run):
        try:
            manifest = manifests.read_manifest(folder)
            if manifest is None:
                continue
            for task in _tasks(run, trusted):
                if manifest["schema"] == fingerprint(task.tables.series):
                    return task, datasets.open_dataset(folder, task.tables.series)
            raise InputError(f"{folder} holds another table than series: name a run folder")
        except (OSError, ValueError, pa.ArrowException) as error:
            raise InputError(f"{folder} cannot be read: {str(error).splitlines()[0]}") from None
    raise InputError(f"{run} holds no finished series: name a run folder such as runs/laptop")


def _tasks(run: str, trusted: bool) -> list[Task]:
    """The tasks whose series a folder may hold: the built-in ones, and the recipe's with its plugins."""
    found = variants()
    for folder in (run, os.path.dirname(run)):  # the folder may be the dataset itself
        if os.path.isfile(f"{folder}/recipe.yaml"):
            found.append(load(f"{folder}/recipe.yaml", stored=True, trusted=trusted).asks)
    return found


def _config(run: str, style: str | None, trusted: bool) -> tuple[PlotConfig, int]:
    """The run's plot settings and seed, with another style if one is named."""
    if style is not None and style not in get_args(Style):
        raise InputError(f"--style {style}: there is no such style{nearest(style, get_args(Style))}")
    for folder in (run, os.path.dirname(run)):  # the folder may be the dataset itself
        if os.path.isfile(f"{folder}/recipe.yaml"):
            recipe = load(f"{folder}/recipe.yaml", stored=True, trusted=trusted)
            return recipe.plots.model_copy(update={"style": style or recipe.plots.style}), recipe.seed
    return PlotConfig.model_validate({"style": style} if style else {}), 0


def _choose(task: Task, series: datasets.Dataset, per_class: int) -> tuple[dict[Cell, list[Row]], dict[Cell, int]]:
    """The first series of each combination of classes, and the number of each among those searched."""
    down, across = task.sheet
    chosen: dict[Cell, list[Row]] = {(a, b): [] for a in task.classes[down] for b in task.classes[across]}
    counts = dict.fromkeys(chosen, 0)
    for part in series.each_part():
        truth = part["truth"].to_pylist()
        for i, labels in enumerate(truth):
            cell = labels[down], labels[across]
            counts[cell] += 1
            if len(chosen[cell]) < per_class:
                chosen[cell] += part.slice(i, 1).to_pylist()
        if sum(counts.values()) >= MOST:
            break
    return chosen, counts


def _write(
    task: Task,
    run: str,
    rows: int,
    chosen: dict[Cell, list[Row]],
    counts: dict[Cell, int],
    config: PlotConfig,
    seed: int,
) -> str:
    """Render the gallery as HTML.

    chosen: rows shown by combination of classes. counts: rows found of each. rows: size of the dataset.
    """
    shown = [row for cell in chosen.values() for row in cell]
    looks = [choose_look(config, seed, row["series_id"]) for row in shown]
    items = [np.split(np.array(row["values"], np.uint8), task.curves) for row in shown]
    pictures = Plotter()(items, looks)
    cards = (_card(task, row, picture) for row, picture in zip(shown, pictures, strict=True))
    return template("look").render(
        title=run.rpartition("/")[2] or run,
        rows=rows,
        unit=task.unit,
        lengths=sorted({len(row["values"]) // task.curves for row in shown}),
        looked=sum(counts.values()),
        counts=counts,
        down=task.sheet[0],
        across=task.sheet[1],
        rows_of=task.classes[task.sheet[0]],
        columns_of=task.classes[task.sheet[1]],
        cards={cell: [next(cards) for _ in found] for cell, found in chosen.items()},
        config=config,
        size=_range(config.sizes),
        tokens=round(config.image_tokens),
    )


def _card(task: Task, row: Row, picture: bytes) -> Row:
    """The template's data for one series or pair. picture: a PNG."""
    return {
        **row,
        "picture": base64.b64encode(picture).decode(),
        "size": np.frombuffer(picture[16:24], ">u4").tolist(),  # width and height in a PNG's header
        "facts": [
            ("Process", _process(row)),
            *(_measured(row) if "argmax" in row["measures"] else row["truth"].items()),
        ],
    }


def _signed(form: str) -> Callable[[float], str]:
    """Writes a number in a form with its sign."""
    return lambda number: f"{number:{form}}".replace("-", "−")


SHOWN: dict[str, tuple[str, Callable[[float], str]]] = {  # title and form of measures, by either definition
    "trend_delta": ("End − start", _signed("+.1f")),
    "trend_change": ("Change, share of the range", _signed("+.0%")),
    "noise_rms": ("Noise, RMS", "{:.2f}".format),
    "noise": ("Noise", "{:.2f}".format),
}


def _process(row: Row) -> str:
    """The process and its parameters in words."""
    parameters = row["parameters"] if isinstance(row["parameters"], list) else [row["parameters"]]
    names = row["process"].split(", ")
    return "; ".join(
        ", ".join([name, *(f"{key} {value:.3g}" for key, value in drawn.items() if value is not None)])
        for name, drawn in zip(names, parameters, strict=True)
    )


def _measured(row: Row) -> list[tuple[str, str]]:
    """The measures of one series as (name, value) texts."""
    measures, values, truth = row["measures"], row["values"], row["truth"]
    return [
        *((title, shown(measures[name])) for name, (title, shown) in SHOWN.items() if name in measures),
        *(
            (facet, f"{truth[facet]}: {values[measures[arg]]} at {measures[arg]}")
            for facet, arg in (("maximum", "argmax"), ("minimum", "argmin"))
        ),
    ]


def _range(sizes: Sequence[tuple[int, int]]) -> str:
    """One size, or the range from smallest to largest."""
    return " to ".join(f"{width} × {height}" for width, height in sorted({min(sizes), max(sizes)}))
