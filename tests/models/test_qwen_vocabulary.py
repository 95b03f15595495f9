"""A checkpoint in the hub's format with Qwen's real vocabulary: read, trained in full and by adapters, asked."""

import math
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from support.tiny_qwen import save_tiny_text_qwen
from transformers import AutoModelForCausalLM, AutoTokenizer

from tsd.inference.decoding import decode
from tsd.models.chat import chat_prompts
from tsd.models.students import build, export, load_model
from tsd.models.tokenizer import load_tokenizer
from tsd.recipe import Lora, Student, TrainingConfig
from tsd.training.corpus import Corpus, tokenise
from tsd.training.loop import Progress, WorkerContext, evaluate, make_optimizer, train

STEPS, BATCH = 4, 2
LENGTH = 2048


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder as a hub has it: bfloat16 weights, at random, and Qwen's tokenizer with a chat template."""
    folder = tmp_path_factory.mktemp("hub") / "qwen"
    save_tiny_text_qwen(folder, hidden=16)
    return str(folder)


@pytest.fixture(scope="module")
def corpus(source: str, examples: pa.Table) -> Corpus:
    """As many examples as the steps take."""
    return tokenise(examples.slice(0, STEPS * BATCH), load_tokenizer(source), LENGTH)


def test_a_prompt_and_its_answer_are_qwens_own_tokens_and_the_answer_alone_is_supervised(
    source: str, corpus: Corpus, examples: pa.Table
) -> None:
    tokenizer = load_tokenizer(source)
    prompts = chat_prompts(examples["prompt"].to_pylist()[: len(corpus)], tokenizer)
    for i, completion in enumerate(examples["completion"].to_pylist()[: len(corpus)]):
        start = corpus.answers[i]
        assert tokenizer.decode(corpus.tokens[i][:start]) == prompts[i]
        assert tokenizer.decode(corpus.tokens[i][start:]) == completion + "<|im_end|>"
        assert corpus.tokens[i].tolist() == tokenizer(prompts[i] + completion + "<|im_end|>")["input_ids"]
    assert corpus.lengths.max() < LENGTH


@pytest.mark.parametrize("lora", [None, Lora(r=4)], ids=["full", "adapters"])
def test_it_learns_and_what_is_exported_says_in_transformers_what_it_says_here(
    source: str, corpus: Corpus, examples: pa.Table, lora: Lora | None, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(source)
    student = Student(name="one", source=source, learning_rate=3e-2, lora=lora)
    model = build(student, tokenizer, 0, LENGTH)
    before = evaluate(model, corpus, BATCH, WorkerContext())
    config = TrainingConfig(batch_size=BATCH)
    train(
        model,
        corpus,
        config,
        learning_rate=3e-2,
        seed=0,
        place=WorkerContext(),
        optimizer=make_optimizer(model, config),
        progress=Progress(),
    )
    assert before > math.log(len(tokenizer)) - 1  # it knew nothing of these words
    assert evaluate(model, corpus, BATCH, WorkerContext()) < before - 0.1
    export(model, tokenizer, tmp_path, {})

    prompts = examples["prompt"].to_pylist()[:2]
    said = decode(load_model(str(tmp_path)), load_tokenizer(str(tmp_path)), prompts, 12)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    reader = AutoTokenizer.from_pretrained(tmp_path)
    for prompt in prompts:
        turn = {"role": "user", "content": prompt}
        asked = reader.apply_chat_template(
            [turn],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        reply = theirs.generate(**asked, max_new_tokens=12)[0, asked["input_ids"].shape[1] :]
        assert reader.decode(reply, skip_special_tokens=True) == said.pop(0)
