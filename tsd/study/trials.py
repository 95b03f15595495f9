"""Runs of a study grouped into trials, planned before the first one starts."""

from collections.abc import Sequence
from dataclasses import dataclass

from tsd.recipe import Recipe
from tsd.storage import keys
from tsd.study import placement
from tsd.training.runs import RunSpec


@dataclass(frozen=True)
class Trial:
    """Runs that are trained in sequence by the same workers, and the resources that they require."""

    runs: tuple[RunSpec, ...]
    need: placement.Need
    wave: int
    """Dependency level.

    A trial waits for all earlier levels, in which the teachers of its students are trained.
    """

    @property
    def name(self) -> str:
        """Name of its folder: the run's id, or the first run's id and a digest of all."""
        first, *others = (run.run_id for run in self.runs)
        return f"{first}-and-{len(others)}-{keys.digest([first, *others])[:8]}" if others else first


def plan_trials(recipe: Recipe, runs: Sequence[RunSpec]) -> list[Trial]:
    """Group the runs into trials, longest first.

    It is a function of the recipe and of all its runs, finished or not. So a stopped trial is found again by its
    name.
    """

    def alike(run: RunSpec) -> tuple[placement.Need, int]:
        return placement.need(run.student, recipe.training), recipe.students.teachers_above(run.student)

    packs = placement.packs(
        runs,
        cost=lambda run: placement.cost(run.student, run.examples),
        alike=alike,
        at_once=recipe.training.concurrent_trials,
    )
    return [Trial(tuple(pack), *alike(pack[0])) for pack in packs]
