"""The runs of a study and their grouping into trials, planned before the first one starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tsd.recipe import Recipe, Student, TrainingConfig
from tsd.storage import keys
from tsd.study import placement

Run: TypeAlias = dict[str, Any]  # one entry of `plan_runs`

# Settings that affect weights. Where a student is trained, and how many at once, does not.
SHAPING = TrainingConfig.shaping() - {"optimiser"}
PLACING = set(Student.model_fields) - Student.shaping()
# Omitted at their defaults (the text modality and AdamW), so that older runs keep their ids.
LATE = {"size", "distil"}


@dataclass(frozen=True)
class Trial:
    """Runs that are trained in sequence by the same workers, and the resources that they require."""

    runs: tuple[Run, ...]
    need: placement.Need
    wave: int
    """Dependency level.

    A trial waits for all earlier levels, in which the teachers of its students are trained.
    """

    @property
    def name(self) -> str:
        """Name of its folder: the run's id, or the first run's id and a digest of all."""
        first, *others = (run["run_id"] for run in self.runs)
        return f"{first}-and-{len(others)}-{keys.digest([first, *others])[:8]}" if others else first


def plan_runs(recipe: Recipe, examples_digest: str) -> list[Run]:
    """Return every run of a study.

    A run's id is a hash of everything that affects its weights, teacher run included.
    """
    return [_run(recipe, *cell, examples_digest) for cell in recipe.students.cells()]


def plan_trials(recipe: Recipe, runs: Sequence[Run]) -> list[Trial]:
    """Group the runs into trials, longest first.

    It is a function of the recipe and of all its runs, finished or not. So a stopped trial is found again by its
    name.
    """
    sizes = {student.name: student for student in recipe.students.sizes}

    def student(run: Run) -> Student:
        return sizes[run["student"]["name"]]

    def alike(run: Run) -> tuple[placement.Need, int]:
        return placement.need(student(run), recipe.training), recipe.students.teachers_above(student(run))

    packs = placement.packs(
        runs,
        cost=lambda run: placement.cost(student(run), run["examples"]),
        alike=alike,
        at_once=recipe.training.concurrent_trials,
    )
    return [Trial(tuple(pack), *alike(pack[0])) for pack in packs]


def _run(recipe: Recipe, student: Student, volume: int, seed: int, examples_digest: str) -> Run:
    """Return one run. `teacher_run`: the run of this study that it is distilled from, if any."""
    run = {
        "student": {
            **student.model_dump(exclude=PLACING | LATE | {"view"}),
            **student.model_dump(include=LATE, exclude_none=True),
            **({"view": student.view} if student.looks else {}),
        },
        "examples": volume,
        "seed": seed,
        "training": {
            **recipe.training.model_dump(include=SHAPING, exclude_none=True),
            **recipe.training.model_dump(include={"optimiser"}, exclude_defaults=True),
        },
        "validation_examples": recipe.evaluation.validation_examples,
    }
    teacher = recipe.students.teacher_of(student)
    if teacher is not None:
        most = max(recipe.students.volumes)
        seeds = recipe.students.seeds_for(most)
        taught_by = _run(recipe, teacher, most, seed if seed in seeds else seeds[0], examples_digest)
        run["teacher_run"] = taught_by["run_id"]
    key = keys.digest([run, examples_digest])
    return {**run, "run_id": f"{student.name}-{volume}-s{seed}-{key[:8]}"}
