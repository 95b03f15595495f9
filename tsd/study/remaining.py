"""Find the remaining work of a study from its folder. Reads file names and manifests, but no tables."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from tsd.generation.generator import BLOCK
from tsd.recipe import ModelTeacher, Recipe
from tsd.storage import datasets, folders, manifests
from tsd.storage.schemas import EXAMPLES
from tsd.study import identity, provenance


@dataclass(frozen=True)
class Remaining:
    """Remaining share of each stage, from 0 (finished) to 1 (not started)."""

    series: float = 1.0
    annotations: float = 1.0
    curation: float = 1.0
    teacher: bool = True
    """Whether a local teacher must still be trained."""
    records: frozenset[str] = frozenset()
    """File names of trained runs."""
    predictions: frozenset[str] = frozenset()
    """Folder names of decoded runs."""

    def is_trained(self, run: str) -> bool:
        """Whether a run is trained. run: prefix of its id."""
        return _has(self.records, run)

    def is_decoded(self, run: str) -> bool:
        """Whether a run is decoded. run: prefix of its id."""
        return _has(self.predictions, run)


def of(recipe: Recipe, series: str | None = None) -> Remaining:
    """Return the remaining work of a study. series: their folder, if the study does not generate its own.

    Raises StorageError if the folder was made from another recipe, OSError if it cannot be accessed.
    """
    folder = recipe.folder
    there = set(folders.names(folder))
    if not there and series is None:
        return Remaining()
    parts = -(-recipe.series.count // (recipe.series.blocks_per_part * BLOCK))
    share = partial(_share, parts=parts)
    teacher = recipe.teacher
    untrained = (
        isinstance(teacher, ModelTeacher)
        and teacher.train is not None
        and "tsd.json" not in folders.names(teacher.model)
    )
    planned = _planned(recipe)
    decoded = [
        run
        for run in folders.subfolders(f"{folder}/predictions")
        if manifests.made_by(f"{folder}/predictions/{run}") is not None
    ]
    return Remaining(
        series=share(series or f"{folder}/series"),
        annotations=share(f"{folder}/annotations"),
        curation=share(f"{folder}/examples"),
        teacher=untrained,
        records=frozenset(
            name for name in folders.names(f"{folder}/records") if planned is None or name in planned
        ),
        predictions=frozenset(run for run in decoded if planned is None or f"{run}.json" in planned),
    )


def of_study(recipe: Recipe) -> tuple[dict[str, Remaining], str | None]:
    """Return the remaining work by teacher, "" for the whole study, and an error message if it is unknown."""
    names = ("", *recipe.by_teacher)
    try:
        provenance.require(recipe, "study")
        found = {"": of(recipe)}
        for name, one in recipe.by_teacher.items():
            found[name] = of(one, f"{recipe.folder}/series")
    except (OSError, pa.ArrowException) as error:
        return dict.fromkeys(names, Remaining()), str(error).strip().splitlines()[0][:200]
    return found, None


def _planned(recipe: Recipe) -> set[str] | None:
    """File names of the records of the recipe's runs; None without examples, whose digest is part of the ids."""
    examples = datasets.peek(f"{recipe.folder}/examples", EXAMPLES)
    if examples is None:
        return None
    return {f"{run.run_id}.json" for run in identity.plan_runs(recipe, examples.digest)}


def _share(folder: str, parts: int) -> float:
    """Return the share of a table's parts that are missing."""
    there = sum(bool(datasets.PART_NAME.fullmatch(name)) for name in folders.names(folder))
    return max(0.0, 1 - there / parts)


def _has(names: Iterable[str], run: str) -> bool:
    return any(name.startswith(f"{run}-") for name in names)
