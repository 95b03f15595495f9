"""Prompts as tokens: the chat template of a student's tokenizer."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tsd.plots.rasterised import PICTURE, PICTURE_TOKENS
from tsd.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def chat_prompts(prompts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    """Each prompt as a user turn, followed by the generation prompt for the assistant's turn."""
    if not prompts:
        return []
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    rendered: list[str] = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return rendered


def chat_tokens(prompts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """The token ids of such prompts."""
    return encode(chat_prompts(prompts, tokenizer), tokenizer)


def image_prompt_tokens(task: Task, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """Token ids of the prompt that all vision students share, with `PICTURE_TOKENS` image tokens."""
    turn = {"role": "user", "content": [{"type": "text", "text": task.image_prompt}, {"type": "image"}]}
    prompt: str = tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    (tokens,) = encode([prompt.replace(PICTURE, PICTURE * PICTURE_TOKENS)], tokenizer)
    return tokens


def styled_prompt_tokens(
    task: Task, tokenizer: "PreTrainedTokenizerBase", styles: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Token ids of the prompts of a locally trained teacher, one for each style. All have one length."""
    turn = {"role": "user", "content": [{"type": "text", "text": task.image_prompt}, {"type": "image"}]}
    prompt: str = tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    shown = prompt.replace(PICTURE, PICTURE * PICTURE_TOKENS)
    return encode([shown.replace(task.image_prompt, task.styled_prompt(style)) for style in styles], tokenizer)


def picture_place(prompt: Sequence[int], tokenizer: "PreTrainedTokenizerBase") -> int:
    """Position of the first image token in a prompt."""
    return list(prompt).index(tokenizer.convert_tokens_to_ids(PICTURE))


def encode(texts: list[str], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    """The token ids of texts that are complete: no special tokens are added."""
    encoded: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    return encoded
