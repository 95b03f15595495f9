"""The measurements of `ablations.py`: tsd's own code and the plain way of `plain.py`, in turns on the same work.

Each function returns its cases. A case is a place where the code is used: the seconds of a unit of work by either
way, and how many units the laptop study does, so many at once.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from statistics import median, quantiles
from typing import Any

import numpy as np
import plain
import pyarrow as pa
import torch
from lessons import lessons
from measured import in_turns
from PIL import Image
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen2Config, Qwen2ForCausalLM

from tsd.generation.generator import draw_table
from tsd.models import students
from tsd.plots.plotter import Plotter, choose_look
from tsd.recipe import ApiTeacher, PlotConfig, Student, TrainingConfig, load
from tsd.study import local_teacher
from tsd.tasks import SINGLE
from tsd.teachers.prompts import Questions
from tsd.training import corpus, loop

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


MEASURES: dict[str, Callable[[], list[Case]]] = {
    "forward": forward_pass,
    "operations": fused_operations,
    "muon": muon,
    "plots": plots,
}
