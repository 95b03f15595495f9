"""Ablations of decoding."""

import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import decoding as decoding_benchmark
import numpy as np
import plain
import torch
from ablated_cases import (
    AT_ONCE,
    LAPTOP,
    MAX_LENGTH,
    OURS,
    PLAIN,
    SEED,
    Case,
    Work,
    case,
    laptop_examples,
    laptop_plots,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tsd.generation.generator import draw_table
from tsd.inference.decoding import decode, describe
from tsd.models import students
from tsd.plots import rasterised
from tsd.tasks import SINGLE
from tsd.training import loop


def own_decoding() -> list[Case]:
    """tsd's cache, decoder and removal of finished sequences, against `generate` on the same batches."""
    found = _decoded(lambda model, tokenizer, few: plain.generate(model, tokenizer, few, LAPTOP.max_new_tokens))
    return [*found, _described()]


def fast_decoder() -> list[Case]:
    """`FastDecoder` alone, against the model's own forward pass on the same cache."""

    def reply(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> list[str]:
        with plain.models_forward():
            return decode(model, tokenizer, prompts, LAPTOP.max_new_tokens)

    return _decoded(reply)


def _decoded(reply: Callable[[Any, Any, list[str]], list[str]]) -> list[Case]:
    """A case for each text student, on one batch of the laptop's evaluation."""
    torch.set_num_threads(LAPTOP.training.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer, examples = laptop_examples()
    prompts = examples["prompt"].to_pylist()[-LAPTOP.evaluation.batch_size :]
    runs = len(list(LAPTOP.students.cells())) // len(LAPTOP.students.models)
    found = []
    for student, turns in zip(LAPTOP.students.models, (5, 5, 3), strict=True):
        model = decoding_benchmark.student(student.name, tokenizer, examples)
        works = {
            OURS: partial(decode, model, tokenizer, prompts, LAPTOP.max_new_tokens),
            PLAIN: partial(reply, model, tokenizer, prompts),
        }
        uses = runs * LAPTOP.evaluation.series
        one = case(f"text {student.name}", works, turns, len(prompts), uses, LAPTOP.evaluation.workers)
        found.append(_alike(one, works))
    return found


def _described(count: int = 256, learned: int = 6000) -> Case:
    """The laptop's teacher on plots of series. It has learned from few, so replies end by themselves."""
    settings, student, tokenizer, corpora = laptop_plots(learned)
    model = students.build(student, tokenizer, SEED, MAX_LENGTH)
    loop.train(
        model,
        corpora["train"],
        settings,
        learning_rate=students.learning_rate(student),
        seed=SEED,
        place=loop.WorkerContext(),
        optimizer=loop.make_optimizer(model, settings),
        progress=loop.Progress(),
    )
    ink = rasterised.draw(SINGLE.items(draw_table(SINGLE, LAPTOP.series, LAPTOP.seed, 0, count)))
    most: int = LAPTOP.teacher.max_tokens  # type: ignore[union-attr]
    works = {
        OURS: partial(describe, model, tokenizer, SINGLE, ink, most),
        PLAIN: partial(plain.generate_from_images, model, tokenizer, SINGLE, ink, most),
    }
    return _alike(case("vision, the local teacher", works, 5, count, LAPTOP.series.count, AT_ONCE), works)


def _alike(found: Case, works: Mapping[str, Work]) -> Case:
    """The case, with the share of replies that are the same by either way."""
    replies = (work() for work in works.values())
    identical = float(np.mean([ours == theirs for ours, theirs in zip(*replies, strict=True)]))
    assert identical > 0.98, (found["case"], identical)  # near ties may fall either way
    return {**found, "identical": identical}
