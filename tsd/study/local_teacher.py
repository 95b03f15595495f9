"""Train a local teacher in this process without Ray: a small vision-language model that describes plots.

Input: a recipe whose teacher must be trained. Output: the teacher's folder. It is trained on separate series with
rule-based descriptions of their true labels, by the same code as the students. In MLflow it is a run of the study.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from rich.markup import escape

from tsd.errors import InputError
from tsd.evaluation import scoring
from tsd.generation import generator
from tsd.models import card
from tsd.plots import rasterised
from tsd.progress import Reporter, Step
from tsd.recipe import ModelTeacher, Recipe, Student, Training, TrainingConfig, to_yaml
from tsd.recipe.stored import task_reference
from tsd.storage import folders
from tsd.storage.schemas import ALL_RIGHT, VALID
from tsd.study.identity import origin, teacher_key
from tsd.tasks import STYLES, Task, wording_of
from tsd.training.runs import RunRecord, RunSpec

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from tsd.tracking.tracker import Tracker
    from tsd.training.corpus import Corpus
    from tsd.training.loop import Progress, WorkerContext

OWN_SEED = 0x7EAC4E2  # added to the study's seed for the series that its local teacher is trained on
ENOUGH = 8192  # descriptions that have every word and number
TOLD = ("train", "validation")  # splits of series whose descriptions the teacher learns
TEST = 1000  # number of series that the teacher is scored on
LATEST = "latest.json"  # in the checkpoint folder: names the complete checkpoint
TOGETHER = 8192  # series generated at once


def prepare(recipe: Recipe, reporter: Reporter, open_tracker: Callable[[], "Tracker"]) -> None:
    """Train the recipe's local teacher, if it has one that is not trained yet, and print its scores.

    open_tracker: returns the study's tracker; called only if something is tracked. Raises InputError if the folder
    holds another teacher than the recipe defines.
    """
    teacher = recipe.teacher
    if not isinstance(teacher, ModelTeacher) or teacher.train is None:
        return
    there = folders.read_fields(teacher.model, card.CARD)
    mine, wrong = there is not None and there.get("key") == teacher_key(recipe), folders.damage(teacher.model)
    if mine and not wrong:
        reporter.say(f"  the teacher exists already: {teacher.model}")
        return
    if there is not None and not mine:
        raise InputError(
            f"{teacher.model} holds a teacher that differs from teacher.train: give the study another name, "
            "or delete that folder"
        )
    _train(recipe, teacher.model, reporter, open_tracker())


def prepare_alone(recipe: Recipe, reporter: Reporter) -> None:
    """Train the local teachers of a recipe outside of a study's run."""
    for name, one in (recipe.by_teacher or {"": recipe}).items():
        if name:
            reporter.say(f"[bold]Teacher: {escape(name)}[/]")
        with ExitStack() as held:
            prepare(one, reporter, partial(_open_tracker, one, held))


def _open_tracker(recipe: Recipe, held: ExitStack) -> "Tracker":
    """Open the study's tracker; `held` closes it."""
    from tsd.tracking.tracker import Tracker

    tracker = Tracker(recipe.tracking.uri, recipe.tracking.experiment, recipe.folder, to_yaml(recipe))
    held.callback(tracker.close)
    return tracker


def as_student(recipe: Recipe) -> Student:
    """Return the local teacher as the student that it is before training."""
    train = _asked(recipe)
    name = recipe.teacher.name
    return Student(name=name, size=train.size, modality="image", learning_rate=train.learning_rate)


def settings(recipe: Recipe) -> TrainingConfig:
    """Return the training settings of the local teacher."""
    train = _asked(recipe)
    return TrainingConfig(
        batch_size=train.batch_size,
        optimizer=train.optimizer,
        threads=recipe.training.threads,
        checkpoint_every=1000,
    )


def draw(recipe: Recipe, advance: Callable[[int], None] = lambda _: None) -> dict[str, pa.Table]:
    """Generate the series for training and scoring the local teacher, by split.

    advance: called with the number of series generated since the last call.
    """
    sizes = _sizes(recipe)
    total, seed = sum(sizes.values()), (recipe.seed + OWN_SEED) % 2**63
    parts = []
    for first in range(0, total, TOGETHER):
        count = min(TOGETHER, total - first)
        table = generator.draw_table(recipe.asks, recipe.series, seed, first, count)
        parts.append(table.select(["series_id", "values", "truth", "measures"]))
        advance(count)
    series, found, first = pa.concat_tables(parts), {}, 0
    for split, size in sizes.items():
        found[split] = series.slice(first, size)
        first += size
    return found


def _sizes(recipe: Recipe) -> dict[str, int]:
    """Return the number of series for the local teacher, by split."""
    validation = recipe.evaluation.validation_examples
    return {"train": _asked(recipe).pictures, "validation": validation, "test": TEST}


def told(recipe: Recipe, series: dict[str, pa.Table]) -> tuple["PreTrainedTokenizerBase", dict[str, "Corpus"]]:
    """Build the teacher's tokenizer, and its corpora for training and validation. series: by split."""
    from tsd.models.tokenizer import build_tokenizer
    from tsd.training.corpus import image_corpus

    task, longest = recipe.asks, settings(recipe).max_length
    styles = {split: [task.style(f"{split} {i}") for i in range(len(series[split]))] for split in TOLD}
    said = {split: _replies(task, series[split], styles[split]) for split in TOLD}
    texts = [*map(task.styled_prompt, _every_style(task)), *sorted(set(said["train"][:ENOUGH]))]
    tokenizer = build_tokenizer(texts * 2, longest, pictures=True)  # twice, so that all words are frequent
    return tokenizer, {
        split: image_corpus(task, task.items(series[split]), replies, tokenizer, longest, styles[split])
        for split, replies in said.items()
    }


def _replies(task: Task, series: pa.Table, styles: Sequence[Sequence[int]]) -> list[str]:
    """What the teacher learns to say: the truth of each series in a style, or in first phrasings."""
    truths = series["truth"].to_pylist()
    if not task.numbers:
        plain = [0] * len(task.phrasing_counts)
        return [task.reply(truth, plain) for truth in truths]
    choices = [list(map(wording_of, style)) for style in styles]
    return list(map(task.describe, truths, task.stated(series), choices))


def _every_style(task: Task) -> list[tuple[int, ...]]:
    """Styles in which each number of one occurs."""
    return [(style,) * len(task.style("")) for style in range(STYLES)] if task.numbers else [()]


def _asked(recipe: Recipe) -> Training:
    """Return the recipe's settings for training its teacher."""
    assert isinstance(recipe.teacher, ModelTeacher)
    assert recipe.teacher.train
    return recipe.teacher.train


def _train(recipe: Recipe, folder: str, reporter: Reporter, tracker: "Tracker") -> None:
    """Train the local teacher, score it, write its sealed folder, and log it to MLflow.

    folder: of the finished teacher. Checkpoints are deleted at the end.
    """
    train, started = _asked(recipe), time.perf_counter()
    run = RunSpec(
        student=as_student(recipe),
        examples=train.pictures,
        seed=train.seed,
        training=settings(recipe),
        validation_examples=recipe.evaluation.validation_examples,
        corpus=teacher_key(recipe),
        tokenizer=teacher_key(recipe),  # made of the same series
        precision="float32",
    )
    with reporter.stage("Generate the teacher's series", sum(_sizes(recipe).values()), recipe.asks.unit) as step:
        series = draw(recipe, step.advance)
    with reporter.stage("Train the teacher", train.pictures, "plots") as step:
        model, tokenizer, record = _learn(recipe, run, series, folder, started, step, tracker)
    with reporter.stage("Score the teacher", TEST, "plots") as step:
        at_once = recipe.evaluation.batch_size
        predictions = predict(recipe.asks, model, tokenizer, series["test"], at_once, step.advance)
    found = scoring.score(predictions, recipe.asks)
    scores = {name: each.as_dict() for name, each in found.items()}
    about = origin(recipe, "rules")
    with tempfile.TemporaryDirectory() as local:
        from tsd.training.trainer import export

        task, length = task_reference(recipe), recipe.series.length
        export(model, tokenizer, Path(local), run.student, record, task=task, length=length, about=about)
        said = {**json.loads(Path(local, card.CARD).read_text()), "key": teacher_key(recipe)}
        Path(local, card.CARD).write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")
        Path(local, card.README).write_text(card.render(said, scores), encoding="utf-8")
        folders.copy_folder(local, folder, sealed=True)
    folders.delete_folder(_checkpoints(folder))
    tracker.finish(record.as_dict(), {name: at["value"] for name, at in scores.items()}, int(time.time() * 1000))
    _say_scores(recipe.asks, predictions, scores, reporter)
    reporter.say(f"  the teacher is stored in {folder}")


def _learn(
    recipe: Recipe,
    run: RunSpec,
    series: dict[str, pa.Table],
    folder: str,
    started: float,
    step: Step,
    tracker: "Tracker",
) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase", RunRecord]:
    """Return the trained model, its tokenizer and its record."""
    import torch

    from tsd.training.label_tokens import label_tokens
    from tsd.training.loop import WorkerContext
    from tsd.training.trainer import learn

    how, place = settings(recipe), WorkerContext()
    tokenizer, corpora = told(recipe, series)
    step.begin()
    course = _Course(teacher_key(recipe), run.run_id, _checkpoints(folder), how.batch_size, place, step, tracker)
    threads = torch.get_num_threads()
    torch.set_num_threads(how.threads)
    try:
        with _alone():
            model, record, _ = learn(
                run,
                tokenizer,
                corpora,
                how,
                place,
                started=started,
                resume=course.resume,
                keep=course.keep,
                tell=course.tell,
                report=course.report,
                labels=label_tokens(tokenizer, *recipe.asks.words),
            )
    finally:
        torch.set_num_threads(threads)
    step.advance(run.examples - course.shown)
    return model, tokenizer, record


@dataclass
class _Course:
    """State of a teacher's training: progress reports, and the checkpoint to resume from."""

    key: str
    run_id: str
    folder: str  # folder of the checkpoints
    batch_size: int
    place: "WorkerContext"
    step: Step
    tracker: "Tracker"
    shown: int = 0  # plots reported to the progress bar

    def report(self, now: "Progress") -> None:
        """Report progress to the progress bar and to MLflow."""
        shown = now.step * self.batch_size
        self.step.advance(shown - self.shown, f"loss {now.loss:.3f}")
        self.shown = shown
        self.tracker.log(self.run_id, now.step, {"loss": now.loss}, int(time.time() * 1000))

    def resume(self, model: "PreTrainedModel", optimizer: "Optimizer") -> "Progress":
        """Load the last complete checkpoint of this teacher, if there is one. Returns its progress."""
        from tsd.training import checkpoints
        from tsd.training.loop import Progress

        latest = folders.read_json(self.folder, LATEST)
        if latest is None or latest["key"] != self.key:
            return Progress()
        with folders.local_copy(f"{self.folder}/{latest['step']}") as last:
            if not checkpoints.is_whole(Path(last)):
                return Progress()
            progress = checkpoints.restore(Path(last), model, optimizer, self.place)
        self.shown = progress.step * self.batch_size
        self.step.skip(self.shown)
        return progress

    def keep(self, part: Path, now: "Progress") -> None:
        """Store a checkpoint beside the previous one."""
        folders.copy_folder(str(part), f"{self.folder}/{now.step}")

    def tell(self, now: "Progress") -> None:
        """Make the new checkpoint the one to resume from, and delete the previous one."""
        earlier = folders.read_json(self.folder, LATEST)
        folders.write_json(self.folder, LATEST, {"step": now.step, "key": self.key})
        if earlier and earlier["step"] != now.step:
            folders.delete_folder(f"{self.folder}/{earlier['step']}")


def _checkpoints(folder: str) -> str:
    return f"{folder.rstrip('/')}-checkpoints"


@contextmanager
def _alone() -> Iterator[None]:
    """Open a process group of size 1, which checkpoints require."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def predict(
    task: Task,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    series: pa.Table,
    at_once: int,
    advance: Callable[[int], None] = lambda _: None,
) -> pa.Table:
    """Predict the descriptions of series. Returns the columns of a predictions table that scoring needs.

    at_once: plots per batch. advance: called with the number of plots described since the last call.
    """
    from tsd.inference.decoding import describe

    texts: list[str] = []
    for first in range(0, len(series), at_once):
        ink = rasterised.draw(task.items(series.slice(first, at_once)))
        styles = [task.style(f"test {i}") for i in range(first, first + len(ink))]
        texts += describe(model, tokenizer, task, ink, task.reply_tokens, styles)
        advance(len(ink))
    return pa.table({"series_id": series["series_id"], **scoring.answers(task, series, texts)})


def _say_scores(
    task: Task, predictions: pa.Table, scores: dict[str, dict[str, float]], reporter: Reporter
) -> None:
    """Print a teacher's scores by facet and class, in %."""
    for facet, each in scoring.recalls(task, predictions).items():
        of_classes = ", ".join(f"{name} {at.value:.1%}" for name, at in each.items())
        reporter.say(escape(f"  {facet} {scores[facet]['value']:.1%} right: {of_classes}"))
    reporter.say(f"  all right {scores[ALL_RIGHT]['value']:.1%}, valid {scores[VALID]['value']:.1%}")
