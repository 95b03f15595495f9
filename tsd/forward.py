"""How a model of transformers runs forward in training: the same numbers for less work.

Examples may be packed into one row, each attending to its own tokens alone; the last layer is computed only where
a token is supervised; and norms, which are many small operations each way, take few of them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from tsd.errors import TrainingError

NAME = "tsd"
# Norm, attention, sum; norm, feed-forward, sum: what `_answers_only` repeats.
LAYERS = {"Qwen3DecoderLayer", "Qwen2DecoderLayer", "LlamaDecoderLayer", "MistralDecoderLayer"}


def packable(model: PreTrainedModel) -> bool:
    """Whether the model's layers are of a kind that is known here; any other runs as it is, in padded rows."""
    return any(kind.__name__ in LAYERS for kind in type(decoder_layers(model)[-1]).__mro__)


@contextmanager
def lean(model: PreTrainedModel) -> Iterator[Callable[..., Tensor]]:
    """A function that gives logits, for as long as the context lasts: for training, as it knows no cache or mask.

    It takes what the model takes, `wanted`, the columns of the logits, and `segments`, as `attend_apart` does.
    The model must be `packable`. Looking through all its modules takes time that a tiny model's step would notice:
    a run holds one context open, and those within it find their work done.
    """
    logits = partial(_logits, model)
    if model.config._attn_implementation == NAME:
        yield logits
        return
    last = decoder_layers(model)[-1]
    norms = [m for m in model.modules() if type(m).__name__.endswith("RMSNorm") and hasattr(m, "variance_epsilon")]
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        with _forward_by({last: partial(_answers_only, last), **{norm: partial(_norm, norm) for norm in norms}}):
            yield logits
    finally:
        model.config._attn_implementation = before


def decoder_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The model's repeated blocks, adapters around it or not."""
    for module in model.modules():
        layers = getattr(module, "layers", None)
        if isinstance(layers, torch.nn.ModuleList):
            return list(layers)
    raise TrainingError(f"{type(model).__name__} has no list of layers to shard")


def attend_apart(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    *,
    segments: Sequence[tuple[int, int, int]],
    answers_only: bool = False,
    **settings: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each example.

    query, key, value: (rows, heads, length, width). segments: how many examples follow one another in the only
    row, of what length, with how many supervised tokens at the end; a single one where each row is an example,
    padded on the right. answers_only: the other tokens' results are not needed.
    Returns (rows, length, heads, width).
    """
    projected = (query, key, value)
    count, length, answered = segments[0]
    if len(segments) == 1 and count == query.shape[0]:
        return _causal(module, *projected, asked=answered if answers_only else length, **settings), None
    sizes = [count * length for count, length, _ in segments]
    parts = []
    pieces = zip(*(torch.split(x, sizes, 2) for x in projected), strict=True)
    for (count, length, answered), piece in zip(segments, pieces, strict=True):
        # (1, heads, count · length, width) -> (count, heads, length, width), without a copy
        own = [x[0].unflatten(1, (count, length)).transpose(0, 1) for x in piece]
        attended = _causal(module, *own, asked=answered if answers_only else length, **settings)
        parts.append(attended.flatten(0, 1))
    return torch.cat(parts)[None], None


def _causal(
    module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, *, asked: int, **settings: Any
) -> Tensor:
    """Of the last `asked` tokens of each row; zeros for those before. Returns (rows, length, heads, width)."""
    length, window = query.shape[2], settings.get("sliding_window") or query.shape[2]
    mask = None
    if asked < length or window < length:
        seen = torch.ones(asked, length, dtype=torch.bool, device=query.device)
        mask = seen.tril(length - asked).triu(length - asked - window + 1)[None, None]
    attended: Tensor = sdpa_attention_forward(module, query[:, :, length - asked :], key, value, mask, **settings)[
        0
    ]
    return torch.nn.functional.pad(attended, (0, 0, 0, 0, length - asked, 0))


AttentionInterface.register(NAME, attend_apart)


def _logits(model: PreTrainedModel, **inputs: Any) -> Tensor:
    return cast(Tensor, model(**inputs, use_cache=False).logits)


@contextmanager
def _forward_by(functions: Mapping[torch.nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Each module runs forward by the function given, for as long as the context lasts."""
    before = {module: vars(module).get("forward") for module in functions}
    for module, function in functions.items():
        module.forward = function
    try:
        yield
    finally:
        for module, earlier in before.items():
            del module.forward
            if earlier is not None:
                module.forward = earlier


def _answers_only(layer: Any, hidden_states: Tensor, *, wanted: Tensor, **settings: Any) -> Tensor:
    """The last layer: every token is attended to, but only the wanted ones are asked for a next token."""
    attended, _ = layer.self_attn(layer.input_layernorm(hidden_states), answers_only=True, **settings)
    hidden: Tensor = (hidden_states + attended).index_select(1, wanted)
    return hidden + cast(Tensor, layer.mlp(layer.post_attention_layernorm(hidden)))


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    if hidden_states.dtype != torch.float32:  # transformers reckons in float32 and rounds after
        return cast(Tensor, type(module).forward(module, hidden_states))
    normed: Tensor = _RMSNorm.apply(  # type: ignore[no-untyped-call]
        hidden_states, module.weight, module.variance_epsilon
    )
    return normed


class _RMSNorm(torch.autograd.Function):
    """Zhang & Sennrich 2019, eq. 4, over the last dimension."""

    @staticmethod
    def forward(context: Any, x: Tensor, gain: Tensor, epsilon: float) -> Tensor:
        scale = (x * x).mean(-1, keepdim=True).add_(epsilon).rsqrt_()
        context.save_for_backward(x, gain, scale)
        return (x * scale).mul_(gain)

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        # With y = x · scale: dx = scale · (g · gain − y · mean(g · gain · y)), dgain = sum(g · y).
        (g,) = gradients
        x, gain, scale = context.saved_tensors
        y = x * scale
        product = g * y
        shared = (product @ gain).div_(x.shape[-1]).unsqueeze(-1)
        for_gain = product.flatten(0, -2).sum(0) if context.needs_input_grad[1] else None
        for_x = torch.mul(g, gain, out=product).addcmul_(y, shared, value=-1).mul_(scale)
        return for_x, for_gain, None
