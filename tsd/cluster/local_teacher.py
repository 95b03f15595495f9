"""Annotation stage for a locally trained teacher: Ray Data actors annotate the plots of the series.

An actor keeps the model loaded and processes one part at a time. A part is on disk before Ray receives its result.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tsd.cluster import parts
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
    counts: Counts = Counter()

    def describe(_: str, made: Sequence[datasets.Part]) -> str:
        for part in made:
            counts.update({ROWS: part.rows, **part.note})
        return tell(counts, step)

    made = parts.make(
        LocalTeacherWorker,
        [parts.Target(((folder, key),), series.parts)],
        step,
        arguments=(recipe, series, folder, key),
        describe=describe,
        workers=teacher.workers,
        num_cpus=1,
    )
    (found,) = made.parts[""]
    return found


class LocalTeacherWorker:
    """Worker that annotates one part after the other."""

    def __init__(self, recipe: Recipe, series: datasets.Dataset, folder: str, key: str) -> None:
        import torch

        from tsd.teachers.local import Local

        torch.set_num_threads(1)
        self.schema, self.series, self.folder, self.key = recipe.asks.tables.annotations, series, folder, key
        teacher = _local(recipe)
        with folders.local_copy(teacher.model) as model:
            self.teacher = Local(teacher, recipe.asks, Path(model))

    def __call__(self, _: str, part: int) -> list[datasets.Part]:
        """Annotate a part of the series and write it."""
        table = self.teacher.annotate(self.series.read_part(part))
        return [datasets.write_part(self.folder, part, table, self.schema, self.key, tally(table))]


def _local(recipe: Recipe) -> LocalTeacher:
    assert isinstance(recipe.teacher, LocalTeacher)
    return recipe.teacher
