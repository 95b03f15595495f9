"""Ablations of training steps and of checkpoints."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
import plain
import torch
from ablated_cases import (
    AT_ONCE,
    LAPTOP,
    MAX_LENGTH,
    OURS,
    PLAIN,
    SEED,
    Case,
    Work,
    compared,
    laptop_examples,
    laptop_plots,
)
from measured import in_turns
from transformers import PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from tsd.models import students
from tsd.recipe import TrainingConfig
from tsd.study import local_teacher
from tsd.training import corpus, loop
from tsd.training.checkpoints import Checkpoints

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
        ways: dict[str, Callable[[], AbstractContextManager[None]]] = {
            OURS: nullcontext,
            FORWARD: plain.own_forward,
            OPERATIONS: plain.own_operations,
        }
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
    tokenizer, examples = laptop_examples()
    shown = sum(size * len(LAPTOP.students.seeds_for(size)) for size in LAPTOP.students.train_sizes)
    settings = LAPTOP.training
    for student, steps in zip(LAPTOP.students.models, (12, 8, 5), strict=True):
        few = corpus.tokenise(examples.slice(0, steps * settings.batch_size), tokenizer, MAX_LENGTH)
        assert corpus.wasted(few.lengths) < loop.PADDING, "the laptop's batches are padded, not packed"
        build = partial(students.build, student, tokenizer, SEED, MAX_LENGTH)
        yield _Trained(f"text {student.name}", build, few, settings, 5, shown // settings.batch_size, AT_ONCE)
    teacher = LAPTOP.teacher.train  # type: ignore[union-attr]
    assert teacher
    small, learner, letters, corpora = laptop_plots(8 * teacher.batch_size)
    build = partial(students.build, learner, letters, SEED, MAX_LENGTH)
    name, uses = f"vision {teacher.size}, the local teacher", teacher.pictures // teacher.batch_size
    yield _Trained(name, build, corpora["train"], small, 5, uses, 1)
    yield _Trained("Qwen2 of 8M, random weights", qwen2, _tokens(2 * 8), TrainingConfig(), 5, 0, 1)
    student, settings = LAPTOP.students.models[1], TrainingConfig(batch_size=32)
    mixed = _mixed_tokens(4 * settings.batch_size)
    assert corpus.wasted(mixed.lengths) > loop.PADDING, "batches of mixed length are packed"
    build = partial(students.build, student, tokenizer, SEED, MAX_LENGTH)
    yield _Trained(f"text {student.name}, 32 of mixed length", build, mixed, settings, 5, 0, 1)


def qwen2(layers: int = 6, hidden: int = 256, vocabulary: int = 8192) -> PreTrainedModel:
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


def _mixed_tokens(count: int, least: int = 80, most: int = 330, supervised: int = 40) -> corpus.Corpus:
    """As `_tokens`, of lengths as those of series of 32 to 256 points."""
    rng = np.random.default_rng(SEED)
    lengths = rng.integers(least, most, count)
    return corpus.Corpus([rng.integers(0, 100, length) for length in lengths], lengths - supervised, 0)


# ---- Checkpoints


def background_checkpoints(turns: int = 5, steps: int = 20) -> list[Case]:
    """Writing a checkpoint while training continues, by the clock: the laptop's steps from one to the next.

    A turn takes few steps, with one checkpoint and with none. What the checkpoint adds is added to the time of the
    laptop's number of steps.
    """
    torch.set_num_threads(LAPTOP.training.threads)
    tokenizer, examples = laptop_examples()
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
