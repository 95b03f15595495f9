"""Paired comparisons of students that differ in one setting: their scores on the same series, paired by seed."""

from collections.abc import Callable
from functools import cache, partial
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from tsd.evaluation import paired, scoring
from tsd.evaluation.paired import Comparison, Learned, compare
from tsd.recipe import Recipe, Student
from tsd.storage import datasets

# Student and train size -> results of its runs, by seed.
Known: TypeAlias = Callable[[str, int], dict[int, Learned]]


def lookup(recipe: Recipe, runs: pa.Table) -> Known:
    """Return a cached loader of run results, which reads each run at most once.

    runs: the study's runs table. The predictions of the runs must exist.
    """
    return cache(partial(_learned, recipe, runs))


def distilled_against_sft(recipe: Recipe, known: Known) -> list[Comparison]:
    """Compare each distilled student with its SFT-only counterpart, for each train size."""
    return _beside(recipe, known, recipe.students.sft_counterpart)


def image_against_text(recipe: Recipe, known: Known) -> list[Comparison]:
    """Compare each vision-language student with the text student of its size, for each train size."""
    return _beside(recipe, known, recipe.students.text_counterpart)


def image_against_text_at_flops(recipe: Recipe, known: Known) -> list[Comparison]:
    """Compare each vision-language student with the text student of its size at equal FLOPs.

    The text student is interpolated between its train sizes, seed by seed. Comparisons outside its range of FLOPs
    are omitted.
    """
    found = []
    for student in recipe.students.models:
        if (other := recipe.students.text_counterpart(student)) is None:
            continue
        text_runs = [known(other.name, train_size) for train_size in recipe.students.train_sizes]
        for train_size in recipe.students.train_sizes:
            image_runs = known(student.name, train_size)
            like = {
                seed: paired.at_flops([each[seed] for each in text_runs if seed in each], run.flops)
                for seed, run in image_runs.items()
            }
            between = {seed: run for seed, run in like.items() if run is not None}
            found.append(compare((other.name, student.name), train_size, between, image_runs))
    return [each for each in found if each is not None]


def _beside(recipe: Recipe, known: Known, like: Callable[[Student], Student | None]) -> list[Comparison]:
    """Compare each student with its counterpart, where it has one."""
    found = []
    for student in recipe.students.models:
        if (other := like(student)) is None:
            continue
        for train_size in recipe.students.train_sizes:
            both = [known(name, train_size) for name in (other.name, student.name)]
            found.append(compare((other.name, student.name), train_size, *both))
    return [each for each in found if each is not None]


def _learned(recipe: Recipe, runs: pa.Table, student: str, train_size: int) -> dict[int, Learned]:
    """Return the results of a student's runs on one train size, by seed."""
    own = [run for run in runs.to_pylist() if (run["student"], run["examples"]) == (student, train_size)]
    right = {
        run["seed"]: scoring.right(
            datasets.open_dataset(
                f"{recipe.folder}/predictions/{run['run_id']}", recipe.asks.tables.predictions
            ).read()
        )
        for run in own
    }
    return {
        run["seed"]: Learned(
            loss=run["validation_loss"],
            right=right[run["seed"]].mean(1),
            all_right=np.all(right[run["seed"]], axis=1).astype(np.float64),
            flops=run["flops"] + (run["teacher_flops"] or 0.0),
        )
        for run in own
    }
