"""The training loop: plain torch, given a model, a corpus and what to call when there is something to report.

It knows nothing of Ray. It runs in one process, or in many after `shard`.
"""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from tsd.errors import TrainingError
from tsd.models.forward import decoder_layers, lean, packable, recomputed
from tsd.models.vision import patches_of
from tsd.recipe import TrainingConfig
from tsd.training.corpus import Batches, Corpus, collate, pack, portions, share, wasted
from tsd.training.distillation import Distillation
from tsd.training.optimizer import Muon

REPORTS = 40  # a run; counted in steps, since all workers must report together
PADDING = 0.05  # share of padding from which on a batch is packed, where the recipe leaves it open


@dataclass(frozen=True)
class Place:
    """Where a process stands among its workers, and on what device."""

    rank: int = 0
    workers: int = 1
    device: str = "cpu"


@dataclass
class Progress:
    """How far a run is: what a checkpoint keeps beside weights and optimiser, and what a report says."""

    step: int = 0
    tokens: int = 0
    supervised: int = 0
    steps: int = 0  # of the whole run; known from when `train` begins
    seconds: float = 0.0  # spent in the loop, over all restarts
    loss: float = math.nan  # what is minimised, a mean over the last step's supervised tokens, in nats
    lowest: float = math.inf  # held-out loss after an epoch, where a run may stop early, in nats
    waited: int = 0  # epochs since then
    stopped: bool = False  # before its last step, since no epoch lowered the held-out loss for long enough

    def judge(self, held_out: float, patience: int) -> None:
        """Note the held-out loss after an epoch, in nats, and stop after `patience` without a lower one."""
        self.waited = 0 if held_out < self.lowest else self.waited + 1
        self.lowest = min(self.lowest, held_out)
        self.stopped = self.waited >= patience and self.step < self.steps


def train(
    model: PreTrainedModel,
    corpus: Corpus,
    config: TrainingConfig,
    *,
    learning_rate: float,
    seed: int,
    place: Place,
    optimiser: torch.optim.Optimizer,
    progress: Progress,
    report: Callable[[Progress], None] = lambda _: None,
    save: Callable[[Progress], None] = lambda _: None,
    distil: Distillation | None = None,
    held_out: Callable[[], float] | None = None,
) -> None:
    """Train from `progress.step` to the end; `progress` is kept up to date in place.

    distil: whom to learn from besides the corpus' words; its teacher stays as it is.
    held_out: the held-out loss in nats, the same for all workers; asked after each epoch where `config.patience`
    says how many a run lets pass without a lower one before it stops. The weights are those of its last step.
    `report` is called about `REPORTS` times, `save` every `config.checkpoint_every` steps and not at the end.
    Raises TrainingError when the loss or its gradient stops being a number: the weights are then those of the
    step before.
    """
    batches = Batches(corpus.lengths, config, seed)
    steps = progress.steps = batches.steps
    model.train()
    if distil:
        distil.teacher.eval()
    started, before = time.perf_counter(), progress.seconds
    report_every = max(1, steps // REPORTS)
    with (
        _lean_where_known(model),
        _lean_where_known(distil.teacher) if distil else nullcontext(),
        recomputed(model) if config.checkpoint_activations else nullcontext(),
    ):
        while progress.step < steps and not progress.stopped:
            step = progress.step
            rows = batches.rows(step)
            for group in optimiser.param_groups:
                group["lr"] = learning_rate * schedule(step, steps, config.warmup)
            loss = _backward(model, corpus, rows, config, place, distil)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip)
            progress.loss = _mean_over_workers(loss, place.workers)
            for name, value in (("loss", progress.loss), ("gradient's norm", _whole(norm))):
                if not math.isfinite(value):  # before a step is taken with it
                    raise TrainingError(f"the {name} is {value} at step {step}: lower the learning rate")
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            progress.step += 1
            progress.tokens += int(corpus.lengths_of(rows).sum())
            progress.supervised += corpus.supervised_in(rows)
            progress.seconds = before + time.perf_counter() - started
            if held_out and config.patience and batches.epochs_done(step + 1) > batches.epochs_done(step):
                asked = time.perf_counter()
                progress.judge(held_out(), config.patience)
                model.train()
                started += time.perf_counter() - asked  # not the run's own work
            if progress.step % config.checkpoint_every == 0 and progress.step < steps:
                save(progress)
            elif progress.step % report_every == 0:
                report(progress)


def _backward(
    model: PreTrainedModel,
    corpus: Corpus,
    rows: npt.NDArray[np.int64],
    config: TrainingConfig,
    place: Place,
    distil: Distillation | None,
) -> Tensor:
    """Add up the gradients of a step's mean loss, as many tokens at a time as `config.tokens_at_once` allows.

    rows: the examples of all workers, (examples,). Returns the loss times the number of workers over the worker's
    own share: its mean over the workers is that of the step.
    """
    shares = [
        portions(corpus, share(rows, rank, place.workers), config.tokens_at_once) for rank in range(place.workers)
    ]
    mine, most = shares[place.rank], max(map(len, shares))
    # FSDP averages gradients over the workers; the loss is a mean over all their supervised tokens.
    each = place.workers / corpus.supervised_in(rows)
    total = torch.zeros((), device=place.device)
    for i in range(most):
        # Layers gather together: who has fewer portions than others takes part in all, with nothing to add.
        portion, weight = (mine[i], each) if i < len(mine) else (rows[:1], 0.0)
        if isinstance(model, FSDPModule):  # gradients meet once a step
            model.set_requires_gradient_sync(i == most - 1)
        loss = weight * summed_loss(model, corpus, portion, place.device, config.packing, distil)
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total


@torch.no_grad()
def evaluate(model: PreTrainedModel, corpus: Corpus, batch_size: int, place: Place) -> float:
    """The mean loss in nats over all supervised tokens of a corpus; every worker takes its share."""
    model.eval()
    total = torch.zeros(1, dtype=torch.float64, device=place.device)
    # Rows of like length together, and as many batches for every worker, since sharded layers gather together.
    order = np.argsort(corpus.lengths, kind="stable")
    stride = batch_size * place.workers
    with _lean_where_known(model):
        for first in range(0, len(order), stride):
            rows = order[first : first + stride][place.rank :: place.workers]
            weight = 1.0 if len(rows) else 0.0
            total += weight * summed_loss(model, corpus, rows if len(rows) else order[:1], place.device).double()
    if place.workers > 1:
        dist.all_reduce(total)
    return float(total) / corpus.supervised_in(order)


def summed_loss(
    model: PreTrainedModel,
    corpus: Corpus,
    rows: Any,
    device: str,
    packing: bool | None = None,
    distil: Distillation | None = None,
) -> Tensor:
    """Cross-entropy in nats, summed over the rows' supervised tokens; mixed with a divergence where one distils.

    packing: one row of examples kept apart, or a padded row each; None for what wastes less. Raises TrainingError
    where a model cannot be packed and has to be.
    """
    models = [model, distil.teacher] if distil else [model]
    unknown = [type(each).__name__ for each in models if not packable(each) or corpus.pictures]
    if packing and unknown:
        raise TrainingError(f"{unknown[0]} cannot be packed: leave training.packing out")
    # Teacher and student are asked in one layout: their tokens must stand in one order.
    packed = not unknown and (packing or (packing is None and wasted(corpus.lengths_of(rows)) > PADDING))
    answers = _packed_answers if packed else _padded_answers
    logits, targets = answers(model, corpus, rows, device)
    words = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    if distil is None:
        return words
    with torch.no_grad():
        teacher, _ = answers(distil.teacher, corpus, rows, device)
    supervised = targets >= 0
    return distil.mixed(words, logits[supervised], teacher[supervised])


def _padded_answers(model: PreTrainedModel, corpus: Corpus, rows: Any, device: str) -> tuple[Tensor, Tensor]:
    """Logits, (tokens, vocabulary) float32, and targets, (tokens,), −100 where a token is not supervised.

    Padding stands on the right, where causal attention never looks, so no mask is needed; logits are made only
    for the columns in which some row is supervised.
    """
    batch = collate(corpus, rows)
    positions = torch.from_numpy(batch.positions).to(device)
    inputs = torch.from_numpy(batch.inputs).to(device)
    targets = torch.from_numpy(batch.targets[:, batch.positions]).to(device)
    if packable(model):
        count, length = batch.inputs.shape
        shown = {}
        if corpus.pictures:
            patches = patches_of(corpus.pictures.draw(rows)).to(device)
            shown = {"patches": patches, "first": corpus.pictures.first}
        with lean(model) as logits_of:
            segments = [(count, length, length - int(batch.positions[0]))]
            logits = logits_of(input_ids=inputs, segments=segments, wanted=positions, **shown)
    else:
        logits = model(input_ids=inputs, logits_to_keep=positions, use_cache=False).logits
    return logits.float().flatten(0, 1), targets.flatten()


def _packed_answers(model: PreTrainedModel, corpus: Corpus, rows: Any, device: str) -> tuple[Tensor, Tensor]:
    """The same of one row without padding, for the supervised tokens only."""
    batch = pack(corpus, rows)
    inputs, places, positions, targets = (
        torch.from_numpy(array).to(device)
        for array in (batch.inputs, batch.places, batch.positions, batch.targets)
    )
    with lean(model) as logits_of:
        logits = logits_of(
            input_ids=inputs[None], position_ids=places[None], segments=batch.segments, wanted=positions
        )
    return logits[0].float(), targets


def schedule(step: int, steps: int, warmup: float) -> float:
    """The share of the peak learning rate: a linear rise, then a cosine to zero."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def make_optimiser(model: PreTrainedModel, config: TrainingConfig) -> torch.optim.Optimizer:
    """The recipe's optimiser over what is trainable; norms' gains are not decayed."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    muon = config.optimiser == "muon"
    # An embedding's rows are moved one by one, whichever matrix they stand in.
    tables = {id(p) for part in _tables(model) for p in part.parameters()}
    matrices = [p for p in trainable if muon and p.ndim == 2 and id(p) not in tables]
    orthogonal = set(map(id, matrices))
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in trainable if p.ndim > 1 and id(p) not in orthogonal],
            "weight_decay": config.weight_decay,
        },
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        {"params": matrices, "weight_decay": config.weight_decay, "matrices": True},
    ]
    groups = [group for group in groups if group["params"]]
    return (Muon if muon else torch.optim.AdamW)(groups, lr=0.0, betas=config.betas, fused=True)


def _tables(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The modules that hold a row for each token or place."""
    return [m for m in model.modules() if isinstance(m, torch.nn.Embedding) or m is model.get_output_embeddings()]


def shard(model: PreTrainedModel, place: Place) -> PreTrainedModel:
    """Shard the model over all workers with FSDP2: each layer, then the root. Needs a process group.

    A single worker on CPU keeps the model as it is: there is nothing to share, and gathering from oneself makes
    a small student's step up to 1.4 times as long (`benchmarks/sharding.py`). The inner model is not sharded by
    itself: with tied embeddings the root's group owns them.
    """
    if place.workers == 1 and place.device == "cpu":
        return model
    mesh = init_device_mesh("cpu" if place.device == "cpu" else "cuda", (place.workers,))
    precision = MixedPrecisionPolicy()
    if place.device != "cpu":
        precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in decoder_layers(model):
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    fully_shard(model, mesh=mesh, mp_policy=precision)
    return model


def matmul_peak(device: str = "cpu", seconds: float = 0.2) -> float:
    """Measured matrix-multiply rate of this process, in FLOP/s, in what training multiplies there: float32 on CPU,
    bfloat16 on GPU.
    """
    size, dtype = (512, torch.float32) if device == "cpu" else (8192, torch.bfloat16)
    a = torch.randn(size, size, device=device, dtype=dtype)
    _waited(torch.mm(a, a))
    best, started = math.inf, time.perf_counter()
    while time.perf_counter() - started < seconds:
        before = time.perf_counter()
        _waited(torch.mm(a, a))
        best = min(best, time.perf_counter() - before)
    return 2 * size**3 / best


def _waited(result: Tensor) -> None:
    """Return when it is there; a GPU works on after it was asked."""
    if result.is_cuda:
        torch.cuda.synchronize(result.device)


def _lean_where_known(model: PreTrainedModel) -> AbstractContextManager[object]:
    return lean(model) if packable(model) else nullcontext()


def _whole(norm: Tensor) -> float:
    """A number that all workers have, or that is spread over them."""
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _mean_over_workers(loss: Tensor, workers: int) -> float:
    if workers > 1:
        loss = loss.clone()
        dist.all_reduce(loss)
    return float(loss) / workers
