"""The measurements of `ablations.py`: tsd's own code and the plain way of `plain.py`, in turns on the same work.

Each function returns its cases. A case is a place where the code is used: the seconds of a unit of work by either
way, and how many units the laptop study does, so many at once.
"""

import gc
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any
from unittest import mock

import decoding as decoding_benchmark
import numpy as np
import plain
import pyarrow as pa
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from large import Peak
from lessons import lessons
from measured import in_turns
from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from tsd.generation.generator import draw_table
from tsd.inference.decoding import decode, describe
from tsd.models import students, weights
from tsd.plots import rasterised
from tsd.plots.plotter import Plotter, choose_look
from tsd.recipe import ApiTeacher, PlotConfig, Recipe, Student, TrainingConfig, load
from tsd.study import local_teacher
from tsd.study.identity import plan_runs
from tsd.study.trials import Trial, plan_trials
from tsd.tasks import SINGLE
from tsd.teachers.prompts import Questions
from tsd.training import corpus, loop
from tsd.training.checkpoints import Checkpoints

OURS, PLAIN = "tsd", "plain"
LAPTOP = load("laptop")
AT_ONCE = 2  # trials, and processes that describe or decode, on the laptop's two cores
SEED, MAX_LENGTH = 0, LAPTOP.training.max_length

Case = dict[str, Any]
Work = Callable[[], Any]


def case(
    name: str, works: Mapping[str, Work], turns: int, units: int = 1, uses: int = 0, at_once: int = 1
) -> Case:
    """One case. Seconds are the processor's: both ways run on one thread.

    works: by OURS and PLAIN; the first call of each, which is not timed, finds cold caches. units: of work in a
    call. uses: units in the laptop study; at_once: how many of them at the same time.
    """
    for work in works.values():
        work()
    return compared(name, in_turns(works, turns), units, uses, at_once)


def compared(name: str, seconds: Mapping[str, Sequence[float]], units: int, uses: int, at_once: int) -> Case:
    """One case, from the seconds of a call in each turn."""
    ratios = [theirs / ours for ours, theirs in zip(seconds[OURS], seconds[PLAIN], strict=True)]
    low, ratio, high = quantiles(ratios, n=4, method="inclusive")
    ours, theirs = (median(seconds[way]) / units for way in (OURS, PLAIN))
    times = {"ours": ours, "plain": theirs, "low": low, "ratio": ratio, "high": high}
    return {"case": name, **times, "turns": len(ratios), "uses": uses, "at_once": at_once}


# ---- Training steps

FORWARD, OPERATIONS, MUON = "transformers' forward", "torch's operations", "torch's Muon"
TOLERANCE = {FORWARD: 1e-3, OPERATIONS: 1e-3, MUON: 0.05}  # of the loss after the same steps; Muon's is bfloat16


def forward_pass() -> list[Case]:
    """The patched forward pass with its fused operations, in whole training steps."""
    return _steps(FORWARD)


def fused_operations() -> list[Case]:
    """The fused operations alone: the patched forward pass with and without them."""
    return _steps(OPERATIONS)


def muon() -> list[Case]:
    """tsd's Muon, in whole training steps of what the laptop study trains with it."""
    return _steps(MUON)


def _steps(way: str) -> list[Case]:
    """A case for each model that is trained this way."""
    return [
        compared(one.name, {OURS: seconds[OURS], PLAIN: seconds[way]}, one.steps, one.uses, one.at_once)
        for one, seconds in _training()
        if way in seconds
    ]


@dataclass(frozen=True)
class _Trained:
    """A model that is trained in an ablation, with the examples of a turn."""

    name: str
    build: Callable[[], PreTrainedModel]
    examples: corpus.Corpus
    settings: TrainingConfig
    turns: int
    uses: int
    """Steps in the laptop study."""
    at_once: int

    @property
    def steps(self) -> int:
        """Of a turn."""
        return len(self.examples) // self.settings.batch_size


@cache
def _training() -> list[tuple[_Trained, dict[str, list[float]]]]:
    """Seconds of each turn by way, for each model. The ablations of training share one measurement."""
    torch.set_num_threads(LAPTOP.training.threads)
    found = []
    for one in _trained():
        ways = {OURS: nullcontext, FORWARD: plain.own_forward, OPERATIONS: plain.own_operations}
        if one.settings.optimizer == "muon":
            ways[MUON] = nullcontext
        losses: dict[str, float] = {}
        works: dict[str, Work] = {}
        for way, context in ways.items():
            model = one.build()
            make = plain.make_optimizer if way == MUON else loop.make_optimizer
            works[way] = partial(_train, one, model, make(model, one.settings), context, losses, way)
            works[way]()
        found.append((one, in_turns(works, one.turns)))
        for way, tolerance in TOLERANCE.items():
            assert abs(losses.get(way, losses[OURS]) / losses[OURS] - 1) < tolerance, (one.name, losses)
    return found


def _train(
    one: _Trained,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    context: Callable[[], AbstractContextManager[None]],
    losses: dict[str, float],
    way: str,
) -> None:
    """An epoch at a small learning rate. Writes the loss of its last step to `losses`."""
    progress = loop.Progress()
    with context():
        loop.train(
            model,
            one.examples,
            one.settings,
            learning_rate=1e-4,
            seed=SEED,
            place=loop.WorkerContext(),
            optimizer=optimizer,
            progress=progress,
        )
    losses[way] = progress.loss


def _trained() -> Iterator[_Trained]:
    """The laptop's students and its teacher, and a model as one from a source is."""
    tokenizer, examples = _lessons()
    shown = sum(size * len(LAPTOP.students.seeds_for(size)) for size in LAPTOP.students.train_sizes)
    settings = LAPTOP.training
    for student, steps in zip(LAPTOP.students.models, (12, 8, 5), strict=True):
        few = corpus.tokenise(examples.slice(0, steps * settings.batch_size), tokenizer, MAX_LENGTH)
        assert corpus.wasted(few.lengths) < loop.PADDING, "the laptop's batches are padded, not packed"
        build = partial(students.build, student, tokenizer, SEED, MAX_LENGTH)
        yield _Trained(f"text {student.name}", build, few, settings, 5, shown // settings.batch_size, AT_ONCE)
    teacher = LAPTOP.teacher.train  # type: ignore[union-attr]
    assert teacher
    small, learner, letters, corpora = _pictures(8 * teacher.batch_size)
    build = partial(students.build, learner, letters, SEED, MAX_LENGTH)
    name, uses = f"vision {teacher.size}, the local teacher", teacher.pictures // teacher.batch_size
    yield _Trained(name, build, corpora["train"], small, 5, uses, 1)
    yield _Trained("Qwen2 of 8M, random weights", _qwen, _tokens(2 * 8), TrainingConfig(), 5, 0, 1)


@cache
def _lessons() -> tuple[PreTrainedTokenizerBase, pa.Table]:
    """Tokenizer and examples of the laptop recipe, by the rules teacher."""
    _, examples, tokenizer = lessons(load("laptop", ["teacher={kind: rules}"]), 2048)
    return tokenizer, examples


def _pictures(count: int) -> tuple[TrainingConfig, Student, PreTrainedTokenizerBase, dict[str, corpus.Corpus]]:
    """Settings, student, tokenizer and corpora of the laptop's teacher on `count` plots."""
    recipe = load("laptop", [f"teacher.train.pictures={count}"])
    tokenizer, corpora = local_teacher.told(recipe, local_teacher.draw(recipe))
    return local_teacher.settings(recipe), local_teacher.as_student(recipe), tokenizer, corpora


def _qwen(layers: int = 6, hidden: int = 256, vocabulary: int = 8192) -> PreTrainedModel:
    """A Qwen2 with grouped-query attention and random weights: what a hub model is, but small."""
    torch.manual_seed(SEED)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            num_key_value_heads=1,
            tie_word_embeddings=True,
        )
    )


def _tokens(count: int, length: int = 160, supervised: int = 32) -> corpus.Corpus:
    """Random tokens; only their number matters."""
    rng = np.random.default_rng(SEED)
    return corpus.Corpus(list(rng.integers(0, 1000, (count, length))), np.full(count, length - supervised), 0)


# ---- Checkpoints


def background_checkpoints(turns: int = 5, steps: int = 20) -> list[Case]:
    """Writing a checkpoint while training continues, by the clock: the laptop's steps from one to the next.

    A turn takes few steps, with one checkpoint and with none. What the checkpoint adds is added to the time of the
    laptop's number of steps.
    """
    torch.set_num_threads(LAPTOP.training.threads)
    tokenizer, examples = _lessons()
    settings = LAPTOP.training.model_copy(update={"checkpoint_every": steps // 2})
    few = corpus.tokenise(examples.slice(0, steps * settings.batch_size), tokenizer, MAX_LENGTH)
    model = students.build(LAPTOP.students.models[-1], tokenizer, SEED, MAX_LENGTH)
    optimizer, place = loop.make_optimizer(model, settings), loop.WorkerContext()

    def train(save: Callable[[loop.Progress], None]) -> None:
        """Take the steps; `save` is called once."""
        loop.train(
            model,
            few,
            settings,
            learning_rate=1e-4,
            seed=SEED,
            place=place,
            optimizer=optimizer,
            progress=loop.Progress(),
            save=save,
        )

    with tempfile.TemporaryDirectory() as folder, local_teacher._alone():

        def keep(part: Path, _: loop.Progress) -> None:
            shutil.copytree(part, folder, dirs_exist_ok=True)

        def in_background() -> None:
            with Checkpoints(model, optimizer, place, keep, lambda _: None) as kept:
                train(kept.save)

        works: dict[str, Work] = {
            "none": partial(train, lambda _: None),
            OURS: in_background,
            PLAIN: partial(train, partial(plain.save_checkpoint, model, optimizer, keep)),
        }
        for work in works.values():
            work()
        found = in_turns(works, turns, time.perf_counter)
    every = LAPTOP.training.checkpoint_every
    seconds = {
        way: [none * every / steps + took - none for none, took in zip(found["none"], found[way], strict=True)]
        for way in (OURS, PLAIN)
    }
    uses = sum((examples // settings.batch_size - 1) // every for _, examples, _ in LAPTOP.students.cells())
    return [compared(f"text 0.3M, {every} steps and a checkpoint", seconds, 1, uses, AT_ONCE)]


# ---- Decoding


def own_decoding() -> list[Case]:
    """tsd's cache, decoder and removal of finished sequences, against `generate` on the same batches."""
    found = _decoded(lambda model, tokenizer, few: plain.generate(model, tokenizer, few, LAPTOP.max_new_tokens))
    return [*found, _described()]


def fast_decoder() -> list[Case]:
    """`FastDecoder` alone, against the model's own forward pass on the same cache."""

    def reply(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> list[str]:
        with plain.models_forward():
            return decode(model, tokenizer, prompts, LAPTOP.max_new_tokens)

    return _decoded(reply)


def _decoded(reply: Callable[[Any, Any, list[str]], list[str]]) -> list[Case]:
    """A case for each text student, on one batch of the laptop's evaluation."""
    torch.set_num_threads(LAPTOP.training.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer, examples = _lessons()
    prompts = examples["prompt"].to_pylist()[-LAPTOP.evaluation.batch_size :]
    runs = len(list(LAPTOP.students.cells())) // len(LAPTOP.students.models)
    found = []
    for student, turns in zip(LAPTOP.students.models, (5, 5, 3), strict=True):
        model = decoding_benchmark.student(student.name, tokenizer, examples)
        works = {
            OURS: partial(decode, model, tokenizer, prompts, LAPTOP.max_new_tokens),
            PLAIN: partial(reply, model, tokenizer, prompts),
        }
        uses = runs * LAPTOP.evaluation.series
        one = case(f"text {student.name}", works, turns, len(prompts), uses, LAPTOP.evaluation.workers)
        found.append(_alike(one, works))
    return found


def _described(count: int = 256, learned: int = 6000) -> Case:
    """The laptop's teacher on plots of series. It has learned from few, so replies end by themselves."""
    settings, student, tokenizer, corpora = _pictures(learned)
    model = students.build(student, tokenizer, SEED, MAX_LENGTH)
    loop.train(
        model,
        corpora["train"],
        settings,
        learning_rate=students.learning_rate(student),
        seed=SEED,
        place=loop.WorkerContext(),
        optimizer=loop.make_optimizer(model, settings),
        progress=loop.Progress(),
    )
    ink = rasterised.draw(SINGLE.items(draw_table(SINGLE, LAPTOP.series, LAPTOP.seed, 0, count)))
    most: int = LAPTOP.teacher.max_tokens  # type: ignore[union-attr]
    works = {
        OURS: partial(describe, model, tokenizer, SINGLE, ink, most),
        PLAIN: partial(plain.generate_from_images, model, tokenizer, SINGLE, ink, most),
    }
    return _alike(case("vision, the local teacher", works, 5, count, LAPTOP.series.count, AT_ONCE), works)


def _alike(found: Case, works: Mapping[str, Work]) -> Case:
    """The case, with the share of replies that are the same by either way."""
    replies = (work() for work in works.values())
    identical = float(np.mean([ours == theirs for ours, theirs in zip(*replies, strict=True)]))
    assert identical > 0.98, (found["case"], identical)  # near ties may fall either way
    return {**found, "identical": identical}


# ---- Plots


def plots(count: int = 128) -> list[Case]:
    """Plots as PNG. The laptop study draws none with axes: its teacher reads rasterised plots."""
    series = draw_table(SINGLE, LAPTOP.series, LAPTOP.seed, 0, count)
    curves = [row.values.to_numpy() for row in series["values"]]
    found = []
    for style in ("compact", "paper"):
        looks = [choose_look(PlotConfig(style=style), 0, i) for i in range(count)]
        plotters = {OURS: Plotter(), PLAIN: plain.Plotter()}
        works = {way: partial(plotter, curves, looks) for way, plotter in plotters.items()}
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
        _qwen(8, 512, 32_768).bfloat16().save_pretrained(source, max_shard_size="40MB")
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
