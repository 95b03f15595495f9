"""The training loop in plain torch. Reporting and saving are callbacks.

It does not depend on Ray. It runs in one process, or in several after `shard`.
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

REPORTS = 40  # reports per run; counted in steps, since all workers report together
PADDING = 0.05  # padding fraction above which a batch is packed, unless the recipe decides


@dataclass(frozen=True)
class WorkerContext:
    """A worker's rank, the number of workers (world size) and its device."""

    rank: int = 0
    workers: int = 1
    device: str = "cpu"


@dataclass
class Progress:
    """Progress of a run: what a checkpoint holds besides weights and optimizer state, and what a report shows."""

    step: int = 0  # optimizer steps taken
    tokens: int = 0  # trained on, all workers together
    supervised: int = 0  # of these, supervised
    steps: int = 0  # of the whole run; set when `train` begins
    seconds: float = 0.0  # spent in the loop, including earlier starts
    loss: float = math.nan  # training objective: mean over the supervised tokens of the last step, in nats
    lowest: float = math.inf  # lowest held-out loss after an epoch, for early stopping, in nats
    waited: int = 0  # epochs since then
    stopped: bool = False  # ended early by the held-out loss
    tokenizer: str = ""  # digest of the one that made the tokens it is trained on, where they keep it

    def judge(self, held_out: float, patience: int) -> None:
        """Update early stopping with the held-out loss of an epoch, in nats.

        The run stops after `patience` epochs without a lower loss.
        """
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
    place: WorkerContext,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    report: Callable[[Progress], None] = lambda _: None,
    save: Callable[[Progress], None] = lambda _: None,
    distil: Distillation | None = None,
    held_out: Callable[[], float] | None = None,
) -> None:
    """Train from `progress.step` to the end, updating `progress` in place.

    distil: teacher and loss settings for knowledge distillation; the teacher is not trained.
    held_out: returns the held-out loss in nats, the same value on all workers. With
    `config.early_stopping_patience` it is called after each epoch. The run ends with the weights of its last step,
    not of its best one.
    report: called about `REPORTS` times.
    save: called every `config.checkpoint_every` steps, but not at the end.
    Raises TrainingError if the loss or the gradient norm is not finite; the weights are then those of the last
    finite step.
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
        recomputed(model) if config.activation_checkpointing else nullcontext(),
    ):
        while progress.step < steps and not progress.stopped:
            step = progress.step
            rows = batches.rows(step)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * schedule(step, steps, config.warmup_ratio)
            loss = _backward(model, corpus, rows, config, place, distil)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            progress.loss = _mean_over_workers(loss, place.workers)
            for name, value in (("loss", progress.loss), ("gradient's norm", _whole(norm))):
                if not math.isfinite(value):  # checked before the optimizer step
                    raise TrainingError(f"the {name} is {value} at step {step}: lower the learning rate")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            progress.step += 1
            progress.tokens += int(corpus.lengths_of(rows).sum())
            progress.supervised += corpus.supervised_in(rows)
            progress.seconds = before + time.perf_counter() - started
            if (
                held_out
                and config.early_stopping_patience
                and batches.epochs_done(step + 1) > batches.epochs_done(step)
            ):
                asked = time.perf_counter()
                progress.judge(held_out(), config.early_stopping_patience)
                model.train()
                started += time.perf_counter() - asked  # evaluation does not count as training time
            if progress.step % report_every == 0:
                report(progress)
            if progress.step % config.checkpoint_every == 0 and progress.step < steps:
                save(progress)


def _backward(
    model: PreTrainedModel,
    corpus: Corpus,
    rows: npt.NDArray[np.int64],
    config: TrainingConfig,
    place: WorkerContext,
    distil: Distillation | None,
) -> Tensor:
    """Accumulate the gradients of a step's mean loss over micro-batches of `config.micro_batch_tokens` tokens.

    rows: the examples of all workers, (examples,). Returns this worker's part of the loss times the number of
    workers, a scalar; its mean over the workers is the loss of the step.
    """
    shares = [
        portions(corpus, share(rows, rank, place.workers), config.micro_batch_tokens)
        for rank in range(place.workers)
    ]
    mine, most = shares[place.rank], max(map(len, shares))
    # FSDP averages gradients over the workers. The loss is a mean over the supervised tokens of all of them.
    each = place.workers / corpus.supervised_in(rows)
    total = torch.zeros((), device=place.device)
    for i in range(most):
        # All-gathers are collective: a worker with fewer micro-batches runs an example with weight 0 instead.
        portion, weight = (mine[i], each) if i < len(mine) else (rows[:1], 0.0)
        if isinstance(model, FSDPModule):  # gradients are reduced once per step
            model.set_requires_gradient_sync(i == most - 1)
        loss = weight * summed_loss(model, corpus, portion, place.device, config.packing, distil)
        loss.backward()
        total += loss.detach()
    return total


@dataclass(frozen=True)
class HeldOut:
    """The mean loss over the supervised tokens of held-out examples, in nats a token."""

    loss: float
    """Of all of them."""
    labels: float | None = None
    """Of those that carry a label or a number; None if these are not known, or there are none."""
    wording: float | None = None
    """Of the others."""


@torch.no_grad()
def evaluate(
    model: PreTrainedModel,
    corpus: Corpus,
    batch_size: int,
    place: WorkerContext,
    labels: npt.NDArray[np.bool_] | None = None,
) -> HeldOut:
    """The mean loss over all supervised tokens of a corpus. Each worker evaluates its share.

    labels: which tokens of the vocabulary carry a label or a number, (vocabulary,).
    """
    model.eval()
    # Sum of the losses, sum of those of tokens with a label or number, and how many of these there are.
    total = torch.zeros(3, dtype=torch.float64, device=place.device)
    telling = None if labels is None else torch.from_numpy(labels).to(place.device)  # (vocabulary,)
    # Sorted by length against padding. All workers run the same number of batches, since all-gathers are
    # collective.
    order = np.argsort(corpus.lengths, kind="stable")
    stride = batch_size * place.workers
    with _lean_where_known(model):
        for first in range(0, len(order), stride):
            rows = order[first : first + stride][place.rank :: place.workers]
            weight = 1.0 if len(rows) else 0.0
            rows = rows if len(rows) else order[:1]
            packed = _can_pack(model, corpus) and wasted(corpus.lengths_of(rows)) > PADDING
            answers = _packed_answers if packed else _padded_answers
            logits, targets = answers(model, corpus, rows, place.device)  # (tokens, vocabulary), (tokens,)
            losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none").double()  # (tokens,)
            total[0] += weight * losses.sum()
            if telling is not None:
                carries = (targets >= 0) & telling[targets.clamp(min=0)]  # (tokens,)
                total[1] += weight * losses[carries].sum()
                total[2] += weight * carries.sum()
    if place.workers > 1:
        dist.all_reduce(total)
    supervised, (whole, told, carrying) = corpus.supervised_in(order), total.tolist()
    if not 0 < carrying < supervised:
        return HeldOut(whole / supervised)
    return HeldOut(whole / supervised, told / carrying, (whole - told) / (supervised - carrying))


def summed_loss(
    model: PreTrainedModel,
    corpus: Corpus,
    rows: npt.NDArray[np.int64],
    device: str,
    packing: bool | None = None,
    distil: Distillation | None = None,
) -> Tensor:
    """Cross-entropy in nats, summed over the supervised tokens, or its mixture with a divergence from a teacher.

    rows: (examples,) indices.
    packing: pack the examples into one row, or pad each to its own row; None packs if padding exceeds `PADDING`.
    Raises TrainingError if packing is required but a model does not support it.
    """
    models = [model, distil.teacher] if distil else [model]
    unknown = [type(each).__name__ for each in models if not _can_pack(each, corpus)]
    if packing and unknown:
        raise TrainingError(f"{unknown[0]} cannot be packed: leave training.packing out")
    # Teacher and student use the same layout, so that their tokens are in the same order.
    packed = not unknown and (packing or (packing is None and wasted(corpus.lengths_of(rows)) > PADDING))
    answers = _packed_answers if packed else _padded_answers
    logits, targets = answers(model, corpus, rows, device)  # (tokens, vocabulary), (tokens,)
    words = torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    if distil is None:
        return words
    with torch.no_grad():
        teacher, _ = answers(distil.teacher, corpus, rows, device)
    supervised = targets >= 0  # (tokens,); padded rows have unsupervised tokens
    return distil.mixed(words, logits[supervised], teacher[supervised])


def _can_pack(model: PreTrainedModel, corpus: Corpus) -> bool:
    """Whether several examples can share a row: not with a vision model, nor one with unknown layers."""
    return packable(model) and not corpus.pictures


def _padded_answers(
    model: PreTrainedModel, corpus: Corpus, rows: npt.NDArray[np.int64], device: str
) -> tuple[Tensor, Tensor]:
    """Logits, (tokens, vocabulary) float32, and targets, (tokens,), for padded rows; −100 if unsupervised.

    No mask is needed: padding is on the right, where causal attention does not look. Logits are computed only for
    columns in which some row is supervised.
    """
    batch = collate(corpus, rows)
    positions = torch.from_numpy(batch.positions).to(device)  # (positions,)
    inputs = torch.from_numpy(batch.inputs).to(device)  # (rows, length)
    targets = torch.from_numpy(batch.targets[:, batch.positions]).to(device)  # (rows, positions)
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


def _packed_answers(
    model: PreTrainedModel, corpus: Corpus, rows: npt.NDArray[np.int64], device: str
) -> tuple[Tensor, Tensor]:
    """Logits, (supervised, vocabulary) float32, and targets, (supervised,), for examples packed into one row."""
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
    """The learning rate as a fraction of its peak: linear warmup, then cosine decay to zero."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def make_optimizer(model: PreTrainedModel, config: TrainingConfig) -> torch.optim.Optimizer:
    """The recipe's optimizer for the trainable parameters. Parameters with one dimension have no weight decay."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    muon = config.optimizer == "muon"
    # Rows of an embedding are updated independently, so AdamW handles embeddings, tied output heads included.
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
    """Embeddings and the output head: modules with one row per token or position."""
    return [m for m in model.modules() if isinstance(m, torch.nn.Embedding) or m is model.get_output_embeddings()]


def shard(model: PreTrainedModel, place: WorkerContext) -> PreTrainedModel:
    """Shard the model over all workers with FSDP2: each layer, then the root. Needs a process group.

    A single CPU worker keeps the model as it is: there is nothing to shard, and all-gathers would only cost time
    (`benchmarks/sharding.py`). The inner model is not a unit of its own: with tied embeddings they belong to the
    root.
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
    """Measured matrix-multiply throughput of this process in FLOP/s: float32 on CPU, bfloat16 on GPU.

    seconds: how long to measure. The best of all repetitions counts.
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
    """Wait until a result has been computed. GPU operations are asynchronous."""
    if result.is_cuda:
        torch.cuda.synchronize(result.device)


def _lean_where_known(model: PreTrainedModel) -> AbstractContextManager[object]:
    """The patched forward pass if the model supports it, else a context that does nothing."""
    return lean(model) if packable(model) else nullcontext()


def _whole(norm: Tensor) -> float:
    """The value of a norm that may be sharded over the workers. Collective if it is."""
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def _mean_over_workers(loss: Tensor, workers: int) -> float:
    """The mean of a scalar over all workers. Collective for more than one."""
    if workers > 1:
        loss = loss.clone()
        dist.all_reduce(loss)
    return float(loss) / workers
