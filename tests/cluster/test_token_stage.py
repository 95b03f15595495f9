"""What the stage that tokenises keeps, deletes and makes again before it makes any tokens, without Ray."""

import io
import shutil
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
import pytest
from rich.console import Console

from tsd.cluster.token_stage import tokenise
from tsd.models.tokenizer import build_tokenizer, load_tokenizer, tokenizer_digest
from tsd.progress import Reporter
from tsd.recipe import load
from tsd.storage import datasets
from tsd.storage.schemas import EXAMPLES, TOKENS
from tsd.study.context import StudyContext
from tsd.training.runs import RunSpec
from tsd.training.token_parts import summary, token_table

PARTS = 2


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that makes tokens, which needs Ray, fails the test at once."""

    def make(*_: object) -> NoReturn:
        raise AssertionError("tokens are made")

    monkeypatch.setattr("tsd.cluster.parts.make", make)


@pytest.fixture
def study(tmp_path: Path) -> StudyContext:
    """A study with examples and one student with a source, whose runs share their tokens."""
    source = put(tmp_path, "rising trend")
    student = f"{{name: a, source: {source}, learning_rate: 1.0e-3}}"
    recipe = load("laptop", [f"out={tmp_path}", f"students.models=[{student}]", "students.train_sizes=[1,2]"])
    folder = f"{recipe.folder}/examples"
    made = {part: datasets.write_part(folder, part, examples(part), EXAMPLES, "key") for part in range(PARTS)}
    datasets.commit(folder, EXAMPLES, "key", PARTS, {}, made)
    return StudyContext(recipe, Reporter(Console(file=io.StringIO(), width=300)))


def put(folder: Path, text: str) -> Path:
    """A source whose tokenizer has these words. It replaces the one before."""
    shutil.rmtree(folder / "source", ignore_errors=True)
    build_tokenizer([text] * 2, 512).save_pretrained(folder / "source")
    return folder / "source"


def examples(part: int) -> pa.Table:
    """One part of the examples, of one row."""
    row = {"series_id": part, "split": "train", "teacher": "t", "prompt": "1 2", "completion": "rising trend"}
    return pa.Table.from_pylist([row], EXAMPLES)


def tokenised(study: StudyContext, run: RunSpec) -> Path:
    """The finished tokens of a run, as the stage leaves them."""
    assert run.student.source
    folder, tokenizer = Path(study.recipe.folder, "tokens", run.tokens), load_tokenizer(run.student.source)
    digest, made = {"tokenizer": tokenizer_digest(tokenizer)}, dict[int, datasets.Part]()
    for part in range(PARTS):
        table, note = token_table(examples(part), tokenizer)
        made[part] = datasets.write_part(str(folder), part, table, TOKENS, run.tokens, {**note, **digest})
    about = {**summary([made[part].note for part in range(PARTS)]), **digest}
    datasets.commit(str(folder), TOKENS, run.tokens, PARTS, {}, made, about)
    return folder


def said(study: StudyContext) -> str:
    """What was printed."""
    printed = study.reporter.console.file
    assert isinstance(printed, io.StringIO)
    return printed.getvalue()


def test_files_and_folders_that_are_no_tokens_are_left_alone(study: StudyContext) -> None:
    runs = study.planned_runs()
    folder = tokenised(study, runs[0]).parent
    strays = [
        folder / ".DS_Store",
        folder / ".nfs0000000000000001",
        folder / "notes.txt",
        folder / "0123456789abcdef",
    ]
    for stray in strays:
        stray.write_text("stray")
    (folder / "lost+found").mkdir()
    (folder / "fedcba9876543210").mkdir()  # of other examples
    assert tokenise(study, runs, []) == {}
    assert {path.name for path in folder.iterdir()} == {
        runs[0].tokens,
        "lost+found",
        *(path.name for path in strays),
    }


@pytest.mark.parametrize("lost", [[0], list(range(PARTS))], ids=["one part", "all parts"])
def test_tokens_that_no_run_needs_are_deleted_if_a_part_is_lost_and_their_source_has_changed(
    study: StudyContext, tmp_path: Path, lost: list[int]
) -> None:
    runs = study.planned_runs()
    folder = tokenised(study, runs[0])
    for part in lost:
        (folder / datasets.part_name(part)).unlink()
    put(tmp_path, "falling noise")
    assert tokenise(study, runs, []) == {}
    assert not folder.exists()
    assert f"deleted tokens/{folder.name}, which no run needs" in said(study)
    assert "is another one than when its examples were tokenised)" in said(study)


def test_whole_tokens_that_no_run_needs_stay_whatever_their_source_is_now(
    study: StudyContext, tmp_path: Path
) -> None:
    runs = study.planned_runs()
    folder = tokenised(study, runs[0])
    put(tmp_path, "falling noise")
    assert tokenise(study, runs, []) == {}
    assert datasets.find_finished(str(folder), TOKENS, runs[0].tokens)
    assert said(study) == ""


@pytest.mark.parametrize("lost", [[], [0], list(range(PARTS))], ids=["no part", "one part", "all parts"])
def test_a_run_whose_source_has_changed_since_another_was_trained_fails_with_that_reason(
    study: StudyContext, tmp_path: Path, lost: list[int]
) -> None:
    trained, missing = study.planned_runs()[:2]
    assert trained.tokens == missing.tokens
    folder = tokenised(study, trained)
    for part in lost:
        (folder / datasets.part_name(part)).unlink()
    put(tmp_path, "falling noise")
    failed = tokenise(study, [trained, missing], [missing])
    assert list(failed) == [missing.run_id]
    assert failed[missing.run_id].endswith(f"{trained.run_id} was trained with that one: set the source back")
    assert (folder / datasets.MANIFEST).exists()
