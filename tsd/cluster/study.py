"""A whole study, stage by stage. Stages that an earlier start has finished are skipped."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa
import ray
from rich.markup import escape

from tsd.cluster import decoding, stages, train_stage
from tsd.cluster.laws import fit_laws
from tsd.curation import review
from tsd.errors import InputError
from tsd.recipe import ApiTeacher, ModelTeacher, RulesTeacher
from tsd.storage import datasets, folders
from tsd.storage.schemas import STATED, VALID
from tsd.study import identity, local_teacher, outcomes, provenance
from tsd.study.context import StudyContext
from tsd.study.lost_parts import find_lost
from tsd.tasks import Task
from tsd.teachers.api.account import Earlier
from tsd.teachers.api.counts import describe

if TYPE_CHECKING:
    from tsd.reporting.report import Study as Shown

RARE = 0.1  # class share below which a warning is shown
DECODING = "Decode"

READ = {  # the tables that a command reads and does not make
    "annotate": ("series",),
    "curate": ("series", "annotations"),
    "train": ("examples",),
    "evaluate": ("series", "examples"),
    "report": ("runs",),
}


class Study(StudyContext):
    """A study's stages. Use it inside `session`."""

    def open_tracking(self) -> None:
        """Open MLflow, so that a wrong address is reported before anything is paid for."""
        with self.reporter.stage("Open MLflow", 1, "") as step:
            started = time.monotonic()
            step.advance(1, self.tracker.place)
            self.spent("Open MLflow", time.monotonic() - started)

    def require_own_series(self) -> None:
        """Raise StorageError if the folder holds series of another recipe, according to their keys."""
        datasets.require_made_by(self.series, identity.series_key(self.recipe))

    def require_own_tables(self) -> None:
        """Raise StorageError if a folder without a stored recipe holds tables of another recipe."""
        if provenance.read(self.recipe) is not None:
            return
        self.require_own_series()
        series = datasets.peek(self.series, self.tables.series)
        if series is not None:
            key = identity.annotations_key(self.recipe, series)
            datasets.require_made_by(f"{self.recipe.folder}/annotations", key)

    def require_tables(self, command: str) -> None:
        """Raise StorageError, before Ray is started, if a table that a command reads is not finished."""
        for name in READ.get(command, ()):
            self.open(name)

    def generate(self) -> datasets.Dataset:
        """Generate the series and print their class shares. Stores the plots if the recipe asks for it."""
        series = self.timed("Draw series", lambda: stages.generate(self.recipe, self.reporter))
        for line in class_lines(self.recipe.asks, series.about["classes"]):
            self.reporter.say(f"  {line}")
        if self.recipe.plots.store:
            self.timed("Draw plots", lambda: stages.draw_plots(self.recipe, series, self.reporter))
        return series

    def prepare_teacher(self) -> None:
        """Train the local teacher, if the study has one and it is not trained yet."""
        if isinstance(self.recipe.teacher, ModelTeacher) and self.recipe.teacher.train:
            self.timed(
                "Train the teacher",
                lambda: local_teacher.prepare(self.recipe, self.reporter, lambda: self.tracker),
            )

    def annotate(self) -> datasets.Dataset:
        """Annotate the series with the teacher; the series must exist."""
        self.prepare_teacher()
        series = self.open("series")
        said = self.timed("Ask the teacher", lambda: stages.annotate(self.recipe, series, self.reporter))
        if not isinstance(self.recipe.teacher, RulesTeacher):
            self.reporter.say(f"  {describe(said.about)}")
        return said

    def preview(self, count: int) -> None:
        """Annotate the first `count` series and show the responses and the expected total cost."""
        from tsd.teachers.api.history import earlier_requests
        from tsd.teachers.preview import PAGE, lines, preview

        self.prepare_teacher()
        series, teacher = self.open("series"), self.recipe.teacher
        folder, key = f"{self.recipe.folder}/annotations", identity.annotations_key(self.recipe, series)
        datasets.find_finished(folder, self.tables.annotations, key)  # refuses the folder of another recipe
        earlier = earlier_requests(folder, key) if isinstance(teacher, ApiTeacher) else Earlier()
        table, page = preview(self.recipe, series.read_part(0).slice(0, count), folder, earlier)
        folders.write_bytes(self.recipe.folder, PAGE, page.encode())
        for line in lines(table, series.rows):
            self.reporter.say(escape(line))
        self.say_place("Preview", PAGE)

    def reopen_errors(self) -> None:
        """Mark the rows with status `error` for another request by `annotate`."""
        from tsd.teachers.api.history import reopen_errors

        folder, key = (
            f"{self.recipe.folder}/annotations",
            identity.annotations_key(self.recipe, self.open("series")),
        )
        rows = reopen_errors(self.recipe, folder, key)
        if not rows:
            self.reporter.say("  no row is an error")
            return
        self.reporter.say(f"  {rows:,} rows ended as error and are annotated again")
        made = [f"{self.recipe.folder}/{name}" for name in (*provenance.MADE["curate"], "tokens")]
        made = [folder for folder in made if folders.names(folder)]
        for folder in made:  # they cost nothing, and are outdated now
            folders.delete_folder(folder)
        if made:
            self.reporter.say("  the tables curated from them were deleted; the next command makes them again")

    def curate(self) -> None:
        """Curate the annotations and print how many were kept."""
        series, annotations = self.open("series"), self.open("annotations")
        kept, rejected = self.timed(
            "Curate", lambda: stages.curate(self.recipe, series, annotations, self.reporter)
        )
        self.reporter.say(f"  kept {kept.rows:,} replies, rejected {rejected.rows:,}")
        for line in review.lines(kept.about):
            self.reporter.say(f"  {escape(line)}")
        if nothing := review.nothing_kept(kept.about):
            self.reporter.say(f"  [yellow]no examples:[/] {escape(nothing)}")

    def train(self) -> None:
        """Train every unfinished run; failed runs are skipped.

        Raises TrainingError if no run at all is finished.
        """
        train_stage.train(self)

    def require_all_trained(self, decoded: bool = True) -> None:
        """Raise TrainingError if runs failed. decoded: also if their students could not be decoded."""
        train_stage.require_all_trained(self, decoded)

    def evaluate(self) -> pa.Table:
        """Decode and score every finished run, and write the runs table. Returns it."""
        from tsd.study import results  # it imports matplotlib

        series, examples = self.open("series"), self.open("examples")
        records = outcomes.finished(self.recipe, planned := self.planned_runs())
        if not records:
            raise InputError(f"{self.recipe.folder} holds no trained student: run `tsd train` first")
        runs = [run for run in planned if run.run_id in records]
        keys = {run.run_id: identity.predictions_key(self.recipe, run, series) for run in runs}
        results.drop_predictions_of_other_engines(self, keys)
        lost = [find_lost(f"{self.recipe.folder}/predictions/{run_id}", key, 0) for run_id, key in keys.items()]
        made = self.timed(DECODING, lambda: decoding.decode(self.recipe, runs, series, self.reporter))
        for one in lost:
            one.say(self.reporter)
        outcomes.note_undecoded(self.recipe, made.failed)
        for run_id, reason in made.failed.items():
            self.reporter.say(f"  [yellow]no replies:[/] {escape(f'{run_id}: {reason}')}")
            self.tracker.fail(run_id, reason)
        decoded = {run.run_id: records[run.run_id] for run in runs if run.run_id not in made.failed}
        if not decoded:
            self.require_all_trained()
        parents = {"series": series.digest, "examples": examples.digest}
        return results.score_runs(self, decoded, made.seconds, parents)

    def report(self) -> "Shown":
        """Fit the scaling laws and write the report. Returns its content."""
        from tsd.reporting.report import headlines
        from tsd.study import results

        runs = results.read_own_runs(self)
        scores = [name for name in self.scores if name not in (VALID, STATED)]
        with self.reporter.stage("Fit and report", 2, "parts") as step:
            fits = self.timed("Fit the laws", lambda: fit_laws(runs, scores, self.recipe.evaluation.series))
            step.advance(1)
            machines = ray.cluster_resources()
            shown = self.timed("Write the report", lambda: results.assemble(self, runs, fits, machines))
            results.write_report(self, shown)
            step.advance(1)
        for line in headlines(shown):
            self.reporter.say(f"  {line}")
        self.say_place()
        return shown


def class_lines(task: Task, shares: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Format the class shares, one line per facet, with a warning for rare classes."""
    wide = max(map(len, task.names))
    lines = [
        f"{facet:<{wide}}  " + "  ".join(f"{name} {share:5.1%}" for name, share in shares[facet].items())
        for facet in task.names
    ]
    rare = [
        f"{facet} {name} ({share:.1%})"
        for facet in task.names
        for name, share in shares[facet].items()
        if share < RARE
    ]
    if rare:
        lines.append(
            f"[yellow]rare classes, which are hard to learn:[/] {', '.join(rare)}; change `series` in the recipe"
        )
    return lines
