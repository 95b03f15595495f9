"""Plan a command before it runs: rows, tokens, FLOPs, cost, and time at a rate measured on this machine.

Nothing is written and no teacher is called. Tokens are counted on a sample of the study's own series. Finished
stages are looked up in the study's folder and not counted again.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np

from tsd.generation import generator
from tsd.progress import clock
from tsd.recipe import (
    AddedTeacher,
    ApiTeacher,
    LocalTeacher,
    ModelTeacher,
    Recipe,
    RulesTeacher,
    Student,
    TrainingConfig,
    VllmTeacher,
)
from tsd.study import local_teacher, placement, remaining
from tsd.study.rates import SAMPLE, Rate, counted_model, cpus, rounded, seconds_of, training_rate
from tsd.study.remaining import Remaining
from tsd.teachers.prompts import image_tokens, text_tokens
from tsd.teachers.rules import Rules

if TYPE_CHECKING:
    pass

STAGES = ("generate", "annotate", "curate", "train", "evaluate", "report")
BATCH_SECONDS = 86_400.0  # completion window of a provider's batch
REPLY_SHARE = 0.75  # approximate fraction of a task's maximum response tokens that a teacher uses
CURATED_PER_SECOND = 25_000  # rough default for the estimate
TRIAL_SECONDS = 9.0  # CPU time of starting a trial; rough default for the estimate
REPORT_SECONDS = 30.0  # rough default for the estimate
OWN_SECONDS = 12.0  # of training a local teacher, besides its steps; rough default for the estimate
STAGE_SECONDS = 2.0  # of starting a stage on Ray Data; rough default for the estimate
TOKENIZER_SECONDS = 4.5  # of building and saving the tokenizer; rough default for the estimate
DONE = "nothing to do: it is finished"
INDENT = 13  # width of a stage's name


def plan(recipe: Recipe, stage: str) -> str:
    """Return the plan of a stage, or of all stages for "study", as text to print. Writes nothing."""
    asked = STAGES if stage == "study" else (stage,)
    lines = [f"tsd {stage} {recipe.name} works in {recipe.folder}. It will"]
    left, unseen = remaining.of_study(recipe)
    total, unknown, begun = 0.0, [], False
    for name in asked:
        each = recipe.by_teacher if recipe.teachers and name != "generate" else {"": recipe}
        for teacher, one in each.items():
            said, seconds = _PLANS[name](one, left[teacher])
            begun |= said[0].startswith(DONE)
            if seconds is None:
                unknown.append(name)
            total += seconds or 0.0
            took = f"about {clock(seconds)}" if seconds is not None else "time not known here"
            taught = f" (teacher {teacher})" if teacher else ""
            lines.append(f"  {name:<{INDENT - 2}}{said[0]}{taught}" + (f": {took}" if seconds != 0 else ""))
            lines.extend(" " * INDENT + more for more in said[1:])
    if len(asked) > 1:
        besides = f" without {' and '.join(dict.fromkeys(unknown))}" if unknown else ""
        lines.append(f"  {'in all':<{INDENT - 2}}about {clock(total)}{besides}, and some seconds to start Ray")
    elif total == 0 and not unknown:
        lines.append(f"There is nothing to do: {recipe.folder} has all results.")
    if unseen:
        lines.append(f"{recipe.folder} could not be read, so this plan covers the whole study: {unseen}")
    state = "This start has done nothing yet" if begun else "Nothing was done yet"
    lines.append(
        f"{state}. Times are estimates for this machine ({cpus()} CPUs), from a short trial just now. "
        "Finished work of earlier starts is not repeated."
    )
    return "\n".join(lines)


def _left_over(share: float, said: list[str], seconds: float | None) -> tuple[list[str], float | None]:
    """Scale the plan of a whole stage to the unfinished share. said, seconds: plan of the whole stage."""
    if share == 1:
        return said, seconds
    if share == 0:
        return [DONE], 0.0
    first = f"{said[0]}, of which {1 - share:.0%} {'is' if share > 0.99 else 'are'} finished"
    return [first, *said[1:]], None if seconds is None else seconds * share


def _generate(recipe: Recipe, left: Remaining) -> tuple[list[str], float | None]:
    if left.series == 0:
        return [DONE], 0.0
    count = recipe.series.count
    generator.draw_table(recipe.asks, recipe.series, recipe.seed, 0, 8)  # warm-up: the first call is slower
    seconds = seconds_of(lambda: generator.draw_table(recipe.asks, recipe.series, recipe.seed, 0, generator.BLOCK))
    size = count * recipe.series.points * recipe.asks.curves / 2**20
    lengths = " or ".join(map(str, recipe.series.lengths))
    said = f"generate {count:,} {recipe.asks.unit} of {lengths} points, {size:,.1f} MiB of values"
    return _left_over(left.series, [said], STAGE_SECONDS + seconds * count / generator.BLOCK / cpus())


def _annotate(recipe: Recipe, left: Remaining) -> tuple[list[str], float | None]:
    if left.annotations == 0:
        return [DONE], 0.0
    said, seconds = _ask_all(recipe, left)
    if left.annotations < 1:
        there = recipe.series.count - round(recipe.series.count * left.annotations)
        said = [f"{said[0]} ({there:,} replies exist already)", *said[1:]]
    return said, seconds


def _ask_all(recipe: Recipe, left: Remaining) -> tuple[list[str], float | None]:
    """Plan the annotation of the remaining series: images, tokens, cost and time.

    Returns the lines to print and the seconds, None if unknown. Includes training a local teacher that does not
    exist yet.
    """
    count, teacher = round(recipe.series.count * left.annotations), recipe.teacher
    if isinstance(teacher, RulesTeacher):
        sample = generator.draw_table(recipe.asks, recipe.series, recipe.seed, 0, SAMPLE)
        rules = Rules(teacher, recipe.asks, recipe.seed)
        each = seconds_of(lambda: rules.annotate(sample)) / len(sample)
        seconds = STAGE_SECONDS + each * count / cpus()
        return [f"write {count:,} replies by the rules teacher, no model: 0 images, 0 tokens, $0"], seconds
    if isinstance(teacher, AddedTeacher):
        return [f"write {count:,} replies by the teacher {teacher.name}, of a plugin: its cost is not known"], None
    task, plots = recipe.asks, recipe.plots
    text = float(np.mean([text_tokens(teacher, task, length) for length in recipe.series.lengths]))
    picture, reply = image_tokens(teacher, plots), task.reply_tokens * REPLY_SHARE
    asked = f"about {rounded(count * text)} text tokens in and {rounded(count * reply)} out"
    before: list[str] = []
    first: float | None = 0.0
    if teacher.train and left.teacher:
        before, first = _own_teacher(recipe, left)
    if isinstance(teacher, LocalTeacher):
        inference = _inference_seconds(recipe, teacher, count)
        described = f"have {teacher.name} describe {count:,} plots in {teacher.workers} processes"
        return [*before, f"{described}, {rounded(count * picture)} image tokens, $0"], _sum(first, inference)
    lines = [*before, f"ask {teacher.name} {_where(teacher)} about {count:,} {task.unit}"]
    if teacher.sees_images:
        drawn = " to ".join(
            f"{width} × {height}" for width, height in sorted({min(plots.sizes), max(plots.sizes)})
        )
        mean = "each" if len(plots.sizes) == 1 else "each on average"
        images = f"{count:,} images of {drawn} pixels, {rounded(picture)} image tokens {mean}"
        lines.append(f"{images}, {rounded(count * picture)} in all")
    if isinstance(teacher, VllmTeacher):
        took, machines = _engine_seconds(teacher, count)
        return [*lines, asked, machines], _sum(first, took)
    dollars = teacher.usd(int(count * (text + picture)), int(count * reply))
    cost = f"about ${dollars:,.2f}" if dollars else "$0, as the recipe names no price (teacher.usd_per_million_…)"
    if teacher.mode == "batch":
        cost += f" at {teacher.batch.price_share:g} of the live price"
    lines.append(f"{asked}, {cost}")
    needed, why = _asking_seconds(recipe, teacher, count, text + picture + reply)
    key = (
        f"the key is read from ${teacher.key_variable} when it starts"
        if teacher.key_variable
        else "no key is sent"
    )
    return [*lines, why, key], _sum(first, needed)


def _own_teacher(recipe: Recipe, left: Remaining) -> tuple[list[str], float | None]:
    """Plan the training of the local teacher, if it does not exist yet."""
    if not left.teacher:
        return [DONE], 0.0
    train = recipe.teacher.train if isinstance(recipe.teacher, ModelTeacher) else None
    assert train
    rate = training_rate(
        recipe.model_copy(update={"training": local_teacher.settings(recipe)}), local_teacher.as_student(recipe)
    ).seconds
    seconds = None if rate is None else OWN_SECONDS + rate * (train.pictures + local_teacher.TEST)
    return [
        f"train the teacher {recipe.teacher.name} on {train.pictures:,} plots of other series with known truth"
    ], seconds


def _inference_seconds(recipe: Recipe, teacher: LocalTeacher, count: int) -> float | None:
    """Seconds to annotate all plots with a local teacher. One of unknown size is timed as 0.3M."""
    student = Student(name=teacher.name, size=teacher.train.size if teacher.train else "0.3M", modality="image")
    each = training_rate(recipe.model_copy(update={"training": TrainingConfig()}), student).seconds
    if each is None:
        return None
    # A forward pass is a third of a training step; decoding takes about as long again.
    return STAGE_SECONDS + count * each * 2 / 3 / min(teacher.workers, cpus())


def _sum(*seconds: float | None) -> float | None:
    """Return the sum, or None if any value is unknown."""
    known = [each for each in seconds if each is not None]
    return sum(known) if len(known) == len(seconds) else None


def _where(teacher: ApiTeacher | VllmTeacher) -> str:
    if isinstance(teacher, ApiTeacher):
        batches = " in offline batches" if teacher.mode == "batch" else ""
        return f"at {urlsplit(teacher.base_url).hostname}{batches}"
    machines = f"{teacher.replicas} × {teacher.gpus} GPUs" if teacher.gpu else "CPUs"
    return f"inside the pipeline, on {machines},"


def _engine_seconds(teacher: VllmTeacher, count: int) -> tuple[float | None, str]:
    """Return the seconds of vLLM engines, and a description of their rate."""
    if teacher.replies_per_second is None:
        return None, "the cost is that of the machines; set teacher.replies_per_second to estimate it"
    machines = teacher.replicas * max(1, teacher.gpus)
    rate = machines * teacher.replies_per_second
    seconds = count / rate
    unit = "GPU hours" if teacher.gpu else "engine hours"
    hours = machines * seconds / 3600
    dollars = f", about ${hours * teacher.usd_per_gpu_hour:,.2f}" if teacher.usd_per_gpu_hour else ""
    return seconds, f"at {rate:,.3g} replies a second (teacher.replies_per_second): {hours:,.1f} {unit}{dollars}"


def _asking_seconds(recipe: Recipe, teacher: ApiTeacher, count: int, tokens: float) -> tuple[float, str]:
    """Return the seconds of an API, and a description of the limiting factor. tokens: per request and response."""
    if teacher.mode == "batch":
        requests = min(teacher.batch.most_requests, recipe.series.blocks_per_part * generator.BLOCK)
        turns = -(-count // (requests * teacher.batch.at_once))
        batches = f"{-(-count // requests):,} batches of {requests:,} (series.blocks_per_part)"
        return turns * BATCH_SECONDS, f"{batches}, {teacher.batch.at_once} at once, each within a day"
    each = teacher.seconds_a_reply
    limits = {
        f"{teacher.in_flight} in flight of {each:g} s each (teacher.seconds_a_reply)": teacher.in_flight / each
    }
    if teacher.requests_per_minute:
        limits["teacher.requests_per_minute"] = teacher.requests_per_minute / 60
    if teacher.tokens_per_minute:
        limits["teacher.tokens_per_minute"] = teacher.tokens_per_minute / 60 / tokens
    why = min(limits, key=limits.__getitem__)
    return count / limits[why], f"at {limits[why]:,.3g} requests a second, by {why}"


def _curate(recipe: Recipe, left: Remaining) -> tuple[list[str], float | None]:
    if left.curation == 0:
        return [DONE], 0.0
    count = recipe.series.count
    said = [f"sort {count:,} replies into examples and rejects"]
    if recipe.curation.nli is None:
        return said, 2 * STAGE_SECONDS + count / CURATED_PER_SECOND
    pairs = count * len(recipe.asks.topics)
    return [*said, f"{recipe.curation.nli.model} compares up to {pairs:,} sentences with the truth"], None


def _train(recipe: Recipe, left: Remaining) -> tuple[list[str], float | None]:
    """Plan the training of unfinished runs: trials, tokens, FLOPs and time.

    Returns the lines to print and the seconds, None if a rate cannot be measured on this machine.
    """
    training, every = recipe.training, list(recipe.students.cells())
    cells = [cell for cell in every if not left.is_trained(_run(*cell))]
    if not cells:
        return [DONE], 0.0
    seen = Counter[Student]()  # over all runs and epochs
    for student, train_size, _ in cells:
        seen[student] += train_size * training.epochs
    rates = {student: training_rate(recipe, student) for student in seen}
    taught = {student: _teaching_rate(recipe, student) for student in seen if student.distil}
    tokens = sum(seen[student] * rate.tokens for student, rate in rates.items())
    flops = sum(seen[student] * rate.flops for student, rate in rates.items())
    packs = placement.packs(
        cells,
        cost=lambda cell: placement.cost(cell[0], cell[1]),
        alike=lambda cell: (placement.need(cell[0], training), recipe.students.teachers_above(cell[0])),
        at_once=training.concurrent_trials,
    )
    needs = [placement.need(student, training) for student in seen]
    most = max(int(need.workers * (need.gpus or need.cpus)) for need in needs) or 1
    at_once = max(1, min(training.concurrent_trials, cpus() // most, len(packs)))
    both = [*rates.items(), *taught.items()]
    known = [seen[student] * rate.seconds for student, rate in both if rate.seconds is not None]
    seconds = None
    if len(known) == len(both):
        seconds = TOKENIZER_SECONDS + (sum(known) + len(packs) * TRIAL_SECONDS) / at_once
    return [
        f"train {_of(len(cells), len(every))} students ({counted_model(recipe)}) in {len(packs)} trials, "
        f"{at_once} at once",
        f"{seen.total():,} examples, about {rounded(tokens)} tokens, {flops:.2g} FLOPs",
        *(_taught(recipe, student, seen[student] * rate.flops) for student, rate in taught.items()),
        *_estimates(rates.values()),
    ], seconds


def _taught(recipe: Recipe, student: Student, flops: float) -> str:
    """Describe a distilled student's teacher, when it is trained, and its additional FLOPs. flops: the
    teacher's.
    """
    teacher = recipe.students.teacher_of(student)
    assert student.distil is not None
    first = f" on {max(recipe.students.train_sizes):,} examples, trained before it" if teacher else ""
    name = student.distil.teacher
    return f"{student.name} is distilled from {name}{first}: {flops:.2g} FLOPs more for the teacher"


def _teaching_rate(recipe: Recipe, student: Student) -> Rate:
    """Cost of one example for the teacher of a distilled student: a forward pass, a third of a training step."""
    assert student.distil is not None
    # Never trained: any rate will do.
    outside = Student(name="teacher", source=student.distil.teacher, learning_rate=1.0)
    rate = training_rate(recipe, recipe.students.teacher_of(student) or outside)
    return replace(rate, flops=rate.flops / 3, seconds=None if rate.seconds is None else rate.seconds / 3)


def _evaluate(recipe: Recipe, left: Remaining) -> tuple[list[str], float | None]:
    """Plan the decoding of unfinished runs: responses, tokens and time.

    Returns the lines to print and the seconds, None if a rate cannot be measured on this machine.
    """
    every = list(recipe.students.cells())
    cells = [cell for cell in every if not left.is_decoded(_run(*cell))]
    if not cells:
        return [DONE], 0.0
    replies = len(cells) * recipe.evaluation.series
    rates = [training_rate(recipe, student) for student, _, _ in cells]
    tokens = sum(recipe.evaluation.series * rate.tokens for rate in rates)
    seconds = None
    known = [rate.seconds for rate in rates if rate.seconds is not None]
    if len(known) == len(rates):
        # A forward pass over the prompt is a third of a training step; decoding takes about as long again.
        seconds = recipe.evaluation.series * sum(known) * 2 / 3 / min(recipe.evaluation.workers, cpus())
    return [
        f"have each of {_of(len(cells), len(every))} students describe {recipe.evaluation.series:,} test series",
        f"{replies:,} replies, about {rounded(tokens)} tokens in and out",
        *_estimates(rates),
    ], seconds


def _estimates(rates: Iterable[Rate]) -> list[str]:
    """Return a line if tokens and FLOPs are only estimated."""
    whys = dict.fromkeys(rate.estimated for rate in rates if rate.estimated)
    return [f"tokens and FLOPs are estimated from the models' names: {why}" for why in whys]


def _run(student: Student, train_size: int, seed: int) -> str:
    """Return the prefix of a run's id."""
    return f"{student.name}-{train_size}-s{seed}"


def _of(count: int, every: int) -> str:
    return str(count) if count == every else f"{count} of {every}"


def _report(recipe: Recipe, left: Remaining) -> tuple[list[str], float | None]:
    return ["fit scaling laws of loss and error rates, and write report.html"], REPORT_SECONDS


_PLANS: dict[str, Callable[[Recipe, Remaining], tuple[list[str], float | None]]] = {
    "generate": _generate,
    "annotate": _annotate,
    "curate": _curate,
    "train": _train,
    "evaluate": _evaluate,
    "report": _report,
    "teacher": _own_teacher,
}
