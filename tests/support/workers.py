"""Two processes that work together over gloo, as Ray Train's workers do."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tsd.training.loop import WorkerContext

WORKERS = 2
LONGEST = 250  # seconds
# Imported once, by the process from which the workers are forked: that takes longer than most of what they do.
IMPORTED = (
    "torch",
    "torch.distributed.checkpoint",
    "transformers",
    "tsd.models.students",
    "tsd.training.loop",
    "tsd.training.checkpoints",
)


def together(work: Callable[..., None], *arguments: Any) -> None:
    """Call work(rank, *arguments) in each of `WORKERS` new processes, and wait for their end."""
    mp.set_forkserver_preload(list(IMPORTED))
    started = mp.start_processes(work, arguments, nprocs=WORKERS, join=False, start_method="forkserver")
    try:
        finished = any(started.join(timeout=1) for _ in range(LONGEST))
    finally:
        for process in started.processes:
            if process.is_alive():
                process.kill()
    assert finished, f"the workers did not finish in {LONGEST} seconds"


@contextmanager
def joined(rank: int, folder: Path) -> Iterator[WorkerContext]:
    """Be one of them, for as long as the context lasts; they meet at a file in the folder. One thread each."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORKERS)
    try:
        yield WorkerContext(rank, WORKERS)
    finally:
        dist.destroy_process_group()
