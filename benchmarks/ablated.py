"""The measurements of `ablations.py`: tsd's own code and the plain way of `plain.py`, in turns on the same work.

Each function returns its cases. A case is a place where the code is used: the seconds of a unit of work by either
way, and how many units the laptop study does, so many at once. Those of training and of decoding are in
`ablated_training.py` and `ablated_decoding.py`.
"""

import gc
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import plain
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from ablated_cases import AT_ONCE, LAPTOP, OURS, PLAIN, SEED, Case, Work, case, compared
from ablated_decoding import fast_decoder, own_decoding
from ablated_training import background_checkpoints, forward_pass, fused_operations, muon, qwen2
from large import Peak
from PIL import Image

from tsd.generation.generator import draw_table
from tsd.models import weights
from tsd.plots.plotter import Plotter, choose_look
from tsd.recipe import ApiTeacher, PlotConfig, Recipe
from tsd.study.identity import plan_runs
from tsd.study.trials import Trial, plan_trials
from tsd.tasks import SINGLE
from tsd.teachers.prompts import Questions
from tsd.training import loop

# ---- Plots


def plots(count: int = 128) -> list[Case]:
    """Plots as PNG. The laptop study draws none with axes: its teacher reads rasterised plots."""
    series = draw_table(SINGLE, LAPTOP.series, LAPTOP.seed, 0, count)
    curves = [row.values.to_numpy() for row in series["values"]]
    found = []
    for style in ("compact", "paper"):
        looks = [choose_look(PlotConfig(style=style), 0, i) for i in range(count)]
        plotters: dict[str, Plotter | plain.Plotter] = {OURS: Plotter(), PLAIN: plain.Plotter()}
        works: dict[str, Work] = {way: partial(plotter, curves, looks) for way, plotter in plotters.items()}
        pictures = {way: work() for way, work in works.items()}
        far = [np.abs(pixels(a).astype(int) - pixels(b)).mean() for a, b in zip(*pictures.values(), strict=True)]
        assert max(far) < 0.5, f"{style}: {max(far)} of 255"
        sizes = {f"{way}_bytes": median(map(len, of)) for way, of in pictures.items()}
        found.append({**case(f"{style}, a plot", works, 5, count), **sizes})
    teacher = ApiTeacher(kind="openai", model="any", base_url="http://localhost/v1", modality="image")
    works = {}
    for way, plotter in {OURS: Plotter(), PLAIN: plain.Plotter()}.items():
        questions = Questions(teacher, SINGLE, PlotConfig(), 0)
        questions._plotter = plotter  # type: ignore[assignment]
        works[way] = partial(questions.ask, series, [""] * count)
    return [*found, case("compact, a request of an API teacher", works, 5, count)]


def pixels(png: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A PNG as (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


# ---- Weights


def sharded_load(turns: int = 5) -> list[Case]:
    """A model from a source, loaded by two workers that share it: seconds of the clock, and memory."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="29578", OMP_NUM_THREADS="1")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model"
        qwen2(8, 512, 32_768).bfloat16().save_pretrained(source, max_shard_size="40MB")
        mp.spawn(_load, args=(source, turns), nprocs=2)
        found = json.loads((source / "found.json").read_text())
    (ours, theirs) = (found["digest"][way] for way in (OURS, PLAIN))
    assert ours == theirs, "both ways load the same weights"
    about = compared("Qwen2 of 47M, two workers", found["seconds"], 1, 0, 1)
    return [{**about, "peak_bytes": found["peak"], "file_bytes": found["file_bytes"]}]


def _load(rank: int, source: Path, turns: int) -> None:
    """One of the two workers; the first keeps the time."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    model = loop.shard(weights.outline(str(source)), loop.WorkerContext(rank, 2))
    works = {
        OURS: lambda: weights.fill(model, str(source), "cpu", SEED),
        PLAIN: lambda: plain.fill(model, str(source)),
    }
    found: dict[str, Any] = {"seconds": {OURS: [], PLAIN: []}, "digest": {}, "peak": {}}
    for turn in range(turns + 1):  # the first one finds a cold cache
        for way in list(works)[:: -1 if turn % 2 else 1]:
            gc.collect()
            dist.barrier()
            with Peak() as peak:
                before, started = peak.now()["private"], time.perf_counter()
                works[way]()
                dist.barrier()
                took = time.perf_counter() - started
                found["peak"][way] = peak.now()["private"] - before
            if turn:
                found["seconds"][way].append(took)
            else:
                found["digest"][way] = _digest(model)
    found["file_bytes"] = sum(file.stat().st_size for file in source.glob("*.safetensors"))
    if rank == 0:
        (source / "found.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def _digest(model: Any) -> str:
    """Of all weights; collective."""
    whole = hashlib.sha256()
    for _, tensor in sorted(model.state_dict().items()):
        whole.update(tensor.full_tensor().numpy().tobytes())
    return whole.hexdigest()


# ---- Processes of a trial


def trainer(turns: int = 3, runs: int = 2) -> list[Case]:
    """A trial's seconds beyond training, by the clock, with the low-overhead trainer and with Ray's."""
    import trials as trials_benchmark

    from tsd.cluster import training
    from tsd.cluster.session import session

    seconds: dict[str, list[float]] = {OURS: [], PLAIN: []}
    with tempfile.TemporaryDirectory() as folder:
        recipe = trials_benchmark.small_study(folder, 2 * (turns + 1) * runs)
        with session():
            left, need = trials_benchmark.prepared(recipe)
            for turn in range(turns + 1):  # the first one starts processes that stay
                for way in list(seconds)[:: -1 if turn % 2 else 1]:
                    trials = [Trial((next(left),), need, 0) for _ in range(runs)]
                    ray_s_own = mock.patch.object(training, "own_ray", return_value=False)
                    with ray_s_own if way == PLAIN else nullcontext():
                        took = trials_benchmark.seconds_beyond(recipe, trials)
                    if turn:
                        seconds[way].append(took)
    return [compared("a trial of a text student", seconds, 1, _trials_of(LAPTOP), AT_ONCE)]


def _trials_of(recipe: Recipe) -> int:
    """Trials of a study."""
    return len(plan_trials(recipe, plan_runs(recipe, "")))


IMPORTS = """
import gc, sys, time
started = time.process_time()
if sys.argv[1] == "tsd":
    gc.disable()
import ray.train.torch, tsd.training.trainer
print(time.process_time() - started)
"""


def quick_imports(turns: int = 5) -> list[Case]:
    """The imports of a worker with Python's garbage collector paused."""
    seconds: dict[str, list[float]] = {OURS: [], PLAIN: []}
    for turn in range(turns):
        for way in list(seconds)[:: -1 if turn % 2 else 1]:
            done = subprocess.run(
                [sys.executable, "-c", IMPORTS, way],
                capture_output=True,
                text=True,
                timeout=300,
                check=True,
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            )
            seconds[way].append(float(done.stdout.splitlines()[-1]))
    return [compared("the imports of a trial's worker", seconds, 1, _trials_of(LAPTOP), AT_ONCE)]


MEASURES: dict[str, Callable[[], list[Case]]] = {
    "forward": forward_pass,
    "operations": fused_operations,
    "muon": muon,
    "checkpoints": background_checkpoints,
    "decoding": own_decoding,
    "fast decoder": fast_decoder,
    "plots": plots,
    "weights": sharded_load,
    "trainer": trainer,
    "imports": quick_imports,
}
