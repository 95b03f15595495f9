"""Replies per second of `decode` and of transformers' generate on the same students, prompts and batches.

Students of three sizes are trained for a moment, so that replies end at different lengths. Prompts are series
of 128 points, or of 32, 64, 128 and 256 in equal shares. Both sides go from prompts to texts on one thread in
float32; generate has its own cache, pads on the left and stops at the same token. Seconds are CPU time, which
equals wall time for one thread on an idle machine. The two sides take turns and alternate in going first; a ratio
is the median over the turns, with quartiles. Writes decoding.json beside itself. Five minutes.

    OMP_NUM_THREADS=1 python benchmarks/decoding.py --check
"""

import os
from collections.abc import Callable, Sequence
from statistics import median, quantiles
from typing import Any

import pyarrow as pa
import torch
from lessons import lessons
from measured import Bound, finish, in_turns, parser, show
from plain import generate
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tsd.generation.generator import draw_table
from tsd.inference.decoding import decode
from tsd.models import students
from tsd.recipe import Student, TrainingConfig, load
from tsd.tasks import SINGLE
from tsd.training import corpus, loop

SIZES, FIXED, MIXED = ("0.03M", "0.3M", "1M"), 128, (32, 64, 128, 256)
TURNS = {1: 15, 32: 11, 128: 7}  # by batch: the shorter a turn, the more a moment of the machine weighs in it
EXAMPLES, FEWEST, MOST_TOKENS = 1000, 4, 80


def main() -> None:
    """Time both ways for each size, kind of prompts and batch."""
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    recipe = load("laptop", ["teacher={kind: rules}", f"series.length={list(MIXED)}"])
    _, examples, tokenizer = lessons(recipe, 2048)
    asked = draw_table(SINGLE, recipe.series, recipe.seed, 2048, 2048)["values"].to_pylist()
    kinds = {
        f"{FIXED} points": [values for values in asked if len(values) == FIXED],
        f"{min(MIXED)} to {max(MIXED)} points": evenly(asked, max(TURNS)),
    }
    results = []
    for size in SIZES:
        model = student(size, tokenizer, examples)
        for kind, values in kinds.items():
            prompts = [SINGLE.student_prompt(one) for one in values]
            results += [
                {"student": size, "prompts": kind, "batch": batch, **compare(model, tokenizer, prompts, batch)}
                for batch in TURNS
            ]
    show("Replies per second, one thread", results)
    finish(__file__, {"examples": EXAMPLES, "turns": TURNS, "results": results}, bounds(results), options.check)


def student(size: str, tokenizer: PreTrainedTokenizerBase, examples: pa.Table) -> PreTrainedModel:
    """A student that has learned how long a reply is, and little else."""
    model = students.build(Student(name=size), tokenizer, 0, 2048)
    settings = TrainingConfig()
    loop.train(
        model,
        corpus.tokenise(corpus.select([examples], "train", EXAMPLES), tokenizer, 2048),
        settings,
        learning_rate=students.learning_rate(Student(name=size)),
        seed=0,
        place=loop.WorkerContext(),
        optimizer=loop.make_optimizer(model, settings),
        progress=loop.Progress(),
    )
    return model.eval()


def evenly(series: Sequence[list[int]], count: int) -> list[list[int]]:
    """As many series of each length, in turns, so that every batch has all lengths."""
    by_length = [[values for values in series if len(values) == length] for length in MIXED]
    return [by_length[i % len(MIXED)][i // len(MIXED)] for i in range(count)]


def compare(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], batch: int
) -> dict[str, float]:
    """Replies per second both ways, batch by batch, and how many replies are the same."""
    prompts = prompts[: max(batch, FEWEST)]
    batches = [list(prompts[first : first + batch]) for first in range(0, len(prompts), batch)]
    works: dict[str, Callable[[], list[str]]] = {
        "tsd": lambda: [text for few in batches for text in decode(model, tokenizer, few, MOST_TOKENS)],
        "generate": lambda: [text for few in batches for text in generate(model, tokenizer, few, MOST_TOKENS)],
    }
    ours, theirs = (work() for work in works.values())
    tokens = [len(ids) for ids in tokenizer(ours, add_special_tokens=False)["input_ids"]]
    seconds = in_turns(works, TURNS[batch])
    ratios = [theirs / ours for ours, theirs in zip(seconds["tsd"], seconds["generate"], strict=True)]
    low, ratio, high = quantiles(ratios, n=4)
    return {
        **{name: len(prompts) / median(spent) for name, spent in seconds.items()},
        "low": low,
        "ratio": ratio,
        "high": high,
        "identical": sum(map(str.__eq__, ours, theirs)) / len(prompts),
        "mean_tokens": sum(tokens) / len(tokens),
        "longest": max(tokens),
    }


def bounds(results: Sequence[dict[str, Any]]) -> list[Bound]:
    """Identical, never slower, and half as fast again where it was promised."""
    promised = [row for row in results if row["student"] == "0.3M" and row["batch"] == 128]
    return [
        Bound("replies that are generate's, least share", min(row["identical"] for row in results), least=1.0),
        Bound("times generate's rate, least of all", min(row["ratio"] for row in results), least=1.0),
        *(
            Bound(f"times generate's rate, 0.3M, batch 128, {row['prompts']}", row["ratio"], least=1.5)
            for row in promised
        ),
    ]


if __name__ == "__main__":
    main()
