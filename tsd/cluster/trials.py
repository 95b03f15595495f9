"""The runs of a study, and the trials in which they are trained: what is known before the first one starts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from tsd.recipe import Recipe, Student, TrainingConfig
from tsd.storage import datasets
from tsd.study import placement

Run: TypeAlias = dict[str, Any]  # what `plan_runs` says of one

# What shapes weights; where a student is trained and how many at once does not.
SHAPING = TrainingConfig.shaping() - {"optimiser"}
PLACING = set(Student.model_fields) - Student.shaping()
# Left out where they say nothing, as a view of numbers and AdamW are: older runs keep their ids.
LATE = {"size", "distil"}


@dataclass(frozen=True)
class Trial:
    """Runs that follow one another in the same workers, and the machines that they ask for."""

    runs: tuple[Run, ...]
    need: placement.Need
    wave: int
    """A trial waits for those of earlier waves, in which the teachers of its students learn."""

    @property
    def name(self) -> str:
        """What its folder is called: the run's id, or the first one's and a digest of all."""
        first, *others = (run["run_id"] for run in self.runs)
        return f"{first}-and-{len(others)}-{datasets.digest([first, *others])[:8]}" if others else first


def plan_runs(recipe: Recipe, examples_digest: str) -> list[Run]:
    """Every run of a study; its id changes with anything that shapes its weights, its teacher's run included."""
    return [_run(recipe, *cell, examples_digest) for cell in recipe.students.cells()]


def plan_trials(recipe: Recipe, runs: Sequence[Run]) -> list[Trial]:
    """The runs by trial, the longest first. A function of the recipe and of all its runs, finished or not: so a
    trial that was stopped is found again by its name."""
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
    """One run. `teacher_run`: the run of this study that it is distilled from, where it is."""
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
    key = datasets.digest([run, examples_digest])
    return {**run, "run_id": f"{student.name}-{volume}-s{seed}-{key[:8]}"}
