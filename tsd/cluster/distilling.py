"""Students that learn from other students: which runs must wait, whose tokens fit, the teacher in a worker, and
how they come out beside those that learn from words alone.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from tsd import scoring, store
from tsd.objectives import Comparison, Learned, compare
from tsd.recipe import Recipe, Student

if TYPE_CHECKING:
    from tsd.distillation import Distillation
    from tsd.training import Place


def require_fitting_teachers(recipe: Recipe) -> None:
    """Raise InputError where a student and the one that it is distilled from do not have the same tokens.

    The study's own tokenizer must be there; the teachers that the study trains from scratch have it too.
    """
    distilled = [(student, student.distil) for student in recipe.students.sizes if student.distil]
    if not distilled:
        return
    from tsd.distillation import require_same_tokens  # loads torch
    from tsd.students import load_tokenizer

    for student, distil in distilled:
        teacher = recipe.students.teacher_of(student)
        source = teacher.source if teacher else distil.teacher
        if source is None or source == student.source:
            continue
        with store.local_copy(f"{recipe.folder}/tokenizer") as own:
            tokenizer = load_tokenizer(student.source or own)
        require_same_tokens(student.name, tokenizer, distil.teacher, load_tokenizer(source))


def load_teacher(run: Mapping[str, Any], student: Student, folder: str, place: "Place") -> "Distillation | None":
    """The model whose distributions a worker's student learns from, sharded as that is; None for words alone.

    folder: the study's. A teacher of the study must be finished.
    """
    from tsd import training, weights
    from tsd.distillation import Distillation

    if student.distil is None:
        return None
    own = f"{folder}/students/{run['teacher_run']}" if "teacher_run" in run else None
    with store.local_copy(own) if own else nullcontext(student.distil.teacher) as source:
        divided = training.shard(weights.outline(source), place)
        return Distillation(weights.fill(divided, source, place.device, seed=0), student.distil)


def beside_words(recipe: Recipe, runs: pa.Table) -> list[Comparison]:
    """Each distilled student beside the one that differs only in learning from words alone, volume by volume.

    runs: the study's runs table; what they said of the scored series must be there.
    """
    found = []
    for student in recipe.students.sizes:
        if (words := recipe.students.in_words_of(student)) is None:
            continue
        for volume in recipe.students.volumes:
            both = [_learned(recipe, runs, name, volume) for name in (words.name, student.name)]
            found.append(compare((words.name, student.name), volume, *both))
    return [each for each in found if each is not None]


def _learned(recipe: Recipe, runs: pa.Table, student: str, volume: int) -> dict[int, Learned]:
    """What came of a student's runs on one volume, by seed."""
    own = [run for run in runs.to_pylist() if (run["student"], run["examples"]) == (student, volume)]
    said = {
        run["seed"]: store.open_dataset(
            f"{recipe.folder}/predictions/{run['run_id']}", recipe.asks.tables.predictions
        ).read()
        for run in own
    }
    return {
        run["seed"]: Learned(
            loss=run["validation_loss"],
            right=scoring.right(said[run["seed"]]),
            flops=run["flops"] + (run["teacher_flops"] or 0.0),
        )
        for run in own
    }
