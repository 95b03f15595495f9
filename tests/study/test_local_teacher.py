"""A teacher of one's own, trained in this process: its series, its key, its folder, and going on after a stop."""

import io
import json
import re
from pathlib import Path

import pytest
from mlflow import MlflowClient
from rich.console import Console

from tsd.errors import InputError
from tsd.generation import generator
from tsd.progress import Reporter
from tsd.recipe import Recipe, load
from tsd.storage import folders
from tsd.study import identity, local_teacher
from tsd.tasks import SINGLE
from tsd.training import checkpoints
from tsd.training.loop import Progress

PICTURES = 12_000


def recipe(folder: Path, *changes: str) -> Recipe:
    train = f"teacher={{kind: local, train: {{size: 0.03M, pictures: {PICTURES}}}}}"
    place = [f"out={json.dumps(str(folder))}", f"tracking.uri=sqlite:///{folder}/mlflow.db"]
    return load("laptop", [train, "evaluation.validation_examples=64", *place, *changes])


def trained(asked: Recipe) -> str:
    """Train the teacher as the command does. Returns what was printed."""
    console = Console(file=io.StringIO(), width=200)
    local_teacher.prepare_alone(asked, Reporter(console))
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def weights(asked: Recipe) -> bytes:
    return Path(asked.folder, "teacher/model.safetensors").read_bytes()


def test_it_learns_from_other_series_than_its_study_has(tmp_path: Path) -> None:
    asked = recipe(tmp_path, "teacher.train.pictures=300")
    series = local_teacher.draw(asked)
    assert {split: len(rows) for split, rows in series.items()} == {"train": 300, "validation": 64, "test": 1000}
    study = generator.draw_table(SINGLE, asked.series, asked.seed, 0, 2048)["values"].to_pylist()
    seen = {tuple(values) for rows in series.values() for values in rows["values"].to_pylist()}
    assert len(seen) > 1300
    assert not seen & set(map(tuple, study))


def test_it_is_made_anew_for_what_shapes_it_and_for_nothing_else() -> None:
    changes: tuple[list[str], ...] = (
        [],
        ["series.count=70000", "series.blocks_per_part=2", "teacher.kind=vllm"],
        ["series.length=64"],
        ["teacher.train.pictures=500"],
    )
    keys = [identity.teacher_key(load("laptop", each)) for each in changes]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, str]:
    """A recipe whose teacher was trained, and what was printed."""
    asked = recipe(tmp_path_factory.mktemp("once"))
    return asked, trained(asked)


def test_it_is_kept_with_its_scores_and_tracked_as_a_run_of_the_study(once: tuple[Recipe, str]) -> None:
    asked, printed = once
    assert f"{PICTURES:,} plots" in printed
    assert float(re.findall(r"valid ([\d.]+)%", printed)[0]) > 90  # of sentences that vary
    assert "| score | share right |" in Path(asked.folder, "teacher/README.md").read_text()
    assert not Path(asked.folder, "teacher-checkpoints").exists()
    client = MlflowClient(asked.tracking.uri)
    runs = client.search_runs([client.get_experiment_by_name(asked.tracking.experiment).experiment_id])
    (run,) = [one for one in runs if one.info.run_name.startswith("own-0.03M-")]
    assert run.data.metrics["noise"] > 0.6  # what is learned first
    assert run.data.params["examples"] == str(PICTURES)
    assert len(client.get_metric_history(run.info.run_id, "loss")) > 10


def test_it_is_not_trained_twice_nor_is_another_one_put_in_its_place(once: tuple[Recipe, str]) -> None:
    asked, _ = once
    before = weights(asked)
    assert "the teacher exists already" in trained(asked)
    with pytest.raises(InputError, match=r"holds a teacher that differs from teacher\.train"):
        trained(asked.model_copy(update={"seed": 5}))
    assert weights(asked) == before


def test_one_that_was_stopped_goes_on_from_its_checkpoint_to_the_same_weights(
    once: tuple[Recipe, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = recipe(tmp_path)
    every = local_teacher.settings(asked).model_copy(update={"checkpoint_every": 20})
    monkeypatch.setattr(local_teacher, "settings", lambda _: every)
    tell, told = checkpoints.Checkpoints._publish, []

    def stop_after_two(self: checkpoints.Checkpoints, *rest: object) -> None:
        tell(self, *rest)  # type: ignore[arg-type]
        told.append(rest)
        if len(told) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as stopping:
        stopping.setattr(checkpoints.Checkpoints, "_publish", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            trained(asked)
    kept = Path(asked.folder, "teacher-checkpoints")
    assert {path.name for path in kept.iterdir()} == {"40", "latest.json"}
    restored: list[Progress] = []
    restore = checkpoints.restore

    def noted(*rest: object) -> Progress:
        restored.append(restore(*rest))  # type: ignore[arg-type]
        return restored[-1]

    monkeypatch.setattr(checkpoints, "restore", noted)
    assert "1,280 of them from before" in trained(asked)
    assert restored
    assert weights(asked) == weights(once[0])
    assert folders.read_json(str(kept), local_teacher.LATEST) is None
