"""What a command will do before it does it: rows, tokens, FLOPs, dollars, and time at a rate measured here."""

import time
from collections.abc import Callable
from typing import Any

from tsd.progress import clock
from tsd.recipe import Recipe, RulesTeacher
from tsd.series import processes
from tsd.teachers import make_teacher

STAGES = ("generate", "annotate", "curate", "train", "evaluate", "report")
TEXT_TOKENS = 220  # a teacher's prompt and a picture of the default size, roughly, for a Qwen-VL
REPLY_TOKENS = 60
ANSWER_TOKENS = 36  # a student's reply, in the small tokenizer
TRIAL_SECONDS = 9.0  # that starting a trial keeps two cores busy, measured on the laptop study
PROBE_STEPS = 3


def plan(recipe: Recipe, stage: str) -> str:
    """The plan of a stage, or of all of them for "study", as lines to print. Nothing is written."""
    asked = STAGES if stage == "study" else (stage,)
    lines = [f"{recipe.folder}: what `tsd {stage}` will do; times are for this machine, from a short trial now"]
    total = 0.0
    for name in asked:
        said, seconds = _PLANS[name](recipe)
        total += seconds or 0.0
        took = f"about {clock(seconds)}" if seconds is not None else "time unknown: it depends on the server"
        lines.append(f"  {name:<9} {said}; {took}")
    if len(asked) > 1:
        lines.append(f"  {'in all':<9} about {clock(total)}, Ray's own start of some seconds not counted")
    return "\n".join(lines)


def _generate(recipe: Recipe) -> tuple[str, float | None]:
    count = recipe.series.count
    seconds = _time(lambda: processes.draw_table(recipe.series, recipe.seed, 0, processes.BLOCK))
    said = f"{count:,} series of {recipe.series.length} points, {count * recipe.series.length / 2**20:,.1f} MiB of values"
    return said, seconds * count / processes.BLOCK / _workers(recipe)


def _annotate(recipe: Recipe) -> tuple[str, float | None]:
    count, teacher = recipe.series.count, recipe.teacher
    if isinstance(teacher, RulesTeacher):
        sample = processes.draw_table(recipe.series, recipe.seed, 0, 256)
        rules = make_teacher(teacher, recipe.plots, recipe.seed)
        seconds = _time(lambda: rules.annotate(sample)) * count / len(sample) / _workers(recipe)
        return f"{count:,} replies by rules, 0 images, 0 tokens, $0", seconds
    asked, said = count * TEXT_TOKENS, count * REPLY_TOKENS
    dollars = (asked * teacher.usd_per_million_input + said * teacher.usd_per_million_output) / 1e6
    return (
        f"{count:,} requests to {teacher.model}, {count:,} images of {recipe.plots.width} × {recipe.plots.height}, "
        f"about {asked:,} tokens in and {said:,} out, about ${dollars:,.2f}",
        None,
    )


def _curate(recipe: Recipe) -> tuple[str, float | None]:
    return f"{recipe.series.count:,} replies sorted into examples and rejects", recipe.series.count / 10_000


def _train(recipe: Recipe) -> tuple[str, float | None]:
    """Each student takes a few steps on made-up tokens, so that its rate is measured and not guessed."""
    tokens, flops, seconds, runs = 0, 0.0, 0.0, 0
    for student in recipe.students.sizes:
        probed = _probe(recipe, student)
        for volume in recipe.students.volumes:
            rows = volume * recipe.training.epochs * len(recipe.students.seeds)
            runs += len(recipe.students.seeds)
            tokens += rows * int(probed["length"])
            flops += rows * probed["flops"]
            seconds += rows * probed["seconds"]
    at_once = max(1, min(recipe.training.concurrent_trials, _workers(recipe) // recipe.training.workers))
    said = f"{runs} students, {tokens:,} tokens, {flops:.2g} FLOPs"
    return said, seconds / at_once + runs * TRIAL_SECONDS / at_once


def _evaluate(recipe: Recipe) -> tuple[str, float | None]:
    runs = len(recipe.students.sizes) * len(recipe.students.volumes) * len(recipe.students.seeds)
    replies = runs * recipe.evaluation.series
    tokens = replies * (recipe.series.length + ANSWER_TOKENS)
    # A prompt is a forward pass, a third of a training step; the replies take about as long again.
    seconds = sum(_probe(recipe, student)["seconds"] for student in recipe.students.sizes) * 2 / 3
    each = recipe.evaluation.series * len(recipe.students.volumes) * len(recipe.students.seeds)
    return f"{replies:,} replies, {tokens:,} tokens", seconds * each / recipe.evaluation.workers


def _report(recipe: Recipe) -> tuple[str, float | None]:
    return "6 laws fitted with intervals, one page", 30.0


def _probe(recipe: Recipe, student: Any) -> dict[str, float]:
    """Tokens, FLOPs and seconds of one example of this student, on one worker's threads."""
    import numpy as np
    import torch

    from tsd import students, training
    from tsd.corpus import Corpus

    source = student.source
    torch.set_num_threads(recipe.training.threads)
    tokenizer = (
        students.load_tokenizer(source) if source else students.build_tokenizer([], recipe.training.max_length)
    )
    model = students.build(student, tokenizer, 0, recipe.training.max_length)
    length = recipe.series.length + ANSWER_TOKENS + 12
    rows = recipe.training.batch_size * PROBE_STEPS
    corpus = Corpus([np.full(length, 5)] * rows, np.full(rows, length - ANSWER_TOKENS), 0)
    settings = recipe.training.model_copy(update={"epochs": 1})
    progress = training.Progress()
    training.train(
        model,
        corpus,
        settings,
        learning_rate=0.0,
        seed=0,
        place=training.Place(),
        optimiser=training.make_optimiser(model, settings),
        progress=progress,
        report=lambda _: None,
        save=lambda _: None,
    )
    _, body = students.parameter_counts(model)
    flops = students.training_flops(model, body, length, ANSWER_TOKENS, length)
    return {"length": length, "flops": flops, "seconds": progress.seconds / rows}


def _time(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _workers(recipe: Recipe) -> int:
    import os

    return os.cpu_count() or 1


_PLANS: dict[str, Callable[[Recipe], tuple[str, float | None]]] = {
    "generate": _generate,
    "annotate": _annotate,
    "curate": _curate,
    "train": _train,
    "evaluate": _evaluate,
    "report": _report,
}
