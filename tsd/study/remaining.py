"""What is left to do of a study, as far as its folder tells. Reads names, manifests and no tables."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from tsd.generation.generator import BLOCK
from tsd.recipe import ModelTeacher, Recipe
from tsd.storage import datasets
from tsd.study import provenance


@dataclass(frozen=True)
class Remaining:
    """What is left of each stage: a share from 0, finished, to 1, nothing is there."""

    series: float = 1.0
    annotations: float = 1.0
    curation: float = 1.0
    teacher: bool = True
    """Whether the teacher is still to be trained, where it is the study's own."""
    records: frozenset[str] = frozenset()
    """The names of what belongs to runs that are trained."""
    predictions: frozenset[str] = frozenset()
    """The same of runs that are decoded."""

    def is_trained(self, run: str) -> bool:
        """Whether a run is trained. run: how its id begins."""
        return _has(self.records, run)

    def is_decoded(self, run: str) -> bool:
        """Whether a run is decoded."""
        return _has(self.predictions, run)


def of(recipe: Recipe, series: str | None = None) -> Remaining:
    """What is left of a study. series: their folder, where they are not the study's own.

    Raises StorageError where the folder was made from another recipe, OSError where it cannot be reached.
    """
    folder = recipe.folder
    there = set(datasets.names(folder))
    if not there and series is None:
        return Remaining()
    parts = -(-recipe.series.count // (recipe.series.blocks_per_part * BLOCK))
    share = partial(_share, parts=parts)
    teacher = recipe.teacher
    own = isinstance(teacher, ModelTeacher) and teacher.train is not None
    decoded = [
        run
        for run in datasets.names(f"{folder}/predictions")
        if datasets.made_by(f"{folder}/predictions/{run}") is not None
    ]
    return Remaining(
        series=share(series or f"{folder}/series"),
        annotations=share(f"{folder}/annotations"),
        curation=share(f"{folder}/examples"),
        teacher=own and "tsd.json" not in datasets.names(str(getattr(teacher, "model", ""))),
        records=frozenset(datasets.names(f"{folder}/records")),
        predictions=frozenset(decoded),
    )


def of_study(recipe: Recipe) -> tuple[dict[str, Remaining], str | None]:
    """What is left of each teacher's study, "" for the whole; and why it could not be seen, where it could not."""
    names = ("", *recipe.by_teacher)
    try:
        provenance.require(recipe, "study")
        found = {"": of(recipe)}
        for name, one in recipe.by_teacher.items():
            found[name] = of(one, f"{recipe.folder}/series")
    except (OSError, pa.ArrowException) as error:
        return dict.fromkeys(names, Remaining()), str(error).strip().splitlines()[0][:200]
    return found, None


def _share(folder: str, parts: int) -> float:
    """The share of a table's parts that is not there."""
    there = sum(bool(datasets.PART_NAME.fullmatch(name)) for name in datasets.names(folder))
    return max(0.0, 1 - there / parts)


def _has(names: Iterable[str], run: str) -> bool:
    return any(name.startswith(f"{run}-") for name in names)
