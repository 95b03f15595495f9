"""Muon: held against torch's own, whole and in shards, and what it leaves to AdamW."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.workers import joined, together
from transformers import PreTrainedModel

from tsd.models import vision_students
from tsd.models.students import build
from tsd.models.tokenizer import build_tokenizer
from tsd.recipe import Student, TrainingConfig
from tsd.training import optimizer as muon
from tsd.training.loop import make_optimizer, shard

SETTINGS = TrainingConfig(optimizer="muon", weight_decay=0.1)
TOKENS = torch.arange(8)[None]


def student() -> PreTrainedModel:
    return build(Student(name="0.03M"), build_tokenizer(["1 2"] * 2, 64), 0, 64)


def steps(model: Any, optimizer: torch.optim.Optimizer, count: int = 3) -> None:
    for _ in range(count):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
        optimizer.step()
        optimizer.zero_grad()


def matrices(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [matrix for group in optimizer.param_groups if group.get("matrices") for matrix in group["params"]]


@pytest.mark.parametrize("shape", [(4, 4), (8, 64), (48, 50)])
def test_every_direction_becomes_about_as_long(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    turned = torch.linalg.qr(torch.randn(3, shape[1], shape[1]))[0][:, : shape[0]]
    lengths = torch.logspace(-1.5, 0, shape[0])
    left = torch.linalg.qr(torch.randn(3, shape[0], shape[0]))[0]
    found = muon.orthogonal(left @ (lengths[:, None] * turned), iterations=5)
    grown = left.mT @ found @ turned.mT
    lengths = torch.diagonal(grown, dim1=1, dim2=2)
    assert ((lengths > 0.6) & (lengths < 1.25)).all()
    assert torch.allclose(grown, torch.diag_embed(lengths), atol=1e-4)  # no direction has moved
    assert torch.equal(muon.orthogonal(torch.zeros(2, 3, 5)), torch.zeros(2, 3, 5))


def test_it_takes_the_steps_of_torchs_own() -> None:
    ours, theirs = student(), student()
    optimizer = make_optimizer(ours, SETTINGS)
    before = [matrix.detach().clone() for matrix in matrices(optimizer)]
    places = {id(p): name for name, p in ours.named_parameters()}
    named = dict(theirs.named_parameters())
    same = [named[places[id(matrix)]] for matrix in matrices(optimizer)]
    longer = muon.RATE / 0.2  # than with AdamW, whose step torch's is as long as
    reference = torch.optim.Muon(
        same,
        lr=longer * 1e-2,
        weight_decay=SETTINGS.weight_decay / longer,
        momentum=0.9,
        ns_steps=3,
        adjust_lr_fn="match_rms_adamw",
    )
    for _ in range(3):  # the same gradients for both, tall matrices and wide ones
        for mine, other in zip(matrices(optimizer), same, strict=True):
            mine.grad = torch.randn_like(mine)
            other.grad = mine.grad.clone()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
        optimizer.step()
        reference.step()
    for was, mine, other in zip(before, matrices(optimizer), same, strict=True):
        assert (mine - other).norm() < 0.02 * (mine - was).norm()  # bfloat16 there


def test_as_few_matrices_are_taken_together_as_memory_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    together, apart = student(), student()
    steps(together, make_optimizer(together, SETTINGS))
    taken, find = [], muon.orthogonal

    def noted(matrices: torch.Tensor) -> torch.Tensor:
        taken.append(len(matrices))
        return find(matrices)

    monkeypatch.setattr(muon, "orthogonal", noted)
    monkeypatch.setattr(muon, "SLICE", 1)
    steps(apart, make_optimizer(apart, SETTINGS))
    assert set(taken) == {1}
    for name, weights in together.named_parameters():
        assert torch.allclose(weights, apart.get_parameter(name), atol=1e-6), name


def test_what_is_no_matrix_of_a_layer_moves_as_with_adamw() -> None:
    ours, theirs = student(), student()
    optimizer = make_optimizer(ours, SETTINGS)
    other = make_optimizer(theirs, SETTINGS.model_copy(update={"optimizer": "adamw"}))
    steps(ours, optimizer, 1)
    steps(theirs, other, 1)
    chosen = set(map(id, matrices(optimizer)))
    apart = [name for name, p in ours.named_parameters() if id(p) not in chosen]
    assert sorted({name.split(".")[-2] for name in apart}) == [
        "embed_tokens", "input_layernorm", "k_norm", "norm", "post_attention_layernorm", "q_norm",
    ]  # fmt: skip
    for name, mine in ours.named_parameters():
        assert torch.equal(mine, theirs.get_parameter(name)) == (name in apart), name


def test_of_a_model_that_looks_neither_pixels_nor_places_are_taken_for_matrices() -> None:
    model = vision_students.build(
        vision_students.SCRATCH["0.03M"], build_tokenizer(["1 2"] * 2, 64, pictures=True)
    )
    names = {id(p): name for name, p in model.named_parameters()}
    chosen = {names[id(matrix)] for matrix in matrices(make_optimizer(model, SETTINGS))}
    assert not [name for name in chosen if "embed" in name]
    assert {"model.visual.merger.linear_fc1.weight", "model.visual.blocks.0.attn.qkv.weight"} <= chosen


def work(rank: int, out: Path) -> None:
    """One of two workers that share a student."""
    with joined(rank, out) as place:
        model: Any = shard(student(), place)
        steps(model, make_optimizer(model, SETTINGS))
        whole = {name: value.full_tensor() for name, value in model.state_dict().items()}
    if rank == 0:
        torch.save(whole, out / "weights.pt")


def test_two_workers_take_the_steps_of_one(tmp_path: Path) -> None:
    together(work, tmp_path)
    alone = student()
    steps(alone, make_optimizer(alone, SETTINGS))
    for name, value in torch.load(tmp_path / "weights.pt").items():
        assert torch.allclose(value, alone.state_dict()[name], atol=1e-5), name
