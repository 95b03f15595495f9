"""What the stages of a study share: its recipe, its folder and tables, timings, progress and MLflow."""

import os
import time
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from rich.markup import escape

from tsd.errors import DataError
from tsd.progress import Reporter
from tsd.recipe import Recipe, to_yaml
from tsd.storage import datasets, folders
from tsd.storage.schemas import EXAMPLES, REJECTS
from tsd.study import identity, outcomes
from tsd.study.cpu_time import metered
from tsd.training.runs import RunSpec

if TYPE_CHECKING:
    from tsd.tracking.tracker import Tracker

T = TypeVar("T")
TIMINGS = "timings.json"  # wall-clock seconds by stage
CPU_SECONDS = "cpu_seconds.json"  # of this process and all that it started, by stage


class StudyContext:
    """A study's folder and the state that its stages share."""

    def __init__(
        self, recipe: Recipe, reporter: Reporter, teacher: str | None = None, series: str | None = None
    ) -> None:
        """teacher: its name in the study; series: their folder, if the study does not generate its own."""
        self.recipe = recipe
        self.teacher = teacher or recipe.teacher.name
        self.series = series or f"{recipe.folder}/series"
        self.reporter = reporter
        self.tables = recipe.asks.tables
        self.task = recipe.asks
        self.scores = recipe.asks.scores

    def open(self, name: str) -> datasets.Dataset:
        """Open a table of the study. Raises StorageError if it is not finished."""
        schemas = {"examples": EXAMPLES, "rejects": REJECTS}
        schema = schemas[name] if name in schemas else getattr(self.tables, name)
        folder = self.series if name == "series" else f"{self.recipe.folder}/{name}"
        return datasets.open_dataset(folder, schema)

    def planned_runs(self) -> list[RunSpec]:
        """Every run of the recipe, finished or not. The examples must be there."""
        return identity.plan_runs(self.recipe, self.open("examples").digest)

    def predictions_of(self, run_id: str) -> datasets.Dataset:
        """Open the predictions of a run's student. Raises StorageError if they are not finished."""
        return datasets.open_dataset(f"{self.recipe.folder}/predictions/{run_id}", self.tables.predictions)

    def failures(self) -> dict[str, str]:
        """Why runs have no scores, by run id."""
        return outcomes.failures(self.recipe, self.planned_runs())

    def timed(self, stage: str, work: Callable[[], T]) -> T:
        """Run a stage and add its seconds to `timings.json` and `cpu_seconds.json`, summed over all starts."""
        started = time.monotonic()
        with metered() as cpu_seconds:
            try:
                return work()
            finally:
                self.spent(stage, time.monotonic() - started)
                self.spent(stage, cpu_seconds(), CPU_SECONDS)

    def spent(self, stage: str, seconds: float, file: str = TIMINGS) -> None:
        """Add the seconds of a stage to those in a file of the study, by default wall-clock seconds."""
        try:
            timings = folders.read_fields(self.recipe.folder, file) or {}
        except DataError:
            self.reporter.say(f"  [yellow]{file} was damaged:[/] the seconds of earlier starts are lost")
            timings = {}
        timings[stage] = timings.get(stage, 0.0) + seconds
        folders.write_json(self.recipe.folder, file, timings)

    @cached_property
    def tracker(self) -> "Tracker":
        """The MLflow tracker; imported here, since not every stage needs it."""
        from tsd.tracking.tracker import Tracker

        recipe = self.recipe
        return Tracker(
            recipe.tracking.uri,
            recipe.tracking.experiment,
            recipe.folder,
            to_yaml(recipe),
            lambda line: self.reporter.say(f"  {escape(line)}"),
        )

    def leave_tracking(self) -> None:
        """Wait briefly for MLflow to store what was logged, if anything was; also after an error."""
        if "tracker" in self.__dict__:
            self.tracker.leave()

    def say_place(self, what: str = "Report", page: str = "report.html") -> None:
        """Print where the study's report or another of its pages is."""
        place = f"{self.recipe.folder}/{page}"
        self.reporter.say(f"[bold]{what}:[/] {place if '://' in place else os.path.abspath(place)}")
