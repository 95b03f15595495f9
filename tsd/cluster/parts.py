"""The executor of all stages that make datasets part by part: it finds what is missing and has workers make it.

Each finished part is on disk before Ray receives its result. So a stopped stage resumes with the missing parts,
and the files do not depend on the number of workers.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from tsd.cluster import nodes
from tsd.progress import Step
from tsd.storage import datasets, locks

Parts = dict[int, datasets.Part]
Row = dict[str, Any]  # a worker's result: target, part, and the parts' metadata as JSON or why it failed


class Work(Protocol):
    """Computes and writes one part of each output of a target. Returns the parts in the order of the outputs.

    Raises FailedError if the target cannot be made.
    """

    def __call__(self, target: str, part: int, /) -> Sequence[datasets.Part]: ...


class FailedError(Exception):
    """Raised by a worker if a target cannot be made. Other targets are not affected."""


@dataclass(frozen=True)
class Target:
    """Datasets that are made together: each worker call writes one part of every output."""

    outputs: tuple[tuple[str, str], ...]
    """Folder and key of each."""
    parts: int
    name: str = ""


@dataclass
class Made:
    """The parts of targets: which are finished, which are missing, and why targets failed."""

    targets: Sequence[Target]
    parts: dict[str, list[Parts]]
    """The finished parts of each target's outputs."""
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def missing(self) -> list[dict[str, Any]]:
        """Target and number of each part that some output lacks."""
        return [
            {"target": target.name, "part": part}
            for target in self.targets
            for part in range(target.parts)
            if not all(part in output for output in self.parts[target.name])
        ]


def _rows(part: datasets.Part) -> float:
    return part.rows


def _nothing(target: str, made: Sequence[datasets.Part]) -> str:
    return ""  # the step's note stays as it is


def _as_they_come(rows: Iterator[Row]) -> Iterator[Row]:
    return rows


def find(targets: Sequence[Target]) -> Made:
    """Find the parts of targets that are finished."""
    found = {target.name: [datasets.finished_parts(*output) for output in target.outputs] for target in targets}
    return Made(targets, found)


def make(
    work: Work | type[Work],
    targets: Sequence[Target],
    step: Step,
    *,
    arguments: Sequence[Any] = (),
    workers: int = 1,
    size: Callable[[datasets.Part], float] = _rows,
    describe: Callable[[str, Sequence[datasets.Part]], str] = _nothing,
    **options: Any,
) -> Made:
    """Make the parts that some output of a target lacks.

    work: a function for Ray tasks; or a class that is constructed from `arguments` in each of at most `workers`
    Ray actors and keeps its state, such as a model.
    size: by how much a part advances the step. describe: called with a target and the parts that were just made;
    returns the step's note.
    options: of `Dataset.map_batches`, such as the resources of a worker.
    """
    made = find(targets)
    step.skip(sum(size(part) for found in made.parts.values() for part in _complete(found)))
    missing = made.missing
    if isinstance(work, type):
        options = {"concurrency": (1, max(1, min(workers, len(missing)))), **options}
    for name, written in make_missing(work, made, step, arguments=arguments, **options):
        step.advance(sum(map(size, written)), describe(name, written))
    return made


def make_missing(
    work: Work | type[Work],
    made: Made,
    step: Step | None = None,
    *,
    arguments: Sequence[Any] = (),
    guarded: bool = True,
    watch: Callable[[Iterator[Row]], Iterator[Row]] = _as_they_come,
    **options: Any,
) -> Iterator[tuple[str, Sequence[datasets.Part]]]:
    """Make the missing parts and add them to `made`. Yields them as they come, with their target's name.

    step: shows what is waited for; None if the caller does.
    guarded: whether workers stop at once if another command has taken over the folder; False if the work does
    that itself.
    watch: wraps the iterator of the workers' results, to raise where none comes for too long.
    work, arguments, options: as for `make`.
    """
    missing = made.missing
    if not missing:
        return
    outputs = {target.name: target.outputs for target in made.targets}
    claim = locks.claim(made.targets[0].outputs[0][0]) if guarded else None
    if isinstance(work, type):
        rows = nodes.done(_Kept, missing, step, (work, arguments, outputs, claim), **options)
    else:
        rows = nodes.done(_Worker(work, outputs, claim), missing, step, **options)
    # Ray Data carries only names, part numbers and counts, so its memory does not grow with the data.
    for row in watch(rows):
        name, part = str(row["target"]), int(row["part"])
        if row["failed"]:
            made.failed[name] = row["failed"]
            continue
        written = [datasets.Part(**one) for one in json.loads(row["made"])]
        for output, one in zip(made.parts[name], written, strict=True):
            output[part] = one
        yield name, written


def _complete(outputs: Sequence[Parts]) -> Iterator[datasets.Part]:
    """Yield the parts that no output lacks, of all outputs."""
    for part in set.intersection(*map(set, outputs)):
        yield from (output[part] for output in outputs)


class _Worker:
    """Makes parts in a worker process: checks what is there, calls the work, and reports its result."""

    def __init__(
        self, work: Work, outputs: dict[str, tuple[tuple[str, str], ...]], claim: locks.Claim | None
    ) -> None:
        self.work, self.outputs, self.claim = work, outputs, claim

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Map one row with a target and a part number to the parts' metadata as JSON, or to why it failed."""
        target, part = str(batch["target"][0]), int(batch["part"][0])
        made, failed = list[dict[str, Any]](), ""
        try:
            made = [asdict(one) for one in self._make(target, part)]
        except FailedError as error:
            failed = str(error)
        return {"target": [target], "part": [part], "made": [json.dumps(made)], "failed": [failed]}

    def _make(self, target: str, part: int) -> Sequence[datasets.Part]:
        if self.claim:
            self.claim.require()  # another command may have taken over the folder from a stalled driver
        # Ray repeats the whole task of a worker that died: outputs that it has written are reused.
        outputs = self.outputs[target]
        written = [datasets.find_part(folder, part, key) for folder, key in outputs]
        whole = [one for one in written if one is not None]
        return whole if len(whole) == len(outputs) else self.work(target, part)


class _Kept(_Worker):
    """The same in an actor, which constructs the work and keeps it."""

    def __init__(
        self,
        work: Callable[..., Work],
        arguments: Sequence[Any],
        outputs: dict[str, tuple[tuple[str, str], ...]],
        claim: locks.Claim | None,
    ) -> None:
        super().__init__(work(*arguments), outputs, claim)
