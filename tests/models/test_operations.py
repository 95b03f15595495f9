"""Operations with backward passes of their own: against transformers' in double precision, and by differences."""

import math

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

from tsd.models.operations import make_turn, paired, rms_norm, turned, turned_norm

EPSILON = 1e-2  # large enough that leaving it out is seen
HEADS, WIDTH = 3, 6


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Normal, in double precision, to be differentiated by."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()


def angles(rows: int, length: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of a rotary embedding, (rows, length, width)."""
    positions = torch.arange(rows * length, dtype=torch.float64).view(rows, length, 1)
    turns = positions * torch.logspace(0, -2, WIDTH // 2, dtype=torch.float64)
    both = torch.cat([turns, turns], -1)
    return both.cos(), both.sin()


def norm_of(gain: Tensor) -> torch.nn.Module:
    """transformers' own norm, which reckons in float32."""
    norm = Qwen3RMSNorm(len(gain), eps=EPSILON)
    norm.weight.data.copy_(gain.detach())
    return norm


def in_pairs(heads: Tensor) -> Tensor:
    """(rows, length, heads, width) in the order of `paired`."""
    return paired(heads.movedim(-1, 0), 1).movedim(0, -1)


def test_the_norm_is_that_of_transformers() -> None:
    x, gain = numbers(2, 5, WIDTH), numbers(WIDTH, seed=1)
    assert torch.allclose(rms_norm(x, gain, EPSILON).float(), norm_of(gain)(x.float()), atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2], ids=["all rows alike", "each row its own"])
@pytest.mark.parametrize("normed", [False, True])
def test_dot_products_of_turned_heads_are_those_of_transformers(rows: int, normed: bool) -> None:
    query, key = numbers(2, 5, HEADS, WIDTH), numbers(2, 5, HEADS, WIDTH, seed=1)
    gains = numbers(WIDTH, seed=2), numbers(WIDTH, seed=3)
    cos, sin = angles(rows, 5)
    turn = make_turn(cos, sin, HEADS)
    if normed:
        asked = [norm_of(gain)(x.float()).double() for x, gain in zip((query, key), gains, strict=True)]
        ours = [
            turned_norm(in_pairs(x), paired(gain, 1), EPSILON, turn)
            for x, gain in zip((query, key), gains, strict=True)
        ]
    else:
        asked = [query, key]
        ours = [turned(in_pairs(x), turn) for x in (query, key)]
    theirs = apply_rotary_pos_emb(*asked, cos, sin, unsqueeze_dim=2)
    expected = torch.einsum("rqhw,rkhw->rhqk", *theirs)
    assert torch.allclose(torch.einsum("rqhw,rkhw->rhqk", *ours), expected, atol=1e-5)


def test_pairs_are_what_a_rotary_embedding_turns_together_in_each_head() -> None:
    assert paired(torch.arange(12), 2).tolist() == [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]


@pytest.mark.parametrize("learned", [False, True], ids=["frozen gain", "learned gain"])
def test_gradients_are_those_of_small_differences(learned: bool) -> None:
    x, gain = numbers(2, 3, HEADS, WIDTH), numbers(WIDTH, seed=1).requires_grad_(learned)
    turn = make_turn(*angles(2, 3), HEADS)
    assert torch.autograd.gradcheck(lambda x, gain: rms_norm(x, gain, EPSILON), (x, gain))
    assert torch.autograd.gradcheck(lambda x: turned(x, turn), (x,))
    assert torch.autograd.gradcheck(lambda x, gain: turned_norm(x, gain, EPSILON, turn), (x, gain))


def test_a_row_of_zeros_has_a_norm_and_a_gradient() -> None:
    x = torch.zeros(1, WIDTH, requires_grad=True)
    rms_norm(x, torch.ones(WIDTH), 1e-6).sum().backward()
    assert x.grad is not None
    assert x.grad.allclose(torch.full_like(x, 1 / math.sqrt(1e-6)))
