"""Knowledge distillation between students: check that vocabularies match, and load the teacher in a worker."""

from contextlib import nullcontext
from typing import TYPE_CHECKING

from tsd.recipe import Recipe
from tsd.storage import folders
from tsd.study.identity import tokenizer_key
from tsd.training.runs import RunSpec

if TYPE_CHECKING:
    from tsd.training.distillation import Distillation
    from tsd.training.loop import WorkerContext


def require_fitting_teachers(recipe: Recipe, examples: str) -> None:
    """Raise InputError if a student and its teacher for distillation do not have the same vocabulary.

    examples: digest of the examples table. The study's own tokenizers must be there; teachers that the study
    trains from scratch use them too.
    """
    distilled = [(student, student.distil) for student in recipe.students.models if student.distil]
    if not distilled:
        return
    from tsd.models.tokenizer import load_tokenizer
    from tsd.training.distillation import require_same_tokens  # loads torch

    for student, distil in distilled:
        teacher = recipe.students.teacher_of(student)
        source = teacher.source if teacher else distil.teacher
        if source is None or source == student.source:
            continue
        own = f"{recipe.folder}/tokenizers/{tokenizer_key(recipe, student, examples)}"
        with nullcontext(student.source) if student.source else folders.local_copy(own) as place:
            tokenizer = load_tokenizer(place)
        require_same_tokens(student.name, tokenizer, distil.teacher, load_tokenizer(source))


def load_teacher(run: RunSpec, folder: str, place: "WorkerContext") -> "Distillation | None":
    """Load the teacher model for a worker's student, sharded as the student is; None for SFT only.

    folder: the study's folder. A teacher trained by the study must be finished.
    """
    from tsd.models import weights
    from tsd.training import loop
    from tsd.training.distillation import Distillation

    student = run.student
    if student.distil is None:
        return None
    own = f"{folder}/students/{run.teacher_run}" if run.teacher_run else None
    with folders.local_copy(own) if own else nullcontext(student.distil.teacher) as source:
        divided = loop.shard(weights.outline(source), place)
        return Distillation(weights.fill(divided, source, place.device, seed=0), student.distil)
