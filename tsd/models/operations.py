"""Fused float32 operations of a decoder layer, with their own backward passes.

They give the same numbers with fewer passes over memory, which limit a small model on a CPU besides its matrix
products.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor


def rms_norm(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    """RMSNorm over the last dimension (Zhang & Sennrich 2019, eq. 4).

    x: (..., width); gain: (width,). Returns the shape of x.
    """
    return cast(Tensor, _RMSNorm.apply(x, gain, epsilon))  # type: ignore[no-untyped-call]


class Turn(NamedTuple):
    """A rotary embedding as complex factors: `there` for the forward pass, `back` for the backward pass.

    `back` is the conjugate. Both are (rows, length, heads, head_dim / 2), equal for all heads; rows is 1 if all
    rows share their positions.
    """

    there: Tensor
    back: Tensor


def make_turn(cos: Tensor, sin: Tensor, heads: int) -> Turn:
    """The complex form of a rotary embedding. cos, sin: (rows, length, head_dim), with two equal halves."""
    half = cos.shape[-1] // 2
    there = torch.complex(cos[..., :half], sin[..., :half])[:, :, None].expand(-1, -1, heads, -1).contiguous()
    return Turn(there, there.conj_physical())


def paired(x: Tensor, heads: int) -> Tensor:
    """Permute the first dimension, (heads × head_dim, …), so that the elements of each rotation are adjacent."""
    return torch.unflatten(x, 0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def turned(x: Tensor, turn: Turn) -> Tensor:
    """Apply a rotary embedding. x: (rows, length, heads, head_dim) in `paired` order; so is the result.

    Dot products between two such results equal those in the usual order.
    """
    return cast(Tensor, _Turned.apply(x, *turn))  # type: ignore[no-untyped-call]


def turned_norm(x: Tensor, gain: Tensor, epsilon: float, turn: Turn) -> Tensor:
    """`rms_norm` of each head, then `turned`.

    x: (rows, length, heads, head_dim), gain: (head_dim,), both in `paired` order.
    """
    return cast(Tensor, _TurnedNorm.apply(x, gain, epsilon, *turn))  # type: ignore[no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    """See `rms_norm`."""

    @staticmethod
    def forward(context: Any, x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
        scale = _scale(x, epsilon)  # (..., 1)
        unit = x * scale  # (..., width), mean square 1
        context.save_for_backward(unit, gain, scale)
        return unit * gain

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (g,) = gradients
        unit, gain, scale = context.saved_tensors
        for_x, for_gain = _norm_backward(g * gain, g, unit, gain, scale, context.needs_input_grad[1])
        return for_x, for_gain, None


class _Turned(torch.autograd.Function):
    """See `turned`."""

    @staticmethod
    def forward(context: Any, x: Tensor, there: Tensor, back: Tensor) -> Tensor:
        context.save_for_backward(back)
        return _multiply(x, there)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _multiply(gradients[0], *context.saved_tensors), None, None


class _TurnedNorm(torch.autograd.Function):
    """See `turned_norm`. Saves the normalised input; the rotation is applied in place."""

    @staticmethod
    def forward(context: Any, x: Tensor, gain: Tensor, epsilon: float, there: Tensor, back: Tensor) -> Tensor:
        scale = _scale(x, epsilon)
        unit = x.contiguous() * scale
        context.save_for_backward(unit, gain, scale, back)
        out = unit * gain
        _complex(out).mul_(there)
        return out

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        unit, gain, scale, back = context.saved_tensors
        g = _multiply(gradients[0], back)
        for_x, for_gain = _norm_backward(g * gain, g, unit, gain, scale, context.needs_input_grad[1])
        return for_x, for_gain, None, None, None


def _scale(x: Tensor, epsilon: float) -> Tensor:
    """The reciprocal root mean square over the last dimension, with epsilon: (..., 1)."""
    width: int = x.shape[-1]
    root: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return root.hypot_(root.new_tensor((width * epsilon) ** 0.5)).reciprocal_().mul_(width**0.5)


def _norm_backward(
    inner: Tensor, g: Tensor, unit: Tensor, gain: Tensor, scale: Tensor, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of an RMSNorm for its input and, if `wanted`, its gain.

    With unit = x · scale: dx = scale · (inner − unit · mean(inner · unit)), dgain = Σ g · unit.
    inner: g · gain, (..., width), overwritten by dx. g, unit: (..., width). scale: (..., 1). gain: (width,).
    """
    product = g * unit
    shared = (product @ gain).div_(-unit.shape[-1]).unsqueeze(-1)  # (..., 1)
    for_gain = product.flatten(0, -2).sum(0) if wanted else None
    return inner.addcmul_(unit, shared).mul_(scale), for_gain


def _multiply(x: Tensor, turn: Tensor) -> Tensor:
    """Rotate adjacent pairs of x, (rows, length, heads, head_dim), by a complex factor."""
    return torch.view_as_real(_complex(x.contiguous()) * turn).flatten(-2)


def _complex(x: Tensor) -> Tensor:
    """View adjacent pairs as complex numbers: (..., n) -> (..., n / 2)."""
    return torch.view_as_complex(torch.unflatten(x, -1, (-1, 2)))
