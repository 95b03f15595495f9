"""Decoding: greedy replies as transformers' own generate gives them, with and without padding."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tsd.inference.decoding import READ_AT_ONCE, ROOM, closed_ranks, decode, slabs
from tsd.models.chat import chat_prompts
from tsd.models.students import build
from tsd.models.tokenizer import build_tokenizer
from tsd.recipe import Student
from tsd.tasks import SINGLE

# Ends some replies before 24 tokens, a few of them at once, and not others.
END_BIAS = 2.0
WORDS = ["The series shows an increasing trend.", "The noise intensity is low."] * 2


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """A small vocabulary."""
    return build_tokenizer(WORDS, 512)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A random student whose replies differ by prompt and often end by themselves."""
    return random_model(tokenizer, "a Qwen3 with one head of keys for two of queries")


KINDS: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "a Qwen3 with one head of keys for two of queries": (
        Qwen3ForCausalLM,
        Qwen3Config,
        {"num_key_value_heads": 1, "head_dim": 32},
    ),
    "a Qwen3 with as many heads of keys": (
        Qwen3ForCausalLM,
        Qwen3Config,
        {"num_key_value_heads": 2, "head_dim": 20},
    ),
    "a Qwen3 whose norms have a large epsilon": (
        Qwen3ForCausalLM,
        Qwen3Config,
        {"num_key_value_heads": 1, "head_dim": 32, "rms_norm_eps": 0.02},
    ),
    "a Qwen3 with biases in its attention": (
        Qwen3ForCausalLM,
        Qwen3Config,
        {"num_key_value_heads": 1, "head_dim": 32, "attention_bias": True},
    ),
    "a Qwen2 with two heads of keys for four of queries": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {"num_attention_heads": 4, "num_key_value_heads": 2},
    ),
    "a Qwen2 with a sliding window": (
        Qwen2ForCausalLM,
        Qwen2Config,
        {"num_key_value_heads": 1, "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 1},
    ),
    "a Qwen3 without fused attention": (
        Qwen3ForCausalLM,
        Qwen3Config,
        {"num_key_value_heads": 1, "head_dim": 32, "attn_implementation": "eager"},
    ),
    "a Llama": (LlamaForCausalLM, LlamaConfig, {"num_key_value_heads": 1}),
}


def random_model(tokenizer: PreTrainedTokenizerBase, kind: str) -> PreTrainedModel:
    """A random model of one of the kinds; its biases, where it has them, are random, too."""
    model, config, special = KINDS[kind]
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": False,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(4)
    student = model(config(**{**common, **special}))
    for name, parameter in student.named_parameters():
        if parameter.ndim == 2 or name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
        else:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return favouring(student.eval(), tokenizer.eos_token_id, END_BIAS)


def favouring(model: PreTrainedModel, token: int, by: float) -> PreTrainedModel:
    """The model with this token's logit raised, which no weight of a head without bias can do."""
    head = model.lm_head
    bias = torch.zeros(head.out_features)
    bias[token] = by
    head.bias = torch.nn.Parameter(bias)
    return model


def generated(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], most: int
) -> list[str]:
    """Each prompt alone, by transformers."""
    texts = []
    for text in chat_prompts(prompts, tokenizer):
        asked = tokenizer(text, add_special_tokens=False, return_tensors="pt")
        out = model.generate(
            **asked,
            do_sample=False,
            max_new_tokens=most,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        texts.append(tokenizer.decode(out[0][asked["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


def prompts_of(lengths: list[int]) -> list[str]:
    """Random series of these lengths, as prompts."""
    draws = torch.Generator().manual_seed(1)
    return [SINGLE.student_prompt(torch.randint(0, 100, (n,), generator=draws).tolist()) for n in lengths]


LONG = 300  # points; a few such prompts are more than is read at once


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "lengths",
    [[40] * 12, [5, 40, 17, 64, 64, 3, 33, 8], [9, LONG, 3, LONG, LONG, 40, *[LONG - 1] * 6, 3], [20]],
    ids=["of one length", "of many lengths", "beside much longer ones", "alone"],
)
def test_replies_are_those_of_transformers_generate(
    tokenizer: PreTrainedTokenizerBase, kind: str, lengths: list[int]
) -> None:
    model, prompts = random_model(tokenizer, kind), prompts_of(lengths)
    expected = generated(model, tokenizer, prompts, 24)
    assert len(set(expected)) > len(prompts) // 2  # the replies tell the prompts apart
    assert decode(model, tokenizer, prompts, 24) == expected


def test_replies_may_outgrow_the_room_made_for_them(tokenizer: PreTrainedTokenizerBase) -> None:
    endless = favouring(random_model(tokenizer, next(iter(KINDS))), tokenizer.eos_token_id, -1e9)
    prompts, most = prompts_of([12, 30, 30]), 3 * ROOM + 1
    replies = decode(endless, tokenizer, prompts, most)
    assert replies == generated(endless, tokenizer, prompts, most)
    assert replies != decode(endless, tokenizer, prompts, most - 1)


def test_some_replies_end_by_themselves_and_others_at_the_limit(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    replies = decode(model, tokenizer, prompts_of([40] * 12), 24)
    lengths = {len(tokenizer(reply, add_special_tokens=False)["input_ids"]) for reply in replies}
    assert min(lengths) < 24
    assert len(lengths) > 2


@pytest.mark.parametrize("most", [1, 2, 7])
def test_no_reply_is_longer_than_asked_for_and_a_shorter_limit_only_cuts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, most: int
) -> None:
    prompts = prompts_of([20] * 6)
    short, long = decode(model, tokenizer, prompts, most), decode(model, tokenizer, prompts, 24)
    for a, b in zip(short, long, strict=True):
        assert len(tokenizer(a, add_special_tokens=False)["input_ids"]) <= most
        assert b.startswith(a)
    assert short != long


def test_a_reply_does_not_depend_on_the_rest_of_the_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = prompts_of([30, 9, 51, 30])
    together = decode(model, tokenizer, prompts, 16)
    assert [decode(model, tokenizer, [prompt], 16)[0] for prompt in prompts] == together


def test_a_model_that_only_ever_ends_says_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    mute = favouring(build(Student(name="0.03M"), tokenizer, 0, 512), tokenizer.eos_token_id, 1e9)
    assert decode(mute, tokenizer, prompts_of([10, 12]), 20) == ["", ""]


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=200))
def test_every_row_is_read_once_and_no_more_at_a_time_than_fits(lengths: list[int]) -> None:
    lengths.sort()
    parts = list(slabs(lengths))
    assert [length for part in parts for length in lengths[part]] == lengths
    for part in parts:
        rows = part.stop - part.start
        assert rows == 1 or rows * lengths[part.stop - 1] <= READ_AT_ONCE
    for part, following in pairwise(parts):
        assert (part.stop - part.start + 1) * lengths[following.start] > READ_AT_ONCE


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_only_the_last_rows_move_when_others_end(running: list[bool]) -> None:
    keep = closed_ranks(running)
    assert sorted(keep) == [row for row, on in enumerate(running) if on]
    assert all(row == place or row >= len(keep) for place, row in enumerate(keep))
