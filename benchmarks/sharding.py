"""What FSDP2 costs a single worker: the same steps with the model sharded over one process and as it is.

Writes sharding.json beside itself. Half a minute, one thread.

    OMP_NUM_THREADS=1 python benchmarks/sharding.py
"""

import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from measured import finish, medians, show
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from transformers import PreTrainedModel

from tsd import corpus, forward, students, training
from tsd.curation import curate
from tsd.drawing import draw_table
from tsd.recipe import Student, load
from tsd.tasks import SINGLE
from tsd.teachers.rules import Rules
from tsd.tokens import build_tokenizer

SIZES, STEPS, REPEATS = ("0.03M", "0.1M", "0.3M"), 10, 5


def main() -> None:
    """Time both ways for each size."""
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29577", RANK="0", WORLD_SIZE="1")
    dist.init_process_group("gloo")
    recipe = load("laptop")
    series = draw_table(SINGLE, recipe.series, recipe.seed, 0, 1024)
    replies = Rules(recipe.teacher, recipe.asks, recipe.seed).annotate(series)
    examples = curate(SINGLE, replies, series, recipe.curation)[0]
    tokenizer = build_tokenizer([*examples["prompt"].to_pylist(), *examples["completion"].to_pylist()], 2048)
    few = corpus.tokenise(examples.slice(0, STEPS * recipe.training.batch_size), tokenizer, 2048)
    results = []
    for size in SIZES:
        plain = students.build(Student(name=size), tokenizer, 0, 2048)
        sharded = _sharded(students.build(Student(name=size), tokenizer, 0, 2048))
        works: dict[str, Callable[[], object]] = {
            "sharded": lambda model=sharded: _train(model, few, recipe.training),  # type: ignore[misc]
            "as it is": lambda model=plain: _train(model, few, recipe.training),  # type: ignore[misc]
        }
        seconds = medians(works, REPEATS)
        milliseconds = {name: 1000 * spent / STEPS for name, spent in seconds.items()}
        results.append({"size": size, **milliseconds, "ratio": milliseconds["sharded"] / milliseconds["as it is"]})
    show("Milliseconds a step, one worker", results)
    dist.destroy_process_group()
    finish(__file__, {"steps": STEPS, "results": results}, [])


def _sharded(model: PreTrainedModel) -> PreTrainedModel:
    """As `training.shard` does over several workers."""
    mesh = init_device_mesh("cpu", (1,))
    for layer in forward.decoder_layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _train(model: PreTrainedModel, few: corpus.Corpus, settings: training.TrainingConfig) -> None:
    training.train(
        model,
        few,
        settings,
        learning_rate=0.0,
        seed=0,
        place=training.Place(),
        optimiser=training.make_optimiser(model, settings),
        progress=training.Progress(),
    )


if __name__ == "__main__":
    main()
