"""The training stage: tokenizers, the runs that are not finished, and their progress."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from tsd.cluster import distillation
from tsd.cluster.token_stage import tokenise
from tsd.errors import TrainingError
from tsd.progress import Step
from tsd.recipe import Recipe, Student
from tsd.storage import datasets, folders
from tsd.study import identity, outcomes, placement, restoring, trials
from tsd.study.context import StudyContext
from tsd.training.corpus import select
from tsd.training.runs import RunSpec

if TYPE_CHECKING:
    from tsd.tracking.tracker import Tracker

TRAINING = "Train the students"


def train(study: StudyContext) -> None:
    """Train every unfinished run of a study; failed runs are skipped.

    Raises TrainingError if no run at all is finished.
    """
    recipe, examples = study.recipe, study.open("examples")
    require_examples(recipe, examples)
    study.timed("Prepare the tokenizers", lambda: prepare_tokenizers(study, examples))
    distillation.require_fitting_teachers(recipe, examples.digest)
    runs = identity.plan_runs(recipe, examples.digest)
    study.tracker.tag({"examples": examples.digest, "teacher": study.teacher})
    lost = restoring.restore_records(recipe, runs, study.reporter)
    done = outcomes.finished(recipe, runs)
    missing = [run for run in runs if run.run_id not in done]
    untrainable = study.timed("Tokenise", lambda: tokenise(study, runs, missing))
    failed = study.timed(TRAINING, lambda: _train(study, runs, untrainable))
    restoring.hold_against(recipe, lost, study.reporter)
    for run_id, reason in failed.items():
        study.reporter.say(f"  [yellow]failed:[/] {escape(f'{run_id}: {reason}')}")
    if len(failed) == len(runs):
        require_all_trained(study, decoded=False)


def require_all_trained(study: StudyContext, decoded: bool = True) -> None:
    """Raise TrainingError if runs failed. decoded: also if their students could not be decoded."""
    runs = study.planned_runs()
    if failed := (outcomes.failures if decoded else outcomes.untrained)(study.recipe, runs):
        first, reason = next(iter(failed.items()))
        raise TrainingError(
            f"{len(failed)} of {len(runs)} runs failed; {first} says: {reason}; the same command tries them again"
        )


def require_examples(recipe: Recipe, examples: datasets.Dataset) -> None:
    """Raise InputError, before any training, if fewer examples were kept than required."""
    for split, count in (
        ("train", max(recipe.students.train_sizes)),
        ("validation", recipe.evaluation.validation_examples),
    ):
        select(examples.each_part(["split"]), split, count)


def prepare_tokenizers(study: StudyContext, examples: datasets.Dataset) -> None:
    """Build the tokenizers of students trained from scratch that are missing or damaged: one for each key."""
    wanted: dict[str, Student] = {}
    for student in study.recipe.students.models:
        if not student.source:
            wanted.setdefault(identity.tokenizer_key(study.recipe, student, examples.digest), student)
    for key, student in wanted.items():
        folder = f"{study.recipe.folder}/tokenizers/{key}"
        there = folders.exists(folder)
        wrong, before = (folders.damage(folder), folders.seals(folder)) if there else ({}, {})
        if not wrong and there and folders.read_bytes(folder, "tokenizer_config.json") is not None:
            continue
        _build_tokenizer(study.recipe, student, examples, folder)
        if there:
            restoring.require_same(folder, wrong, before, study.reporter)


def _build_tokenizer(recipe: Recipe, student: Student, examples: datasets.Dataset, folder: str) -> None:
    """Build a tokenizer from the first training examples and store it, sealed."""
    from tsd.models.tokenizer import EXAMPLES, build_tokenizer

    columns = examples.each_part(["split", "prompt", "completion"])
    taught = select(columns, "train", EXAMPLES, or_all=True)
    asked = [recipe.asks.image_prompt] * 2  # twice, so that its words are frequent
    texts = [*asked, *taught["prompt"].to_pylist(), *taught["completion"].to_pylist()]
    with tempfile.TemporaryDirectory() as local:
        build_tokenizer(texts, recipe.training.max_length, student.is_multimodal).save_pretrained(local)
        folders.copy_folder(local, folder, sealed=True)


def _train(study: StudyContext, runs: Sequence[RunSpec], untrainable: Mapping[str, str]) -> dict[str, str]:
    """Train the unfinished runs and show the progress. Returns why runs failed, by run id.

    untrainable: why runs cannot be trained at all, by run id.
    """
    done = outcomes.finished(study.recipe, runs)
    planned = trials.plan_trials(study.recipe, runs)
    missing = [trial for trial in planned if any(run.run_id not in done for run in trial.runs)]
    sizes = {run.run_id: placement.cost(run.student, run.examples) for run in runs}
    with study.reporter.stage(f"Train {len(runs)} students", sum(sizes.values()), "") as step:
        step.skip(sum(sizes[run_id] for run_id in done))
        step.note = f"{len(done)}/{len(runs)} finished"
        if missing:
            from tsd.cluster import training  # torch and Ray's trainer: not needed by other stages

            progress = Progress(study.tracker, step, sizes, len(done), len(runs))
            failed = training.train_all(
                study.recipe, missing, progress, lambda note: step.advance(0, note), untrainable
            )
            outcomes.note_failures(study.recipe, failed)
            for run_id, reason in failed.items():
                study.tracker.fail(run_id, reason)
            if not failed:
                outcomes.forget_checkpoints(study.recipe)
        return outcomes.untrained(study.recipe, runs)


class Progress:
    """Follows the trials: updates the progress bar and logs to MLflow."""

    def __init__(self, tracker: "Tracker", step: Step, sizes: dict[str, float], done: int, total: int) -> None:
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
