"""A real Ray of two nodes with disks of their own: whose storage must be shared, and who may work."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from support.cluster_nodes import Cluster, require_own_disks, running
from support.commands import ROOT, TSD, kill_all_of
from support.s3_server import S3

from tsd.models.students import build, export
from tsd.models.tokenizer import build_tokenizer
from tsd.recipe import Student
from tsd.storage import datasets, folders
from tsd.tasks import SINGLE

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]

TINY = (
    "name=tiny",
    "teacher={kind: rules}",
    "series.count=4000",
    "students.train_sizes=[64]",
    "students.seeds=[0]",
    "training.checkpoint_every=16",
    "evaluation.series=40",
    "evaluation.batch_size=40",
    "evaluation.validation_examples=40",
)


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is on another disk for the second node."""
    own = tmp_path_factory.mktemp("own")
    require_own_disks(own)
    return own


def node_types() -> dict[str, Any]:
    """What an autoscaler may start, as `ray up` hands it to the head; of a kind that starts nothing itself."""
    from ray.autoscaler._private.monitor import BASE_READONLY_CONFIG

    gpus = {"resources": {"CPU": 8, "GPU": 8}, "node_config": {}, "min_workers": 0, "max_workers": 2}
    return {
        **BASE_READONLY_CONFIG,
        "max_workers": 4,
        "available_node_types": {**BASE_READONLY_CONFIG["available_node_types"], "gpu": gpus},
    }


@pytest.fixture(scope="module")
def cluster(disks: Path, s3_server: S3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes of one CPU each; the second has an empty disk where the first one has `disks`."""
    types = tmp_path_factory.mktemp("autoscaler") / "types.yaml"
    types.write_text(yaml.safe_dump(node_types()))
    with running(f"--autoscaling-config={types}", **s3_server.environment) as two:
        two.start("--num-cpus=1", hidden=[disks])
        yield two


def start(cluster: Cluster, out: str, mlflow: Path, *extra: str, stage: str = "study") -> "subprocess.Popen[str]":
    """Start a command that joins the cluster."""
    overrides = [*TINY, f"tracking.uri=sqlite:///{mlflow}/mlflow.db", *extra]
    sets = [word for override in overrides for word in ("--set", override)]
    return subprocess.Popen(
        [*TSD, stage, "laptop", "--out", out, *sets],
        cwd=ROOT,
        env=cluster.driver(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: "subprocess.Popen[str]", timeout: float = 400) -> tuple[int, str, str]:
    """Wait for its end: exit code and what it printed."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        if process.poll() is None:
            kill_all_of(process)
    return process.returncode, out, err


def test_a_folder_that_not_every_node_sees_is_refused_before_anything_is_drawn(
    cluster: Cluster, disks: Path, tmp_path: Path
) -> None:
    code, out, err = ended(start(cluster, str(disks), tmp_path))
    assert code == 2, out + err
    (line,) = err.splitlines()
    assert f"does not see the driver's {disks}/tiny: set out to a URI such as s3://" in line
    assert "Draw series" not in out
    assert not list((disks / "tiny").rglob("*.parquet"))


def test_a_folder_that_all_nodes_share_passes_though_it_is_a_path(cluster: Cluster, tmp_path: Path) -> None:
    code, out, err = ended(start(cluster, str(tmp_path), tmp_path, stage="check"))
    assert code == 0, out + err
    assert f"all 2 see {tmp_path}/tiny" in out
    assert not [line for line in out.splitlines() if not line.startswith("ok ")]
    assert not list((tmp_path / "tiny").iterdir())


def test_node_types_that_start_from_nothing_are_held_against_what_the_recipe_asks_for(
    cluster: Cluster, tmp_path: Path
) -> None:
    def checked(workers: int) -> tuple[int, list[str]]:
        many = (f"training.workers={workers}", f"training.batch_size={workers}", "training.gpu=true")
        code, out, _ = ended(start(cluster, str(tmp_path), tmp_path, *many, stage="check"))
        return code, [line for line in out.splitlines() if line.startswith("problem")]

    assert checked(16) == (0, [])
    code, (line,) = checked(17)
    assert code == 2
    assert "needs 17 workers of 1 GPU each, but all nodes and node types of the cluster together have 16" in line


def board() -> psutil.Process | None:
    """The process of the progress actor, where it is there."""
    for process in psutil.process_iter(["cmdline"]):
        if any("ray::Board" in word for word in process.info["cmdline"] or ()):
            return process
    return None


def test_a_study_in_an_object_store_goes_on_without_its_progress_actor(
    cluster: Cluster, s3: S3, tmp_path: Path
) -> None:
    source, out = s3.uri("models/small"), s3.uri("two-nodes")
    tokenizer = build_tokenizer(["Describe the series: 1 2 3"] * 2, 2048)
    export(build(Student(name="0.03M"), tokenizer, 0, 2048), tokenizer, tmp_path / "small", {})
    folders.copy_folder(str(tmp_path / "small"), source)
    students = f"students.models=[0.03M, {{name: from-source, source: '{source}', learning_rate: 1.0e-3}}]"
    process = start(cluster, out, tmp_path, students, "training.epochs=4")
    killed = 0
    until = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < until and killed < 2:
        if found := board():
            found.kill()
            killed += 1
            time.sleep(2)
        time.sleep(0.1)
    code, printed, err = ended(process)
    assert code == 0, printed[-3000:] + err[-3000:]
    assert killed == 2
    runs = datasets.open_dataset(f"{out}/tiny/runs", SINGLE.tables.runs).read().to_pylist()
    assert sorted(run["student"] for run in runs) == ["0.03M", "from-source"]
    for run in runs:
        folder = f"{out}/tiny/students/{run['run_id']}"
        assert folders.read_json(folder, "config.json")["model_type"] == "qwen3"
        said = datasets.open_dataset(f"{out}/tiny/predictions/{run['run_id']}", SINGLE.tables.predictions)
        assert said.rows == 40
    assert not folders.read_json(f"{out}/tiny", "failures.json")


# A node joins with a disk of its own where the study lies; work begins when it is up.
JOINED = """
import json, subprocess, sys, time
import ray
from pathlib import Path
from tsd.cluster import nodes
from tsd.cluster.session import session

folder, joins = sys.argv[1], Path(sys.argv[2])
said = []

class Keeper:
    def __call__(self, batch):
        time.sleep(0.05)
        return {"part": batch["part"], "node": [ray.get_runtime_context().get_node_id()]}

def work(batch):
    return Keeper()(batch)

with session(), nodes.watched(folder, [], [], said.append):
    fit = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    joins.touch()
    while len(alive := {node["NodeID"] for node in ray.nodes() if node["Alive"]}) == len(fit):
        time.sleep(0.1)
    items = [{"part": part} for part in range(60)]
    made = [row for row in nodes.done(work, items, num_cpus=1)]
    kept = [row for row in nodes.done(Keeper, items, num_cpus=1, concurrency=3)]
    print(json.dumps({
        "parts": sorted(row["part"] for row in made),
        "kept": sorted(row["part"] for row in kept),
        "others": sorted({row["node"] for row in made + kept} - fit),
        "said": said,
        "joined": len(alive - fit),
    }))
"""


def test_a_node_that_joins_without_the_storage_takes_no_work_and_the_driver_says_so_once(
    cluster: Cluster, tmp_path: Path
) -> None:
    joins, folder = tmp_path / "joins", tmp_path / "study"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", JOINED, str(folder), str(joins)],
        env=cluster.driver(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    until = time.monotonic() + 300
    while not joins.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.1)
    cluster.start("--num-cpus=1", hidden=[folder])
    code, out, err = ended(process, timeout=400)
    assert code == 0, out + err
    told = json.loads(out.splitlines()[-1])
    assert told["joined"] == 1
    assert told["parts"] == told["kept"] == list(range(60))
    assert told["others"] == []
    (line,) = told["said"]
    assert "gets no work" in line
    assert f"does not see the driver's {folder}" in line
