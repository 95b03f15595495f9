"""Vision students: small Qwen3-VL models trained from scratch, and the processor files of their folders.

With the processor, transformers and vLLM load the folder as any vision-language model.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tsd.models.vision import RANGE, WHITE
from tsd.plots.rasterised import GRID, MERGE, PATCH, PICTURE, PICTURE_END, PICTURE_START, SIDE, VIDEO

HEAD = 32  # the smallest head size that vLLM's CPU attention supports
SOFT_VISION, SOFT_TEXT = 0.3, 0.7  # query gain relative to unit gain: soft initial attention learns sooner
LONGEST = 8192  # tokens; above any input, so that vLLM needs no explicit limit


@dataclass(frozen=True)
class Size:
    """An architecture to train from scratch: the language model, and the vision encoder (`vision_*`)."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    vision_hidden: int
    vision_mlp: int
    vision_layers: int
    vision_heads: int
    learning_rate: float


# Parameters without token embeddings: 31,108 · 102,040 · 302,000 · 1,005,088. Within 1 % of the text students of
# the same name.
SCRATCH = {
    "0.03M": Size(24, 40, 2, 1, 12, 44, 1, 1, learning_rate=4e-3),
    "0.1M": Size(48, 112, 2, 1, 24, 40, 2, 2, learning_rate=4e-3),
    "0.3M": Size(64, 190, 2, 2, 48, 192, 2, 1, learning_rate=3e-3),
    "1M": Size(96, 304, 3, 3, 96, 272, 2, 6, learning_rate=1.5e-3),
}


def build(size: Size, tokenizer: PreTrainedTokenizerBase) -> Qwen3VLForConditionalGeneration:
    """A model initialised from torch's current random state, in float32."""
    model = Qwen3VLForConditionalGeneration(_config(size, tokenizer))
    _initialise(model)
    return model


def save_processor(folder: Path) -> None:
    """Write the image processor's config files, as transformers' `AutoProcessor` and vLLM read them.

    An image of `SIDE` × `SIDE` pixels is used as it is; any other is resized to that.
    """
    pixels = {
        "do_convert_rgb": True,
        "do_resize": True,
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [WHITE] * 3,
        "image_std": [RANGE] * 3,
        "rescale_factor": 1 / 255,
        "resample": 3,
        "patch_size": PATCH,
        "merge_size": MERGE,
        "temporal_patch_size": 1,
        "processor_class": "Qwen3VLProcessor",
        "size": {"shortest_edge": SIDE * SIDE, "longest_edge": SIDE * SIDE},
    }
    pictures = {**pixels, "image_processor_type": "Qwen2VLImageProcessor"}
    films = {**pixels, "video_processor_type": "Qwen3VLVideoProcessor"}
    for name, content in {"preprocessor_config.json": pictures, "video_preprocessor_config.json": films}.items():
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def _config(size: Size, tokenizer: PreTrainedTokenizerBase) -> Qwen3VLConfig:
    """The config of a size. Text and vision widths agree with the tokenizer's special image tokens."""
    sign, third = tokenizer.convert_tokens_to_ids, HEAD // 6
    rope = {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "mrope_section": [HEAD // 2 - 2 * third, third, third],  # time, row, column
        "mrope_interleaved": True,
    }
    return Qwen3VLConfig(
        text_config={
            "architectures": ["Qwen3ForCausalLM"],  # required by vLLM 0.29
            "vocab_size": len(tokenizer),
            "hidden_size": size.hidden,
            "intermediate_size": size.mlp,
            "num_hidden_layers": size.layers,
            "num_attention_heads": size.heads,
            "num_key_value_heads": size.heads,
            "head_dim": HEAD,
            "max_position_embeddings": LONGEST,
            "rope_parameters": rope,
            "tie_word_embeddings": True,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
        },
        vision_config={
            "depth": size.vision_layers,
            "hidden_act": "relu",  # a hard threshold: a peak reaches a level or does not
            "hidden_size": size.vision_hidden,
            "intermediate_size": size.vision_mlp,
            "num_heads": size.vision_heads,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 1,  # still images only
            "out_hidden_size": size.hidden,
            "num_position_embeddings": GRID**2,
            "deepstack_visual_indexes": [0],
        },
        tie_word_embeddings=True,
        image_token_id=sign(PICTURE),
        video_token_id=sign(VIDEO),
        vision_start_token_id=sign(PICTURE_START),
        vision_end_token_id=sign(PICTURE_END),
    )


@torch.no_grad()
def _initialise(model: Qwen3VLForConditionalGeneration) -> None:
    """Initialise matrices with unit gain, queries with less, and position embeddings as a smooth code.

    The code's scale is comparable to that of the patch embeddings. With the initialisation of transformers (std
    0.02 everywhere) the content of a patch outweighs its position, and a model of this size needs more images to
    learn positions; see docs/decisions.md.
    """
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    for block in model.model.visual.blocks:
        block.attn.qkv.weight[: block.attn.qkv.in_features].mul_(SOFT_VISION)  # query rows
    for layer in model.model.language_model.layers:
        layer.self_attn.q_norm.weight.fill_(SOFT_TEXT)
    places = model.model.visual.pos_embed.weight  # (GRID², width)
    rows = places.shape[1] // 2
    columns = places.shape[1] - rows
    down, across = _in_order(rows)[:, None].expand(-1, GRID, -1), _in_order(columns)[None].expand(GRID, -1, -1)
    places.copy_(torch.cat([down, across], -1).flatten(0, 1))


def _in_order(width: int) -> torch.Tensor:
    """A smooth code of row or column indices, (GRID, width) with unit variance: neighbours have similar codes."""
    frequency = torch.arange(1, -(-width // 2) + 1) / 2  # low frequencies get the largest amplitude
    phase = torch.linspace(0, 1, GRID)[:, None] * frequency * torch.pi
    code = torch.cat([phase.sin() / frequency.sqrt(), phase.cos() / frequency.sqrt()], 1)[:, :width]
    code = code - code.mean(0)
    return code / code.std()
