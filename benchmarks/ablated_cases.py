"""The cases of ablations, and the laptop study's examples and plots that several of them are measured on."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from statistics import median, quantiles
from typing import Any

import pyarrow as pa
from lessons import lessons
from measured import in_turns
from transformers import PreTrainedTokenizerBase

from tsd.recipe import Student, TrainingConfig, load
from tsd.study import local_teacher
from tsd.training import corpus

OURS, PLAIN = "tsd", "plain"
LAPTOP = load("laptop")
AT_ONCE = 2  # trials, and processes that describe or decode, on the laptop's two cores
SEED, MAX_LENGTH = 0, LAPTOP.training.max_length

Case = dict[str, Any]
Work = Callable[[], Any]


def case(
    name: str, works: Mapping[str, Work], turns: int, units: int = 1, uses: int = 0, at_once: int = 1
) -> Case:
    """One case. Seconds are the processor's: both ways run on one thread.

    works: by OURS and PLAIN; the first call of each, which is not timed, finds cold caches. units: of work in a
    call. uses: units in the laptop study; at_once: how many of them at the same time.
    """
    for work in works.values():
        work()
    return compared(name, in_turns(works, turns), units, uses, at_once)


def compared(name: str, seconds: Mapping[str, Sequence[float]], units: int, uses: int, at_once: int) -> Case:
    """One case, from the seconds of a call in each turn."""
    ratios = [theirs / ours for ours, theirs in zip(seconds[OURS], seconds[PLAIN], strict=True)]
    low, ratio, high = quantiles(ratios, n=4, method="inclusive")
    ours, theirs = (median(seconds[way]) / units for way in (OURS, PLAIN))
    times = {"ours": ours, "plain": theirs, "low": low, "ratio": ratio, "high": high}
    return {"case": name, **times, "turns": len(ratios), "uses": uses, "at_once": at_once}


@cache
def laptop_examples() -> tuple[PreTrainedTokenizerBase, pa.Table]:
    """Tokenizer and examples of the laptop recipe, by the rules teacher."""
    _, examples, tokenizer = lessons(load("laptop", ["teacher={kind: rules}"]), 2048)
    return tokenizer, examples


def laptop_plots(count: int) -> tuple[TrainingConfig, Student, PreTrainedTokenizerBase, dict[str, corpus.Corpus]]:
    """Settings, student, tokenizer and corpora of the laptop's teacher on `count` plots."""
    recipe = load("laptop", [f"teacher.train.pictures={count}"])
    tokenizer, corpora = local_teacher.told(recipe, local_teacher.draw(recipe))
    return local_teacher.settings(recipe), local_teacher.as_student(recipe), tokenizer, corpora
