"""How a model of transformers runs forward in training: the same numbers for less work.

Examples may be packed into one row, each attending to its own tokens alone; the last layer is computed only where
a token is supervised; and norms and rotary embeddings, which are many small operations each way, take few of them.
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
    if vision.looks(model):
        functions[model] = partial(_looking, model)
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        with _forward_by(functions):
            yield logits
    finally:
        model.config._attn_implementation = before


@contextmanager
def recomputed(model: PreTrainedModel) -> Iterator[None]:
    """Each layer keeps its input alone and runs forward once more in the backward pass, for as long as this lasts.

    Within `lean`, where that is used. Any layers will do. It stands inside of FSDP's hooks, so that a layer is
    gathered for its second forward pass as for its backward pass, once.
    """
    layers = decoder_layers(model)
    with _forward_by({layer: partial(checkpoint, layer.forward, use_reentrant=False) for layer in layers}):
        yield


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
    padded on the right: there, queries may be those of the last tokens alone. answers_only: the results of tokens
    that are not supervised are not needed. Returns (rows, queries, heads, width).
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
        # (1, heads, count · length, width) -> (count, heads, length, width), without a copy
        asking, *read = (x[0].unflatten(1, (count, length)).transpose(0, 1) for x in piece)
        asked = answered if answers_only else length
        attended = _causal(module, asking[:, :, length - asked :], *read, **settings)
        parts.append(pad(attended, (0, 0, 0, 0, length - asked, 0)).flatten(0, 1))
    return torch.cat(parts)[None], None


def _row_by_row(segments: Sequence[tuple[int, int, int]], rows: int) -> bool:
    return len(segments) == 1 and segments[0][0] == rows


def _causal(module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
    """Of the last tokens of each row, as many as there are queries. Returns (rows, queries, heads, width)."""
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
    """As `attend_apart` for one packed row, in a single kernel: a GPU waits for every one that it is given."""
    starts = _starts(tuple(segments), query.device)
    longest = max(length for _, length, _ in segments)
    width = query.shape[-1]
    # (1, heads, tokens, width) -> (tokens, heads, width), widened to what the kernel takes
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
        window_size=((window or 0) - 1, 0),  # −1: as far back as there are tokens
        enable_gqa=query.shape[1] != key.shape[1],
    )
    return cast(Tensor, attended)[None, ..., :width]


@lru_cache(maxsize=2)  # all layers of a step, and of its teacher's, ask for the same
def _starts(segments: tuple[tuple[int, int, int], ...], device: torch.device) -> Tensor:
    """Where each example begins in its row, and where the last one ends: (examples + 1,) int32."""
    lengths = [length for count, length, _ in segments for _ in range(count)]
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


AttentionInterface.register(NAME, attend_apart)


def _logits(model: PreTrainedModel, **inputs: Any) -> Tensor:
    out = model(**inputs, use_cache=False)
    return cast(Tensor, out if isinstance(out, Tensor) else out.logits)


def _looking(
    model: Any, *, input_ids: Tensor, patches: Tensor, first: int, wanted: Tensor, use_cache: bool, **settings: Any
) -> Tensor:
    """The logits of rows that all show a picture in the same place. first: the column of its first token."""
    decoder = model.get_decoder()
    tokens, deep = vision.see(model.model.visual, patches)
    states = vision.put(decoder.embed_tokens(input_ids), tokens, first)
    places = vision.positions(first, input_ids.shape[1], input_ids.device)
    turns = decoder.rotary_emb(states, position_ids=places)
    for layer, added in zip_longest(decoder.layers, deep):
        states = layer(states, position_embeddings=turns, wanted=wanted, **settings)
        if added is not None:
            states = states + vision.padded(added, first, states.shape[1])
    return cast(Tensor, model.lm_head(decoder.norm(states)))


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


def _layer(layer: Any, hidden_states: Tensor, *, last: bool, wanted: Tensor, **settings: Any) -> Tensor:
    """In the last layer every token is attended to, but only the wanted ones are asked for a next token."""
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
    """What attention adds to each token, or to the wanted ones: (rows, tokens, width)."""
    rows, length = normed.shape[:2]
    skipped = 0  # tokens at the beginning of each row that nobody asks
    if wanted is not None and _row_by_row(segments, rows):
        skipped = length - segments[0][2]
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
        attended = attended.index_select(1, wanted - skipped)
    return cast(Tensor, module.o_proj(attended.flatten(2)))


@dataclass(frozen=True)
class _Positions:
    """The rotary embeddings of a row's tokens."""

    cos: Tensor  # (rows, length, width), one row where all are alike
    sin: Tensor
    turns: Mapping[int, Turn]  # by the number of heads; none in other than float32

    def after(self, skipped: int) -> "_Positions":
        """Those of the later tokens."""
        if not skipped:
            return self
        turns = {heads: Turn(*(x[:, skipped:] for x in turn)) for heads, turn in self.turns.items()}
        return _Positions(self.cos[:, skipped:], self.sin[:, skipped:], turns)


def _positions(rotary: Any, config: Any, hidden_states: Tensor, position_ids: Tensor) -> _Positions:
    cos, sin = type(rotary).forward(rotary, hidden_states, position_ids)
    heads = {config.num_attention_heads, config.num_key_value_heads}
    if cos.dtype != torch.float32:  # there are no complex numbers of that size
        heads = set()
    return _Positions(cos, sin, {count: make_turn(cos, sin, count) for count in heads})


def _asking(module: Any, which: str, normed: Tensor, positions: _Positions) -> Tensor:
    """Queries or keys, each in the same order of a head's elements: (rows, tokens, heads, width)."""
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
    """A projection's result in `paired` order."""
    if type(projection) is torch.nn.Linear:
        bias = None if projection.bias is None else paired(projection.bias, heads)
        return torch.nn.functional.linear(normed, paired(projection.weight, heads), bias)
    projected = projection(normed)  # with adapters
    return torch.unflatten(projected, -1, (heads, 2, -1)).transpose(-1, -2).flatten(-3)


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    if hidden_states.dtype != torch.float32:
        return torch.nn.functional.rms_norm(
            hidden_states, module.weight.shape, module.weight, module.variance_epsilon
        )
    return rms_norm(hidden_states, module.weight, module.variance_epsilon)
