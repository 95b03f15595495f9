"""Decoding: greedy replies as transformers' own generate gives them, with and without padding."""

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from tsd.corpus import chat_prompts
from tsd.decoding import decode
from tsd.recipe import Student
from tsd.students import build, build_tokenizer
from tsd.tasks import SINGLE

# Ends some replies before 24 tokens and not others, and none at once.
END_BIAS = 1.5
WORDS = ["The series shows an increasing trend.", "The noise intensity is low."] * 2


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    """A small vocabulary."""
    return build_tokenizer(WORDS, 512)


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A random student whose replies differ by prompt and often end by themselves."""
    torch.manual_seed(4)
    student = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=512,
            tie_word_embeddings=False,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    for parameter in student.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
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


@pytest.mark.parametrize(
    "lengths", [[40] * 12, [5, 40, 17, 64, 64, 3, 33, 8]], ids=["of one length", "of many lengths"]
)
def test_replies_are_those_of_transformers_generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, lengths: list[int]
) -> None:
    prompts = prompts_of(lengths)
    expected = generated(model, tokenizer, prompts, 24)
    assert len(set(expected)) > len(prompts) // 2  # the replies tell the prompts apart
    assert decode(model, tokenizer, prompts, 24) == expected


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
