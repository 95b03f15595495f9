"""The vision encoder's forward pass for a batch of rasterised plots, each at the same position of its sequence.

It gives the same numbers as transformers' Qwen3-VL with less work: the batch is encoded at once rather than image
by image, and one grey channel replaces three equal colour channels.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import linear, pad, scaled_dot_product_attention
from transformers import PreTrainedModel, Qwen3VLForConditionalGeneration

from tsd.models.operations import Turn, make_turn, paired, turned
from tsd.plots.rasterised import GRID, MERGE, PATCH, PICTURE_TOKENS, Pixels

PATCHES, TOKENS = GRID**2, PICTURE_TOKENS
WHITE, RANGE = 1.0, 0.5  # the processor's mean and standard deviation: white pixels become 0, black pixels −2


def is_vision_model(model: PreTrainedModel) -> bool:
    """Whether a model is a vision-language model."""
    return isinstance(model, Qwen3VLForConditionalGeneration)


def flops(visual: Any) -> float:
    """FLOPs of encoding one image.

    Two per weight for each patch or token that it is applied to, plus 4·layers·width·patches per patch for
    attention. Position embeddings are looked up and cost nothing.
    """

    def weights(module: Any) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    of_patches = weights(visual.patch_embed) + weights(visual.blocks)
    of_tokens = weights(visual.merger) + weights(visual.deepstack_merger_list)
    attention = 4 * len(visual.blocks) * visual.config.hidden_size * PATCHES**2
    return float(2 * (PATCHES * of_patches + TOKENS * of_tokens) + attention)


def put(states: Tensor, tokens: Tensor, first: int) -> Tensor:
    """Replace the embeddings of the image tokens, from column `first` on.

    states: (rows, length, width); tokens: (rows, TOKENS, width). Returns (rows, length, width).
    """
    return torch.cat([states[:, :first], tokens, states[:, first + TOKENS :]], 1)


def padded(added: Tensor, first: int, length: int) -> Tensor:
    """Image features zero-padded to all columns: (rows, TOKENS, width) -> (rows, length, width)."""
    return pad(added, (0, 0, first, length - first - TOKENS))


def positions(first: int, length: int, device: torch.device) -> Tensor:
    """Multimodal rotary positions (time, row, column) for an image that begins at `first`: (3, 1, length).

    An image advances the position by its side in tokens (Wang et al. 2024, section 2.1).
    """
    side = GRID // MERGE
    places = torch.arange(length, device=device).repeat(3, 1)
    places[:, first + TOKENS :] -= TOKENS - side
    places[:, first : first + TOKENS] = first
    steps = torch.arange(side, device=device)
    places[1, first : first + TOKENS] += steps.repeat_interleave(side)
    places[2, first : first + TOKENS] += steps.repeat(side)
    return places[:, None]


def patches_of(ink: Pixels) -> Tensor:
    """Rasterised plots as normalised patches of one channel, in the processor's order.

    ink: (batch, SIDE, SIDE) uint8. Returns (batch, PATCHES, PATCH²) float32. The patches that are merged into one
    token are adjacent.
    """
    tokens = GRID // MERGE
    blocks = torch.from_numpy(ink).view(-1, tokens, MERGE, PATCH, tokens, MERGE, PATCH)
    ordered = blocks.permute(0, 1, 4, 2, 5, 3, 6).reshape(len(ink), PATCHES, PATCH**2)  # (batch, PATCHES, PATCH²)
    return ordered.float().mul_(-1 / (255 * RANGE))


def see(visual: Any, patches: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Encode images into tokens, and into the DeepStack features that the first decoder layers add to them.

    patches: (batch, PATCHES, PATCH²). Returns the tokens, (batch, TOKENS, width), and a list of features of that
    shape, one per DeepStack level.
    """
    embed, places = visual.patch_embed.proj, _places(patches.device)
    kernel = embed.weight.sum((1, 2)).flatten(1)  # (width, PATCH²): the sum over the three equal channels
    states = linear(patches.to(kernel.dtype), kernel, embed.bias)  # (batch, PATCHES, width)
    states = states + visual.pos_embed.weight[places[:, 0] * GRID + places[:, 1]]
    cos, sin = _turns(visual, places)
    turn = make_turn(cos[None], sin[None], 2 * visual.config.num_heads)  # for queries and keys together
    deep = []
    for number, block in enumerate(visual.blocks):
        states = states + _attend(block.attn, block.norm1(states), turn)
        states = states + block.mlp(block.norm2(states))
        if number in visual.deepstack_visual_indexes:
            merger = visual.deepstack_merger_list[visual.deepstack_visual_indexes.index(number)]
            deep.append(merger(states).view(len(states), TOKENS, -1))
    return visual.merger(states).view(len(states), TOKENS, -1), deep


def _attend(attention: Any, states: Tensor, turn: Turn) -> Tensor:
    """Self-attention of one encoder block, before the residual connection. states: (batch, PATCHES, width)."""
    batch, patches, width = states.shape
    heads, asking = 2 * attention.num_heads, 2 * width
    weight, bias = attention.qkv.weight, attention.qkv.bias
    # Queries and keys in `paired` order, as in `tsd.models.forward`; the attention scores do not change.
    query_key = linear(states, paired(weight[:asking], heads), paired(bias[:asking], heads))
    value = linear(states, weight[asking:], bias[asking:])
    size = width // attention.num_heads
    turning = turned(query_key.view(batch, patches, heads, size).float(), turn).to(states.dtype).transpose(1, 2)
    query, key = turning.tensor_split(2, 1)  # (batch, num_heads, PATCHES, size) each
    mixed = scaled_dot_product_attention(query, key, value.view(batch, patches, -1, size).transpose(1, 2))
    return cast(Tensor, attention.proj(mixed.transpose(1, 2).reshape(batch, patches, width)))


def _places(device: torch.device) -> Tensor:
    """Row and column of each patch, in the processor's order: (PATCHES, 2)."""
    tokens = GRID // MERGE
    grid = torch.stack(torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij"), -1)
    blocks = grid.view(tokens, MERGE, tokens, MERGE, 2).permute(0, 2, 1, 3, 4)
    return blocks.reshape(PATCHES, 2).to(device)


def _turns(visual: Any, places: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the patches' 2D rotary embeddings: (PATCHES, head_dim) each."""
    frequencies = visual.rotary_pos_emb.inv_freq.to(places.device)
    angles = places[..., None].float() * frequencies  # (PATCHES, 2, head_dim / 4)
    both = angles.flatten(1).repeat(1, 2)
    return both.cos(), both.sin()
