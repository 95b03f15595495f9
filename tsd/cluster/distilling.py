"""Students that learn from other students: which runs must wait, whose tokens fit, and the teacher in a worker."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tsd import store
from tsd.recipe import Recipe, Student

if TYPE_CHECKING:
    from tsd.distillation import Distillation
    from tsd.training import Place


def waves(runs: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The runs in their order, each in a later wave than the one that it learns from.

    A teacher that is not among them is there already.
    """
    by_id = {run["run_id"]: run for run in runs}

    def depth(run: Mapping[str, Any]) -> int:
        teacher = by_id.get(run.get("teacher_run", ""))
        return 0 if teacher is None else 1 + depth(teacher)

    depths = [depth(run) for run in runs]
    return [[run for run, at in zip(runs, depths, strict=True) if at == wave] for wave in sorted(set(depths))]


def require_fitting_teachers(recipe: Recipe) -> None:
    """Raise InputError where a student and the one that it is distilled from do not have the same tokens.

    The study's own tokenizer must be there; the teachers that the study trains from scratch have it too.
    """
    from tsd.distillation import require_same_tokens
    from tsd.students import load_tokenizer

    for student in recipe.students.sizes:
        if student.distil is None:
            continue
        teacher = recipe.students.teacher_of(student)
        source = teacher.source if teacher else student.distil.teacher
        if source is None or source == student.source:
            continue
        with store.local_copy(f"{recipe.folder}/tokenizer") as own:
            tokenizer = load_tokenizer(student.source or own)
        require_same_tokens(student.name, tokenizer, student.distil.teacher, load_tokenizer(source))


def load_teacher(run: Mapping[str, Any], student: Student, folder: str, place: "Place") -> "Distillation | None":
    """The model whose distributions a worker's student learns from, sharded as that is; None for words alone.

    folder: the study's. A teacher of the study must be finished.
    """
    from tsd import students, training
    from tsd.distillation import Distillation

    if student.distil is None:
        return None
    if "teacher_run" in run:
        with store.local_copy(f"{folder}/students/{run['teacher_run']}") as trained:
            model = students.load_model(trained)
    else:
        model = students.load_model(student.distil.teacher)
    return Distillation(training.shard(model.to(place.device), place), student.distil)
