"""AdamW and Muon: losses of the vision teacher and of text students with either, and the time of a step.

Trains the laptop recipe's teacher on the same plots with either, and with AdamW at twice the learning rate, from
two seeds each. Then it trains the recipe's students on the same examples of an errorless `rules` teacher, one
after another, on one thread. Last, it times the teacher's steps with either and with torch's Muon beside AdamW, in
turns. Writes optimizers.json beside itself. About ten minutes.

    OMP_NUM_THREADS=1 python benchmarks/optimizers.py --check
"""

from collections.abc import Callable
from statistics import mean
from typing import Any

import plain
import torch
from lessons import lessons
from measured import Bound, finish, medians, parser, show

from tsd.evaluation import scoring
from tsd.generation import generator
from tsd.models import students
from tsd.recipe import Recipe, TrainingConfig, load
from tsd.study import local_teacher
from tsd.training import corpus, loop

PICTURES, SEEDS = 30_000, (0, 1)
TESTS, AT_ONCE = 4096, 256  # series that a teacher is asked about, and how many together
TRUTH = "truth=paper"  # by which optimizers.json was measured
RATE = 0.0035  # the recipe's, found with AdamW
EXAMPLES, HELD_OUT = 8000, 500  # what students learn from, and what the loss of teachers and students is taken on
OPTIMIZERS = ("adamw", "muon")
FEW, REPEATS = 1280, 5  # pictures that are timed together, and how often


def main() -> None:
    """Train, time, and write the tables."""
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    ways = [("adamw", RATE), ("adamw", 2 * RATE), ("muon", RATE)]
    learnt = [_learnt(_asked(name, PICTURES, rate, seed)) for name, rate in ways for seed in SEEDS]
    show(f"The teacher, after {PICTURES:,} pictures", learnt)
    read = _read()
    show(f"Students, after {EXAMPLES:,} examples", read)
    times = medians(
        {
            **{name: _steps(_asked(name, FEW)) for name in OPTIMIZERS},
            "torch's Muon and AdamW": _steps(_asked("muon", FEW), plain.make_optimizer),
        },
        REPEATS,
    )
    each = [
        {"optimizer": name, "ms a picture": 1e3 * seconds / FEW, "of AdamW's": seconds / times["adamw"]}
        for name, seconds in times.items()
    ]
    show("What a picture takes", each)
    adamw, faster, muon = (learnt[at : at + len(SEEDS)] for at in range(0, len(learnt), len(SEEDS)))
    bounds = [
        Bound("the teacher's held-out loss with Muon, of AdamW's", _loss(muon) / _loss(adamw), most=0.85),
        Bound("the same, of AdamW's at twice the rate", _loss(muon) / _loss(faster), most=0.85),
        Bound(
            "the students' held-out loss with Muon, of AdamW's", mean(row["of AdamW's"] for row in read), most=0.9
        ),
        Bound("a step with Muon, of AdamW's", times["muon"] / times["adamw"], most=1.3),
        Bound("a step with Muon, of torch's", times["muon"] / times["torch's Muon and AdamW"], most=1.1),
    ]
    finish(
        __file__,
        {"pictures": PICTURES, "learnt": learnt, "examples": EXAMPLES, "students": read, "steps": each},
        bounds,
        options.check,
    )


def _loss(learnt: list[dict[str, Any]]) -> float:
    return float(mean(row["held-out loss"] for row in learnt))


def _asked(optimizer: str, pictures: int, rate: float = RATE, seed: int = 0) -> Recipe:
    settings = {"optimizer": optimizer, "pictures": pictures, "learning_rate": rate, "seed": seed}
    return load("laptop", [TRUTH, *(f"teacher.train.{name}={value}" for name, value in settings.items())])


def _learnt(recipe: Recipe) -> dict[str, Any]:
    """What a teacher has learned: its loss on held-out answers, and how many other series it has right."""
    series, settings, student = (
        local_teacher.draw(recipe),
        local_teacher.settings(recipe),
        local_teacher.as_student(recipe),
    )
    tests = generator.draw_table(
        recipe.asks, recipe.series, recipe.seed, 0, TESTS
    )  # the study's: the same for all
    tokenizer, corpora = local_teacher.told(recipe, {**series, "validation": tests.slice(0, HELD_OUT)})
    seed = recipe.teacher.train.seed  # type: ignore[union-attr]
    model = students.build(student, tokenizer, seed, settings.max_length)
    loss = _train(model, corpora["train"], corpora["validation"], settings, students.learning_rate(student), seed)
    found = scoring.score(local_teacher.predict(recipe.asks, model, tokenizer, tests, AT_ONCE))
    return {
        "optimizer": settings.optimizer,
        "rate": student.learning_rate,
        "seed": seed,
        "held-out loss": loss,
        **{facet: found[facet].value for facet in recipe.asks.names},
    }


def _read() -> list[dict[str, Any]]:
    """Held-out loss of each student of the laptop recipe with either optimizer."""
    recipe = load("laptop", [TRUTH, "teacher={kind: rules, error_rate: 0, varied: false}", "series.count=12000"])
    _, examples, tokenizer = lessons(recipe, recipe.series.count)
    taught, held_out = (
        corpus.tokenise(corpus.select([examples], split, count), tokenizer, recipe.training.max_length)
        for split, count in (("train", EXAMPLES), ("validation", HELD_OUT))
    )
    rows: list[dict[str, Any]] = [{"student": student.name} for student in recipe.students.models]
    for student, row in zip(recipe.students.models, rows, strict=True):
        for name in OPTIMIZERS:
            settings = recipe.training.model_copy(update={"optimizer": name})
            model = students.build(student, tokenizer, 0, settings.max_length)
            row[name] = _train(model, taught, held_out, settings, students.learning_rate(student), 0)
        row["of AdamW's"] = row["muon"] / row["adamw"]
    return rows


def _train(
    model: Any, taught: corpus.Corpus, held_out: corpus.Corpus, settings: TrainingConfig, rate: float, seed: int
) -> float:
    """Train on what is taught. Returns the loss on what is held out, in nats a token."""
    loop.train(
        model,
        taught,
        settings,
        learning_rate=rate,
        seed=seed,
        place=loop.WorkerContext(),
        optimizer=loop.make_optimizer(model, settings),
        progress=loop.Progress(),
    )
    return loop.evaluate(model, held_out, settings.batch_size, loop.WorkerContext()).loss


def _steps(recipe: Recipe, make: Callable[..., torch.optim.Optimizer] = loop.make_optimizer) -> Callable[[], None]:
    """An epoch of a recipe's pictures."""
    settings, student = local_teacher.settings(recipe), local_teacher.as_student(recipe)
    tokenizer, corpora = local_teacher.told(recipe, local_teacher.draw(recipe))
    model = students.build(student, tokenizer, 0, settings.max_length)
    optimizer = make(model, settings)
    return lambda: loop.train(
        model,
        corpora["train"],
        settings,
        learning_rate=1e-4,
        seed=0,
        place=loop.WorkerContext(),
        optimizer=optimizer,
        progress=loop.Progress(),
    )


if __name__ == "__main__":
    main()
