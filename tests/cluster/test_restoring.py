"""Records, students and an engine's parts that were lost: what is left says what they were."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console
from support.asked import PLOTS, Asked

from tsd.generation import generator
from tsd.progress import Reporter
from tsd.recipe import Recipe, Student, TrainingConfig, load
from tsd.storage import datasets, folders
from tsd.study import restoring
from tsd.teachers import Reply
from tsd.teachers.api.journal import Journal
from tsd.teachers.prompts import Questions
from tsd.teachers.vllm_engine import TOKEN, as_api
from tsd.training.runs import RunSpec

SPEC = RunSpec(
    student=Student(name="0.03M"),
    examples=40,
    seed=0,
    training=TrainingConfig(),
    validation_examples=10,
    corpus="corpus",
    tokenizer="tokenizer",
    precision="float32",
)
RUN = {"run_id": SPEC.run_id}


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A study with one student, its record and its folder."""
    made = load("laptop", ["teacher={kind: rules}", f"out={tmp_path}", "name=mine"])
    record = {**RUN, "validation_loss": 1.5}
    local = tmp_path / "local"
    local.mkdir()
    (local / "tsd.json").write_text(json.dumps({"run": record}))
    (local / "model.safetensors").write_bytes(b"weights")
    folders.copy_folder(str(local), f"{made.folder}/students/{RUN['run_id']}", sealed=True)
    folders.write_json(f"{made.folder}/records", f"{RUN['run_id']}.json", record)
    return made


def said(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, restoring.LostStudent], str]:
    """What is lost, and what is said of it."""
    lost = restoring.restore_records(recipe, [SPEC], Reporter(Console(soft_wrap=True)))
    return lost, capsys.readouterr().out


@pytest.mark.parametrize("content", [None, b"[]", b"null", b"{}", b'{"run_id": "another"}'])
def test_a_record_that_was_cut_or_changed_is_written_anew_from_its_students_card(
    recipe: Recipe, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Path(recipe.folder, "records", f"{RUN['run_id']}.json")
    before = record.read_bytes()
    record.write_bytes(before[:9] if content is None else content)
    lost, line = said(recipe, capsys)
    assert lost == {}
    assert "was damaged: rewritten" in line
    assert record.read_bytes() == before


@pytest.mark.parametrize("kind", ["folder", "file", "cut"])
def test_a_student_that_is_not_whole_is_trained_again_and_held_against_what_it_was(
    recipe: Recipe, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = f"{recipe.folder}/students/{RUN['run_id']}"
    if kind == "folder":
        folders.delete_folder(folder)
    elif kind == "file":
        folders.delete_file(folder, "model.safetensors")
    else:
        folders.write_bytes(folder, "model.safetensors", b"wei")
    lost, line = said(recipe, capsys)
    assert "it is trained again" in line
    assert folders.names(f"{recipe.folder}/records") == []
    folders.write_bytes(f"{recipe.folder}/predictions/{RUN['run_id']}", "part-00000000.parquet", b"")
    for weights, kept in ((b"weights", True), (b"others!", kind == "folder")):
        local = tmp_path / "again"
        local.mkdir(exist_ok=True)
        (local / "model.safetensors").write_bytes(weights)
        (local / "tsd.json").write_text('{"run": {"seconds": 2}}')
        folders.copy_folder(str(local), folder, sealed=True)
        restoring.hold_against(recipe, lost, Reporter(Console(soft_wrap=True)))
        assert folders.exists(f"{recipe.folder}/predictions/{RUN['run_id']}") is kept


def test_a_part_of_an_engine_that_was_lost_comes_from_its_journal_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN, "none")
    recipe = load("laptop", ["teacher={kind: vllm, model: eyes-7b}", f"out={tmp_path}"])
    rows: pa.Table = generator.draw_table(recipe.asks, recipe.series, recipe.seed, 0, 8)
    folder, schema = str(tmp_path / "annotations"), recipe.asks.tables.annotations
    api = as_api(recipe.teacher, engines=1)
    keys = Questions(api, recipe.asks, PLOTS, 0).keys(rows)
    said = recipe.asks.reply(rows["truth"][0].as_py(), (0,) * len(recipe.asks.topics))
    with Journal(folder, 0) as journal:  # as the engine inside Ray's own pipeline left it, too
        for number, key in enumerate(keys):
            journal.add(key, Reply(text=said, latency_ms=float(number)))
    path, bytes_of = Path(folder, datasets.part_name(0)), []
    for _ in range(2):
        asked = Asked(api, rows, folder)  # no engine is there to be asked
        with Journal(folder, 0) as journal:
            journal.keep(asked.table)
            datasets.write_part(folder, 0, asked.table, schema, "key")
            journal.delete()
        bytes_of.append(path.read_bytes())
        path.unlink()
    assert bytes_of[0] == bytes_of[1]
    assert asked.table["latency_ms"].to_pylist() == list(range(8))
