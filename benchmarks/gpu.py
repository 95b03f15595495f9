"""A step of Qwen2.5's sizes on one real GPU: seconds and memory, beside what `tsd/models/memory.py` calculates.

Models of Qwen2.5's dimensions with random weights are written to disk, loaded and trained as a Ray Train worker
loads and trains them (FSDP2 over a single process, NCCL, bfloat16 with float32 master weights), for some steps
of 32 rows of 512 tokens, 64 of them supervised. Beside them, at 0.5B: the same by transformers' own forward
pass, with layers that `torch.compile` compiled, and rows of mixed length, packed and padded. Shares are of the
bf16 matmul peak measured in the same process. Writes gpu.json. A case that does not fit the GPU says so.

    python benchmarks/gpu.py
    python benchmarks/gpu.py --table    # what docs/large.md says of it, from gpu.json
"""

import gc
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
from large import EXAMPLES, SUPERVISED, TOKENS, write_model
from measured import finish, parser, show
from transformers import PreTrainedModel

from tsd.models import memory, students
from tsd.models.forward import decoder_layers
from tsd.models.memory import QWEN, Load
from tsd.models.tokenizer import build_tokenizer
from tsd.recipe import Lora, Student, TrainingConfig
from tsd.training import corpus, loop

WARM, STEPS = 3, 6
OURS, THEIRS, COMPILED = "tsd", "transformers", "transformers, compiled"
MIXED = (128, 897)  # tokens of a row, evenly; 512 in the mean


@dataclass(frozen=True)
class Case:
    """One way to train one size."""

    size: str
    again: bool = False
    """Activations are computed again rather than kept."""
    lora: bool = False
    forward: str = OURS
    packing: bool | None = None
    """None: rows of one length."""


CASES = (
    *(Case("0.5B"), Case("0.5B", again=True), Case("0.5B", lora=True), Case("0.5B", forward=THEIRS)),
    *(Case("0.5B", packing=True), Case("0.5B", packing=False)),
    *(Case("1.5B"), Case("1.5B", again=True)),
    Case("3B", again=True),
    *(Case("7B", again=True, lora=True), Case("7B", again=True)),
    Case("0.5B", forward=COMPILED),
)


def main() -> None:
    """Take each case in turn, print a row for each, keep them all."""
    options = parser(__doc__)
    options.add_argument("--table", action="store_true", help="print the table of docs/large.md and stop")
    asked = options.parse_args()
    if asked.table:
        table(json.loads(Path(__file__).with_suffix(".json").read_text())["results"])
        return
    if not torch.cuda.is_available():
        sys.exit("there is no GPU here")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29577", RANK="0", WORLD_SIZE="1")
    torch.cuda.set_device(0)
    dist.init_process_group("nccl")
    peak = loop.matmul_peak("cuda", seconds=1.0)
    print(f"{torch.cuda.get_device_name()}: bf16 matmul {peak / 1e12:.0f} TFLOP/s, torch {torch.__version__}")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            source = Path(folder) / case.size
            if not source.exists():
                write_model(0, source, case.size)
            rows.append(measure(case, source, peak))
            print(rows[-1], flush=True)
    dist.destroy_process_group()
    show(torch.cuda.get_device_name(), rows)
    about = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "peak": peak}
    finish(__file__, {**about, "rows": EXAMPLES, "tokens": TOKENS, "supervised": SUPERVISED, "results": rows}, [])


def measure(case: Case, source: Path, peak: float) -> dict[str, Any]:
    """One row of the table; figures are missing (NaN) where the GPU's memory did not do."""
    row: dict[str, Any] = {
        "size": case.size,
        "trained": "adapters" if case.lora else "all",
        "activations": "again" if case.again else "kept",
        "forward": case.forward,
        "rows": {None: "even", True: "mixed, packed", False: "mixed, padded"}[case.packing],
    }
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    try:
        return row | steps(case, source, peak)
    except torch.cuda.OutOfMemoryError:
        return row | dict.fromkeys(("load s", "step s", "tokens/s", "share", "GB", "calculated GB"), float("nan"))


def steps(case: Case, source: Path, peak: float) -> dict[str, float]:
    """Load the model, take the steps; the first ones do not count."""
    place = loop.WorkerContext(device="cuda")
    lora = Lora() if case.lora else None
    student = Student(name="large", source=str(source), learning_rate=1e-5, lora=lora)
    tokenizer = build_tokenizer(["Describe the series: 1 2"] * 2, 512)
    examples = make_examples(case)
    started = time.perf_counter()
    model = students.build(student, tokenizer, 0, 2048, partial(divide, case=case, place=place), "cuda")
    torch.cuda.synchronize()
    loading = time.perf_counter() - started
    config = TrainingConfig(
        batch_size=EXAMPLES, activation_checkpointing=case.again, packing=case.packing, max_length=2048
    )
    progress, at = loop.Progress(), [0.0]
    with forward_by(case.forward):
        loop.train(
            model,
            examples,
            config,
            learning_rate=1e-5,
            seed=0,
            place=place,
            optimizer=loop.make_optimizer(model, config),
            progress=progress,
            report=lambda now: at.append(now.seconds),
        )
    taken = np.diff(at)[WARM:]
    tokens = progress.tokens / progress.steps
    _, body = students.parameter_counts(model)
    flops = students.training_flops(
        model, body, round(tokens), EXAMPLES * SUPERVISED, float(examples.lengths.mean())
    )
    load = Load(EXAMPLES * TOKENS, EXAMPLES * SUPERVISED, TOKENS)
    calculated = memory.memory(QWEN[case.size], 1, load, checkpointing=case.again)
    if case.lora:  # neither gradients nor moments
        calculated["states"] = memory.FULL * QWEN[case.size].parameters
    step = median(taken.tolist())
    return {
        "load s": loading,
        "step s": step,
        "tokens/s": tokens / step,
        "share": flops / step / peak,
        "GB": torch.cuda.max_memory_allocated() / 1e9,
        "calculated GB": sum(calculated.values()) / 1e9,
    }


def make_examples(case: Case) -> corpus.Corpus:
    """Random tokens, as many examples as the steps take; only their number matters."""
    rng = np.random.default_rng(0)
    count = EXAMPLES * (WARM + STEPS)
    # A row of n inputs is an example of n + 1 tokens: the last one is only a target.
    lengths = np.full(count, TOKENS) if case.packing is None else rng.integers(*MIXED, count)
    return corpus.Corpus([rng.integers(0, 1000, n + 1) for n in lengths], lengths + 1 - SUPERVISED, 0)


def divide(model: PreTrainedModel, case: Case, place: loop.WorkerContext) -> PreTrainedModel:
    """Shard it as a worker does, its layers compiled where that is asked."""
    if case.forward == COMPILED:
        for layer in decoder_layers(model):
            layer.compile()
    return loop.shard(model, place)


def forward_by(which: str) -> AbstractContextManager[Any]:
    """Train by the model's own forward pass, or by tsd's."""
    unknown: Callable[[object], bool] = lambda _: False  # noqa: E731
    return nullcontext() if which == OURS else mock.patch.object(loop, "packable", unknown)


def table(rows: list[dict[str, Any]]) -> None:
    """Print them in Markdown."""
    print("| model | trained | activations | forward | rows | step | tokens/s | of the peak | GB | calculated |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        said = [row[name] for name in ("size", "trained", "activations", "forward", "rows")]
        # Adapters' gradients alone are computed, of which the count of FLOPs knows nothing.
        share = "" if row["trained"] == "adapters" else f"{row['share']:.0%}"
        calculated = f"{row['calculated GB']:.0f}" if row["rows"] == "even" else ""
        figures = [f"{row['step s']:.2f} s", f"{row['tokens/s']:,.0f}", share, f"{row['GB']:.0f}", calculated]
        print(f"| {' | '.join([*said, *figures])} |")


if __name__ == "__main__":
    main()
