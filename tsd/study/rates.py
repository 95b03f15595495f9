"""What one example costs a student on this machine: tokens, FLOPs, seconds."""

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from tsd.errors import InputError
from tsd.generation import generator
from tsd.models import hub, sources
from tsd.recipe import (
    Recipe,
    RulesTeacher,
    Student,
)
from tsd.study import placement
from tsd.teachers.rules import Rules

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tsd.training.corpus import Corpus


SAMPLE = 256  # series that are generated and described to count tokens and to measure rates
PROBE_STEPS = 3
CHAT_TOKENS = 12  # that a chat template adds to a prompt and a response
LETTERS_A_TOKEN = 4.5  # characters per token of English words in Qwen's vocabulary


@dataclass(frozen=True)
class Rate:
    """Cost of one example for one student. seconds: None if it cannot be measured on this machine."""

    tokens: float
    answer_tokens: float
    flops: float
    seconds: float | None
    estimated: str | None = None
    """Why tokens and FLOPs are estimated from the model's name alone, if they are."""


@lru_cache
def training_rate(recipe: Recipe, student: Student) -> Rate:
    """Measure the cost of one example for a student: tokens and FLOPs on a sample, seconds over a few steps.

    A GPU student is instantiated without weights, so its seconds cannot be measured here. Raises InputError if
    transformers cannot load the source's config.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tsd.models import students
    from tsd.models.tokenizer import build_tokenizer, load_tokenizer
    from tsd.training.corpus import tokenise

    examples = _sample(recipe)
    folder, unreachable = hub.folder(student.source) if student.source else (None, None)
    if student.source and folder is None:
        return _from_name(student, examples, str(unreachable))
    texts = [recipe.asks.image_prompt, *examples["prompt"].to_pylist(), *examples["completion"].to_pylist()]
    longest = recipe.training.max_length
    tokenizer = load_tokenizer(folder) if folder else build_tokenizer(texts, longest, student.is_multimodal)
    corpus = tokenise(examples, tokenizer, longest, recipe.asks if student.is_multimodal else None)
    measured = not recipe.training.gpu
    if measured or student.source is None:
        torch.set_num_threads(recipe.training.threads)
        model = students.build(student, tokenizer, 0, longest)
    else:
        try:
            config = AutoConfig.from_pretrained(sources.local(str(folder)))
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"{student.source} is not a model that transformers can load: {reason}") from None
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    length, answer = float(corpus.lengths.mean()), float((corpus.lengths - corpus.answers).mean())
    _, body = students.parameter_counts(model)
    flops = students.training_flops(model, body, 1, 0, length) * length
    flops += students.training_flops(model, body, 0, 1, length) * answer
    if not measured:
        return Rate(length, answer, flops, None)
    _seconds_per_example(recipe, model, corpus, steps=1)  # warm-up: the first step is slower
    return Rate(length, answer, flops, _seconds_per_example(recipe, model, corpus, PROBE_STEPS))


def _from_name(student: Student, examples: pa.Table, why: str) -> Rate:
    """Estimate the cost of one example for a model that cannot be loaded.

    Its size is parsed from its name. Tokens are counted as in Qwen's vocabulary: one per digit, and one per space
    before a number.
    """
    prompts, replies = (examples[name].to_pylist() for name in ("prompt", "completion"))
    prompt, answer = (float(np.mean([_tokens_of(text) for text in texts])) for texts in (prompts, replies))
    tokens = prompt + answer + CHAT_TOKENS
    # FLOPs per token: 6·N (2 forward, 4 backward); with LoRA 4·N, since frozen weights need no weight gradients.
    flops = (4 if student.lora else 6) * placement.parameters(student) * tokens
    return Rate(tokens, answer, flops, None, why)


def _tokens_of(text: str) -> float:
    digits, numbers = len(re.findall(r"\d", text)), len(re.findall(r" \d+", text))
    return digits + numbers + len(re.sub(r" ?\d+", "", text)) / LETTERS_A_TOKEN


def _sample(recipe: Recipe) -> pa.Table:
    """Generate prompts and completions of the rules teacher for the first series of the study."""
    series = generator.draw_table(recipe.asks, recipe.series, recipe.seed, 0, min(SAMPLE, recipe.series.count))
    described = Rules(RulesTeacher(), recipe.asks, recipe.seed).annotate(series)
    prompts = [recipe.asks.student_prompt(values) for values in series["values"].to_pylist()]
    return pa.table({"prompt": prompts, "completion": described["text"]})


def _seconds_per_example(recipe: Recipe, model: "PreTrainedModel", corpus: "Corpus", steps: int) -> float:
    """Measure the seconds per example over a few steps with a learning rate of 0, so that the model is
    unchanged.
    """
    from tsd.training import loop

    settings = recipe.training.model_copy(update={"epochs": 1})
    budget = settings.tokens_per_batch
    each = settings.batch_size if budget is None else max(1, int(budget / corpus.lengths.mean()))
    rows = np.resize(np.arange(len(corpus)), each * steps)
    few = corpus.take(rows)
    progress = loop.Progress()
    loop.train(
        model,
        few,
        settings,
        learning_rate=0.0,
        seed=0,
        place=loop.WorkerContext(),
        optimizer=loop.make_optimizer(model, settings),
        progress=progress,
    )
    return progress.seconds / len(few)


def counted_model(recipe: Recipe) -> str:
    students = recipe.students
    seeds = sorted({len(students.seeds_for(train_size)) for train_size in students.train_sizes})
    parts = (
        (str(len(students.models)), "model"),
        (str(len(students.train_sizes)), "train size"),
        (" to ".join(map(str, dict.fromkeys((seeds[0], seeds[-1])))), "seed"),
    )
    return " × ".join(f"{count} {noun}{'' if count == '1' else 's'}" for count, noun in parts)


def rounded(count: float) -> str:
    """Format an estimate with three significant digits."""
    return f"{float(f'{count:.3g}'):,.0f}"


def seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def cpus() -> int:
    return os.cpu_count() or 1
