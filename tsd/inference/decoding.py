"""Greedy decoding of a student: prompts sorted by length, static KV cache, finished sequences removed.

The responses equal those of `transformers.generate`. Small students are limited by memory traffic and by the
number of operations, so both are kept low.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear, pad, scaled_dot_product_attention
from transformers import (
    Cache,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    Qwen3VLForConditionalGeneration,
)
from transformers.cache_utils import DynamicLayer

from tsd.models import vision
from tsd.models.chat import chat_tokens, image_prompt_tokens, picture_place, styled_prompt_tokens
from tsd.models.vision import patches_of
from tsd.plots.rasterised import Pixels
from tsd.tasks import Task

READ_AT_ONCE = 2048  # prompt tokens per prefill batch; the activations of a small student then fit a CPU's caches
ROOM = 16  # response tokens by which the KV cache grows; spare columns between rows slow attention down
TWICE = 2**26  # parameters up to which a second copy of the weights is acceptable, 4 bytes each


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
) -> list[str]:
    """Respond greedily to each prompt, in their order. All prompts are decoded in one batch.

    Prompts of similar length are prefilled together. Finished sequences are removed from the batch.
    """
    model.eval()
    asked = chat_tokens(prompts, tokenizer)
    order = sorted(range(len(asked)), key=lambda i: len(asked[i]))
    batch = Batch(model, [asked[i] for i in order], max_new_tokens)
    return _grown(batch, order, tokenizer, max_new_tokens)


@torch.inference_mode()
def describe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    ink: Pixels,
    max_new_tokens: int,
    styles: Sequence[Sequence[int]] | None = None,
) -> list[str]:
    """Respond greedily to each image, in order. For vision students; see `decode`.

    ink: (batch, SIDE, SIDE) uint8 rasterised plots. styles: of the responses, for a locally trained teacher.
    """
    model.eval()
    if styles is None:
        prompts = [image_prompt_tokens(task, tokenizer)] * len(ink)
    else:
        prompts = styled_prompt_tokens(task, tokenizer, styles)
    shown = Shown(patches_of(ink).to(model.device), picture_place(prompts[0], tokenizer))
    batch = Batch(model, prompts, max_new_tokens, shown)
    return _grown(batch, list(range(len(ink))), tokenizer, max_new_tokens)


def _grown(batch: "Batch", rows: list[int], tokenizer: PreTrainedTokenizerBase, max_new_tokens: int) -> list[str]:
    """Decode a prefilled batch until every sequence has ended. rows: the index in the result of each row."""
    replies: list[list[int]] = [[] for _ in rows]
    while True:
        chosen = batch.logits.argmax(-1)  # (rows,) int64
        tokens = chosen.tolist()
        if tokenizer.eos_token_id in tokens:
            keep = closed_ranks([token != tokenizer.eos_token_id for token in tokens])
            rows, tokens = [rows[i] for i in keep], [tokens[i] for i in keep]
            chosen = batch.select(chosen, keep)
        for row, token in zip(rows, tokens, strict=True):
            replies[row].append(token)
        if not rows or len(replies[rows[0]]) == max_new_tokens:
            texts: list[str] = tokenizer.batch_decode(replies, skip_special_tokens=True)
            return texts
        batch.append(chosen)


@dataclass(frozen=True)
class Shown:
    """The images of a batch whose prompts have the image tokens at the same position."""

    patches: Tensor  # (rows, PATCHES, PATCH²) float32
    first: int
    """Position of the first image token."""


class Batch:
    """Sequences that are decoded together: their KV cache and the logits of their next tokens."""

    def __init__(
        self, model: PreTrainedModel, prompts: Sequence[list[int]], most: int, shown: Shown | None = None
    ) -> None:
        """Prefill the prompts: at least one, sorted by length. Up to `most` tokens follow each.

        shown: the prompts' images, for a vision student that `FastDecoder` supports.
        """
        lengths = [len(prompt) for prompt in prompts]
        first = shown.first if shown else None
        self.forward = (
            FastDecoder(model, lengths[-1] + most, first) if _is_plain(model) else partial(_whole, model)
        )
        self.padded = lengths[0] < lengths[-1]
        self.lengths = torch.tensor(lengths, device=model.device)[:, None]  # (rows, 1), incremented per token
        depth = model.config.get_text_config().num_hidden_layers
        layers = [StaticCache(len(prompts), lengths[-1]) for _ in range(depth)]
        self.cache = Cache(layers=layers)
        logits = []
        for slab in slabs(lengths):
            width = lengths[slab.stop - 1]
            tokens = [[0] * (width - len(prompt)) + prompt for prompt in prompts[slab]]  # masked left padding
            positions, seen = torch.arange(width, device=model.device)[None], None  # (1, width)
            if lengths[slab.start] < width:
                positions = positions - width + self.lengths[slab]  # (rows, width)
                seen, positions = positions >= 0, positions.clamp(min=0)
            looked_at = [shown.patches[slab]] if shown else []
            logits.append(
                self.forward(torch.tensor(tokens, device=model.device), seen, positions, self.cache, *looked_at)
            )
        self.logits = torch.cat(logits)  # (rows, vocabulary)

    def append(self, tokens: Tensor) -> None:
        """Extend each sequence by one token, (rows,) int64, and compute the next logits."""
        positions, seen = self.lengths[:1], None
        if self.padded:
            width = self.cache.get_seq_length() + 1
            positions, seen = self.lengths, torch.arange(width, device=tokens.device) >= width - 1 - self.lengths
        self.logits = self.forward(tokens[:, None], seen, positions, self.cache)
        self.lengths = self.lengths + 1

    def select(self, tokens: Tensor, keep: Sequence[int]) -> Tensor:
        """Keep these rows, in this order (batch compaction). tokens: (rows,). Returns those of the kept rows."""
        kept = torch.tensor(keep, dtype=torch.int64, device=tokens.device)
        self.lengths = self.lengths[kept]
        self.cache.batch_select_indices(kept)
        return tokens[kept]


class StaticCache(DynamicLayer):  # type: ignore[misc]
    """Static KV cache of one layer, written in place. Sequences are padded on the left and end in the same column.

    Prefill fills the rows in order, some at a time. Afterwards all rows grow by one token at a time.
    """

    keys: Any  # (rows, key-value heads, columns, head_dim); None before the first prompt
    values: Any

    def __init__(self, rows: int, longest: int) -> None:
        """rows: sequences. longest: tokens of the longest prompt."""
        super().__init__()
        self.unread, self.filled = rows, longest

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the states of new tokens, (rows, heads, tokens, head_dim). Returns all keys and values."""
        if self.unread:
            return self._read(key_states, value_states)
        self.filled += 1
        if self.filled > self.keys.shape[2]:
            self.keys, self.values = (pad(states, (0, 0, 0, ROOM)) for states in (self.keys, self.values))
        self.keys.narrow(2, self.filled - 1, 1).copy_(key_states)
        self.values.narrow(2, self.filled - 1, 1).copy_(value_states)
        return self.keys.narrow(2, 0, self.filled), self.values.narrow(2, 0, self.filled)

    def get_seq_length(self) -> int:
        """Tokens in every row, padding included; 0 during prefill."""
        return 0 if self.unread else self.filled

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows. Only rows that move are copied."""
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero().squeeze(1)
        for states in (self.keys, self.values):
            states[moved, :, : self.filled] = states[indices[moved], :, : self.filled]
        self.keys, self.values = self.keys[: len(indices)], self.values[: len(indices)]

    def _read(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Prefill: write the states of the next rows, aligned on the right. Returns them unchanged."""
        rows, heads, width, size = keys.shape
        if self.keys is None:
            shape = (self.unread, heads, self.filled + ROOM, size)
            self.keys, self.values = keys.new_empty(shape), values.new_empty(shape)
        first, start = len(self.keys) - self.unread, self.filled - width
        for room, states in ((self.keys, keys), (self.values, values)):
            room[first : first + rows, :, :start] = 0  # masked, but uninitialised memory may hold NaN
            room[first : first + rows, :, start : self.filled] = states
        self.unread -= rows
        return keys, values


def slabs(lengths: Sequence[int]) -> Iterator[slice]:
    """Prefill batches, as slices of rows: at most READ_AT_ONCE tokens with padding each. lengths: ascending."""
    first = 0
    for last in range(1, len(lengths) + 1):
        if last == len(lengths) or (last + 1 - first) * lengths[last] > READ_AT_ONCE:
            yield slice(first, last)
            first = last


def closed_ranks(running: Sequence[bool]) -> list[int]:
    """The rows that continue. Rows from the end take the places of finished ones, so that few rows move."""
    left = sum(running)
    last = iter([row for row in range(left, len(running)) if running[row]])
    return [row if running[row] else next(last) for row in range(left)]


def _whole(model: PreTrainedModel, tokens: Tensor, seen: Tensor | None, positions: Tensor, cache: Cache) -> Tensor:
    """Logits of the next token by the model's own forward pass: (rows, vocabulary).

    tokens: (rows, length) int64.
    seen: attention mask, (rows, tokens so far) bool; None without padding.
    positions: position ids, (rows, length), or (1, length) if all rows share them.
    """
    out = model(
        input_ids=tokens,
        attention_mask=seen,
        position_ids=positions.expand_as(tokens),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    logits: Tensor = out.logits[:, -1]
    return logits


def _is_plain(model: PreTrainedModel) -> bool:
    """Whether `FastDecoder` computes what the model's own forward pass does; in bfloat16 rounding would differ."""
    config = model.config.get_text_config()
    return (
        type(model) in (Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3VLForConditionalGeneration)
        and model.dtype == torch.float32
        and model.num_parameters() <= TWICE
        and config._attn_implementation == "sdpa"
        and set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
        and config.rope_parameters["rope_type"] == "default"
        and not getattr(config, "attention_bias", False)
    )


class FastDecoder:
    """A fast decoder for plain Qwen models: the results of `_whole` with fewer and larger operations.

    Projections that share an input are concatenated, and norm weights are folded into them. The last layer is
    computed for the last token only.
    """

    def __init__(self, model: PreTrainedModel, longest: int, first: int | None = None) -> None:
        """Copy the weights, and compute rotary embeddings for up to `longest` tokens.

        first: position of the first image token, for a vision student.
        """
        self.visual: Any = None if first is None else model.model.visual
        self.first = first or 0
        decoder, head = model.get_decoder(), model.get_output_embeddings()
        self.embeddings = decoder.embed_tokens.weight
        self.layers = [LeanLayer(layer) for layer in decoder.layers]
        self.norm = LeanNorm(decoder.norm)
        self.head, self.bias = self.norm.before(head.weight), head.bias
        places = torch.arange(longest, device=model.device)[None]
        if first is not None:
            places = vision.positions(first, longest, model.device)
        cos, sin = decoder.rotary_emb(self.embeddings, places)
        sin[..., : sin.shape[-1] // 2].neg_()  # sign of the half that `roll` moves to the front (rotate_half)
        self.cos, self.sin = cos[0, :, None], sin[0, :, None]  # (longest, 1, head size)

    def __call__(
        self,
        tokens: Tensor,
        seen: Tensor | None,
        positions: Tensor,
        cache: Cache,
        patches: Tensor | None = None,
    ) -> Tensor:
        """Logits of the next token, (rows, vocabulary). Arguments as in `_whole`.

        patches: (rows, PATCHES, PATCH²), for prompts with an image.
        """
        rows, length = tokens.shape
        states = embedding(tokens, self.embeddings)  # (rows, length, width)
        deep: list[Tensor] = []
        if patches is not None:
            looked_at, deep = vision.see(self.visual, patches)
            states = vision.put(states, looked_at, self.first)
        states = states.view(rows * length, -1)
        cos, sin = self.cos[positions], self.sin[positions]  # (rows or 1, length, 1, head_dim)
        mask = None if seen is None else _mask(seen, length)
        for layer, slots, added in zip_longest(self.layers, cache.layers, deep):
            queries, keys, values = layer.ask(states, cos, sin)  # (rows, heads, length, head_dim)
            keys, values = slots.update(keys, values)  # (rows, key-value heads, tokens so far, head_dim)
            causal = mask is None and length > 1
            if layer is self.layers[-1]:
                states, queries, causal = states.view(rows, length, -1)[:, -1], queries[:, :, -1:], False
                mask = None if mask is None else mask[:, :, -1:]
            states = layer.answer(states, queries, keys, values, mask, causal)
            if added is not None:
                states = states + vision.padded(added, self.first, length).flatten(0, 1)
        return linear(self.norm(states), self.head, self.bias)


class LeanLayer:
    """One layer of `FastDecoder`: the weights of a decoder layer, concatenated and transposed."""

    def __init__(self, layer: Any) -> None:
        """layer: a decoder layer of transformers. Its weights are copied."""
        attention, mlp = layer.self_attn, layer.mlp
        asking = attention.q_proj, attention.k_proj, attention.v_proj
        self.norm, self.second_norm = LeanNorm(layer.input_layernorm), LeanNorm(layer.post_attention_layernorm)
        self.asking = self.norm.before(*(one.weight for one in asking))
        self.bias = None if asking[0].bias is None else torch.cat([one.bias for one in asking])
        self.mixing = attention.o_proj.weight.t().contiguous()
        self.gating = self.second_norm.before(mlp.gate_proj.weight, mlp.up_proj.weight)
        self.act, self.down = mlp.act_fn, mlp.down_proj.weight.t().contiguous()
        self.size = attention.head_dim
        self.sizes = [one.out_features // self.size for one in asking]  # numbers of query, key and value heads
        self.head_norm = None
        if hasattr(attention, "q_norm"):  # Qwen3 normalises queries and keys, Qwen2 does not
            self.head_norm = LeanNorm(attention.q_norm)
            norms = [attention.q_norm.weight] * self.sizes[0] + [attention.k_norm.weight] * self.sizes[1]
            self.head_weights = torch.stack(norms) * self.size**0.5  # (query and key heads, head_dim)

    def ask(self, states: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (rows, heads, length, head_dim) each. states: (rows × length, width)."""
        # (rows, length, query, key and value heads, head_dim)
        heads = linear(self.norm(states), self.asking, self.bias).view(
            -1, cos.shape[1], sum(self.sizes), self.size
        )
        turning, values = heads.tensor_split([sum(self.sizes[:2])], 2)
        if self.head_norm:
            turning = self.head_norm(turning).mul_(self.head_weights)
        turned = torch.addcmul(turning * cos, turning.roll(self.size // 2, -1), sin).transpose(1, 2)
        queries, keys = turned.tensor_split([self.sizes[0]], 1)
        return queries, keys, values.transpose(1, 2)

    def answer(
        self, states: Tensor, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, causal: bool
    ) -> Tensor:
        """Attention, residual connections and MLP: the next layer's states, (rows × queries, width).

        states: (rows × queries, width). queries: (rows, heads, queries, head_dim). keys, values: (rows, key-value
        heads, tokens so far, head_dim). mask: as `_mask` returns it.
        """
        grouped = self.sizes[0] != self.sizes[1]
        mixed = scaled_dot_product_attention(queries, keys, values, mask, is_causal=causal, enable_gqa=grouped)
        states = torch.addmm(states, mixed.transpose(1, 2).reshape(len(states), -1), self.mixing)
        gates, ups = linear(self.second_norm(states), self.gating).chunk(2, -1)
        return torch.addmm(states, self.act(gates).mul_(ups), self.down)


class LeanNorm:
    """An RMSNorm whose weight, times the root of the width, is folded into the next projection."""

    def __init__(self, norm: Any) -> None:
        """norm: an RMSNorm of transformers."""
        self.weight: Tensor = norm.weight * norm.weight.numel() ** 0.5
        self.floor = self.weight.new_tensor((norm.weight.numel() * norm.variance_epsilon) ** 0.5)

    def __call__(self, states: Tensor) -> Tensor:
        """Divide by the root of the sum of squares over the last dimension. epsilon is part of the sum."""
        root: Tensor = torch.linalg.vector_norm(states, dim=-1, keepdim=True).hypot_(self.floor)
        return states / root

    def before(self, *weights: Tensor) -> Tensor:
        """The concatenated projection weights with the norm's weight folded in: (outputs, width)."""
        return torch.cat(weights) * self.weight


def _mask(seen: Tensor, length: int) -> Tensor:
    """Additive attention mask of the last `length` tokens: (rows, 1, length, tokens so far), 0 or −inf.

    seen: (rows, tokens so far) bool, False for padding. The mask is causal.
    """
    sees = seen[:, None, None]
    if length > 1:
        sees = sees & torch.ones(length, length, dtype=torch.bool, device=seen.device).tril()
    return torch.zeros(sees.shape, device=seen.device).masked_fill_(~sees, float("-inf"))
