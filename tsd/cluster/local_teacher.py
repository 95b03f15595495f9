"""Annotation stage for a locally trained teacher: Ray Data actors annotate the plots of the series.

An actor keeps the model loaded and processes one part at a time. A part is on disk before Ray receives its result.
"""

import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tsd.cluster import nodes
from tsd.errors import InputError
from tsd.progress import Step
from tsd.recipe import LocalTeacher, Recipe
from tsd.storage import datasets, folders
from tsd.teachers.api.counts import tally, tell
from tsd.teachers.api.messages import ROWS, Counts


def ask(recipe: Recipe, series: datasets.Dataset, folder: str, key: str, step: Step) -> dict[int, datasets.Part]:
    """Annotate every part that is not finished. Returns all parts, existing and new.

    Raises InputError if the model folder holds no model.
    """
    teacher = _local(recipe)
    if folders.read_json(teacher.model, "config.json") is None:
        raise InputError(f"teacher.model: {teacher.model} is not the folder of a model: it holds no config.json")
    made = datasets.finished_parts(folder, key)
    step.skip(sum(part.rows for part in made.values()))
    missing = [part for part in range(series.parts) if part not in made]
    if not missing:
        return made
    rows = nodes.done(
        Looker,
        [{"part": part} for part in missing],
        step,
        arguments=(recipe, series, folder, key),
        concurrency=(1, min(teacher.workers, len(missing))),
        num_cpus=1,
    )
    counts: Counts = Counter()
    for row in rows:
        part = datasets.Part(**json.loads(row["made"]))
        made[int(row["part"])] = part
        counts.update({ROWS: part.rows, **part.note})
        step.advance(part.rows, tell(counts, step))
    return made


class Looker:
    """Worker that annotates one part after the other."""

    def __init__(self, recipe: Recipe, series: datasets.Dataset, folder: str, key: str) -> None:
        import torch

        from tsd.teachers.local import Local

        torch.set_num_threads(1)
        self.schema, self.series, self.folder, self.key = recipe.asks.tables.annotations, series, folder, key
        teacher = _local(recipe)
        with folders.local_copy(teacher.model) as model:
            self.teacher = Local(teacher, recipe.asks, Path(model))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Map one row with a part number to the part's metadata as JSON."""
        part = int(batch["part"][0])
        made = datasets.find_part(self.folder, part, self.key)  # Ray repeats the task of a worker that died
        if made is None:
            table = self.teacher.annotate(self.series.read_part(part))
            made = datasets.write_part(self.folder, part, table, self.schema, self.key, tally(table))
        return {"part": [part], "made": [json.dumps(asdict(made))]}


def _local(recipe: Recipe) -> LocalTeacher:
    assert isinstance(recipe.teacher, LocalTeacher)
    return recipe.teacher
