"""Students that look: Qwen3-VL architectures of several sizes from scratch, and what else their folders hold so
that transformers and vLLM load them: the processor that cuts a picture into patches.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tsd.models.vision import RANGE, WHITE
from tsd.plots.rasterised import GRID, MERGE, PATCH, PICTURE, PICTURE_END, PICTURE_START, SIDE, VIDEO

HEAD = 32  # the narrowest head that vLLM's attention on CPUs knows
SOFT_LOOKING, SOFT_READING = 0.3, 0.7  # of unit gain, for queries: who looks everywhere at first learns sooner
LONGEST = 8192  # tokens; more than is ever asked, but what asks with vLLM need not be told of a limit


@dataclass(frozen=True)
class Size:
    """An architecture to train from scratch: what reads and says, and what looks."""

    hidden: int
    mlp: int
    layers: int
    heads: int
    looking_hidden: int
    looking_mlp: int
    looking_layers: int
    looking_heads: int
    learning_rate: float


# Parameters without the embeddings of tokens, as many as the students of the same name that read numbers have to
# within a hundredth: 31,108 · 102,040 · 301,744 · 1,005,088.
SCRATCH = {
    "0.03M": Size(24, 40, 2, 1, 12, 44, 1, 1, learning_rate=4e-3),
    "0.1M": Size(48, 112, 2, 1, 24, 40, 2, 2, learning_rate=4e-3),
    "0.3M": Size(64, 232, 2, 1, 48, 192, 2, 1, learning_rate=3e-3),
    "1M": Size(96, 304, 3, 3, 96, 272, 2, 6, learning_rate=1.5e-3),
}


def build(size: Size, tokenizer: PreTrainedTokenizerBase) -> Qwen3VLForConditionalGeneration:
    """A model with torch's current seed, in float32."""
    model = Qwen3VLForConditionalGeneration(_config(size, tokenizer))
    _initialise(model)
    return model


def save_processor(folder: Path) -> None:
    """Write what turns a picture into patches, as transformers' `AutoProcessor` and vLLM read it.

    A picture of `SIDE` × `SIDE` pixels is taken as it is; any other is scaled to as many.
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
    sign, third = tokenizer.convert_tokens_to_ids, HEAD // 6
    rope = {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "mrope_section": [HEAD // 2 - 2 * third, third, third],  # of time, row and column
        "mrope_interleaved": True,
    }
    return Qwen3VLConfig(
        text_config={
            "architectures": ["Qwen3ForCausalLM"],  # vLLM 0.29 asks for it
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
            "depth": size.looking_layers,
            "hidden_act": "relu",  # a threshold: a peak reaches a line or does not
            "hidden_size": size.looking_hidden,
            "intermediate_size": size.looking_mlp,
            "num_heads": size.looking_heads,
            "patch_size": PATCH,
            "spatial_merge_size": MERGE,
            "temporal_patch_size": 1,  # a picture is no film
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
    """Start matrices at unit gain, attention softly, and rows and columns of patches in order, as loud as what is
    on them.

    With transformers' own start of 0.02 everywhere a patch knows what it shows and not where it lies, and a model
    of this size learns that from several times the pictures; see docs/decisions.md.
    """
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    for block in model.model.visual.blocks:
        block.attn.qkv.weight[: block.attn.qkv.in_features].mul_(SOFT_LOOKING)  # the queries
    for layer in model.model.language_model.layers:
        layer.self_attn.q_norm.weight.fill_(SOFT_READING)
    places = model.model.visual.pos_embed.weight  # (GRID², width)
    rows = places.shape[1] // 2
    columns = places.shape[1] - rows
    down, across = _in_order(rows)[:, None].expand(-1, GRID, -1), _in_order(columns)[None].expand(GRID, -1, -1)
    places.copy_(torch.cat([down, across], -1).flatten(0, 1))


def _in_order(width: int) -> torch.Tensor:
    """A smooth code of the rows or columns, (GRID, width), neighbours alike."""
    frequency = torch.arange(1, -(-width // 2) + 1) / 2  # turns over the side, low ones loudest
    phase = torch.linspace(0, 1, GRID)[:, None] * frequency * torch.pi
    code = torch.cat([phase.sin() / frequency.sqrt(), phase.cos() / frequency.sqrt()], 1)[:, :width]
    code = code - code.mean(0)
    return code / code.std()
