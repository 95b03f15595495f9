"""FSDP2 on CPUs: what it costs a single worker, and what a second worker gains.

Two processes of one thread each, over gloo. In turns, one of them trains a model that it has whole, it trains one
that is sharded over itself alone, and both train one that is sharded over the two. Milliseconds a step, medians.
Writes sharding.json beside itself. Two minutes on two quiet cores.

    python benchmarks/sharding.py --check
"""

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lessons import lessons
from measured import Bound, finish, parser, show
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from tsd.models import forward, students
from tsd.recipe import Student, TrainingConfig, load
from tsd.training import corpus, loop

WHOLE, ALONE, TWO = "as it is", "sharded over one", "sharded over two"
STEPS = {"0.03M": 20, "0.1M": 20, "0.3M": 10, "3M": 2}  # a turn
BATCH = {"0.03M": 8, "0.1M": 8, "0.3M": 8, "3M": 16}  # as the laptop study does, and larger for a larger one
TURNS = 5
GAIN = 1.4  # times one worker's rate, at 3M


def main() -> None:
    """Have two processes take turns, print what they took, hold it against the bound."""
    options = parser(__doc__).parse_args()
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29577", OMP_NUM_THREADS="1")
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_process, args=(folder,), nprocs=2)
        seconds = json.loads((Path(folder) / "seconds.json").read_text())
    results = []
    for size, turns in seconds.items():
        took = {how: 1000 * median(each) / STEPS[size] for how, each in turns.items()}
        ratios = {"cost alone": took[ALONE] / took[WHOLE], "gain of two": took[WHOLE] / took[TWO]}
        results.append({"size": size, "batch": BATCH[size], **took, **ratios})
    show("Milliseconds a step, one thread a worker", results)
    gain = next(row["gain of two"] for row in results if row["size"] == "3M")
    bounds = [Bound("two workers at 3M, times the rate of one", gain, least=GAIN)]
    finish(__file__, {"steps": STEPS, "turns": TURNS, "results": results}, bounds, options.check)


def _process(rank: int, folder: str) -> None:
    """One of the two; the first keeps the time."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    meshes = {ALONE: DeviceMesh("cpu", [0]), TWO: DeviceMesh("cpu", [0, 1])}
    seconds: dict[str, dict[str, list[float]]] = {}
    for size in STEPS:
        works = _works(rank, size, meshes)
        seconds[size] = {how: [] for how in (WHOLE, ALONE, TWO)}
        for turn in range(TURNS + 1):  # the first one asks for memory: it is not the rate
            for how, each in seconds[size].items():
                dist.barrier()
                started = time.perf_counter()
                if how in works:
                    works[how]()
                if turn:
                    each.append(time.perf_counter() - started)
    if rank == 0:
        (Path(folder) / "seconds.json").write_text(json.dumps(seconds))
    dist.destroy_process_group()


def _works(rank: int, size: str, meshes: dict[str, DeviceMesh]) -> dict[str, Callable[[], object]]:
    """What a process does in its turns, by how the model lies; the second one shares in one of them."""
    recipe = load(
        "laptop", ["teacher={kind: rules}", f"training.batch_size={BATCH[size]}", "training.optimizer=adamw"]
    )
    _, examples, tokenizer = lessons(recipe, 1024)
    few = corpus.tokenise(examples.slice(0, STEPS[size] * BATCH[size]), tokenizer, 2048)
    works: dict[str, Callable[[], object]] = {}
    for how in (WHOLE, ALONE, TWO) if rank == 0 else (TWO,):
        model = students.build(Student(name=size), tokenizer, 0, 2048)
        if how in meshes:
            _shard(model, meshes[how])
        place = loop.WorkerContext(rank, 2) if how == TWO else loop.WorkerContext()
        optimizer = loop.make_optimizer(model, recipe.training)
        works[how] = lambda model=model, place=place, optimizer=optimizer: _train(  # type: ignore[misc]
            model, few, recipe.training, place, optimizer
        )
    return works


def _shard(model: PreTrainedModel, mesh: DeviceMesh) -> None:
    """As `loop.shard` does over all workers, here over those of a mesh."""
    for layer in forward.decoder_layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def _train(
    model: PreTrainedModel, few: corpus.Corpus, settings: TrainingConfig, place: loop.WorkerContext, optimizer: Any
) -> None:
    loop.train(
        model,
        few,
        settings,
        learning_rate=0.0,
        seed=0,
        place=place,
        optimizer=optimizer,
        progress=loop.Progress(),
    )


if __name__ == "__main__":
    main()
