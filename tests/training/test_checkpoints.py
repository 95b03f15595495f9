"""Checkpoints: a copy of the moment, all of it or none, and a run that hears of a disk that takes no more."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support.small_disk import mounted
from support.workers import joined, together
from transformers import PreTrainedModel

from tsd.errors import TrainingError
from tsd.models.students import build
from tsd.models.tokenizer import build_tokenizer
from tsd.recipe import Student, TrainingConfig
from tsd.storage import folders
from tsd.training.checkpoints import Checkpoints, is_whole, restore
from tsd.training.loop import Progress, WorkerContext, make_optimizer, shard

HERE = WorkerContext()


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone, as Ray Train gives every worker one."""
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path_factory.mktemp('group')}/meet", rank=0, world_size=1
    )
    yield
    dist.destroy_process_group()


def student(seed: int = 0, steps: int = 1) -> tuple[PreTrainedModel, torch.optim.Optimizer]:
    """A small student that has taken some steps, and its optimizer."""
    model = build(Student(name="0.03M"), build_tokenizer(["1 2"] * 2, 64), seed, 64)
    optimizer = make_optimizer(model, TrainingConfig())
    for _ in range(steps):
        model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def into(folder: Path) -> Callable[[Path, Progress], None]:
    """Keeps checkpoints in a folder, each by its step."""

    def keep(part: Path, now: Progress) -> None:
        folders.add_files(str(part), str(folder / f"step-{now.step}"))

    return keep


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A checkpoint on disk."""
    with Checkpoints(*student(), HERE, into(tmp_path), lambda _: None) as checkpoints:
        checkpoints.save(Progress(step=7))
    return tmp_path / "step-7"


def test_what_changes_after_a_save_does_not_reach_the_checkpoint(tmp_path: Path) -> None:
    model, optimizer = student()
    was = [parameter.detach().clone() for parameter in model.parameters()]
    moments = [{k: v.clone() for k, v in state.items()} for state in optimizer.state.values()]
    random = torch.get_rng_state()
    rate_limiter = threading.Event()

    def keep(part: Path, now: Progress) -> None:
        assert rate_limiter.wait(30)
        into(tmp_path)(part, now)

    with Checkpoints(model, optimizer, HERE, keep, lambda _: None) as checkpoints:
        progress = Progress(step=7, tokens=70, loss=1.5)
        checkpoints.save(progress)  # returns though nothing is kept yet
        with torch.no_grad():
            for tensor in [*model.parameters(), *(t for s in optimizer.state.values() for t in s.values())]:
                tensor.fill_(9.0)
        progress.step = 8
        torch.manual_seed(99)
        rate_limiter.set()
    again, fresh = student(seed=5)
    assert restore(tmp_path / "step-7", again, fresh, HERE) == Progress(step=7, tokens=70, loss=1.5)
    assert all(torch.equal(*pair) for pair in zip(was, again.parameters(), strict=True))
    for expected, found in zip(moments, fresh.state.values(), strict=True):
        assert all(torch.equal(expected[name], found[name]) for name in ("step", "exp_avg", "exp_avg_sq"))
    assert torch.equal(torch.get_rng_state(), random)


def test_a_checkpoint_is_told_of_when_it_is_kept_and_not_before(tmp_path: Path) -> None:
    order: list[str] = []

    def keep(part: Path, now: Progress) -> None:
        order.append(f"kept {now.step}")

    with Checkpoints(*student(), HERE, keep, lambda now: order.append(f"told {now.step}")) as checkpoints:
        for step in (5, 10):
            checkpoints.save(Progress(step=step))
    assert order == ["kept 5", "told 5", "kept 10", "told 10"]


def lose(name: str) -> Callable[[Path], None]:
    """A file that is not there."""
    return lambda folder: (folder / name).unlink()


def cut(name: str) -> Callable[[Path], None]:
    """A file whose end is missing."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


DAMAGES = {
    "without its index": lose(".metadata"),
    "with half an index": cut(".metadata"),
    "without a part": lose("__0_0.distcp"),
    "with half a part": cut("__0_0.distcp"),
    "without its progress": lose("progress.json"),
    "with half its progress": lambda folder: (folder / "progress.json").write_text('{"step": 7, '),
    "that is empty": lambda folder: [path.unlink() for path in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_checkpoint_that_was_half_written_is_not_taken_for_one(kept: Path, damage: str) -> None:
    assert is_whole(kept)
    DAMAGES[damage](kept)
    assert not is_whole(kept)


def full(part: Path, now: Progress) -> None:
    """A disk that takes the first checkpoint and no other."""
    if now.step > 5:
        raise OSError(28, "No space left on device")


def test_a_checkpoint_that_cannot_be_kept_ends_the_run_in_one_line_and_is_not_told_of() -> None:
    told: list[int] = []

    def run() -> None:
        with Checkpoints(*student(), HERE, full, lambda now: told.append(now.step)) as checkpoints:
            for step in (5, 10, 15):
                checkpoints.save(Progress(step=step))

    with pytest.raises(TrainingError) as caught:
        run()
    assert str(caught.value) == "the checkpoint of step 10 could not be kept: no space left on device"
    assert told == [5]


def test_the_last_checkpoint_is_waited_for() -> None:
    with (
        pytest.raises(TrainingError, match="could not be kept"),
        Checkpoints(*student(), HERE, full, lambda _: None) as checkpoints,
    ):
        checkpoints.save(Progress(step=10))


def test_what_went_wrong_first_is_what_is_said() -> None:
    def run() -> None:
        with Checkpoints(*student(), HERE, full, lambda _: None) as checkpoints:
            checkpoints.save(Progress(step=10))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run()


FILL = """
import sys, tempfile
from pathlib import Path
import torch.distributed as dist
from test_checkpoints import HERE, into, is_whole, student
from tsd.training.checkpoints import Checkpoints
from tsd.errors import TrainingError
from tsd.training.loop import Progress
disk = Path(sys.argv[1])
tempfile.tempdir = str(disk) if IN_TEMPORARY else None
dist.init_process_group("gloo", init_method=f"file://{tempfile.mkdtemp(dir='/tmp')}/meet", rank=0, world_size=1)
try:
    with Checkpoints(*student(), HERE, into(disk), lambda now: print("told", now.step)) as checkpoints:
        for step in range(1, 9):
            checkpoints.save(Progress(step=step))
except TrainingError as error:
    print(error)
    print([path.name for path in sorted(disk.glob("step-*")) if is_whole(path)])
dist.destroy_process_group()
"""


@pytest.mark.parametrize("in_temporary", [False, True], ids=["where it is kept", "where it is first written"])
def test_a_disk_that_is_full_is_said_in_one_line_and_leaves_what_was_kept(
    tmp_path: Path, in_temporary: bool
) -> None:
    code = FILL.replace("IN_TEMPORARY", str(in_temporary))
    done = mounted("size=2m", tmp_path / "disk", code, Path(__file__).parent)
    *told, error, whole = done.stdout.splitlines()
    assert len(told) >= 1, done.stderr[-2000:]
    assert error.startswith(f"the checkpoint of step {len(told) + 1} could not be kept: "), done.stdout
    assert "no space left on device" in error or in_temporary
    assert whole == str([f"step-{step}" for step in range(1, len(told) + 1)])


def work(rank: int, out: Path) -> None:
    """One of two workers that share a student; the second one's disk is full."""
    said = []
    with joined(rank, out) as place:
        model: Any = shard(build(Student(name="0.03M"), build_tokenizer(["1 2"] * 2, 64), 0, 64), place)
        optimizer = make_optimizer(model, TrainingConfig())
        keep = full if rank else into(out)
        try:
            with Checkpoints(
                model, optimizer, place, keep, lambda now: said.append(f"told {now.step}")
            ) as checkpoints:
                for step in (5, 10):
                    checkpoints.save(Progress(step=step))
        except TrainingError as error:
            said.append(str(error))
    (out / f"said-{rank}").write_text("\n".join(said))


def test_all_workers_hear_of_the_one_that_could_not_keep_its_part(tmp_path: Path) -> None:
    together(work, tmp_path)
    for rank in range(2):
        assert (tmp_path / f"said-{rank}").read_text().splitlines() == [
            "told 5",
            "the checkpoint of step 10 could not be kept: no space left on device",
        ]
