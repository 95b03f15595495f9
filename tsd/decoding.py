"""A student and prompts in, greedy replies out: sorted by length, with a static key-value cache, stopping early.

Each reply is the one that `transformers.generate` gives. A small student's time goes into moving memory and into
the many small operations of a forward pass, so both are kept few.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad, rms_norm
from transformers import Cache, PreTrainedModel, PreTrainedTokenizerBase, Qwen2ForCausalLM, Qwen3ForCausalLM
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import create_causal_mask

from tsd.corpus import chat_prompts

READ_AT_ONCE = 2048  # tokens of prompts: what a small student's layer makes of them fits a CPU's caches
ROOM = 16  # tokens of replies: the more empty room lies between two rows, the slower attention reads them


@torch.inference_mode()
def decode(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    max_new_tokens: int,
) -> list[str]:
    """Reply greedily to each prompt, in their order; all of them are decoded at once.

    Prompts are read in slabs of like length. Replies grow together, and who has ended leaves.
    """
    model.eval()
    asked: list[list[int]] = tokenizer(chat_prompts(prompts, tokenizer), add_special_tokens=False)["input_ids"]
    order = sorted(range(len(asked)), key=lambda i: len(asked[i]))
    batch = Batch(model, [asked[i] for i in order])
    rows = torch.tensor(order)  # where each running row of the batch belongs in the result
    replies: list[list[int]] = [[] for _ in prompts]
    while True:
        chosen = batch.logits.argmax(-1)
        running = chosen != tokenizer.eos_token_id
        if not running.all():
            keep = closed_ranks(running)
            chosen, rows = chosen[keep], rows[keep.cpu()]
            batch.select(keep)
        for row, token in zip(rows.tolist(), chosen.tolist(), strict=True):
            replies[row].append(token)
        if not len(rows) or len(replies[rows[0]]) == max_new_tokens:
            texts: list[str] = tokenizer.batch_decode(replies, skip_special_tokens=True)
            return texts
        batch.append(chosen)


class Batch:
    """Rows that are replied to: what the model has read of them, and what it would say next."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[list[int]]) -> None:
        """Read the prompts, at least one, sorted by length."""
        self.forward = _lean if _is_plain(model) else _whole
        self.model = model
        lengths = [len(prompt) for prompt in prompts]
        self.padded = lengths[0] < lengths[-1]
        self.lengths = torch.tensor(lengths, device=model.device)[:, None]  # (rows, 1), grows with the replies
        layers = [Slots(len(prompts), lengths[-1]) for _ in range(model.config.num_hidden_layers)]
        self.cache = Cache(layers=layers)
        logits = []
        for slab in slabs(lengths):
            width = lengths[slab.stop - 1]
            tokens = [[0] * (width - len(prompt)) + prompt for prompt in prompts[slab]]  # any token, it is masked
            positions = torch.arange(width, device=model.device) - width + self.lengths[slab]
            seen = positions >= 0 if lengths[slab.start] < width else None
            inputs = torch.tensor(tokens, device=model.device)
            logits.append(self.forward(model, inputs, seen, positions.clamp(min=0), self.cache))
        self.logits = torch.cat(logits)  # (rows, vocabulary)

    def append(self, tokens: Tensor) -> None:
        """Read one more token of each row, (rows,) int64."""
        seen = None
        if self.padded:
            width = self.cache.get_seq_length() + 1
            seen = torch.arange(width, device=tokens.device) >= width - 1 - self.lengths
        self.logits = self.forward(self.model, tokens[:, None], seen, self.lengths, self.cache)
        self.lengths = self.lengths + 1

    def select(self, keep: Tensor) -> None:
        """Go on with these rows, in this order; (rows left,) int64."""
        self.lengths = self.lengths[keep]
        self.cache.batch_select_indices(keep)


class Slots(DynamicLayer):  # type: ignore[misc]
    """One layer's keys and values, written in place; every row ends in the same column, padding on its left.

    Prompts are read from the first row to the last, some rows at a time; then all rows grow by a token at a time.
    """

    keys: Any  # (rows, heads, room, head size), None before the first prompt
    values: Any

    def __init__(self, rows: int, longest: int) -> None:
        super().__init__()
        self.unread, self.filled = rows, longest

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new tokens' states, (rows, heads, tokens, head size); returns those that attention reads."""
        if self.unread:
            return self._read(key_states, value_states)
        self.filled += 1
        if self.filled > self.keys.shape[2]:
            self.keys, self.values = (pad(states, (0, 0, 0, ROOM)) for states in (self.keys, self.values))
        self.keys[:, :, self.filled - 1] = key_states[:, :, 0]
        self.values[:, :, self.filled - 1] = value_states[:, :, 0]
        return self.keys[:, :, : self.filled], self.values[:, :, : self.filled]

    def get_seq_length(self) -> int:
        """Tokens in every row, padding included; none while prompts are being read."""
        return 0 if self.unread else self.filled

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows; only what changes its place is copied."""
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero().squeeze(1)
        for states in (self.keys, self.values):
            states[moved, :, : self.filled] = states[indices[moved], :, : self.filled]
        self.keys, self.values = self.keys[: len(indices)], self.values[: len(indices)]

    def _read(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        rows, heads, width, size = keys.shape
        if self.keys is None:
            shape = (self.unread, heads, self.filled + ROOM, size)
            self.keys, self.values = keys.new_empty(shape), values.new_empty(shape)
        first, start = len(self.keys) - self.unread, self.filled - width
        for room, states in ((self.keys, keys), (self.values, values)):
            room[first : first + rows, :, :start] = 0  # masked, but what memory holds may be no number
            room[first : first + rows, :, start : self.filled] = states
        self.unread -= rows
        return keys, values


def slabs(lengths: Sequence[int]) -> Iterator[slice]:
    """Rows that are read at once, for lengths that never fall."""
    first = 0
    for last in range(1, len(lengths) + 1):
        if last == len(lengths) or (last + 1 - first) * lengths[last] > READ_AT_ONCE:
            yield slice(first, last)
            first = last


def closed_ranks(running: Tensor) -> Tensor:
    """The rows that go on, the last of them in the places of those that ended, so that few move; (left,) int64."""
    left = int(running.sum())
    keep = torch.arange(left, device=running.device)
    keep[~running[:left]] = left + running[left:].nonzero().squeeze(1)
    return keep


def _whole(model: PreTrainedModel, tokens: Tensor, seen: Tensor | None, positions: Tensor, cache: Cache) -> Tensor:
    """The next token's logits, (rows, vocabulary), by the model's own forward pass.

    tokens, positions: (rows, length) int64. seen: (rows, tokens so far) bool, None where nothing is padding.
    """
    out = model(
        input_ids=tokens,
        attention_mask=seen,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    logits: Tensor = out.logits[:, -1]
    return logits


def _is_plain(model: PreTrainedModel) -> bool:
    """Whether `_lean` does what the model's own forward pass does; in bfloat16 the two would round differently."""
    return (
        type(model) in (Qwen2ForCausalLM, Qwen3ForCausalLM)
        and model.dtype == torch.float32
        and model.config._attn_implementation == "sdpa"
        and set(model.config.layer_types) == {"full_attention"}
    )


def _lean(model: PreTrainedModel, tokens: Tensor, seen: Tensor | None, positions: Tensor, cache: Cache) -> Tensor:
    """As `_whole`, for a plain Qwen: the same modules in fewer operations.

    The last layer answers for the last token only: nobody reads what it makes of the others.
    """
    decoder: Any = model.get_decoder()
    states = decoder.embed_tokens(tokens)  # (rows, length, width)
    mask = create_causal_mask(model.config, states, seen, cache, position_ids=positions)
    cos, sin = (table[:, :, None] for table in decoder.rotary_emb(states, positions))  # for every head alike
    for index, layer in enumerate(decoder.layers):
        attention, normed = layer.self_attn, _norm(layer.input_layernorm, states)
        keys = _rotated(_heads(attention, "k", normed), cos, sin).transpose(1, 2)
        values = _heads(attention, "v", normed).transpose(1, 2)
        keys, values = cache.update(keys, values, index)
        if index == len(decoder.layers) - 1:
            states, normed, cos, sin = states[:, -1:], normed[:, -1:], cos[:, -1:], sin[:, -1:]
            mask = None if mask is None else mask[:, :, -1:]
        queries = _rotated(_heads(attention, "q", normed), cos, sin).transpose(1, 2)
        mixed, _ = sdpa_attention_forward(attention, queries, keys, values, mask, scaling=attention.scaling)
        states = states + attention.o_proj(mixed.flatten(2))
        states = states + layer.mlp(_norm(layer.post_attention_layernorm, states))
    logits: Tensor = model.get_output_embeddings()(_norm(decoder.norm, states))[:, -1]
    return logits


def _heads(attention: Any, kind: str, states: Tensor) -> Tensor:
    """Queries, keys or values, (rows, length, heads, head size), normed where the model does so."""
    projected = getattr(attention, f"{kind}_proj")(states)
    heads = projected.view(*states.shape[:2], -1, attention.head_dim)
    norm = getattr(attention, f"{kind}_norm", None)  # Qwen3 has one for queries and keys, Qwen2 none
    return heads if norm is None else _norm(norm, heads)


def _norm(norm: Any, states: Tensor) -> Tensor:
    return rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon)


def _rotated(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, as transformers applies them, to (rows, length, heads, head size)."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat((-second, first), dim=-1) * sin
