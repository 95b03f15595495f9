"""Which runs of a study share a trial, and which trials start first: decisions about runs that are only planned.

A trial starts processes and loads libraries, which takes longer than a small student takes to learn. So short
runs follow one another in the same processes, and long ones have their own.
"""

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tsd.recipe import Student, TrainingConfig

# A step of a tiny student takes as long as if it had so many more parameters: 28, 36 and 84 ms at 0.03M, 0.1M
# and 0.3M (benchmarks/sharding.json).
OVERHEAD = 90_000
UNSAID = 1e9  # parameters of a model whose name says nothing of its size
LARGEST = 1 / 3  # of what each trial under way would get if all work were dealt out evenly: what a pack may hold

T = TypeVar("T")


@dataclass(frozen=True)
class Need:
    """The machines that a run asks for."""

    workers: int
    """Ray Train workers, over which FSDP2 shards."""
    cpus: float
    """CPUs of each worker."""
    gpus: float
    """GPUs of each worker; below one, several runs share one."""


def need(student: Student, training: TrainingConfig) -> Need:
    """What a student's runs ask for: its own word, or that of the training section."""
    workers = student.workers or training.workers
    if training.gpu:
        return Need(workers, 0, student.gpus or 1)
    return Need(workers, training.threads, 0)


def cost(student: Student, examples: int) -> float:
    """How long a run takes, in a unit that all runs of a study share."""
    return examples * (OVERHEAD + parameters(student))


def parameters(student: Student) -> float:
    """A student's parameters as its name, or that of its source, has them: 0.3M, Qwen2.5-1.5B-Instruct."""
    for said in (student.size or student.name, (student.source or "").rstrip("/").rsplit("/", 1)[-1]):
        if found := re.search(r"(?<![\d.])(\d+(?:\.\d+)?)([KMB])(?![A-Za-z])", said):
            return float(found[1]) * {"K": 1e3, "M": 1e6, "B": 1e9}[found[2]]
    return UNSAID


def packs(
    runs: Sequence[T], cost: Callable[[T], float], alike: Callable[[T], Hashable], at_once: int
) -> list[list[T]]:
    """The runs by trial, the longest trial first; those of a trial ask for the same machines.

    at_once: trials under way at a time. A pack is small enough that the last trials end at about the same time.
    """
    room = LARGEST * sum(map(cost, runs)) / at_once
    found: list[list[T]] = []
    for run in sorted(runs, key=cost, reverse=True):
        for pack in found:
            if alike(pack[0]) == alike(run) and sum(map(cost, pack)) + cost(run) <= room:
                pack.append(run)
                break
        else:
            found.append([run])
    return sorted(found, key=lambda pack: sum(map(cost, pack)), reverse=True)
