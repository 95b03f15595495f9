"""Training on a real local Ray: runs that fail beside others that do not, workers killed, machines changed."""

import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from support.commands import SHARED, command, ended, kill_all_of, kill_once, run, start, worker_of

from tsd.storage import datasets
from tsd.tasks import SINGLE

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]

RUN = "0.03M-1600-s0-*"
SHORT = ("0.03M-300-s0-*", "0.03M-200-s0-*")  # share a trial where one is under way at a time
TRAINED = ("students.models=[0.03M]", "students.train_sizes=[1600]", "training.checkpoint_every=10")
TRAIN_SIZES = "students.train_sizes=[200,300,1600]"


def with_a_run_that_fails(out: Path, stage: str) -> subprocess.CompletedProcess[str]:
    """Two students, of which one has a learning rate that no number withstands."""
    sizes = "students.models=[0.03M, {name: 0.1M, learning_rate: 1.0e+30}]"
    arguments = command(out, sizes, TRAIN_SIZES, "training.concurrent_trials=2", stage=stage)
    return ended(arguments, 2, timeout=600)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A study with such a run, and what it printed."""
    out = tmp_path_factory.mktemp("runs")
    return out, with_a_run_that_fails(out, "study")


@pytest.fixture
def examples(done: tuple[Path, object], tmp_path: Path) -> Path:
    """A folder with what training needs and no student."""
    for name in ("series", "annotations", "examples", "tokenizers", "tokens"):
        shutil.copytree(done[0] / "tiny" / name, tmp_path / "tiny" / name)
    return tmp_path


def test_a_run_that_fails_leaves_the_others_whole_and_is_told_of_everywhere(
    done: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, result = done
    assert result.returncode == 1, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert "3 of 6 runs failed" in line
    assert " is nan at step 1: lower the learning rate" in line
    runs = datasets.open_dataset(str(out / "tiny" / "runs"), SINGLE.tables.runs).read()
    assert runs["student"].to_pylist() == ["0.03M"] * 3
    assert "failed: 0.1M-1600-s0-" in " ".join(result.stdout.split())
    assert "Failed: 0.1M-1600-s0-" in (out / "tiny" / "report.html").read_text()
    client = MlflowClient(f"sqlite:///{out}/mlflow.db")
    status = {run.info.run_name[:4]: run.info.status for run in client.search_runs(["1"])}
    assert (status["0.1M"], status["0.03"]) == ("FAILED", "FINISHED")


def test_what_failed_is_tried_again_by_the_same_command_and_nothing_else_is(
    done: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    out, _ = done
    born = {path: path.stat().st_mtime_ns for path in (out / "tiny" / "students").glob("*/model.safetensors")}
    assert len(born) == 3
    again = with_a_run_that_fails(out, "train")
    assert again.returncode == 1
    assert "3 of 6 runs failed" in again.stderr
    run(command(out, "students.models=[0.03M]", TRAIN_SIZES, stage="train"), cpus=2)  # without it
    assert {path: path.stat().st_mtime_ns for path in born} == born


def test_workers_killed_again_and_again_end_with_the_weights_of_some_that_nobody_disturbed(
    done: tuple[Path, object], examples: Path, long: bool
) -> None:
    rng, trials = random.Random(11), examples / "tiny" / "trials"
    kills = 5 if long else 2
    settings = (TRAIN_SIZES, f"training.max_failures={kills + 2}")
    process = start(command(examples, *TRAINED, *settings, stage="train"))
    killed: list[set[Path]] = [set()]

    def kill_after_a_checkpoint_of(run: str) -> None:
        until = time.monotonic() + 400
        while True:
            assert process.poll() is None, f"it ended after {len(killed) - 1} kills"
            assert time.monotonic() < until, f"{len(killed) - 1} kills"
            checkpoints = set(trials.glob(f"*/{run}-step-*"))
            if checkpoints - killed[-1] and (worker := worker_of(process, "RayTrainWorker")):
                time.sleep(rng.uniform(0.0, 0.2))
                worker.kill()
                killed.append(checkpoints)
                return
            time.sleep(0.02)

    try:
        for _ in range(kills):
            kill_after_a_checkpoint_of(RUN)
        kill_after_a_checkpoint_of(SHORT[1])  # the second of a trial, whose first is finished
        assert len(list(trials.glob(f"{SHORT[0]}-and-1-*"))) == 1
        assert process.wait(300) == 0
    finally:
        if process.poll() is None:
            kill_all_of(process)
    for name in (RUN, *SHORT):
        undisturbed, mine = (
            next((place / "tiny" / "students").glob(f"{name}/model.safetensors")) for place in (done[0], examples)
        )
        assert mine.read_bytes() == undisturbed.read_bytes()


POSTED_LATE = """
import ray
from tsd.cluster.session import session
from tsd.cluster.board import Board
from tsd.cluster.training import _Listener

with session():
    board, reported = Board.remote(), []
    listener = _Listener(board, lambda run_id, metrics: reported.append((run_id, metrics["loss"])), print, {})
    board.post.remote("trial", "first", {"loss": 2.0})
    listener.pending = board.collect.remote()  # asked before the last word, and looked at after it
    ray.get(board.post.remote("trial", "last", {"loss": 1.0}))
    listener.finish()
    print(reported)
"""


def test_what_a_trial_posts_last_is_reported_though_the_board_was_asked_before() -> None:
    result = ended([sys.executable, "-c", POSTED_LATE], SHARED)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[('first', 2.0), ('last', 1.0)]"


def test_two_workers_shard_a_student_and_one_alone_goes_on_with_it_to_the_same_loss(
    done: tuple[Path, object], examples: Path
) -> None:
    two = command(examples, *TRAINED, "training.workers=2", stage="train")
    half = f"*/{RUN}-step-000001?0-*/.metadata"  # of 200 steps
    kill_once(lambda: any((examples / "tiny" / "trials").glob(half)), two, cpus=2)
    run(command(examples, *TRAINED, stage="train"), cpus=2)
    losses = [
        json.loads(next((place / "tiny" / "records").glob(f"{RUN}.json")).read_text())["validation_loss"]
        for place in (done[0], examples)
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_two_workers_stop_early_at_the_same_step(examples: Path) -> None:
    sizes, few = "students.models=[{name: 0.03M, learning_rate: 0.3}]", "students.train_sizes=[40]"
    patience = ("training.epochs=60", "training.early_stopping_patience=1", "training.workers=2")
    run(command(examples, sizes, few, *patience, stage="train"), cpus=2)
    (record,) = (json.loads(path.read_text()) for path in (examples / "tiny" / "records").iterdir())
    assert record["stopped_early"]
    assert 5 < record["steps"] < 60 * 5
    assert record["steps"] % 5 == 0


def test_a_checkpoint_that_is_damaged_is_passed_over_for_the_one_before(
    done: tuple[Path, object], examples: Path
) -> None:
    arguments = command(examples, *TRAINED, "training.keep_checkpoints=2", stage="train")
    trial = examples / "tiny" / "trials"

    def pruned() -> bool:
        """After ten checkpoints there are two, and perhaps one that Ray has yet to hear of."""
        there = sorted(path.parent.name for path in trial.glob(f"*/{RUN}-step-*/.metadata"))
        return 2 <= len(there) <= 3 and there[-1].rpartition("-step-")[2] >= "00000100"

    kill_once(pruned, arguments, cpus=2)
    last = max(path.parent for path in trial.glob(f"*/{RUN}-step-*/.metadata"))
    for part in last.glob("*.distcp"):
        part.write_bytes(part.read_bytes()[:1000])
    (snapshot,) = trial.glob("*/checkpoint_manager_snapshot.json")
    snapshot.write_bytes(b"")  # as where Ray was killed while it wrote down which checkpoints there are
    run(arguments, cpus=2)
    undisturbed, mine = (
        next((place / "tiny" / "students").glob(f"{RUN}/model.safetensors")) for place in (done[0], examples)
    )
    assert mine.read_bytes() == undisturbed.read_bytes()


@pytest.mark.long("the test above restores training from the checkpoint before a damaged one")
def test_a_checkpoint_of_the_same_step_as_a_damaged_one_is_not_deleted_with_it(
    done: tuple[Path, object], examples: Path
) -> None:
    arguments = command(examples, *TRAINED[:2], "training.checkpoint_every=120", stage="train")  # of 200 steps
    trials = examples / "tiny" / "trials"

    def listed() -> set[str]:
        """Names of the checkpoints in Ray's list."""
        try:
            (snapshot,) = trials.glob("0.03M-1600-*/checkpoint_manager_snapshot.json")
            results = json.loads(snapshot.read_text())["checkpoint_results"]
        except ValueError:  # not there, or not complete
            return set()
        return {one["checkpoint_dir_name"] for one in results}

    kill_once(listed, arguments, cpus=2)
    (damaged,) = trials.glob(f"*/{RUN}-step-*")
    (damaged / ".metadata").unlink()
    kill_once(lambda: not damaged.exists(), arguments, cpus=2)  # Ray keeps one
    (kept,) = trials.glob(f"*/{RUN}-step-*")
    assert (kept / ".metadata").exists()
    assert listed() == {kept.name}


def test_a_student_that_cannot_reply_is_named_the_others_are_scored_and_it_is_tried_again(
    done: tuple[Path, object], examples: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(next((done[0] / "tiny" / "students").glob("0.03M-200-*")), source)
    adapted = f"{{name: adapted, source: {source}, learning_rate: 1.0e-3, lora: {{export: adapter}}}}"
    settings = (f"students.models=[0.03M, {adapted}]", "students.train_sizes=[40]")
    run(command(examples, *settings, stage="train"), cpus=2)
    source.rename(tmp_path / "gone")  # its adapters alone cannot reply without it
    arguments = command(examples, *settings, stage="evaluate")
    result = ended(arguments, 2, timeout=600)
    assert result.returncode == 1, result.stdout + result.stderr
    (line,) = result.stderr.splitlines()
    assert "1 of 2 runs failed; adapted-40-s0-" in line
    assert "the same command tries them again" in line
    assert "no replies: adapted-40-s0-" in result.stdout
    runs = datasets.open_dataset(str(examples / "tiny" / "runs"), SINGLE.tables.runs).read()
    assert runs["student"].to_pylist() == ["0.03M"]
    status = {
        run.info.run_name[:7]: run.info.status
        for run in MlflowClient(f"sqlite:///{examples}/mlflow.db").search_runs(["1"])
    }
    assert status["adapted"] == "FAILED"
    (tmp_path / "gone").rename(source)
    run(arguments, cpus=2)
    runs = datasets.open_dataset(str(examples / "tiny" / "runs"), SINGLE.tables.runs).read()
    assert sorted(runs["student"].to_pylist()) == ["0.03M", "adapted"]
