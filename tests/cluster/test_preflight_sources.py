"""Sources from which no student can start are found before anything is drawn, each in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.s3_server import S3
from transformers import AutoModelForCausalLM, BloomConfig, MambaConfig, PreTrainedTokenizerFast

from tsd.cluster import demands, preflight
from tsd.models import students
from tsd.models.tokenizer import build_tokenizer
from tsd.recipe import Student, load
from tsd.storage import folders


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model that a student can start from."""
    folder = tmp_path_factory.mktemp("source") / "model"
    tokenizer = build_tokenizer(["Describe the series: 1 2 3"] * 2, 512)
    students.export(students.build(Student(name="0.03M"), tokenizer, 0, 512), tokenizer, folder, {})
    return folder


@pytest.fixture
def source(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    folders.copy_folder(str(whole), str(tmp_path / "source"))
    return tmp_path / "source"


def change_tokenizer(folder: Path, **changes: Any) -> None:
    """Write the tokenizer of a folder anew with something changed."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(folder)
    if changes.get("chat_template", "") is None:
        (folder / "chat_template.jinja").unlink(missing_ok=True)


def without_template(folder: Path) -> None:
    change_tokenizer(folder, chat_template=None)


def without_end(folder: Path) -> None:
    change_tokenizer(folder, eos_token=None)


def template_that_wants_a_system(folder: Path) -> None:
    change_tokenizer(folder, chat_template="{{ raise_exception('the first turn must be the system') }}")


def template_that_is_silent(folder: Path) -> None:
    change_tokenizer(folder, chat_template="{{ 'assistant: ' }}")


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def cut_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:40])


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def index_of_a_file_that_is_missing(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}})
    )


def one_more_layer(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["num_hidden_layers"] += 1
    config["layer_types"] = ["full_attention"] * config["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(config))


def wider(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"intermediate_size": 2 * config["intermediate_size"]})
    )


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def more_tokens_than_the_model(folder: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token": "<|another end|>"})
    tokenizer.save_pretrained(folder)


def another_model(config: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        model = AutoModelForCausalLM.from_config(config)
        model.save_pretrained(folder)

    return change


bloom = another_model(BloomConfig(vocab_size=400, hidden_size=16, n_layer=1, n_head=2))
mamba = another_model(MambaConfig(vocab_size=400, hidden_size=16, num_hidden_layers=1, state_size=4))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (without_template, "has no chat template: use an Instruct model"),
        (without_end, "has no eos_token"),
        (template_that_wants_a_system, "does not accept a user turn: the first turn must be the system"),
        (template_that_is_silent, "omits the user's message"),
        (cut_weights, "model.safetensors has"),
        (cut_header, "model.safetensors is cut off"),
        (no_weights, "has no model.safetensors"),
        (index_of_a_file_that_is_missing, "has no model-00002-of-00002.safetensors"),
        (one_more_layer, "lacks the weights model.layers.3."),
        (wider, "has weights model.layers.0.mlp.gate_proj.weight of shape"),
        (no_config, "is not a model that transformers can load"),
        (more_tokens_than_the_model, "has more tokens than its model"),
        (bloom, "cannot be decoded: its BloomForCausalLM takes no position_ids"),
        (mamba, "cannot be decoded: its MambaForCausalLM"),
    ],
)
def test_a_source_that_no_student_can_start_from_is_one_line(
    source: Path, damage: Callable[[Path], None], said: str
) -> None:
    damage(source)
    (found,) = findings_of_students(str(source))
    assert not found.ok
    assert said in found.said
    assert str(source) in found.said
    assert "\n" not in found.said


def findings_of_students(*sources: str) -> list[demands.Finding]:
    named = ", ".join(f"{{name: s{i}, source: '{one}', learning_rate: 1.0e-4}}" for i, one in enumerate(sources))
    recipe = load("laptop", ["teacher={kind: rules}", "out=/nowhere", f"students.models=[{named}]"])
    return list(preflight._students(recipe))


def test_a_source_that_is_whole_passes_on_a_disk_and_in_an_object_store(whole: Path, s3: S3) -> None:
    folders.copy_folder(str(whole), s3.uri("models/whole"))
    assert [found.ok for found in findings_of_students(str(whole), s3.uri("models/whole"))] == [True, True]
    (absent,) = findings_of_students(s3.uri("models/absent"))
    assert not absent.ok
    assert absent.said == f"there is no model folder {s3.uri('models/absent')}"


def test_weights_in_an_object_store_are_looked_at_and_not_fetched(source: Path, s3: S3) -> None:
    cut_weights(source)
    folders.copy_folder(str(source), s3.uri("models/cut"))
    (found,) = findings_of_students(s3.uri("models/cut"))
    assert not found.ok
    assert "model.safetensors has" in found.said
