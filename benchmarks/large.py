"""A model of Qwen2.5-0.5B's dimensions with random weights, loaded and trained by two workers that share it.

It is written to disk tensor by tensor (1 GB, bfloat16). Two gloo processes of one thread each then load it and
take three steps in float32. For comparison, one process loads it whole with transformers. The script prints the
peak memory of each: resident as the kernel counts it, and without pages shared with the page cache (libraries and
the model file). Memory is the measurement; seconds are only printed. Writes large.json. It takes 17 GB of memory,
and took 24 minutes on two cores that had other work as well.

    OMP_NUM_THREADS=1 python benchmarks/large.py --check
    python benchmarks/large.py --table    # what docs/large.md says of several GPUs
"""

import json
import struct
import tempfile
import threading
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from measured import Bound, finish, parser, show

from tsd.models import memory
from tsd.models.memory import HOPPER, QWEN, Load
from tsd.models.tokenizer import build_tokenizer

WORKERS, STEPS, ROWS, LENGTH, ANSWER = 2, 3, 4, 150, 40
MARGIN = 1.25  # on what is calculated
FIXED = 0.3e9  # buffers of gloo, of the allocator and of threads, of which the arithmetic knows nothing
GPUS, EXAMPLES, TOKENS, SUPERVISED = (1, 2, 4, 8, 16, 32, 64), 32, 512, 64
SAMPLE_SECONDS = 0.01
DRAWN = 2**24 - 3  # random weights; not a multiple of any dimension, so that no two rows are alike


def main() -> None:
    """Write the model, load and train it shared, load it whole, hold the peaks against the arithmetic."""
    options = parser(__doc__)
    options.add_argument("--table", action="store_true", help="print the table of docs/large.md and stop")
    asked = options.parse_args()
    if asked.table:
        table()
        return
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model"
        in_processes(write_model, 1, source)
        in_processes(train, WORKERS, source, Path(folder))
        in_processes(load_whole, 1, source, Path(folder))
        shared = [json.loads((Path(folder) / f"worker-{rank}.json").read_text()) for rank in range(WORKERS)]
        whole = json.loads((Path(folder) / "whole.json").read_text())
    report(shared, whole, asked.check)


def report(shared: list[dict[str, Any]], whole: dict[str, Any], check: bool) -> None:
    """Print and keep what was measured beside what is calculated."""
    shape, load = QWEN["0.5B"], Load(ROWS * LENGTH // WORKERS, ROWS * ANSWER // WORKERS, LENGTH)
    part = memory.FULL * shape.parameters / WORKERS
    step = sum(memory.memory(shape, WORKERS, load, width=memory.FULL).values())
    rows = [
        {"process": f"worker {rank}", "GB": f"{name}", **{key: value / 1e9 for key, value in one[name].items()}}
        for rank, one in enumerate(shared)
        for name in ("imported", "loaded", "trained")
    ]
    rows += [
        {"process": "whole", "GB": name, **{key: value / 1e9 for key, value in whole[name].items()}}
        for name in ("imported", "loaded")
    ]
    show("Peak memory of each process", rows)
    loading = max(gained(one, "loaded") for one in shared)
    training = max(gained(one, "trained") for one in shared)
    bounds = [
        Bound("GB that loading adds to a worker", loading / 1e9, most=(MARGIN * part + FIXED) / 1e9),
        Bound("GB that three steps add to a worker", training / 1e9, most=(MARGIN * step + FIXED) / 1e9),
        Bound(
            "GB that loading whole adds to one process", gained(whole, "loaded") / 1e9, least=2 * part / 1e9 * 0.95
        ),
        Bound(
            "parameters that the arithmetic counts, of those there are",
            shape.parameters / shared[0]["parameters"],
            1,
            1,
        ),
    ]
    results = {
        "workers": shared,
        "whole": whole,
        "calculated": {"part": part, "step": memory.memory(shape, WORKERS, load, width=memory.FULL)},
    }
    finish(__file__, results, bounds, check)


def gained(process: dict[str, Any], until: str) -> float:
    """Bytes of its own that a process took at most, beyond what it had when it had imported everything."""
    return float(process[until]["private"] - process["imported"]["private"])


def write_model(rank: int, folder: Path, size: str = "0.5B") -> None:
    """Stream random weights to a safetensors file: its header, then one tensor after the other.

    The weights are the same `DRAWN` numbers over and over: neither memory nor time minds.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM, Qwen2Config

    shape = QWEN[size]
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        tie_word_embeddings=shape.tied,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        architectures=["Qwen2ForCausalLM"],
        dtype="bfloat16",
    )
    config.save_pretrained(folder)
    with init_empty_weights():
        shapes = {name: tuple(p.shape) for name, p in AutoModelForCausalLM.from_config(config).named_parameters()}
    if shape.tied:
        shapes.pop("lm_head.weight")
    header, at = {}, 0
    for name, dimensions in shapes.items():
        length = 2 * int(np.prod(dimensions))
        header[name] = {"dtype": "BF16", "shape": dimensions, "data_offsets": [at, at + length]}
        at += length
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    drawn = torch.empty(DRAWN).normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    numbers = drawn.bfloat16().view(torch.int16).numpy()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, dimensions in shapes.items():
            if "norm" in name:
                file.write(torch.ones(dimensions).bfloat16().view(torch.int16).numpy().tobytes())
                continue
            left = int(np.prod(dimensions))
            while left:
                left -= file.write(numbers[:left].data.cast("B")) // 2


def train(rank: int, source: Path, out: Path) -> None:
    """One worker: load its part, take the steps, say its peaks."""
    import torch
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor

    from tsd.models import students
    from tsd.recipe import Student, TrainingConfig
    from tsd.training import corpus, loop

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{out}/meet", rank=rank, world_size=WORKERS)
    tokenizer = build_tokenizer(["Describe the series: 1 2"] * 2, 512)
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 1000, LENGTH).astype(np.int32) for _ in range(ROWS * STEPS)]
    examples = corpus.Corpus(rows, np.full(len(rows), LENGTH - ANSWER), 0)
    place = loop.WorkerContext(rank, WORKERS)
    student = Student(name="large", source=str(source), learning_rate=1e-5)
    with Peak() as peak:
        found: dict[str, Any] = {"imported": peak.now()}
        started = time.perf_counter()
        model = students.build(student, tokenizer, 0, 512, partial(loop.shard, place=place))
        found["load_seconds"], found["loaded"] = time.perf_counter() - started, peak.now()
        found["parameters"] = sum(p.numel() for p in model.parameters())
        found["mine"] = sum(cast(DTensor, p).to_local().numel() for p in model.parameters())
        config = TrainingConfig(batch_size=ROWS, workers=WORKERS)
        progress, losses = loop.Progress(), []
        loop.train(
            model,
            examples,
            config,
            learning_rate=1e-5,
            seed=0,
            place=place,
            optimizer=loop.make_optimizer(model, config),
            progress=progress,
            report=lambda now: losses.append(now.loss),
        )
        found["trained"] = peak.now()
    found |= {"losses": losses, "seconds_a_step": progress.seconds / STEPS}
    (out / f"worker-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def load_whole(rank: int, source: Path, out: Path) -> None:
    """One process alone, with transformers."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2ForCausalLM  # noqa: F401  (imported before it is counted)

    torch.set_num_threads(1)
    with Peak() as peak:
        found = {"imported": peak.now()}
        model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
        found["loaded"] = peak.now()
    assert model.dtype == torch.float32
    (out / "whole.json").write_text(json.dumps(found))


class Peak:
    """The most memory that this process had so far, in bytes: resident in all, and private.

    The kernel keeps the first (VmHWM); the second (RssAnon) is looked at every hundredth of a second.
    """

    def __enter__(self) -> "Peak":
        self.private, self.over = 0, threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()

    def now(self) -> dict[str, int]:
        """The peaks up to now."""
        status = _status()
        self.private = max(self.private, status["RssAnon"])
        return {"resident": status["VmHWM"], "private": self.private}

    def _look(self) -> None:
        while not self.over.wait(SAMPLE_SECONDS):
            self.private = max(self.private, _status()["RssAnon"])


def _status() -> dict[str, int]:
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if words[-1] == "kB"}


def in_processes(work: Any, count: int, *arguments: object) -> None:
    """Run work(rank, *arguments) in fresh processes and wait for them."""
    import torch.multiprocessing as mp

    mp.start_processes(work, arguments, nprocs=count, join=True, start_method="spawn")


def table() -> None:
    """Print docs/large.md's table in Markdown; how long a GPU computes is what gpu.json measured."""
    load = Load(EXAMPLES * TOKENS, EXAMPLES * SUPERVISED, TOKENS)
    measured = json.loads(Path(__file__).with_name("gpu.json").read_text())["results"]
    print("| model | GPUs | GB each, activations kept | GB each, recomputed | compute | communication | step |")
    print("|---|---|---|---|---|---|---|")
    for name, shape in QWEN.items():
        computing = next(
            row["step s"]
            for row in measured
            if (row["size"], row["trained"], row["forward"], row["rows"]) == (name, "all", "tsd", "even")
        )
        for gpus in GPUS:
            kept, again = (
                sum(memory.memory(shape, gpus, load, checkpointing=way).values()) / 1e9 for way in (False, True)
            )
            moving = memory.moving(shape, gpus, HOPPER)
            times = f"{computing:.2f} s | {moving:.2f} s | {max(computing, moving):.2f} s"
            print(f"| {name} | {gpus} | {kept:.0f} | {again:.0f} | {times} |")


if __name__ == "__main__":
    main()
