"""Knowledge distillation between students: check that vocabularies match, and load the teacher in a worker."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from tsd.recipe import Recipe, Student
from tsd.storage import folders

if TYPE_CHECKING:
    from tsd.training.distillation import Distillation
    from tsd.training.loop import Place


def require_fitting_teachers(recipe: Recipe) -> None:
    """Raise InputError if a student and its teacher for distillation do not have the same vocabulary.

    Requires the study's own tokenizer; teachers that the study trains from scratch use it too.
    """
    distilled = [(student, student.distil) for student in recipe.students.sizes if student.distil]
    if not distilled:
        return
    from tsd.models.students import load_tokenizer
    from tsd.training.distillation import require_same_tokens  # loads torch

    for student, distil in distilled:
        teacher = recipe.students.teacher_of(student)
        source = teacher.source if teacher else distil.teacher
        if source is None or source == student.source:
            continue
        with folders.local_copy(f"{recipe.folder}/tokenizer") as own:
            tokenizer = load_tokenizer(student.source or own)
        require_same_tokens(student.name, tokenizer, distil.teacher, load_tokenizer(source))


def load_teacher(run: Mapping[str, Any], student: Student, folder: str, place: "Place") -> "Distillation | None":
    """Load the teacher model for a worker's student, sharded as the student is; None for SFT only.

    folder: the study's folder. A teacher trained by the study must be finished.
    """
    from tsd.models import weights
    from tsd.training import loop
    from tsd.training.distillation import Distillation

    if student.distil is None:
        return None
    own = f"{folder}/students/{run['teacher_run']}" if "teacher_run" in run else None
    with folders.local_copy(own) if own else nullcontext(student.distil.teacher) as source:
        divided = loop.shard(weights.outline(source), place)
        return Distillation(weights.fill(divided, source, place.device, seed=0), student.distil)
