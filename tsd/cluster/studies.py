"""Run a whole study from start to end, with one teacher or with several over the same series."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import pyarrow as pa
import ray
from rich.markup import escape

from tsd.cluster import nodes, preflight
from tsd.cluster.session import own_ray, session
from tsd.cluster.study import Study
from tsd.progress import Reporter, clock
from tsd.recipe import Recipe, to_yaml
from tsd.storage import folders
from tsd.study import provenance

T = TypeVar("T")


class Studies:
    """A study with several teachers: one study per teacher over the same series, and a report that
    compares them.
    """

    def __init__(self, recipe: Recipe, reporter: Reporter) -> None:
        self.recipe = recipe
        self.reporter = reporter
        self.whole = Study(recipe, reporter)
        self.each = {
            name: Study(one, reporter, name, self.whole.series) for name, one in recipe.by_teacher.items()
        }
        self.spent = self.whole.spent

    def open_tracking(self) -> None:
        """Open MLflow for each study."""
        self._all(Study.open_tracking)

    def leave_tracking(self) -> None:
        """Close MLflow for each study."""
        for study in self.each.values():
            study.leave_tracking()

    def require_own_tables(self) -> None:
        """Raise StorageError if a folder holds tables of another recipe."""
        self.whole.require_own_series()
        for study in self.each.values():
            study.require_own_tables()

    def require_tables(self, command: str) -> None:
        """Raise StorageError if a table that a command reads is not finished."""
        for study in self.each.values():
            study.require_tables(command)

    def generate(self) -> None:
        """Generate the series, once for all teachers."""
        self.whole.generate()

    def prepare_teacher(self) -> None:
        """Train the locally trained teachers."""
        self._all(Study.prepare_teacher)

    def annotate(self) -> None:
        """Annotate every series with each teacher."""
        self._all(Study.annotate)

    def preview(self, count: int) -> None:
        """Annotate the first `count` series with each teacher."""
        self._all(lambda study: study.preview(count))

    def reopen_errors(self) -> None:
        """Mark each teacher's rows with status `error` for another request."""
        self._all(Study.reopen_errors)

    def curate(self) -> None:
        """Curate the annotations of each teacher."""
        self._all(Study.curate)

    def train(self) -> None:
        """Train every student on each teacher's examples."""
        self._all(Study.train)

    def require_all_trained(self, decoded: bool = True) -> None:
        """Raise TrainingError if runs of a teacher failed. decoded: also if their students could not be
        decoded.
        """
        for study in self.each.values():
            study.require_all_trained(decoded)

    def evaluate(self) -> None:
        """Score all runs, and write the runs table of all teachers."""
        from tsd.study import results  # it imports matplotlib

        runs = pa.concat_tables(self._all(Study.evaluate))
        results.write_runs(
            self.recipe,
            runs,
            {name: study.open("runs").digest for name, study in self.each.items()},
            self.reporter,
        )

    def report(self) -> None:
        """Write each teacher's report and the one that compares them."""
        from tsd.reporting import comparison

        shown = self._all(lambda study: study.report())
        page = comparison.write(self.recipe.name, shown, to_yaml(self.recipe))
        folders.write_bytes(self.recipe.folder, "report.html", page.encode())
        for line in comparison.headlines(shown):
            self.reporter.say(f"  {escape(line)}")
        self.whole.say_place()

    def _all(self, work: Callable[[Study], T]) -> list[T]:
        """Apply `work` to the study of each teacher, in order."""
        done = []
        for name, study in self.each.items():
            self.reporter.say(f"[bold]Teacher: {escape(name)}[/]")
            done.append(work(study))
        return done


def of(recipe: Recipe, reporter: Reporter) -> Study | Studies:
    """Return the study of a recipe, or the studies of its teachers."""
    return Studies(recipe, reporter) if recipe.teachers else Study(recipe, reporter)


@contextmanager
def connected(reporter: Reporter, recipe: Recipe, command: str = "study") -> Iterator[Study | Studies]:
    """Open a study inside a Ray session. The start of Ray is shown and timed.

    command: the command that runs. Raises StorageError, before anything is written or started, if the folder holds
    results of another recipe, or lacks a table that the command reads. Raises InputError if a joined cluster lacks
    what the command needs.
    """
    study = of(recipe, reporter)
    provenance.require(recipe, command)
    study.require_own_tables()
    study.require_tables(command)
    provenance.keep(recipe, command)
    with ExitStack() as stack:
        stack.callback(study.leave_tracking)
        started = time.monotonic()
        with reporter.stage("Start Ray", 1, "") as step:
            stack.enter_context(session())
            step.advance(1, f"{ray.cluster_resources().get('CPU', 0):.0f} CPUs")
        study.spent("Start Ray", time.monotonic() - started)
        if not own_ray():
            preflight.require(preflight.on_cluster(recipe, command))
        models, packages = preflight.model_folders(recipe), preflight.packages(recipe, command)
        stack.enter_context(nodes.watched(recipe.folder, models, packages, reporter.say, recipe.outside))
        yield study


def run(recipe: Recipe, reporter: Reporter) -> None:
    """Run a whole study, resuming from the state of an earlier start."""
    started = time.monotonic()
    with connected(reporter, recipe) as study:
        study.open_tracking()
        study.generate()
        study.annotate()
        study.curate()
        study.train()
        study.evaluate()
        study.report()
        study.require_all_trained()
    reporter.say(f"Everything in {clock(time.monotonic() - started)}")
