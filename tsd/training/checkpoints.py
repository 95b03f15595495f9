"""Distributed checkpoints of a run: written in the background while training continues, and restored.

A checkpoint is a folder in the format of torch.distributed.checkpoint: each worker's shards of weights and
optimizer state, the run's progress and every worker's random state. The caller decides where it is stored and who
is notified.
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
from typing import Any, Self, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from transformers import PreTrainedModel

from tsd.errors import TrainingError
from tsd.training.loop import Progress, WorkerContext

PROGRESS = "progress.json"


class Checkpoints:
    """Writes the checkpoints of one run, one at a time. A context manager that waits for the last on exit.

    Needs a process group.
    keep: stores this worker's part of a finished folder in a safe place.
    tell: announces the checkpoint once all workers have stored their parts.
    Both are called in a separate thread while training continues.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        place: WorkerContext,
        keep: Callable[[Path, Progress], None],
        tell: Callable[[Progress], None],
    ) -> None:
        self.model, self.optimizer, self.place = model, optimizer, place
        self.keep, self.tell = keep, tell
        # A separate group: messages of two threads in the model's own group would interleave.
        self.group = dist.new_group(backend="gloo")
        self.thread = ThreadPoolExecutor(1)
        self.pending: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        with suppress(*(TrainingError,) if kind else ()):  # the first error is the one to raise
            self.finish()
        self.thread.shutdown()

    def save(self, progress: Progress) -> None:
        """Copy the run's state and write the copy in the background. Waits for the previous checkpoint first.

        Raises TrainingError as `finish` does, for the previous one.
        """
        self.finish()
        weights, moments = get_state_dict(self.model, self.optimizer)
        folder = Path(tempfile.mkdtemp())
        # Copies to CPU memory before it returns: 12 bytes per parameter (weight and two moments in float32),
        # sharded.
        parts = {"model": weights, "optimizer": moments}
        written = cast("Future[object]", async_save(parts, checkpoint_id=folder, process_group=self.group))
        self.pending = self.thread.submit(self._publish, written, folder, copy.copy(progress), _generators())

    def finish(self) -> None:
        """Wait for the pending checkpoint. Raises TrainingError in all workers if one could not store its part."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.result()

    def _publish(
        self, written: Future[object], folder: Path, progress: Progress, generators: dict[str, Tensor]
    ) -> None:
        """Finish the files of a checkpoint, store them, and announce it once all workers have succeeded.

        Raises TrainingError in all workers if one of them failed.
        """
        fault = None
        try:
            written.result()
            torch.save(generators, folder / _generators_of(self.place.rank))
            if self.place.rank == 0:
                (folder / PROGRESS).write_text(json.dumps(asdict(progress)))
            self.keep(folder, progress)
        except Exception as error:  # any error of torch, a disk or an object store must reach the other workers
            fault = _reason(error)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        faults: list[str | None] = [None] * self.place.workers
        dist.all_gather_object(faults, fault, group=self.group)
        for found in filter(None, faults):
            raise TrainingError(f"the checkpoint of step {progress.step} could not be kept: {found}")
        self.tell(progress)


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint is complete: its metadata can be read and each of its files is long enough."""
    try:
        json.loads((folder / PROGRESS).read_text())
        parts = FileSystemReader(folder).read_metadata().storage_data.values()
        return all((folder / part.relative_path).stat().st_size >= part.offset + part.length for part in parts)
    except Exception:  # a truncated or overwritten pickle can raise any exception
        return False


def read_progress(folder: Path) -> Progress:
    """The progress that a complete checkpoint holds."""
    return Progress(**json.loads((folder / PROGRESS).read_text()))


def restore(
    folder: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, place: WorkerContext
) -> Progress:
    """Load a checkpoint into model and optimizer. Returns its progress.

    It may have been written by another number of workers. A worker without a saved random state keeps its own.
    """
    weights, moments = get_state_dict(model, optimizer)
    state: dict[str, Any] = {"model": weights, "optimizer": moments}
    load(state, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    random = folder / _generators_of(place.rank)
    if random.exists():
        generators = torch.load(random)
        torch.set_rng_state(generators["cpu"])
        if "cuda" in generators and torch.cuda.is_available():
            torch.cuda.set_rng_state(generators["cuda"])
    return read_progress(folder)


def _generators() -> dict[str, Tensor]:
    """This process's random states, by device."""
    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else states


def _generators_of(rank: int) -> str:
    return f"random-{rank}.pt"


def _reason(error: BaseException) -> str:
    """The cause of an error in one line. torch wraps the errors of its workers."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
