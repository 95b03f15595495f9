"""Students: a tokenizer that loses nothing, sizes as named, FLOPs by hand, and a folder that needs no tsd."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from tsd.errors import InputError
from tsd.inference.decoding import decode
from tsd.models.chat import chat_prompts
from tsd.models.students import (
    SCRATCH,
    build,
    export,
    load_model,
    load_tokenizer,
    parameter_counts,
    training_flops,
)
from tsd.models.tokenizer import build_tokenizer
from tsd.recipe import SCRATCH_SIZES, Lora, Student
from tsd.tasks import SINGLE


@pytest.fixture(scope="module")
def completions(examples: pa.Table) -> list[str]:
    """What the teacher says."""
    texts: list[str] = examples["completion"].to_pylist()
    return texts


@pytest.fixture(scope="module")
def tokenizer(completions: list[str]) -> PreTrainedTokenizerBase:
    """A tokenizer built on what the teacher says."""
    return build_tokenizer(completions, 2048)


@pytest.fixture(scope="module")
def folder(tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported student."""
    path = tmp_path_factory.mktemp("students") / "one"
    model = build(Student(name="0.03M"), tokenizer, 0, 2048)
    export(model, tokenizer, path, {"length": 128})
    return path


# ---- The tokenizer


@settings(max_examples=300)
@given(st.text(alphabet=[chr(code) for code in range(32, 127)] + ["\n"]))
def test_any_ascii_text_comes_back_as_it_was(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@given(st.lists(st.integers(0, 99), min_size=1, max_size=128))
def test_each_value_of_a_prompt_is_one_token(tokenizer: PreTrainedTokenizerBase, values: list[int]) -> None:
    def count(prompt: str) -> int:
        return len(tokenizer(prompt, add_special_tokens=False)["input_ids"])

    assert count(SINGLE.student_prompt(values)) == count(SINGLE.student_prompt([0])) - 1 + len(values)


def test_each_frequent_word_is_one_token(tokenizer: PreTrainedTokenizerBase, completions: list[str]) -> None:
    said = (sentence for text in completions for sentence in json.loads(text).values())
    whole = {word.strip(".,") for sentence in said for word in sentence.split()[1:]}
    assert len(whole) > 15
    for word in whole:
        assert len(tokenizer(f" {word}", add_special_tokens=False)["input_ids"]) == 1, word


def test_the_vocabulary_is_small_and_the_same_whatever_the_order_of_the_texts(
    tokenizer: PreTrainedTokenizerBase, completions: list[str]
) -> None:
    assert len(tokenizer) < 800
    shuffled = [completions[i] for i in np.random.default_rng(0).permutation(len(completions))]
    assert build_tokenizer(shuffled, 2048).get_vocab() == tokenizer.get_vocab()


def test_a_chat_prompt_ends_where_the_assistants_answer_begins(tokenizer: PreTrainedTokenizerBase) -> None:
    (prompt,) = chat_prompts(["Describe: 1 2"], tokenizer)
    assert prompt == "<|im_start|>user\nDescribe: 1 2<|im_end|>\n<|im_start|>assistant\n"
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.eos_token_id) == 1


# ---- Sizes and FLOPs


def test_every_size_that_a_recipe_may_name_can_be_built() -> None:
    assert tuple(SCRATCH) == SCRATCH_SIZES


@pytest.mark.parametrize("name", SCRATCH_SIZES)
def test_a_student_has_the_parameters_that_its_name_says(name: str, tokenizer: PreTrainedTokenizerBase) -> None:
    model = build(Student(name=name), tokenizer, 0, 2048)
    total, body = parameter_counts(model)
    assert body == pytest.approx(float(name.removesuffix("M")) * 1e6, rel=0.05)
    assert total == body + len(tokenizer) * SCRATCH[name].hidden  # tied: the table counts once


def test_a_student_from_scratch_is_a_function_of_its_seed(tokenizer: PreTrainedTokenizerBase) -> None:
    def weights(seed: int) -> torch.Tensor:
        return torch.cat([p.flatten() for p in build(Student(name="0.1M"), tokenizer, seed, 2048).parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_neighbouring_values_start_out_alike(tokenizer: PreTrainedTokenizerBase) -> None:
    model = build(Student(name="0.1M"), tokenizer, 0, 2048)
    ids = tokenizer.convert_tokens_to_ids([f" {value}" for value in range(100)])
    table = model.get_input_embeddings().weight[ids].detach()
    near = (table[1:] - table[:-1]).norm(dim=1).mean()
    far = (table[50:] - table[:50]).norm(dim=1).mean()
    assert near < 0.5 * far


def test_training_flops_are_the_multiplications_counted_by_hand(tokenizer: PreTrainedTokenizerBase) -> None:
    model = build(Student(name="0.03M"), tokenizer, 0, 2048)
    _, body = parameter_counts(model)
    size, vocabulary, length, answered = SCRATCH["0.03M"], len(tokenizer), 100, 30
    # Forward, two FLOPs a multiplication: the layers' matrices, Q·Kᵀ and A·V over half the square, the head.
    matrices = size.layers * (4 * size.hidden**2 + 3 * size.hidden * size.mlp)
    gains = body - matrices  # norms: a few parameters that 6·N counts along
    attention = size.layers * 2 * (length**2 / 2) * size.hidden
    forward = 2 * (length * (matrices + gains) + attention + answered * size.hidden * vocabulary)
    # The backward pass costs twice the forward pass.
    assert training_flops(model, body, length, answered, length) == pytest.approx(3 * forward)
    assert gains < 0.02 * body


# ---- Loading and exporting


def test_a_missing_model_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_model(str(tmp_path / "gone"))
    assert str(tmp_path / "gone") in str(caught.value)


def test_a_folder_without_a_model_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    for load in (load_model, load_tokenizer):
        with pytest.raises(InputError) as caught:
            load(str(tmp_path))
        assert str(tmp_path) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"model_type": "nothing-known"}'])
def test_a_folder_with_a_broken_config_is_named_in_one_line(folder: Path, tmp_path: Path, damage: str) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text(damage)
    with pytest.raises(InputError) as caught:
        load_model(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_folder_with_broken_weights_is_named_in_one_line(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(InputError) as caught:
        load_model(str(tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_an_exported_student_is_the_student(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    model, loaded = build(Student(name="0.03M"), tokenizer, 0, 2048), load_model(str(folder))
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name
    assert load_tokenizer(str(folder)).get_vocab() == tokenizer.get_vocab()
    assert json.loads((folder / "tsd.json").read_text()) == {"length": 128}


def trained_adapters(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Any:
    """A student with adapters that are no longer zero."""
    student = Student(name="lora", source=str(folder), lora=Lora(), learning_rate=1e-3)
    model = build(student, tokenizer, 0, 2048)
    torch.manual_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_adapters_train_only_themselves(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    trainable = [n for n, p in trained_adapters(folder, tokenizer).named_parameters() if p.requires_grad]
    assert len(trainable) == 2 * 2 * SCRATCH["0.03M"].layers  # A and B, of q_proj and v_proj, in each layer
    assert all("lora" in name for name in trainable)


def test_exported_adapters_are_merged_into_a_plain_model(
    folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = trained_adapters(folder, tokenizer).eval()
    ids = torch.arange(40)[None]
    with torch.inference_mode():
        adapted, plain = model(input_ids=ids).logits, load_model(str(folder))(input_ids=ids).logits
    export(model, tokenizer, tmp_path / "merged", {})
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.inference_mode():
        again = merged(input_ids=ids).logits
    assert torch.allclose(again, adapted, atol=1e-4)
    assert not torch.allclose(plain, adapted, atol=1e-2)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()


ALONE = """
import json, sys

class NoTsd:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "tsd":
            raise ModuleNotFoundError("tsd is not installed here")

sys.meta_path.insert(0, NoTsd())
try:
    import tsd
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("tsd can be imported: this proves nothing")
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompt = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
turn = [{"role": "user", "content": prompt}]
asked = tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt", return_dict=True)
with_answer = model.generate(**asked, max_new_tokens=12)[0]
answer = tokenizer.decode(with_answer[asked["input_ids"].shape[1]:], skip_special_tokens=True)
assert not [name for name in sys.modules if name.split(".")[0] == "tsd"]
print(json.dumps(answer))
"""


def test_a_student_answers_in_a_process_that_cannot_import_tsd(
    folder: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    prompt = SINGLE.student_prompt(list(range(64)))
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, str(folder), prompt],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (expected,) = decode(load_model(str(folder)), tokenizer, [prompt], 12)
    assert json.loads(done.stdout) == expected
    assert expected
