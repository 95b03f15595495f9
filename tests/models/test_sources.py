"""Where models come from: folders in an object store are fetched once a machine, wherever a model is loaded."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from support.commands import ROOT
from support.s3_server import S3
from transformers import PreTrainedTokenizerFast

from tsd.cluster.decoding import Decoder
from tsd.cluster.parts import FailedError
from tsd.errors import InputError
from tsd.inference.decoding import decode
from tsd.models import sources, weights
from tsd.models.students import build, export, load_model
from tsd.models.tokenizer import build_tokenizer, load_tokenizer
from tsd.recipe import Lora, Recipe, Student, load
from tsd.storage import datasets, folders
from tsd.tasks import SINGLE
from tsd.training.corpus import collate, tokenise


@pytest.fixture(scope="module")
def folder(examples: pa.Table, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model's folder."""
    path = tmp_path_factory.mktemp("models") / "one"
    tokenizer = build_tokenizer(examples["completion"].to_pylist(), 2048)
    export(build(Student(name="0.03M"), tokenizer, 0, 2048), tokenizer, path, {"length": 128, "about": {}})
    return path


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A temporary folder of its own, in which copies of models are kept."""
    place = tmp_path / "tmp"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr("tempfile.tempdir", None)
    return place


def test_processes_of_one_machine_share_one_copy_and_another_state_is_another_copy(
    folder: Path, s3: S3, copies: Path
) -> None:
    source = s3.uri("sources/shared")
    folders.copy_folder(str(folder), source)
    fetch = [sys.executable, "-c", f"from tsd.models import sources; print(sources.local({source!r}))"]
    both = [subprocess.Popen(fetch, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(2)]
    places = {process.communicate(timeout=120)[0].strip() for process in both}
    (place,) = places
    assert {p.name: p.read_bytes() for p in Path(place).iterdir()} == {
        p.name: p.read_bytes() for p in folder.iterdir()
    }
    assert len([path for path in copies.glob("tsd-models-*/*") if path.is_dir()]) == 1
    folders.write_bytes(source, "README.md", b"another state")
    assert Path(sources.local(source), "README.md").read_bytes() == b"another state"
    small = Path(sources.local(source, weights=False))
    whole = {path.name for path in Path(sources.local(source)).iterdir()}
    assert whole - {path.name for path in small.iterdir()} == {"model.safetensors"}


def test_a_copy_that_was_stopped_half_way_is_made_again(folder: Path, s3: S3, copies: Path) -> None:
    source = s3.uri("sources/half")
    folders.copy_folder(str(folder), source)
    place = Path(sources.local(source))
    place.rename(place.with_suffix(".unfinished"))
    (place.with_suffix(".unfinished") / "model.safetensors").write_bytes(b"half")
    assert (
        Path(sources.local(source), "model.safetensors").read_bytes()
        == (folder / "model.safetensors").read_bytes()
    )


def test_a_copy_that_lost_a_file_is_made_again(folder: Path, s3: S3, copies: Path) -> None:
    source = s3.uri("sources/cleaned")
    folders.copy_folder(str(folder), source)
    lost = Path(sources.local(source), "config.json")
    for damage in (lost.unlink, lambda: lost.write_bytes(b"{")):
        damage()
        assert Path(sources.local(source), lost.name).read_bytes() == (folder / lost.name).read_bytes()


def test_a_model_is_loaded_filled_and_asked_from_an_object_store_as_from_a_folder(
    folder: Path, s3: S3, copies: Path
) -> None:
    source = s3.uri("sources/asked")
    folders.copy_folder(str(folder), source)
    prompts = [SINGLE.student_prompt([1, 2, 3])]
    here, there = (
        decode(load_model(place), load_tokenizer(place), prompts, max_new_tokens=8)
        for place in (str(folder), source)
    )
    assert here == there
    student = Student(name="s", source=source, learning_rate=1e-3)
    filled = build(student, load_tokenizer(source), 0, 2048)
    assert torch.equal(filled.get_input_embeddings().weight, load_model(source).get_input_embeddings().weight)


def test_adapters_alone_of_a_model_in_an_object_store_are_loaded_with_it(
    folder: Path, s3: S3, copies: Path, tmp_path: Path
) -> None:
    source = s3.uri("sources/adapted")
    folders.copy_folder(str(folder), source)
    student = Student(name="s", source=source, learning_rate=1e-3, lora=Lora(export="adapter"))
    tokenizer = load_tokenizer(source)
    model = build(student, tokenizer, 0, 2048)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(weights.B):
                parameter.fill_(0.5)
    export(model, tokenizer, tmp_path / "adapters", {}, adapters=True)
    loaded = load_model(str(tmp_path / "adapters"))
    tokens = torch.tensor([tokenizer("the series is", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        mine, theirs, plain = (one(input_ids=tokens).logits for one in (model, loaded, load_model(str(folder))))
    assert torch.allclose(mine, theirs, atol=1e-5)
    assert not torch.allclose(plain, theirs, atol=1e-2)


@pytest.mark.parametrize("source", ["s3://studies/nothing/there", "ftp://somewhere/model"])
def test_a_folder_that_is_not_there_is_one_line_that_names_it(source: str, s3: S3) -> None:
    for read in (load_tokenizer, load_model, weights.outline):
        with pytest.raises(InputError, match=source) as caught:
            read(source)
        assert "\n" not in str(caught.value)


def test_a_tokenizer_without_a_pad_token_pads_with_its_end_token(
    folder: Path, examples: pa.Table, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path / "model")
    corpora = [
        tokenise(examples.slice(0, 8), load_tokenizer(str(place)), 2048) for place in (folder, tmp_path / "model")
    ]
    assert corpora[1].pad == tokenizer.eos_token_id
    padded, without = (collate(corpus, np.arange(8)) for corpus in corpora)
    assert (padded.targets == without.targets).all()
    assert (padded.inputs != without.inputs).any()  # in the padding alone
    assert ((padded.inputs == without.inputs) | (without.inputs == tokenizer.eos_token_id)).all()


def test_a_student_that_cannot_reply_leaves_the_others_their_replies(
    recipe: Recipe, series: pa.Table, folder: Path, tmp_path: Path
) -> None:
    small = load("laptop", ["teacher={kind: rules}", f"out={tmp_path}", "evaluation.series=4"])
    datasets.write_part(f"{small.folder}/series", 0, series, SINGLE.tables.series, "key")
    drawn = datasets.commit(f"{small.folder}/series", SINGLE.tables.series, "key", 1, {})
    for run in ("good", "bad"):
        shutil.copytree(folder, Path(small.folder) / "students" / run)
    config = Path(small.folder) / "students" / "bad" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_attention_heads": 0}))
    runs = ("good", "bad")
    decoder = Decoder(small, drawn, dict.fromkeys(runs, "greedy"), dict.fromkeys(runs, "k"))
    failed = []
    for _ in range(2):
        (part,) = decoder("good", 0)
        assert part.rows == 4
        with pytest.raises(FailedError) as caught:
            decoder("bad", 0)
        failed.append(str(caught.value))
    assert failed[0] == failed[1] != ""
    assert "\n" not in failed[0]
    predictions = Path(small.folder) / "predictions"
    assert [path.name for path in predictions.iterdir()] == ["good"]
