"""Checkpoints of a run, written while it goes on, by all workers together, and read again.

One is a folder as torch.distributed.checkpoint writes it, weights and moments in each worker's part, with how far
the run is and every worker's random generators. Where it is kept, and who is told, is the caller's to say.
"""

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from transformers import PreTrainedModel

from tsd.errors import TrainingError
from tsd.training.loop import Place, Progress

PROGRESS = "progress.json"


class Checkpoints:
    """The checkpoints of one run, one under way at a time. A context, at whose end none is. Needs a process group.

    keep: puts a finished folder, this worker's part, where it is safe. tell: says so to whoever counts on it, once
    all workers have kept theirs. Both are called in a thread of their own while the run goes on.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        optimiser: torch.optim.Optimizer,
        place: Place,
        keep: Callable[[Path, Progress], None],
        tell: Callable[[Progress], None],
    ) -> None:
        self.model, self.optimiser, self.place = model, optimiser, place
        self.keep, self.tell = keep, tell
        # Not the group that the model's layers are gathered in: what two threads send over one would mix.
        self.group = dist.new_group(backend="gloo")
        self.thread = ThreadPoolExecutor(1)
        self.pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        with suppress(*(TrainingError,) if kind else ()):  # what went wrong first is what is said
            self.finish()
        self.thread.shutdown()

    def save(self, progress: Progress) -> None:
        """Copy the run's state, and write the copy in the background. Waits for the one before."""
        self.finish()
        weights, moments = get_state_dict(self.model, self.optimiser)
        folder = Path(tempfile.mkdtemp())
        # Copies to the CPU's memory before it returns: another 12 bytes a parameter, shared by the workers.
        written = async_save(
            {"model": weights, "optimiser": moments}, checkpoint_id=folder, process_group=self.group
        )
        self.pending = self.thread.submit(self._publish, written, folder, copy.copy(progress), _generators())

    def finish(self) -> None:
        """Wait for the one under way. Raises TrainingError, in all workers, where one could not keep its part."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def _publish(self, written: Any, folder: Path, progress: Progress, generators: dict[str, Any]) -> None:
        fault = None
        try:
            written.result()
            torch.save(generators, folder / _generators_of(self.place.rank))
            if self.place.rank == 0:
                (folder / PROGRESS).write_text(json.dumps(asdict(progress)))
            self.keep(folder, progress)
        except Exception as error:  # whatever torch, a disk or an object store says: nobody else would hear of it
            fault = _reason(error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        faults: list[str | None] = [None] * self.place.workers
        dist.all_gather_object(faults, fault, group=self.group)
        for found in filter(None, faults):
            raise TrainingError(f"the checkpoint of step {progress.step} could not be kept: {found}")
        self.tell(progress)


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint is all there: what tells its parts apart is read, and each of them is long enough."""
    try:
        json.loads((folder / PROGRESS).read_text())
        parts = FileSystemReader(folder).read_metadata().storage_data.values()
        return all((folder / part.relative_path).stat().st_size >= part.offset + part.length for part in parts)
    except Exception:  # a pickle that is cut off or overwritten raises whatever it likes
        return False


def restore(folder: Path, model: PreTrainedModel, optimiser: torch.optim.Optimizer, place: Place) -> Progress:
    """Load a checkpoint into model and optimiser, and return how far it is.

    It may come from another number of workers: one that was not there keeps the generators that it has.
    """
    weights, moments = get_state_dict(model, optimiser)
    state: dict[str, Any] = {"model": weights, "optimiser": moments}
    load(state, checkpoint_id=folder)
    set_state_dict(model, optimiser, model_state_dict=state["model"], optim_state_dict=state["optimiser"])
    random = folder / _generators_of(place.rank)
    if random.exists():
        generators = torch.load(random)
        torch.set_rng_state(generators["cpu"])
        if "cuda" in generators and torch.cuda.is_available():
            torch.cuda.set_rng_state(generators["cuda"])
    return Progress(**json.loads((folder / PROGRESS).read_text()))


def _generators() -> dict[str, Any]:
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else states


def _generators_of(rank: int) -> str:
    return f"random-{rank}.pt"


def _reason(error: BaseException) -> str:
    """What went wrong, in one line; torch wraps what happened in its workers."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
