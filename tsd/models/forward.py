"""A patched forward pass for training. It gives the same logits as transformers with fewer operations.

Several examples can be packed into one row; attention then stays within each example. The last layer is computed
only at supervised tokens. RMSNorm and rotary embeddings use the fused operations of `tsd.models.operations`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate, zip_longest
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.qwen3.modeling_qwen3 import rotate_half

from tsd.errors import TrainingError
from tsd.models import vision
from tsd.models.operations import Turn, make_turn, paired, rms_norm, turned, turned_norm

NAME = "tsd"
HALF = (torch.bfloat16, torch.float16)
LAYERS = {"Qwen3DecoderLayer", "Qwen2DecoderLayer", "LlamaDecoderLayer", "MistralDecoderLayer"}
LAYERS |= {"Qwen3VLTextDecoderLayer"}


def packable(model: PreTrainedModel) -> bool:
    """Whether the decoder layers are of a supported class. Other models run unpatched, in padded rows."""
    return any(kind.__name__ in LAYERS for kind in type(decoder_layers(model)[-1]).__mro__)


@contextmanager
def lean(model: PreTrainedModel) -> Iterator[Callable[..., Tensor]]:
    """Patch the model's forward pass within the context. Yields a function that returns logits.

    The function takes the model's inputs, `wanted` (the columns for which logits are computed, logits_to_keep) and
    `segments` (see `attend_apart`). It is for training: it supports neither a KV cache nor an attention mask. The
    model must be `packable`.

    Patching walks over all modules, which is noticeable beside a step of a tiny model. So a run keeps one context
    open; a nested context finds the model patched and does nothing.
    """
    logits = partial(_logits, model)
    if model.config._attn_implementation == NAME:
        yield logits
        # An outer context has patched the model already.
        return
    layers = decoder_layers(model)
    functions: dict[torch.nn.Module, Callable[..., Any]] = {
        layer: partial(_layer, layer, last=layer is layers[-1]) for layer in layers
    }
    for module in model.modules():
        name = type(module).__name__
        if name.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            functions[module] = partial(_norm, module)
        elif name.endswith("RotaryEmbedding") and not name.endswith("VisionRotaryEmbedding"):
            functions[module] = partial(_positions, module, model.config.get_text_config())
    if vision.is_vision_model(model):
        functions[model] = partial(_vision_forward, model)
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        with _forward_by(functions):
            yield logits
    finally:
        model.config._attn_implementation = before


@contextmanager
def recomputed(model: PreTrainedModel) -> Iterator[None]:
    """Activation checkpointing of every decoder layer within the context.

    Each layer stores its input only and runs its forward pass again in the backward pass. Works for any layer
    class. Enter it inside `lean` where both are used. The checkpoint is inside FSDP's hooks, so a layer is
    all-gathered once for the recomputation and the backward pass together.
    """
    layers = decoder_layers(model)
    with _forward_by({layer: partial(checkpoint, layer.forward, use_reentrant=False) for layer in layers}):
        yield


def decoder_layers(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The model's decoder layers, with or without adapters around it. Raises TrainingError if there are none."""
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
    """Causal attention within each example. Registered with transformers as an attention implementation.

    query, key, value: (rows, heads, length, head_dim).
    segments: sequence boundaries, as runs of equal length: (examples, tokens per example, supervised tokens at the
    end of each). Either the only row packs all of them one after the other, or a single entry describes padded
    rows of one example each. In the second case `query` may hold the last tokens of each row only.
    answers_only: results at unsupervised tokens are not needed and may be zero.
    Returns (rows, queries, heads, head_dim), and None for the attention weights.
    """
    projected = (query, key, value)
    if _row_by_row(segments, len(query)):
        return _causal(module, *projected, **settings), None
    if query.is_cuda and query.dtype in HALF and not settings.get("dropout"):
        return _all_at_once(*projected, segments, settings["scaling"], settings.get("sliding_window")), None
    sizes = [count * length for count, length, _ in segments]
    parts = []
    pieces = zip(*(torch.split(x, sizes, 2) for x in projected), strict=True)
    for (count, length, answered), piece in zip(segments, pieces, strict=True):
        # (1, heads, count · length, head_dim) -> (count, heads, length, head_dim), a view
        asking, *read = (x[0].unflatten(1, (count, length)).transpose(0, 1) for x in piece)
        asked = answered if answers_only else length
        attended = _causal(module, asking[:, :, length - asked :], *read, **settings)
        # (count, asked, heads, head_dim), zero-padded on the left to (count, length, heads, head_dim), then
        # flattened
        parts.append(pad(attended, (0, 0, 0, 0, length - asked, 0)).flatten(0, 1))
    return torch.cat(parts)[None], None


def _row_by_row(segments: Sequence[tuple[int, int, int]], rows: int) -> bool:
    """Whether each row holds one example, so that there is nothing to keep apart."""
    return len(segments) == 1 and segments[0][0] == rows


def _causal(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
    """Causal attention for the last tokens of each row, as many as there are queries.

    query: (rows, heads, asked, head_dim), asked ≤ length; key, value: (rows, heads, length, head_dim). Returns
    (rows, asked, heads, head_dim).
    """
    asked, length = query.shape[2], key.shape[2]
    window = settings.get("sliding_window") or length
    mask = None
    if asked < length or window < length:
        seen = torch.ones(asked, length, dtype=torch.bool, device=query.device)
        mask = seen.tril(length - asked).triu(length - asked - window + 1)[None, None]
    attended: Tensor = sdpa_attention_forward(module, query, key, value, mask, **settings)[0]
    return attended


def _all_at_once(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Sequence[tuple[int, int, int]],
    scaling: float,
    window: int | None,
) -> Tensor:
    """`attend_apart` for one packed row in a single variable-length kernel, to save kernel launches on a GPU.

    query, key, value: (1, heads, tokens, head_dim), bfloat16 or float16. Returns (1, tokens, heads, head_dim).
    """
    starts = _starts(tuple(segments), query.device)
    longest = max(length for _, length, _ in segments)
    width = query.shape[-1]
    # (1, heads, tokens, head_dim) -> (tokens, heads, head_dim), padded to a multiple of 8 as the kernel requires
    asking, read, said = (pad(x[0].transpose(0, 1), (0, -width % 8)) for x in (query, key, value))
    attended = varlen_attn(
        asking,
        read,
        said,
        starts,
        starts,
        longest,
        longest,
        scale=scaling,
        window_size=((window or 0) - 1, 0),  # −1: no limit to the left
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast(Tensor, attended)[None, ..., :width]


@lru_cache(maxsize=2)  # shared by all layers of a step, student and teacher
def _starts(segments: tuple[tuple[int, int, int], ...], device: torch.device) -> Tensor:
    """Cumulative sequence lengths (cu_seqlens) of a packed row: (examples + 1,) int32, beginning with 0."""
    lengths = [length for count, length, _ in segments for _ in range(count)]
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


AttentionInterface.register(NAME, attend_apart)


def _logits(model: PreTrainedModel, **inputs: Any) -> Tensor:
    """Logits of the model, without a KV cache. Returns (rows, positions, vocabulary)."""
    out = model(**inputs, use_cache=False)
    return cast(Tensor, out if isinstance(out, Tensor) else out.logits)


def _vision_forward(
    model: Any, *, input_ids: Tensor, patches: Tensor, first: int, wanted: Tensor, use_cache: bool, **settings: Any
) -> Tensor:
    """Forward pass of a Qwen3-VL whose rows all have the image tokens in the same columns.

    input_ids: (rows, length). patches: (rows, PATCHES, PATCH²). first: column of the first image token. wanted:
    (positions,) columns for which logits are computed. Returns (rows, positions, vocabulary).
    """
    decoder = model.get_decoder()
    tokens, deep = vision.see(model.model.visual, patches)  # (rows, TOKENS, width)
    states = vision.put(decoder.embed_tokens(input_ids), tokens, first)  # (rows, length, width)
    places = vision.positions(first, input_ids.shape[1], input_ids.device)  # (3, 1, length)
    turns = decoder.rotary_emb(states, position_ids=places)
    for layer, added in zip_longest(decoder.layers, deep):
        states = layer(states, position_embeddings=turns, wanted=wanted, **settings)
        if added is not None:
            states = states + vision.padded(added, first, states.shape[1])
    return cast(Tensor, model.lm_head(decoder.norm(states)))


@contextmanager
def _forward_by(functions: Mapping[torch.nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Replace the `forward` of each module within the context, and restore it afterwards."""
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


def _layer(layer: Any, hidden_states: Tensor, *, last: bool, wanted: Tensor, **settings: Any) -> Tensor:
    """A decoder layer. The last one returns the columns `wanted` only; all tokens still serve as keys and values.

    hidden_states: (rows, length, width). Returns (rows, length, width), or (rows, positions, width) if `last`.
    """
    asked = wanted if last else None
    attended = _attention(layer.self_attn, layer.input_layernorm(hidden_states), wanted=asked, **settings)
    hidden = (hidden_states if asked is None else hidden_states.index_select(1, asked)) + attended
    return hidden + cast(Tensor, layer.mlp(layer.post_attention_layernorm(hidden)))


def _attention(
    module: Any,
    normed: Tensor,
    *,
    position_embeddings: "_Positions",
    segments: Sequence[tuple[int, int, int]],
    wanted: Tensor | None,
    **_: Any,
) -> Tensor:
    """Self-attention of one layer, before the residual connection.

    normed: (rows, length, width). wanted: (positions,) columns to compute, None for all. Returns (rows, positions,
    width).
    """
    rows, length = normed.shape[:2]
    skipped = 0  # unsupervised tokens at the beginning of each row, for which no query is needed
    if wanted is not None and _row_by_row(segments, rows):
        skipped = length - segments[0][2]
    # query: (rows, length − skipped, heads, head_dim); key, value: (rows, length, key-value heads, head_dim)
    query = _asking(module, "q", normed[:, skipped:], position_embeddings.after(skipped))
    key = _asking(module, "k", normed, position_embeddings)
    value = torch.unflatten(module.v_proj(normed), -1, (-1, module.head_dim))
    attended = attend_apart(
        module,
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        None,
        segments=segments,
        answers_only=wanted is not None,
        dropout=module.attention_dropout if module.training else 0.0,
        scaling=module.scaling,
        sliding_window=getattr(module, "sliding_window", getattr(module.config, "sliding_window", None)),
    )[0]
    if wanted is not None:
        attended = attended.index_select(1, wanted - skipped)  # (rows, positions, heads, head_dim)
    return cast(Tensor, module.o_proj(attended.flatten(2)))


@dataclass(frozen=True)
class _Positions:
    """Rotary embeddings of the tokens of a row."""

    cos: Tensor  # (rows, length, head_dim); one row if all rows share their positions
    sin: Tensor
    turns: Mapping[int, Turn]  # complex form by number of heads; empty unless the dtype is float32

    def after(self, skipped: int) -> "_Positions":
        """The embeddings without those of the first `skipped` tokens."""
        if not skipped:
            return self
        turns = {heads: Turn(*(x[:, skipped:] for x in turn)) for heads, turn in self.turns.items()}
        return _Positions(self.cos[:, skipped:], self.sin[:, skipped:], turns)


def _positions(rotary: Any, config: Any, hidden_states: Tensor, position_ids: Tensor) -> _Positions:
    """Rotary embeddings for these positions, with the complex form for query and key heads in float32."""
    cos, sin = type(rotary).forward(rotary, hidden_states, position_ids)
    heads = {config.num_attention_heads, config.num_key_value_heads}
    if cos.dtype != torch.float32:  # torch has no complex counterpart of bfloat16
        heads = set()
    return _Positions(cos, sin, {count: make_turn(cos, sin, count) for count in heads})


def _asking(module: Any, which: str, normed: Tensor, positions: _Positions) -> Tensor:
    """Rotated queries ("q") or keys ("k"): (rows, tokens, heads, head_dim).

    In float32 the elements of a head are in `paired` order. Queries and keys share that order, so that their dot
    products do not change.
    """
    projection, norm = getattr(module, f"{which}_proj"), getattr(module, f"{which}_norm", None)
    if not positions.turns:
        asking = torch.unflatten(projection(normed), -1, (-1, module.head_dim))
        asking = asking if norm is None else norm(asking)
        return cast(Tensor, asking * positions.cos[:, :, None] + rotate_half(asking) * positions.sin[:, :, None])
    heads = projection.out_features // module.head_dim
    asking = torch.unflatten(_in_pairs(projection, normed, heads), -1, (heads, -1))
    if norm is None:
        return turned(asking, positions.turns[heads])
    return turned_norm(asking, paired(norm.weight, 1), norm.variance_epsilon, positions.turns[heads])


def _in_pairs(projection: Any, normed: Tensor, heads: int) -> Tensor:
    """The projection's output in `paired` order: (rows, tokens, heads · head_dim).

    For a plain linear layer the weight's rows are permuted; with adapters around it, the output is.
    """
    if type(projection) is torch.nn.Linear:
        bias = None if projection.bias is None else paired(projection.bias, heads)
        return torch.nn.functional.linear(normed, paired(projection.weight, heads), bias)
    projected = projection(normed)  # wrapped by an adapter
    return torch.unflatten(projected, -1, (heads, 2, -1)).transpose(-1, -2).flatten(-3)


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    """RMSNorm: the fused float32 operation, or torch's for other dtypes. hidden_states: (..., width)."""
    if hidden_states.dtype != torch.float32:
        return torch.nn.functional.rms_norm(
            hidden_states, module.weight.shape, module.weight, module.variance_epsilon
        )
    return rms_norm(hidden_states, module.weight, module.variance_epsilon)
