"""What is checked before anything is drawn or paid for: each problem is one line that names the fix."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from support.commands import ROOT, TSD, environment

from tsd.cluster import commands, demands, node_checks, nodes, preflight
from tsd.cluster.demands import Demand, Machines
from tsd.cluster.study import READ
from tsd.errors import StorageError
from tsd.progress import Step
from tsd.recipe import Recipe, load
from tsd.storage import datasets
from tsd.study import identity
from tsd.tasks import modules


def of(kind: str, recipe: Recipe, stage: str = "study") -> list[demands.Finding]:
    return [found for found in preflight.before_ray(recipe, stage) if found.what == kind]


@pytest.fixture
def free_port() -> int:
    """One on which nothing listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def deaf() -> Iterator[int]:
    """The port of a server that takes connections and says nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def asking(out: Path, url: str, *more: str) -> Recipe:
    teacher = f"teacher={{kind: openai, model: any, base_url: '{url}', key_env: TSD_TEST_KEY}}"
    return load("laptop", [teacher, "students.models=[0.03M]", f"out={out}", *more])


def test_a_missing_key_and_a_server_that_is_not_there_are_both_said(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TSD_TEST_KEY", raising=False)
    recipe = asking(tmp_path, f"http://127.0.0.1:{free_port}/v1")
    said = preflight.problems(preflight.before_ray(recipe, "study")).splitlines()
    assert len(said) == 2
    assert "TSD_TEST_KEY (teacher.key_env) holds no key" in said[0]
    assert f"nothing listens on port {free_port} of 127.0.0.1" in said[1]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://no-such-host.invalid/v1", "the host no-such-host.invalid is not known"),
        ("https://127.0.0.1:{deaf}/v1", "did not accept a connection"),
    ],
)
def test_why_a_server_cannot_be_reached_is_said(
    tmp_path: Path, deaf: int, url: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSD_TEST_KEY", "k")
    monkeypatch.setattr(preflight, "ANSWER_SECONDS", 0.3)
    (found,) = of("teacher", asking(tmp_path, url.format(deaf=deaf)))
    assert not found.ok
    assert said in found.said
    (well,) = of("teacher", asking(tmp_path, f"http://127.0.0.1:{deaf}/v1"))
    assert well.ok


def test_a_finished_table_asks_for_no_key_and_a_report_for_no_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TSD_TEST_KEY", raising=False)
    recipe = asking(
        tmp_path, "http://127.0.0.1:9/v1", "students.models=[{name: a, source: /no/where, learning_rate: 1}]"
    )
    datasets.commit(f"{recipe.folder}/annotations", recipe.asks.tables.annotations, "key", 0, {})
    assert not of("key", recipe)
    assert not of("teacher", recipe)
    assert [found.ok for found in of("student", recipe)] == [False]
    assert not preflight.problems(preflight.before_ray(recipe, "report"))


def test_an_engine_with_an_interpreter_of_its_own_needs_no_vllm_beside_tsd(tmp_path: Path) -> None:
    engine = ["teacher={kind: vllm, model: eyes-7b, gpu: false}", f"out={tmp_path}"]
    own = [*engine, f"teacher.engine_python={sys.executable}"]
    asked, alone = load("laptop", engine), load("laptop", own)
    assert preflight.packages(asked, "annotate") == ["vllm"]
    assert preflight.packages(alone, "annotate") == []
    said = {found.what: found for found in preflight.before_ray(alone, "annotate")}
    assert said["packages"].ok
    assert sys.executable in said["packages"].said


def test_nodes_are_asked_for_vllm_if_the_driver_chooses_it_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vllm.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    source = "students.models=[{name: a, source: hub/model, learning_rate: 1.0e-4}]"
    recipe = load("laptop", ["teacher={kind: rules}", "training.gpu=true", source])
    assert identity.engine_of(recipe, recipe.students.models[0]) == "vllm"
    assert preflight.packages(recipe, "evaluate") == preflight.packages(recipe, "study") == ["vllm"]
    assert preflight.packages(recipe, "train") == []
    assert preflight.packages(load("laptop", ["training.gpu=true"]), "study") == []


def test_a_teacher_on_this_machine_is_checked_as_it_is_asked_without_the_proxy(
    tmp_path: Path, deaf: int, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSD_TEST_KEY", "k")
    for name in ("no_proxy", "NO_PROXY", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for host in ("127.0.0.1", "localhost"):
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port}")  # where nothing listens
        (well,) = of("teacher", asking(tmp_path, f"http://{host}:{deaf}/v1"))
        assert well.ok, well
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{deaf}")  # which takes any connection
        (absent,) = of("teacher", asking(tmp_path, f"http://{host}:{free_port}/v1"))
        assert f"nothing listens on port {free_port} of {host}" in absent.said
        (elsewhere,) = of("teacher", asking(tmp_path, "http://no-such-host.invalid/v1"))
        assert elsewhere.ok  # the proxy looks it up


def test_gpus_that_this_machine_lacks_are_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    recipe = load("laptop", ["teacher={kind: rules}", f"out={tmp_path}", "training.gpu=true"])
    said = [found.said for found in of("machines", recipe) if not found.ok]
    assert len(said) == 2  # to train and to decode
    assert all("this machine has" in one and "training.gpu=false" in one for one in said)
    wide = load("laptop", ["teacher={kind: rules}", f"out={tmp_path}", "training.workers=8"])
    monkeypatch.setenv("TSD_CPUS", "2")
    (found,) = [found for found in of("machines", wide) if not found.ok]
    assert "8 workers of 1 CPU each, but this machine has 2 CPUs" in found.said


def test_a_tracking_store_that_cannot_be_used_is_said(tmp_path: Path, free_port: int) -> None:
    (tmp_path / "notes.txt").write_text("not a database at all")
    uris = {
        f"sqlite:///{tmp_path}/notes.txt": "is not an SQLite database",
        f"sqlite:///{tmp_path}/notes.txt/mlflow.db": "cannot be written to",
        f"http://127.0.0.1:{free_port}": f"nothing listens on port {free_port}",
        f"sqlite:///{tmp_path}/new/mlflow.db": "",
    }
    for uri, said in uris.items():
        (found,) = of(
            "MLflow", load("laptop", ["teacher={kind: rules}", f"out={tmp_path}", f"tracking.uri={uri}"])
        )
        assert found.ok == (not said), found
        assert said in found.said


GPUS = Demand("training", 16, (("GPU", 1.0),), "fix")


@pytest.mark.parametrize(
    ("machines", "said"),
    [
        ([Machines("a", {"CPU": 8}, 4), Machines("gpu", {"CPU": 96, "GPU": 8}, 2)], ""),
        ([Machines("a", {"CPU": 8}, 4), Machines("gpu", {"CPU": 96, "GPU": 8}, 1)], "together have 8 of them"),
        ([Machines("a", {"CPU": 8}, 4), Machines("gpu", {"CPU": 96, "GPU": 8}, 0)], "no node or node type"),
        ([Machines("this machine", {"CPU": 8}, 1)], "this machine has 0 GPUs"),
    ],
)
def test_node_types_that_start_from_nothing_are_counted_by_what_they_may_become(
    machines: list[Machines], said: str
) -> None:
    lack = demands.shortage(GPUS, machines)
    assert (said in lack) if said else lack == ""


def test_every_problem_is_told_before_ray_is_started_and_nothing_is_drawn(tmp_path: Path) -> None:
    sets = (
        "teacher={kind: openai, model: any, base_url: 'http://127.0.0.1:9/v1', key_env: TSD_TEST_KEY}",
        "students.models=[{name: a, source: /no/where/model, learning_rate: 1.0e-4}]",
        "training.workers=64",
        "training.batch_size=64",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
    )
    overrides = [word for one in sets for word in ("--set", one)]
    clean = {name: value for name, value in environment(1).items() if name != "TSD_TEST_KEY"}
    command = [*TSD, "study", "laptop", "--out", str(tmp_path), *overrides]
    done = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("tsd: ") for line in lines)
    for part in ("TSD_TEST_KEY", "port 9 of 127.0.0.1", "/no/where/model", "64 workers of 1 CPU"):
        assert sum(part in line for line in lines) == 1, part
    assert "Start Ray" not in done.stdout
    assert not list(tmp_path.rglob("*.parquet"))


@pytest.mark.parametrize("stage", READ)
def test_a_stage_whose_tables_are_missing_says_so_before_ray_is_started(stage: str, tmp_path: Path) -> None:
    recipe = load(
        "laptop", ["teacher={kind: rules}", f"out={tmp_path}", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    )
    with pytest.raises(StorageError, match=f"{READ[stage][0]} holds no finished dataset"):
        commands.run(recipe, stage)
    assert not ray.is_initialized()
    assert not (tmp_path / "laptop" / "recipe.yaml").exists()


def test_check_prints_a_line_for_each_check(tmp_path: Path) -> None:
    clean = {name: value for name, value in environment(1).items() if name != "TSD_TEST_KEY"}
    command = [*TSD, "check", "laptop", "--out", str(tmp_path), "--set", "teacher={kind: rules}"]
    fine = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=120)
    assert fine.returncode == 0, fine.stdout + fine.stderr
    assert all(line.startswith("ok ") for line in fine.stdout.splitlines())
    assert {line.split()[1] for line in fine.stdout.splitlines()} == {"storage", "MLflow", "machines"}
    bad = subprocess.run(
        [*command, "--set", "training.workers=64", "--set", "training.batch_size=64"],
        cwd=ROOT,
        env=clean,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert bad.returncode == 2
    (line,) = [line for line in bad.stdout.splitlines() if line.startswith("problem")]
    assert "64 workers" in line
    assert os.listdir(tmp_path / "laptop") == []


def test_a_long_wait_says_what_it_is_for_and_since_when_until_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "SILENT_SECONDS", 0.2)
    shown: list[str] = []
    step = Step(2, lambda step: shown.append(step.note))

    def slow() -> Iterator[int]:
        time.sleep(1.6)
        yield from (1, 2)

    rows = []
    for row in nodes.noting_waits(slow(), step, {}, "the engine's next reply"):
        rows.append(row)
        step.advance(1)
    assert rows == [1, 2]
    assert any(note.startswith("waiting for ") and " since " in note for note in shown[:-2])
    assert shown[-2:] == ["", ""]


def test_a_node_that_lacks_a_plugin_is_named_with_what_to_do(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    broken, whole = modules.Sent(str(plugin), b"import nowhere_to_be_found"), modules.Sent(str(plugin), b"X = 1")
    package = modules.Sent("nowhere.at_all")
    fault = node_checks.fault_here(node_checks.Need(str(tmp_path), "token", outside=(broken, package)))
    assert f"cannot use a plugin: {plugin} cannot be loaded" in fault
    assert "nowhere_to_be_found" in fault
    assert "install what it imports there" in fault
    assert not plugin.exists()
    fault = node_checks.fault_here(node_checks.Need(str(tmp_path), "token", outside=(whole, package)))
    assert "lacks the plugin nowhere.at_all (there is no module nowhere.at_all" in fault
    assert "submitted working directory" in fault
    assert len(fault.splitlines()) == 1
