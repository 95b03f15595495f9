"""Decide which runs of a study share a trial and which trials start first, before any run starts.

A trial starts processes and imports libraries, which takes longer than training a small student. So short runs
share the processes of one trial, and long runs get their own.
"""

import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from tsd.recipe import Student, TrainingConfig

# Cost of a training step beyond its parameters, in parameters: a step of a tiny student takes 28, 36 and 84 ms at
# 0.03M, 0.1M and 0.3M (benchmarks/sharding.json).
OVERHEAD = 90_000
UNSAID = 1e9  # parameters of a model whose name does not state its size
LARGEST = 1 / 3  # of the mean work per concurrent trial: maximum work in one group

T = TypeVar("T")


@dataclass(frozen=True)
class Need:
    """Resources that a run requires."""

    workers: int
    """Number of Ray Train workers over which FSDP2 shards."""
    cpus: float
    """CPUs per worker."""
    gpus: float
    """GPUs per worker; below 1, several runs share one."""


def need(student: Student, training: TrainingConfig) -> Need:
    """Return the resources of a student's runs: its own settings, or those of the training section."""
    workers = student.workers or training.workers
    if training.gpu:
        return Need(workers, 0, student.gpus or 1)
    return Need(workers, training.threads, 0)


def cost(student: Student, examples: int) -> float:
    """Relative duration of a run. Comparable only between runs of one study."""
    return examples * (OVERHEAD + parameters(student))


def parameters(student: Student) -> float:
    """Parse a student's parameter count from its name or its source's name: 0.3M, Qwen2.5-1.5B-Instruct."""
    for said in (student.size or student.name, (student.source or "").rstrip("/").rsplit("/", 1)[-1]):
        if found := re.search(r"(?<![\d.])(\d+(?:\.\d+)?)([KMB])(?![A-Za-z])", said):
            return float(found[1]) * {"K": 1e3, "M": 1e6, "B": 1e9}[found[2]]
    return UNSAID


def packs(
    runs: Sequence[T], cost: Callable[[T], float], alike: Callable[[T], Hashable], at_once: int
) -> list[list[T]]:
    """Group runs into trials, longest trial first; the runs of a trial require the same resources.

    cost: relative duration of a run. alike: runs with equal values may share a trial. at_once: concurrent trials.
    Groups are small enough that the last trials end at about the same time.
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
