"""What a worker or trial does before it trains, without Ray: its tokenizer, and the checkpoint that it uses."""

import logging
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from tsd.cluster.training_worker import (
    SNAPSHOT,
    STEP,
    RunCheckpoints,
    forget_cut_off_snapshot,
    load_tokenizer_of,
    lying_in,
    restore_last,
)
from tsd.errors import InputError
from tsd.models.students import build
from tsd.models.tokenizer import build_tokenizer, load_tokenizer, tokenizer_digest
from tsd.recipe import Student, load
from tsd.storage import datasets, folders
from tsd.storage.schemas import TOKENS
from tsd.study.identity import plan_runs
from tsd.training.checkpoints import PROGRESS, Checkpoints, is_whole
from tsd.training.loop import Progress, WorkerContext, make_optimizer
from tsd.training.runs import RunSpec


@pytest.mark.parametrize("content", [b"", b'{"checkpoint_results": [', b"\xff\xfe"])
def test_a_list_of_checkpoints_that_was_cut_off_is_deleted(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SNAPSHOT).write_bytes(content)
    forget_cut_off_snapshot(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_whole_list_of_checkpoints_is_kept_and_a_missing_one_is_no_error(tmp_path: Path) -> None:
    forget_cut_off_snapshot(str(tmp_path))
    (tmp_path / SNAPSHOT).write_bytes(b"{}")
    forget_cut_off_snapshot(str(tmp_path))
    assert (tmp_path / SNAPSHOT).read_bytes() == b"{}"


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone, as Ray Train gives every worker one."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def tokens(folder: Path, about: dict[str, str]) -> datasets.Dataset:
    """An empty table of tokens that keeps the digest of its tokenizer."""
    made = datasets.write_part(str(folder), 0, TOKENS.empty_table(), TOKENS, "key")
    return datasets.commit(str(folder), TOKENS, "key", 1, {}, {0: made}, about)


def a_run(source: Path | None = None) -> RunSpec:
    """A run of a student with or without a source."""
    whence = f"source: {source}" if source else "size: 0.03M"
    recipe = load("laptop", [f"students.models=[{{name: a, {whence}, learning_rate: 1.0e-3}}]"])
    return plan_runs(recipe, "examples")[0]


def student() -> tuple[PreTrainedModel, torch.optim.Optimizer]:
    """A small student, and its optimizer."""
    model = build(Student(name="0.03M"), build_tokenizer(["1 2"] * 2, 64), 0, 64)
    return model, make_optimizer(model, load("laptop").training)


@pytest.mark.usefixtures("group")
def test_a_run_resumes_from_its_last_checkpoint_of_the_same_tokens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trial, run, here = tmp_path / "trial", a_run(), WorkerContext()
    (model, optimizer), paths = student(), []

    def keep(part: Path, now: Progress) -> None:
        paths.append(str(trial / f"{run.run_id}{STEP}{now.step:08d}"))
        folders.add_files(str(part), paths[-1])

    with Checkpoints(model, optimizer, here, keep, lambda _: None) as checkpoints:
        for step, tokenizer in ((1, ""), (2, "first"), (3, "first"), (4, "second")):
            checkpoints.save(Progress(step=step, tokenizer=tokenizer))

    def resumed(about: dict[str, str]) -> tuple[int, str]:
        made = tokens(tmp_path / str(about), about)
        progress = restore_last(paths, *student(), run, here, str(trial), made)
        return progress.step, progress.tokenizer

    with caplog.at_level(logging.WARNING, "tsd"):
        caplog.clear()
        assert resumed({"tokenizer": "first"}) == (3, "first")
        assert sum(record.name.startswith("tsd") for record in caplog.records) == 1
        assert "another tokenizer made the tokens that it was trained on" in caplog.text
        assert resumed({"tokenizer": "third"}) == (0, "third")
        assert resumed({"tokenizer": "second"}) == (4, "second")
        assert resumed({}) == (1, "")  # both of an earlier version


def stored(start: RunCheckpoints, folder: Path, tokenizer: str, fill: float, killed: bool = False) -> Path:
    """A checkpoint of step 250 that a start stored, or of which it stored one file. All weights have one value."""
    model, optimizer = student()
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(fill)

    def keep(part: Path, now: Progress) -> None:
        if killed:
            for path in part.iterdir():
                if path.name != PROGRESS:
                    path.unlink()
        start.keep(part, now)

    progress = Progress(step=250, tokenizer=tokenizer)
    with Checkpoints(model, optimizer, WorkerContext(), keep, lambda _: None) as checkpoints:
        checkpoints.save(progress)
    return folder / start.name(progress)


@pytest.mark.usefixtures("group")
def test_a_run_that_starts_again_writes_to_no_folder_of_an_earlier_start(tmp_path: Path) -> None:
    trial, run = tmp_path / "trial", a_run()
    starts = [RunCheckpoints(run.run_id, str(trial), start) for start in ("f0", "00", "77")]

    def resumed(tokenizer: str) -> tuple[int, float]:
        """Step, and a weight where it resumes."""
        model, optimizer = student()
        made = tokens(tmp_path / f"tokens-{tokenizer}", {"tokenizer": tokenizer})
        progress = restore_last(lying_in(str(trial)), model, optimizer, run, WorkerContext(), str(trial), made)
        return progress.step, float(next(model.parameters()).detach().flatten()[0])

    first = stored(starts[0], trial, "old", 1.0)
    assert resumed("old") == (250, 1.0)
    stored(starts[1], trial, "new", 2.0, killed=True)
    assert resumed("new")[0] == 0, "the weights of another vocabulary were loaded"
    assert resumed("old") == (250, 1.0)
    third = stored(starts[2], trial, "new", 3.0)
    shutil.rmtree(first)  # by Ray, which keeps one of its list
    assert is_whole(third)
    assert resumed("new") == (250, 3.0)


def test_what_earlier_starts_of_a_run_left_is_deleted_but_for_what_ray_deletes_itself(tmp_path: Path) -> None:
    start, now = RunCheckpoints("a-1-s0-0123", str(tmp_path), "feed"), Progress(step=20)
    earlier = [RunCheckpoints("a-1-s0-0123", str(tmp_path), name) for name in ("0001", "0002")]
    other = RunCheckpoints("b-1-s0-0123", str(tmp_path), "0001")
    for one in (start, *earlier, other):
        (tmp_path / one.name(now)).mkdir()
    (tmp_path / f"a-1-s0-0123{STEP}00000010").mkdir()  # of an earlier version
    start.delete_earlier([earlier[0].name(now)])
    kept = {one.name(now) for one in (start, earlier[0], other)}
    assert {path.name for path in tmp_path.iterdir()} == kept
    start.delete_earlier([])
    assert {path.name for path in tmp_path.iterdir()} == {start.name(now), other.name(now)}


def test_a_node_with_another_tokenizer_than_that_of_the_tokens_fails_the_run(tmp_path: Path) -> None:
    source = tmp_path / "source"
    build_tokenizer(["rising trend"] * 2, 512).save_pretrained(source)
    digest = tokenizer_digest(load_tokenizer(str(source)))
    same, other, unknown = (
        tokens(tmp_path / str(number), about)
        for number, about in enumerate([{"tokenizer": digest}, {"tokenizer": "other"}, {}])
    )
    for known in (same, unknown):
        assert tokenizer_digest(load_tokenizer_of(known, a_run(source), str(tmp_path))) == digest
    with pytest.raises(InputError) as raised:
        load_tokenizer_of(other, a_run(source), str(tmp_path))
    line = str(raised.value)
    assert f"tokenizer of {source} on node {socket.gethostname()} is another one" in line
    assert "\n" not in line


def test_a_tokenizer_of_the_study_itself_is_the_same_on_every_node(tmp_path: Path) -> None:
    run = a_run()
    build_tokenizer(["rising trend"] * 2, 512).save_pretrained(tmp_path / "tokenizers" / run.tokenizer)
    load_tokenizer_of(tokens(tmp_path / "tokens", {"tokenizer": "of other library versions"}), run, str(tmp_path))
