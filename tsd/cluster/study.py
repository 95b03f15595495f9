"""A whole study, stage by stage. Stages that an earlier start has finished are skipped."""

import base64
import importlib.metadata
import io
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray
from rich.markup import escape

import tsd
from tsd.cluster import comparisons, decoding, distillation, outcomes, restoring, stages, trials
from tsd.curation import review
from tsd.errors import DataError, InputError, StorageError, TrainingError
from tsd.evaluation import laws, scoring
from tsd.models import card
from tsd.plots.figures import style
from tsd.progress import Reporter, Step
from tsd.recipe import ApiTeacher, ModelTeacher, Recipe, RulesTeacher, to_yaml
from tsd.reporting import report as reporting
from tsd.storage import datasets, folders, keys, manifests
from tsd.storage.schemas import EXAMPLES, REJECTS, VALID, score_names
from tsd.study import local_teacher, placement, provenance
from tsd.tasks import Task
from tsd.teachers.api.account import Earlier
from tsd.teachers.api.counts import describe
from tsd.training.corpus import select

SAMPLES = 8
RARE = 0.1  # class share below which a warning is shown
RESAMPLES = 100
TRAINING, DECODING = "Train the students", "Decode"

T = TypeVar("T")


class Study:
    """A study's folder and the state that its stages share. Use it inside `session`."""

    def __init__(
        self, recipe: Recipe, reporter: Reporter, teacher: str | None = None, series: str | None = None
    ) -> None:
        """teacher: its name in the study; series: their folder, if the study does not generate its own."""
        self.recipe = recipe
        self.teacher = teacher or recipe.teacher.name
        self.series = series or f"{recipe.folder}/series"
        self.reporter = reporter
        self.tables = recipe.asks.tables
        self.scores = score_names(recipe.asks.names)

    def open_tracking(self) -> None:
        """Open MLflow, so that a wrong address is reported before anything is paid for."""
        with self.reporter.stage("Open MLflow", 1, "") as step:
            started = time.monotonic()
            step.advance(1, self.tracker.place)
            self.spent("Open MLflow", time.monotonic() - started)

    def require_own_series(self) -> None:
        """Raise StorageError if the folder holds series of another recipe, according to their keys."""
        datasets.require_made_by(self.series, stages.series_key(self.recipe))

    def require_own_tables(self) -> None:
        """Raise StorageError if a folder without a stored recipe holds tables of another recipe."""
        if provenance.read(self.recipe) is not None:
            return
        self.require_own_series()
        series = datasets.peek(self.series, self.tables.series)
        if series is not None:
            key = stages.annotations_key(self.recipe, series)
            datasets.require_made_by(f"{self.recipe.folder}/annotations", key)

    def generate(self) -> datasets.Dataset:
        """Generate the series and print their class shares. Stores the plots if the recipe asks for it."""
        series = self._timed("Draw series", lambda: stages.generate(self.recipe, self.reporter))
        for line in class_lines(self.recipe.asks, series.about["classes"]):
            self.reporter.say(f"  {line}")
        if self.recipe.plots.store:
            self._timed("Draw plots", lambda: stages.draw_plots(self.recipe, series, self.reporter))
        return series

    def prepare_teacher(self) -> None:
        """Train the local teacher, if the study has one and it is not trained yet."""
        if isinstance(self.recipe.teacher, ModelTeacher) and self.recipe.teacher.train:
            self._timed(
                "Train the teacher",
                lambda: local_teacher.prepare(self.recipe, self.reporter, lambda: self.tracker),
            )

    def annotate(self) -> datasets.Dataset:
        """Annotate the series with the teacher; the series must exist."""
        self.prepare_teacher()
        series = self.open("series")
        said = self._timed("Ask the teacher", lambda: stages.annotate(self.recipe, series, self.reporter))
        if not isinstance(self.recipe.teacher, RulesTeacher):
            self.reporter.say(f"  {describe(said.about)}")
        return said

    def preview(self, count: int) -> None:
        """Annotate the first `count` series and show the responses and the expected total cost."""
        from tsd.teachers.api.history import earlier_requests
        from tsd.teachers.preview import PAGE, lines, preview

        self.prepare_teacher()
        series, teacher = self.open("series"), self.recipe.teacher
        folder, key = f"{self.recipe.folder}/annotations", stages.annotations_key(self.recipe, series)
        datasets.find_finished(folder, self.tables.annotations, key)  # refuses the folder of another recipe
        earlier = earlier_requests(folder, key) if isinstance(teacher, ApiTeacher) else Earlier()
        table, page = preview(self.recipe, series.read_part(0).slice(0, count), folder, earlier)
        folders.write_bytes(self.recipe.folder, PAGE, page.encode())
        for line in lines(table, series.rows):
            self.reporter.say(escape(line))
        say_place(self.reporter, self.recipe, "Preview", PAGE)

    def reopen_errors(self) -> None:
        """Mark the rows with status `error` for another request by `annotate`."""
        from tsd.teachers.api.history import reopen_errors

        folder, key = f"{self.recipe.folder}/annotations", stages.annotations_key(self.recipe, self.open("series"))
        rows = reopen_errors(self.recipe, folder, key)
        if not rows:
            self.reporter.say("  no row is an error")
            return
        self.reporter.say(f"  {rows:,} rows ended as error and are asked again")
        made = [f"{self.recipe.folder}/{name}" for name in provenance.MADE["curate"]]
        made = [folder for folder in made if folders.names(folder)]
        for folder in made:  # they cost nothing, and are outdated now
            folders.delete_folder(folder)
        if made:
            self.reporter.say("  what was curated from them is made anew by the next command that needs it")

    def curate(self) -> None:
        """Curate the annotations and print how many were kept."""
        series, annotations = self.open("series"), self.open("annotations")
        kept, rejected = self._timed(
            "Curate", lambda: stages.curate(self.recipe, series, annotations, self.reporter)
        )
        self.reporter.say(f"  kept {kept.rows:,} replies, rejected {rejected.rows:,}")
        for line in review.lines(kept.about):
            self.reporter.say(f"  {escape(line)}")

    def train(self) -> None:
        """Train every unfinished run; failed runs are skipped.

        Raises TrainingError if no run at all is finished.
        """
        examples = self.open("examples")
        require_examples(self.recipe, examples)
        self._timed("Prepare the tokenizer", lambda: self.prepare_tokenizer(examples))
        distillation.require_fitting_teachers(self.recipe)
        runs = trials.plan_runs(self.recipe, examples.digest)
        self.tracker.tag({"examples": examples.digest, "teacher": self.teacher})
        lost = restoring.restore_records(self.recipe, runs, self.reporter)
        failed = self._timed(TRAINING, lambda: self._train(runs))
        restoring.hold_against(self.recipe, lost, self.reporter)
        for run_id, reason in failed.items():
            self.reporter.say(f"  [yellow]failed:[/] {escape(f'{run_id}: {reason}')}")
        if len(failed) == len(runs):
            self.require_all_trained(decoded=False)

    def require_all_trained(self, decoded: bool = True) -> None:
        """Raise TrainingError if runs failed. decoded: also if their students could not be decoded."""
        runs = trials.plan_runs(self.recipe, self.open("examples").digest)
        if failed := (outcomes.failures if decoded else outcomes.untrained)(self.recipe, runs):
            first, reason = next(iter(failed.items()))
            raise TrainingError(
                f"{len(failed)} of {len(runs)} runs failed; {first} says: {reason}; "
                "the same command tries them again"
            )

    def evaluate(self) -> pa.Table:
        """Decode and score every finished run, and write the runs table. Returns it."""
        series, examples = self.open("series"), self.open("examples")
        records = self._records(examples)
        lost = [
            stages.find_lost(
                f"{self.recipe.folder}/predictions/{run}", decoding.predictions_key(self.recipe, run, series), 0
            )
            for run in records
        ]
        made = self._timed(DECODING, lambda: decoding.decode(self.recipe, list(records), series, self.reporter))
        for one in lost:
            one.say(self.reporter)
        outcomes.note_undecoded(self.recipe, made.failed)
        for run_id, reason in made.failed.items():
            self.reporter.say(f"  [yellow]no replies:[/] {escape(f'{run_id}: {reason}')}")
            self.tracker.fail(run_id, reason)
            del records[run_id]
        if not records:
            self.require_all_trained()
        rows = []
        for run_id, record in records.items():
            predictions = self._predictions_of(run_id)
            spent = record.get("decode_seconds") or made.seconds.get(
                run_id
            )  # of the first decoding, if parts were lost
            scores = scoring.score(predictions)
            if record.get("decode_seconds") != spent:
                folders.write_json(
                    f"{self.recipe.folder}/records", f"{run_id}.json", {**record, "decode_seconds": spent}
                )
            scored = {name: scores[name].as_dict() for name in self.scores}
            self._complete_card(run_id, scored)
            rows.append({**record, "teacher": self.teacher, "decode_seconds": spent, **scored})
        table = pa.Table.from_pylist(sorted(rows, key=_run_order), self.tables.runs)
        write_runs(self.recipe, table, {"series": series.digest, "examples": examples.digest}, self.reporter)
        self._track_scores(table)
        return table

    def _complete_card(self, run_id: str, scores: Mapping[str, Mapping[str, float]]) -> None:
        """Rewrite a student's model card with its scores; an earlier version wrote no metadata for one."""
        folder = f"{self.recipe.folder}/students/{run_id}"
        said = folders.read_fields(folder, card.CARD)
        if said is not None and "about" in said:
            folders.write_bytes(folder, card.README, card.render(said, scores).encode())

    def report(self) -> reporting.Study:
        """Fit the scaling laws and write the report. Returns its content."""
        runs = self.open("runs").read()
        self._require_own_runs(runs)
        with self.reporter.stage("Fit and report", 2, "parts") as step:
            fits = self._timed(
                "Fit the laws",
                lambda: fit_laws(
                    runs, [name for name in self.scores if name != VALID], self.recipe.evaluation.series
                ),
            )
            step.advance(1)
            study = self._timed("Write the report", lambda: self.assemble(runs, fits))
            page = reporting.write(study)
            folders.write_bytes(self.recipe.folder, "report.html", page.encode())
            self.tracker.close(page)
            picture = io.BytesIO()
            figure = reporting.scaling_figure(self.recipe.asks, runs, study.baselines, fits)
            with style():
                figure.savefig(picture, format="png", dpi=144)
            folders.write_bytes(self.recipe.folder, "scaling.png", picture.getvalue())
            step.advance(1)
        for line in reporting.headlines(study):
            self.reporter.say(f"  {line}")
        say_place(self.reporter, self.recipe)
        return study

    def _require_own_runs(self, runs: pa.Table) -> None:
        planned = {run["run_id"] for run in trials.plan_runs(self.recipe, self.open("examples").digest)}
        if others := [run_id for run_id in runs["run_id"].to_pylist() if run_id not in planned]:
            raise StorageError(
                f"{self.recipe.folder}/runs was made from another recipe: it holds {others[0]}, which this recipe "
                "does not train: name another folder with --out, or run `tsd evaluate` with this recipe first"
            )

    def _train(self, runs: Sequence[dict[str, Any]]) -> dict[str, str]:
        """Train the unfinished runs and show the progress. Returns why runs failed, by run id."""
        done = outcomes.finished(self.recipe, runs)
        planned = trials.plan_trials(self.recipe, runs)
        missing = [trial for trial in planned if any(run["run_id"] not in done for run in trial.runs)]
        sizes = {run["run_id"]: self._weight(run) for run in runs}
        with self.reporter.stage(f"Train {len(runs)} students", sum(sizes.values()), "") as step:
            step.skip(sum(sizes[run_id] for run_id in done))
            step.note = f"{len(done)}/{len(runs)} finished"
            if missing:
                from tsd.cluster import training  # torch and Ray's trainer: not needed by other stages

                progress = _Training(self.tracker, step, sizes, len(done), len(runs))
                failed = training.train_all(self.recipe, missing, progress, lambda note: step.advance(0, note))
                outcomes.note_failures(self.recipe, failed)
                for run_id, reason in failed.items():
                    self.tracker.fail(run_id, reason)
                if not failed:
                    outcomes.forget_checkpoints(self.recipe)
            return outcomes.untrained(self.recipe, runs)

    def _weight(self, run: Mapping[str, Any]) -> float:
        """Weight of a run in the training's progress bar."""
        (student,) = (one for one in self.recipe.students.sizes if one.name == run["student"]["name"])
        return placement.cost(student, run["examples"])

    @cached_property
    def tracker(self) -> Any:
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

    def _track_scores(self, runs: pa.Table) -> None:
        for row in runs.to_pylist():
            self.tracker.finish(row, {name: row[name]["value"] for name in self.scores}, int(time.time() * 1000))

    def prepare_tokenizer(self, examples: datasets.Dataset) -> None:
        """Build the tokenizer of students trained from scratch, once per study."""
        folder = f"{self.recipe.folder}/tokenizer"
        there = folders.exists(folder)
        wrong, before = (folders.damage(folder), folders.seals(folder)) if there else ({}, {})
        if wrong or not there or folders.read_bytes(folder, "tokenizer_config.json") is None:
            from tsd.models.tokenizer import build_tokenizer

            columns = examples.each_part(["split", "prompt", "completion"])
            taught = select(columns, "train", max(self.recipe.students.volumes))
            asked = [self.recipe.asks.looking_prompt] * 2  # twice, so that its words are frequent
            texts = [*asked, *taught["prompt"].to_pylist(), *taught["completion"].to_pylist()]
            with tempfile.TemporaryDirectory() as local:
                looking = any(student.looks for student in self.recipe.students.sizes)
                build_tokenizer(texts, self.recipe.training.max_length, looking).save_pretrained(local)
                folders.copy_folder(local, folder, sealed=True)
            if there:
                restoring.require_same(folder, wrong, before, self.reporter)

    def _records(self, examples: datasets.Dataset) -> dict[str, dict[str, Any]]:
        runs = trials.plan_runs(self.recipe, examples.digest)
        records = outcomes.finished(self.recipe, runs)
        if not records:
            raise InputError(f"{self.recipe.folder} holds no trained student: run `tsd train` first")
        return {run["run_id"]: records[run["run_id"]] for run in runs if run["run_id"] in records}

    def assemble(self, runs: pa.Table, fits: dict[str, Any]) -> reporting.Study:
        """Collect the content of a report."""
        recipe = self.recipe
        series, annotations, examples = (self.open(name) for name in ("series", "annotations", "examples"))
        failed = outcomes.failures(recipe, trials.plan_runs(recipe, examples.digest))
        test, said = decoding.test_series(recipe, series), self._predictions(runs)
        seconds: dict[str, float] = folders.read_fields(recipe.folder, "timings.json") or {}
        known = comparisons.lookup(recipe, runs)
        return reporting.Study(
            title=recipe.name,
            task=recipe.asks,
            recipe_yaml=to_yaml(recipe),
            runs=runs,
            baselines=scoring.baselines(recipe.asks, test),
            fits=fits,
            samples=self._samples(said, test, annotations),
            seconds=seconds,
            useful_share=useful_share(recipe, runs, seconds),
            clear=scoring.without_ties(recipe.asks, said, test),
            classes=series.about["classes"],
            teacher=self.teacher,
            counts=examples.about,
            beside=self._beside(said, annotations),
            facts=self._facts(series, test) | {f"Failed: {run_id}": reason for run_id, reason in failed.items()},
            objectives=comparisons.beside_words(self.recipe, known),
            views=comparisons.beside_readers(self.recipe, known),
            views_at_flops=comparisons.beside_readers_at_flops(self.recipe, known),
        )

    def _beside(self, said: pa.Table, annotations: datasets.Dataset) -> dict[str, scoring.Beside]:
        ids = pc.unique(said["series_id"])
        rows = (
            part.filter(pc.is_in(part["series_id"], ids))
            for part in annotations.each_part(["series_id", "labels"])
        )
        return scoring.beside_teacher(said, pa.concat_tables(rows))

    def _predictions(self, runs: pa.Table) -> pa.Table:
        """Return the predictions of the best student on the scored series."""
        return self._predictions_of(reporting.best(runs)["run_id"])

    def _predictions_of(self, run_id: str) -> pa.Table:
        return datasets.open_dataset(f"{self.recipe.folder}/predictions/{run_id}", self.tables.predictions).read()

    def _samples(
        self, predictions: pa.Table, test: pa.Table, annotations: datasets.Dataset
    ) -> list[reporting.Sample]:
        """Select test series with the texts of teacher and best student: up to half of them are mistakes."""
        said = predictions.to_pylist()
        wrong = [i for i, row in enumerate(said) if row["labels"] != row["truth"]][: SAMPLES // 2]
        right = [i for i, row in enumerate(said) if row["labels"] == row["truth"]][: SAMPLES - len(wrong)]
        ids = pa.array([said[i]["series_id"] for i in sorted(wrong + right)])
        rows = annotations.read(["series_id", "text", "labels"])
        taught = {row["series_id"]: row for row in rows.filter(pc.is_in(rows["series_id"], ids)).to_pylist()}
        values = {row["series_id"]: row["values"] for row in test.to_pylist()}
        seen = self._seen(test.filter(pc.is_in(test["series_id"], ids)))
        return [
            reporting.Sample(
                series_id=row["series_id"],
                values=values[row["series_id"]],
                truth=row["truth"],
                teacher=taught[row["series_id"]]["text"] or "",
                student=row["text"],
                student_labels=row["labels"],
                teacher_labels=taught[row["series_id"]]["labels"],
                seen=seen.get(row["series_id"]),
            )
            for row in (said[i] for i in sorted(wrong + right))
        ]

    def _seen(self, series: pa.Table) -> dict[int, str]:
        """Return the plots that the teacher was shown, as base64 PNGs by series id; empty if it uses no images."""
        teacher = self.recipe.teacher
        if not (isinstance(teacher, ModelTeacher) and teacher.sees_plots):
            return {}
        plots = stages.plot_table(self.recipe, series).to_pylist()
        return {plot["series_id"]: base64.b64encode(plot["png"]).decode() for plot in plots}

    def _facts(self, series: datasets.Dataset, test: pa.Table) -> dict[str, str]:
        """Collect the facts of a report: folder, date, series, machine, versions and tracking address."""
        packages = ("ray", "torch", "transformers", "mlflow")
        return {
            "Study": self.recipe.folder,
            "Written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "Series": f"{series.rows:,}, of which {len(test):,} of the test split are scored",
            "Series digest": series.digest,
            "Machine": f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()}",
            "Versions": ", ".join(
                [
                    f"tsd {tsd.__version__}",
                    *(f"{name} {importlib.metadata.version(name)}" for name in packages),
                ]
            ),
            "MLflow": self.recipe.tracking.uri,
        }

    def open(self, name: str) -> datasets.Dataset:
        """Open a table of the study. Raises StorageError if it is not finished."""
        schemas = {"examples": EXAMPLES, "rejects": REJECTS}
        schema = schemas[name] if name in schemas else getattr(self.tables, name)
        folder = self.series if name == "series" else f"{self.recipe.folder}/{name}"
        return datasets.open_dataset(folder, schema)

    def _timed(self, stage: str, work: Callable[[], T]) -> T:
        """Run a stage and add its wall-clock seconds to `timings.json`, summed over all starts."""
        started = time.monotonic()
        try:
            done = work()
        finally:
            self.spent(stage, time.monotonic() - started)
        return done

    def spent(self, stage: str, seconds: float) -> None:
        """Add wall-clock seconds to a stage of `timings.json`."""
        try:
            timings = folders.read_fields(self.recipe.folder, "timings.json") or {}
        except DataError:
            self.reporter.say("  [yellow]timings.json was damaged:[/] the seconds of earlier starts are lost")
            timings = {}
        timings[stage] = timings.get(stage, 0.0) + seconds
        folders.write_json(self.recipe.folder, "timings.json", timings)


class _Training:
    """Follows the trials: updates the progress bar and logs to MLflow."""

    def __init__(self, tracker: Any, step: Step, sizes: dict[str, float], done: int, total: int) -> None:
        self.tracker = tracker
        self.step, self.sizes, self.done, self.total = step, sizes, done, total
        self.seen: dict[str, float] = {}

    def __call__(self, run_id: str, metrics: dict[str, float]) -> None:
        """Process the metrics of a run: advance the progress bar and log losses to MLflow."""
        if "share" not in metrics:
            return
        if run_id not in self.seen:  # started or resumed: excluded from the rate
            self.step.begin()
            self.step.skip(metrics["share"] * self.sizes[run_id])
        gained = metrics["share"] - self.seen.get(run_id, metrics["share"])
        self.seen[run_id] = metrics["share"]
        logged = {"loss": metrics["loss"]}
        if "validation_loss" in metrics:
            self.done += 1
            logged["validation_loss"] = metrics["validation_loss"]
        self.tracker.log(run_id, int(metrics["step"]), logged, int(time.time() * 1000))
        self.step.advance(
            max(gained, 0.0) * self.sizes[run_id],
            f"{self.done}/{self.total} finished, {run_id.rsplit('-', 1)[0]} at loss {metrics['loss']:.3f}",
        )


def say_place(reporter: Reporter, recipe: Recipe, what: str = "Report", page: str = "report.html") -> None:
    """Print the location of a study's report or of another page."""
    place = f"{recipe.folder}/{page}"
    reporter.say(f"[bold]{what}:[/] {place if '://' in place else os.path.abspath(place)}")


def write_runs(recipe: Recipe, runs: pa.Table, parents: Mapping[str, str], reporter: Reporter) -> None:
    """Write the runs table of a study, unless the same table exists."""
    folder, schema = f"{recipe.folder}/runs", recipe.asks.tables.runs
    key = keys.digest(["runs", runs.to_pylist(), dict(parents)])
    lost = None
    if manifests.made_by(folder) == key:
        if datasets.find_finished(folder, schema, key):
            return
        lost = stages.find_lost(folder, key, 1)
    else:
        folders.delete_folder(folder)
    made = {0: datasets.write_part(folder, 0, runs, schema, key)}
    datasets.commit(folder, schema, key, 1, parents, made)
    if lost:
        lost.say(reporter)


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
            f"[yellow]rare classes, hard for students to learn:[/] {', '.join(rare)}; see series in the recipe"
        )
    return lines


def require_examples(recipe: Recipe, examples: datasets.Dataset) -> None:
    """Raise InputError, before any training, if fewer examples were kept than required."""
    for split, count in (
        ("train", max(recipe.students.volumes)),
        ("validation", recipe.evaluation.validation_examples),
    ):
        select(examples.each_part(["split"]), split, count)


def fit_laws(runs: pa.Table, scores: Sequence[str], test_series: int) -> dict[str, laws.FittedLaw | str]:
    """Fit the loss and each error rate concurrently on Ray. The value is a message if there are too few runs.

    Uses only SFT runs that were trained to their end: for others, N and D do not determine the result. If there
    are both vision-language and text students, only the text students are used, since one law cannot fit both.
    An error rate of 0 in n series is replaced by 0.5 / n, since a law is fitted to its logarithm.
    """
    stopped = pc.fill_null(runs["stopped_early"], False)
    runs = runs.filter(pc.and_(pc.is_null(runs["distilled_from"]), pc.invert(stopped)))
    looks = pc.fill_null(pc.equal(runs["view"], "plot"), False)
    if len(pc.unique(looks)) > 1:
        runs = runs.filter(pc.invert(looks))
    columns = {"loss": runs["validation_loss"].to_numpy()}
    for name in scores:
        correct = pc.struct_field(runs[name], "value").to_numpy()
        columns[name] = np.maximum(1.0 - correct, 0.5 / test_series)
    sizes, volumes = runs["parameters_without_embeddings"].to_numpy(), runs["examples"].to_numpy()
    if len(runs) < laws.FEWEST_RUNS:
        return {name: _fit(sizes, volumes, column) for name, column in columns.items()}
    fit = ray.remote(_fit).options(num_cpus=1)
    waiting = {name: fit.remote(sizes, volumes, column) for name, column in columns.items()}
    return {name: ray.get(result) for name, result in waiting.items()}


def _fit(sizes: Any, volumes: Any, losses: Any) -> laws.FittedLaw | str:
    try:
        return laws.fit_with_intervals(sizes, volumes, losses, seed=0, resamples=RESAMPLES)
    except ValueError as error:
        return str(error)


def useful_share(recipe: Recipe, runs: pa.Table, seconds: Mapping[str, float]) -> float:
    """Share of the wall time in which students trained or decoded, given the number of concurrent workers."""
    resource = "GPU" if recipe.training.gpu else "CPU"
    there = ray.cluster_resources().get(resource, 1)
    needs = {student.name: placement.need(student, recipe.training) for student in recipe.students.sizes}
    shares = {name: need.workers * (need.gpus or need.cpus) / there for name, need in needs.items()}
    least = 1 / min(
        recipe.training.concurrent_trials, len(runs)
    )  # minimum share of the machines attributed to a trial
    trained = sum(max(least, shares[row["student"]]) * row["train_seconds"] for row in runs.to_pylist())
    decoded = (pc.sum(runs["decode_seconds"]).as_py() or 0.0) / recipe.evaluation.workers
    return float((trained + decoded) / sum(seconds.values()))


def _run_order(row: Mapping[str, Any]) -> tuple[int, int, int]:
    return row["parameters"], row["examples"], row["seed"]
