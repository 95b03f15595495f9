"""Operations of a decoder layer in float32, with backward passes of their own: the same numbers in fewer passes
over memory, which is where a small student's time goes beside matrix products.
"""

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor


def rms_norm(x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
    """Zhang & Sennrich 2019, eq. 4, over the last dimension. gain: (width,)."""
    return cast(Tensor, _RMSNorm.apply(x, gain, epsilon))  # type: ignore[no-untyped-call]


class Turn(NamedTuple):
    """A rotary embedding: what is multiplied by on the way there and on the way back.

    Both complex, (rows, length, heads, width / 2), each head alike; rows is 1 where all are.
    """

    there: Tensor
    back: Tensor


def make_turn(cos: Tensor, sin: Tensor, heads: int) -> Turn:
    """cos, sin: (rows, length, width), of which both halves are the same."""
    half = cos.shape[-1] // 2
    there = torch.complex(cos[..., :half], sin[..., :half])[:, :, None].expand(-1, -1, heads, -1).contiguous()
    return Turn(there, there.conj_physical())


def paired(x: Tensor, heads: int) -> Tensor:
    """The first dimension, (heads × width, …), so that what a rotary embedding turns together is adjacent."""
    return torch.unflatten(x, 0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def turned(x: Tensor, turn: Turn) -> Tensor:
    """The rotary embedding of (rows, length, heads, width) in `paired` order, which the result keeps.

    A dot product of two such results is that of the usual order.
    """
    return cast(Tensor, _Turned.apply(x, *turn))  # type: ignore[no-untyped-call]


def turned_norm(x: Tensor, gain: Tensor, epsilon: float, turn: Turn) -> Tensor:
    """`rms_norm` of each head, then `turned`; x and gain in `paired` order."""
    return cast(Tensor, _TurnedNorm.apply(x, gain, epsilon, *turn))  # type: ignore[no-untyped-call]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
        scale = _scale(x, epsilon)
        unit = x * scale
        context.save_for_backward(unit, gain, scale)
        return unit * gain

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        (g,) = gradients
        unit, gain, scale = context.saved_tensors
        for_x, for_gain = _norm_backward(g * gain, g, unit, gain, scale, context.needs_input_grad[1])
        return for_x, for_gain, None


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor, there: Tensor, back: Tensor) -> Tensor:
        context.save_for_backward(back)
        return _multiply(x, there)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _multiply(gradients[0], *context.saved_tensors), None, None


class _TurnedNorm(torch.autograd.Function):
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
    """One over the root of the mean square of the last dimension, which becomes 1."""
    width: int = x.shape[-1]
    root: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return root.hypot_(root.new_tensor((width * epsilon) ** 0.5)).reciprocal_().mul_(width**0.5)


def _norm_backward(
    inner: Tensor, g: Tensor, unit: Tensor, gain: Tensor, scale: Tensor, wanted: bool
) -> tuple[Tensor, Tensor | None]:
    """With y = x · scale: dx = scale · (inner − y · mean(inner · y)), dgain = sum(g · y), inner = g · gain.

    inner is overwritten.
    """
    product = g * unit
    shared = (product @ gain).div_(-unit.shape[-1]).unsqueeze(-1)
    for_gain = product.flatten(0, -2).sum(0) if wanted else None
    return inner.addcmul_(unit, shared).mul_(scale), for_gain


def _multiply(x: Tensor, turn: Tensor) -> Tensor:
    return torch.view_as_real(_complex(x.contiguous()) * turn).flatten(-2)


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(torch.unflatten(x, -1, (-1, 2)))
