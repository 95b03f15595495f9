"""Train a teacher of one's own, in this process and without Ray: a small model that learns to look at plots.

In: a recipe whose teacher is to be trained. Out: the teacher's folder. It learns from series of its own, whose
truth it is told in always the same words, by the code that students learn by; in MLflow it is a run of the study.
"""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from rich.markup import escape

from tsd.errors import InputError
from tsd.evaluation import scoring
from tsd.generation import generator
from tsd.models import card
from tsd.plots import rasterised
from tsd.progress import Reporter, Step
from tsd.recipe import ModelTeacher, Recipe, Student, Training, TrainingConfig, to_yaml
from tsd.storage import datasets
from tsd.storage.schemas import ALL_RIGHT, VALID, score_names
from tsd.tasks import Task

if TYPE_CHECKING:
    from tsd.tracking import Tracker
    from tsd.training.corpus import Corpus
    from tsd.training.loop import Place, Progress

OWN_SEED = 0x7EAC4E2  # added to a study's for the series that its own teacher learns from
TEST = 1000  # series that such a teacher is scored on
LATEST = "latest.json"  # in the folder of its checkpoints: which one is whole
TOGETHER = 8192  # series drawn at once


def prepare(recipe: Recipe, reporter: Reporter, open_tracker: Callable[[], "Tracker"]) -> None:
    """Train the recipe's own teacher, where it has one that is not there yet, and say how well it reads plots.

    open_tracker: the study's; asked for where there is something to track. Raises InputError where the folder
    holds another teacher than the recipe asks for.
    """
    teacher = recipe.teacher
    if not isinstance(teacher, ModelTeacher) or teacher.train is None:
        return
    there = datasets.read_fields(teacher.model, card.CARD)
    mine, wrong = there is not None and there.get("key") == key(recipe), datasets.damage(teacher.model)
    if mine and not wrong:
        reporter.say(f"  the teacher is there: {teacher.model}")
        return
    if there is not None and not mine:
        raise InputError(
            f"{teacher.model} holds another teacher than teacher.train asks for: give the study another name, "
            "or delete that folder"
        )
    _train(recipe, teacher.model, reporter, open_tracker())


def prepare_alone(recipe: Recipe, reporter: Reporter) -> None:
    """Train the own teachers of a recipe outside of a study's run."""
    for name, one in (recipe.by_teacher or {"": recipe}).items():
        if name:
            reporter.say(f"[bold]Teacher: {escape(name)}[/]")
        with ExitStack() as held:
            prepare(one, reporter, partial(_open_tracker, one, held))


def _open_tracker(recipe: Recipe, held: ExitStack) -> "Tracker":
    """The study's tracker, closed with what holds it."""
    from tsd.tracking import Tracker

    tracker = Tracker(recipe.tracking.uri, recipe.tracking.experiment, recipe.folder, to_yaml(recipe))
    held.callback(tracker.close)
    return tracker


def key(recipe: Recipe) -> str:
    """What makes the recipe's own teacher: how it is trained, on which series, and how they look."""
    train = _asked(recipe)
    series = recipe.series.model_dump(exclude={"count", "split", "blocks_per_part"})
    drawn = [generator.VERSION, rasterised.VERSION, recipe.seed, series]
    return datasets.digest(["own teacher", recipe.asks.name, recipe.asks.version, *drawn, train.model_dump()])


def as_student(recipe: Recipe) -> Student:
    """The recipe's own teacher as the student that it is at first."""
    train = _asked(recipe)
    name = recipe.teacher.name
    return Student(name=name, size=train.size, view="plot", learning_rate=train.learning_rate)


def settings(recipe: Recipe) -> TrainingConfig:
    """How the recipe's own teacher is trained."""
    train = _asked(recipe)
    return TrainingConfig(
        batch_size=train.batch_size,
        optimiser=train.optimiser,
        threads=recipe.training.threads,
        checkpoint_every=1000,
    )


def draw(recipe: Recipe, advance: Callable[[int], None] = lambda _: None) -> dict[str, pa.Table]:
    """The series that the recipe's own teacher learns from and is scored on, by split."""
    sizes = _sizes(recipe)
    total, seed = sum(sizes.values()), (recipe.seed + OWN_SEED) % 2**63
    parts = []
    for first in range(0, total, TOGETHER):
        count = min(TOGETHER, total - first)
        table = generator.draw_table(recipe.asks, recipe.series, seed, first, count)
        parts.append(table.select(["series_id", "values", "truth"]))
        advance(count)
    series, found, first = pa.concat_tables(parts), {}, 0
    for split, size in sizes.items():
        found[split] = series.slice(first, size)
        first += size
    return found


def _sizes(recipe: Recipe) -> dict[str, int]:
    """How many series are drawn for the recipe's own teacher, by split."""
    validation = recipe.evaluation.validation_examples
    return {"train": _asked(recipe).pictures, "validation": validation, "test": TEST}


def told(recipe: Recipe, series: dict[str, pa.Table]) -> tuple[Any, dict[str, "Corpus"]]:
    """What the recipe's own teacher is told of such series, for training and validation, and its tokenizer."""
    from tsd.models.tokenizer import build_tokenizer
    from tsd.training.corpus import looking_corpus

    task, longest = recipe.asks, settings(recipe).max_length
    plain = [0] * len(task.phrasing_counts)  # the first sentence of each topic
    said = {
        split: [task.reply(truth, plain) for truth in series[split]["truth"].to_pylist()]
        for split in ("train", "validation")
    }
    texts = [task.looking_prompt, *sorted(set(said["train"]))]
    tokenizer = build_tokenizer(texts * 2, longest, pictures=True)  # twice, so that all words are frequent
    return tokenizer, {
        split: looking_corpus(task, task.items(series[split]), replies, tokenizer, longest)
        for split, replies in said.items()
    }


def _asked(recipe: Recipe) -> Training:
    """What the recipe says of training its teacher."""
    assert isinstance(recipe.teacher, ModelTeacher)
    assert recipe.teacher.train
    return recipe.teacher.train


def _train(recipe: Recipe, folder: str, reporter: Reporter, tracker: "Tracker") -> None:
    train, started = _asked(recipe), time.perf_counter()
    run: dict[str, Any] = {
        "student": as_student(recipe).model_dump(),
        "examples": train.pictures,
        "seed": train.seed,
        "run_id": f"{recipe.teacher.name}-{train.pictures}-s{train.seed}-{key(recipe)[:8]}",
    }
    with reporter.stage("Draw the teacher's series", sum(_sizes(recipe).values()), recipe.asks.unit) as step:
        series = draw(recipe, step.advance)
    with reporter.stage("Train the teacher", train.pictures, "plots") as step:
        model, tokenizer, record = _learn(recipe, run, series, folder, started, step, tracker)
    with reporter.stage("Score the teacher", TEST, "plots") as step:
        at_once = recipe.evaluation.batch_size
        predictions = look(recipe.asks, model, tokenizer, series["test"], at_once, step.advance)
    found = scoring.score(predictions)
    scores = {name: found[name].as_dict() for name in score_names(recipe.asks.names)}
    about = {"study": recipe.name, "recipe": datasets.digest(recipe.model_dump(mode="json")), "teacher": "rules"}
    with tempfile.TemporaryDirectory() as local:
        from tsd.training.trainer import export

        length = recipe.series.length
        export(model, tokenizer, Path(local), run, record, task=recipe.task, length=length, about=about)
        said = {**json.loads(Path(local, card.CARD).read_text()), "key": key(recipe)}
        Path(local, card.CARD).write_text(json.dumps(said, indent=1, sort_keys=True) + "\n")
        Path(local, card.README).write_text(card.render(said, scores), encoding="utf-8")
        datasets.copy_folder(local, folder, sealed=True)
    datasets.delete_folder(_checkpoints(folder))
    tracker.finish(record, {name: at["value"] for name, at in scores.items()}, int(time.time() * 1000))
    _say_scores(recipe.asks, predictions, scores, reporter)
    reporter.say(f"  the teacher lies in {folder}")


def _learn(
    recipe: Recipe,
    run: dict[str, Any],
    series: dict[str, pa.Table],
    folder: str,
    started: float,
    step: Step,
    tracker: "Tracker",
) -> tuple[Any, Any, dict[str, Any]]:
    """The trained model, its tokenizer and its record."""
    import torch

    from tsd.training.loop import Place
    from tsd.training.trainer import learn

    how, place = settings(recipe), Place()
    tokenizer, corpora = told(recipe, series)
    step.begin()
    course = _Course(key(recipe), run["run_id"], _checkpoints(folder), how.batch_size, place, step, tracker)
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
            )
    finally:
        torch.set_num_threads(threads)
    step.advance(run["examples"] - course.shown)
    return model, tokenizer, record


@dataclass
class _Course:
    """A teacher's training on its way: what is told of it, and the checkpoint that it goes on from."""

    key: str
    run_id: str
    folder: str  # of its checkpoints
    batch_size: int
    place: "Place"
    step: Step
    tracker: "Tracker"
    shown: int = 0  # pictures that the progress bar has heard of

    def report(self, now: "Progress") -> None:
        """Tell whoever watches, and MLflow."""
        shown = now.step * self.batch_size
        self.step.advance(shown - self.shown, f"loss {now.loss:.3f}")
        self.shown = shown
        self.tracker.log(self.run_id, now.step, {"loss": now.loss}, int(time.time() * 1000))

    def resume(self, model: Any, optimiser: Any) -> "Progress":
        """Load the last checkpoint, where there is a whole one of this teacher, and say how far it is."""
        from tsd.training import checkpoints
        from tsd.training.loop import Progress

        latest = datasets.read_json(self.folder, LATEST)
        if latest is None or latest["key"] != self.key:
            return Progress()
        with datasets.local_copy(f"{self.folder}/{latest['step']}") as last:
            if not checkpoints.is_whole(Path(last)):
                return Progress()
            progress = checkpoints.restore(Path(last), model, optimiser, self.place)
        self.shown = progress.step * self.batch_size
        self.step.skip(self.shown)
        return progress

    def keep(self, part: Path, now: "Progress") -> None:
        """Put a checkpoint beside the one before."""
        datasets.copy_folder(str(part), f"{self.folder}/{now.step}")

    def tell(self, now: "Progress") -> None:
        """From here on it is this one that counts."""
        earlier = datasets.read_json(self.folder, LATEST)
        datasets.write_json(self.folder, LATEST, {"step": now.step, "key": self.key})
        if earlier and earlier["step"] != now.step:
            datasets.delete_folder(f"{self.folder}/{earlier['step']}")


def _checkpoints(folder: str) -> str:
    return f"{folder.rstrip('/')}-checkpoints"


@contextmanager
def _alone() -> Iterator[None]:
    """A process group of one, for checkpoints."""
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        dist.destroy_process_group()


def look(
    task: Task,
    model: Any,
    tokenizer: Any,
    series: pa.Table,
    at_once: int,
    advance: Callable[[int], None] = lambda _: None,
) -> pa.Table:
    """What the model says of series: the columns of a predictions table that scores need. at_once: pictures."""
    from tsd.inference.decoding import describe

    texts: list[str] = []
    for first in range(0, len(series), at_once):
        ink = rasterised.draw(task.items(series.slice(first, at_once)))
        texts += describe(model, tokenizer, task, ink, task.reply_tokens)
        advance(len(ink))
    labels = pa.array([task.parse(text).labels for text in texts], task.tables.labels)
    return pa.table({"series_id": series["series_id"], "labels": labels, "truth": series["truth"]})


def _say_scores(
    task: Task, predictions: pa.Table, scores: dict[str, dict[str, float]], reporter: Reporter
) -> None:
    """Say how a teacher scores, facet by facet and class by class, in %."""
    for facet, each in scoring.recalls(task, predictions).items():
        of_classes = ", ".join(f"{name} {at.value:.1%}" for name, at in each.items())
        reporter.say(escape(f"  {facet} {scores[facet]['value']:.1%} right: {of_classes}"))
    reporter.say(f"  all right {scores[ALL_RIGHT]['value']:.1%}, valid {scores[VALID]['value']:.1%}")
