"""MLflow in a real sqlite store: runs are found again, nothing secret is kept, a wrong URI is one line."""

import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pytest
from mlflow import MlflowClient
from pyarrow import fs

import tsd
from tsd.cluster.study import Study
from tsd.errors import InputError
from tsd.progress import Reporter
from tsd.recipe import load
from tsd.storage import folders
from tsd.tracking.tracker import Tracker

RECORD = {
    "run_id": "0.1M-500-s0-abc",
    "student": "0.1M",
    "parameters": 118_528,
    "parameters_without_embeddings": 100_800,
    "examples": 500,
    "seed": 0,
    "steps": 62,
    "validation_loss": 0.25,
    "tokens": 88_000,
    "supervised_tokens": 21_000,
    "flops_6nd": 5.3e10,
    "flops": 6.6e10,
    "train_seconds": 2.5,
    "tokens_per_second": 35_200.0,
    "utilisation": 0.2,
}


@pytest.fixture
def uri(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path}/runs/mlflow.db"  # absolute: MLflow keeps one open store for each URI


def _runs(uri, experiment="tsd"):
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return {run.info.run_name: run for run in client.search_runs([found.experiment_id])}


def test_a_restarted_study_goes_on_with_the_runs_it_has(uri):
    first = Tracker(uri, "tsd", "runs/laptop", "name: laptop\n")
    first.log(RECORD["run_id"], 10, {"loss": 2.0}, 1000)
    assert first.flush(60) == 0
    second = Tracker(uri, "tsd", "runs/laptop", "name: laptop\n")
    second.log(RECORD["run_id"], 20, {"loss": 1.0}, 2000)
    second.finish(RECORD, {"trend": 0.9}, 3000)
    second.close("<html>the report</html>")
    assert second.flush(60) == 0

    runs = _runs(uri)
    assert set(runs) == {"runs/laptop", RECORD["run_id"]}
    assert len(MlflowClient(uri).search_runs(["1"])) == 2
    parent, student = runs["runs/laptop"], runs[RECORD["run_id"]]
    assert student.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (parent.info.status, student.info.status) == ("FINISHED", "FINISHED")
    curve = MlflowClient(uri).get_metric_history(student.info.run_id, "loss")
    assert [(point.step, point.value) for point in curve] == [(10, 2.0), (20, 1.0)]
    assert student.data.params == {
        name: str(RECORD[name])
        for name in ("student", "parameters", "parameters_without_embeddings", "examples", "seed", "steps")
    }
    assert student.data.metrics["validation_loss"] == 0.25
    assert student.data.metrics["trend"] == 0.9


def test_a_run_that_failed_says_why_and_may_be_taken_up_again(uri):
    first = Tracker(uri, "tsd", "runs/laptop", "name: laptop\n")
    first.log(RECORD["run_id"], 10, {"loss": 2.0}, 1000)
    first.fail(RECORD["run_id"], "the loss is nan")
    assert first.flush(60) == 0
    failed = _runs(uri)[RECORD["run_id"]]
    assert (failed.info.status, failed.data.tags["tsd.failed"]) == ("FAILED", "the loss is nan")
    second = Tracker(uri, "tsd", "runs/laptop", "name: laptop\n")
    second.finish(RECORD, {}, 3000)
    assert second.flush(60) == 0
    assert _runs(uri)[RECORD["run_id"]].info.status == "FINISHED"


def test_a_study_bears_what_it_was_made_from(uri):
    tracker = Tracker(uri, "tsd", "runs/laptop", "name: laptop\n")
    tracker.tag({"examples": "0a1b"})
    assert tracker.flush(60) == 0
    tags = _runs(uri)["runs/laptop"].data.tags
    assert (tags["tsd.examples"], tags["tsd.version"]) == ("0a1b", tsd.__version__)
    there = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert tags.get("tsd.commit", "").split(" ")[0] == there.stdout.strip()


class Server:
    """A real MLflow server, which can be killed and started again on the same port and database."""

    def __init__(self, folder):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.address = folder, f"http://127.0.0.1:{self.port}"

    def start(self):
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/server.db"]
        store += ["--artifacts-destination", str(self.folder)]
        where = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        log = self.folder / "log"
        with open(log, "ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *where, *store],
                stdout=out,
                stderr=out,
                start_new_session=True,
                cwd=self.folder,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        until = time.monotonic() + 120
        while not _answers(f"{self.address}/health"):
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    one = Server(tmp_path_factory.mktemp("server"))
    try:
        one.start()
        yield one
    finally:
        one.kill()


def _answers(url):
    try:
        with urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.mark.timeout(240)
def test_a_server_holds_what_a_local_store_holds(server, uri):
    address = server.address
    for place in (address, uri):
        tracker = Tracker(place, "tsd", "runs/laptop", "name: laptop\n")
        tracker.log(RECORD["run_id"], 10, {"loss": 2.0}, 1000)
        tracker.finish(RECORD, {"trend": 0.9}, 3000)
        tracker.close("<html>the report</html>")
        assert tracker.flush(60) == 0
    there, here = _runs(address), _runs(uri)
    assert there.keys() == here.keys()
    for name in here:
        assert there[name].data.metrics == here[name].data.metrics
        assert there[name].data.params == here[name].data.params
        assert there[name].info.status == here[name].info.status == "FINISHED"
    files = {file.path for file in MlflowClient(address).list_artifacts(there["runs/laptop"].info.run_id)}
    assert files == {"recipe.yaml", "report.html"}


def test_two_studies_in_one_store_keep_their_students_apart(uri):
    for study in ("runs/a", "runs/b"):
        tracker = Tracker(uri, "tsd", study, "")
        tracker.log("same-name", 1, {"loss": 1.0}, 0)
        assert tracker.flush(60) == 0
    assert len(MlflowClient(uri).search_runs(["1"])) == 4


def test_the_files_of_a_local_store_lie_beside_it_and_not_where_one_happens_to_be(uri, tmp_path):
    Tracker(uri, "tsd", "runs/laptop", "name: laptop\n").close("<html/>")
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]
    assert {path.name for path in tmp_path.rglob("*.*") if path.is_file()} >= {"recipe.yaml", "report.html"}


def test_no_password_of_a_uri_reaches_the_store(uri, tmp_path):
    recipe = "tracking:\n  uri: https://me:s3cr3t@mlflow.example/x\nout: s3://key:p@ss@bucket/x\n"
    Tracker(uri, "tsd", "runs/laptop", recipe)
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"mlflow.example/x" in stored
    for secret in (b"s3cr3t", b"p@ss", b"me:"):
        assert secret not in stored


@pytest.mark.parametrize(
    "wrong",
    [
        "foo://me:s3cr3t@bar",
        "sqlite:////proc/x/mlflow.db",
        "postgresql://me:s3cr3t@127.0.0.1:9/x",
        "http://me:s3cr3t@127.0.0.1:9",
    ],
)
@pytest.mark.timeout(60)
def test_a_wrong_uri_is_one_line_without_its_password(wrong, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"tracking\.uri") as caught:
        Tracker(wrong, "tsd", "runs/laptop", "")
    assert "\n" not in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


def test_a_file_that_is_no_database_is_one_line(tmp_path):
    (tmp_path / "mlflow.db").write_text("not a database, but long enough to be looked at\n" * 50)
    with pytest.raises(InputError, match=r"mlflow\.db"):
        Tracker(f"sqlite:///{tmp_path}/mlflow.db", "tsd", "runs/laptop", "")


# ---- MLflow off the critical path


def _curve(place, experiment="tsd"):
    run = _runs(place, experiment)[RECORD["run_id"]]
    return [(point.step, point.value) for point in MlflowClient(place).get_metric_history(run.info.run_id, "loss")]


def _files(study="runs/laptop"):
    return sorted(Path(study, "tracking").glob("*.jsonl"))


@contextlib.contextmanager
def _locked(uri):
    """Another connection writes to the database for as long as the context lasts."""
    other = sqlite3.connect(uri.removeprefix("sqlite:///"), timeout=60, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def _stored(folder):
    """What the files of a write-ahead log hold, wherever it lies."""
    files, root = folders.filesystem(folder)
    found = files.get_file_info(fs.FileSelector(root, allow_not_found=True))
    return [files.open_input_file(one.path).read().decode() for one in found if one.base_name.endswith("jsonl")]


def _await_entries(count):
    until = time.monotonic() + 60
    while sum(len(path.read_text().splitlines()) for path in _files()) < count:
        assert time.monotonic() < until
        time.sleep(0.05)


def _seconds(work):
    started = time.monotonic()
    work()
    return time.monotonic() - started


@pytest.mark.timeout(300)
def test_a_server_that_is_killed_delays_nothing_and_gets_everything_when_it_is_back(server, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = []
    tracker = Tracker(server.address, "killed", "runs/laptop", "name: laptop\n", said.append)
    tracker.log(RECORD["run_id"], 0, {"loss": 9.0}, 1000)
    assert tracker.flush(60) == 0
    server.kill()
    took = [
        _seconds(lambda i=i: tracker.log(RECORD["run_id"], i, {"loss": 1 / i}, 1000 + i)) for i in range(1, 101)
    ]
    took.append(_seconds(lambda: tracker.finish(RECORD, {"trend": 0.9}, 3000)))
    assert max(took) < 1
    assert tracker.flush(3) > 0
    assert _files()
    server.start()
    assert tracker.flush(60) == 0
    assert _curve(server.address, "killed") == [(0, 9.0), *((i, 1 / i) for i in range(1, 101))]
    run = _runs(server.address, "killed")[RECORD["run_id"]]
    assert (run.info.status, run.data.params["steps"], run.data.metrics["trend"]) == ("FINISHED", "62", 0.9)
    assert not _files()
    assert [line for line in said if "does not answer" in line]
    assert [line for line in said if "answers again" in line]


@pytest.mark.timeout(180)
def test_a_locked_database_delays_nothing_and_gets_everything_when_it_is_free(uri):
    tracker = Tracker(uri, "tsd", "runs/laptop", "name: laptop\n", [].append)
    assert tracker.flush(60) == 0
    took = []
    with _locked(uri):
        began = time.monotonic()
        while time.monotonic() < began + 20:
            step = len(took)
            took.append(_seconds(lambda i=step: tracker.log(RECORD["run_id"], i, {"loss": float(i)}, 1000 + i)))
            time.sleep(0.2)
        took.append(_seconds(lambda: tracker.fail(RECORD["run_id"], "the loss is nan")))
    assert max(took) < 1
    assert tracker.flush(60) == 0
    assert _curve(uri) == [(i, float(i)) for i in range(len(took) - 1)]
    run = _runs(uri)[RECORD["run_id"]]
    assert (run.info.status, run.data.tags["tsd.failed"]) == ("FAILED", "the loss is nan")


KILLED = """
import os, sys, time
from tsd.tracking.tracker import Tracker
tracker = Tracker(sys.argv[1], "tsd", "runs/laptop", "", lambda line: None)
assert tracker.flush(60) == 0
print("open", flush=True)
sys.stdin.readline()
for step in range(50):
    tracker.log("0.1M-500-s0-abc", step, {"loss": float(step)}, 1000 + step)
time.sleep(200)
"""


@pytest.mark.timeout(240)
def test_what_a_killed_process_could_not_deliver_the_next_start_delivers(uri):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, uri],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(tsd.__file__).parents[1])},
    )
    try:
        assert process.stdout.readline() == "open\n"
        with _locked(uri):
            process.stdin.write("go\n")
            process.stdin.flush()
            _await_entries(50)
            process.kill()
            process.wait(30)
    finally:
        process.kill()
        process.communicate(timeout=30)
    assert sum(len(path.read_text().splitlines()) for path in _files()) == 50
    tracker = Tracker(uri, "tsd", "runs/laptop", "")
    tracker.log(RECORD["run_id"], 50, {"loss": 50.0}, 2000)
    assert tracker.flush(60) == 0
    assert _curve(uri) == [(step, float(step)) for step in range(51)]
    assert not _files()


@pytest.mark.parametrize("step", [0, 3, 5])
def test_a_value_that_mlflow_refuses_takes_no_other_with_it(uri, step):
    said = []
    tracker = Tracker(uri, "tsd", "runs/laptop", "name: laptop\n", said.append)
    for i in range(6):
        more = {"no\nname": 1.0} if i == step else {}
        tracker.log(RECORD["run_id"], i, {**more, "loss": 1.0 / (i + 1), "rate": 0.5}, 1000 + i)
    tracker.close()
    assert _curve(uri) == [(i, 1.0 / (i + 1)) for i in range(6)]
    assert _runs(uri)[RECORD["run_id"]].data.metrics.keys() == {"loss", "rate"}
    (line,) = said
    assert "refused 1 entries" in line


def test_a_file_with_damaged_lines_is_delivered_but_for_these_and_kept(uri):
    run = RECORD["run_id"]
    events = [
        {"run": run, "kind": "metrics", "value": {"loss": 2.0}, "step": i, "time_ms": 1000 + i} for i in range(5)
    ]
    lines = [json.dumps(event).encode() for event in events]
    lines[1], lines[3] = b"\xff" + lines[1], b"[]"
    unfit = [
        b'{"run": "a", "kind": "metrics", "value": {"loss": 1}}',
        b'{"run": "a", "kind": "txt", "value": "x"}',
    ]
    content = b"\n".join([*lines, *unfit, lines[0][:20]])
    folders.write_bytes("runs/laptop/tracking", "0-torn.jsonl", content)
    said = []
    tracker = Tracker(uri, "tsd", "runs/laptop", "name: laptop\n", said.append)
    assert tracker.flush(60) == 0
    assert _curve(uri) == [(i, 2.0) for i in (0, 2, 4)]
    assert [path.name for path in Path("runs/laptop/tracking").iterdir()] == ["0-torn.jsonl.damaged"]
    assert Path("runs/laptop/tracking/0-torn.jsonl.damaged").read_bytes() == content
    assert "3 lines (the first is 2) are damaged" in said[0]
    said.clear()
    assert Tracker(uri, "tsd", "runs/laptop", "name: laptop\n", said.append).flush(60) == 0
    assert not said


def test_what_is_delivered_twice_is_there_once(uri):
    events = [
        {"run": RECORD["run_id"], "kind": "metrics", "value": {"loss": 2.0}, "step": 1, "time_ms": 1000},
        {"run": RECORD["run_id"], "kind": "params", "value": {"seed": "0"}},
        {"run": RECORD["run_id"], "kind": "params", "value": {"seed": "1"}},
        {"run": RECORD["run_id"], "kind": "metrics", "value": {"loss": 1.0}, "step": 2, "time_ms": 2000},
        {"run": None, "kind": "status", "value": "FINISHED", "time_ms": 1000},
    ]
    said = []
    Path("runs/laptop/tracking").mkdir(parents=True)
    for name in ("1.jsonl", "2.jsonl"):
        Path("runs/laptop/tracking", name).write_text("".join(json.dumps(event) + "\n" for event in events))
    tracker = Tracker(uri, "tsd", "runs/laptop", "", said.append)
    assert tracker.flush(60) == 0
    assert _curve(uri) == [(1, 2.0), (2, 1.0)]
    assert _runs(uri)[RECORD["run_id"]].data.params["seed"] == "0"
    # An earlier start's end is not this one's.
    assert _runs(uri)["runs/laptop"].info.status == "RUNNING"
    tracker.close()
    assert [line for line in said if "refused 2 entries" in line]


@pytest.mark.timeout(120)
def test_what_is_undelivered_at_the_end_is_said_in_one_line_after_a_bounded_time(uri, monkeypatch):
    monkeypatch.setattr("tsd.tracking.tracker.CLOSE_SECONDS", 2.0)
    said = []
    tracker = Tracker(uri, "tsd", "runs/laptop", "", said.append)
    with _locked(uri):
        tracker.log(RECORD["run_id"], 1, {"loss": 2.0}, 1000)
        assert _seconds(lambda: tracker.close("<html>the report</html>")) < 10
        (last,) = [line for line in said if "lacks" in line]
        assert "3 entries" in last
        assert "runs/laptop/tracking, and the next start of this study delivers them" in last
        assert "\n" not in last
    assert tracker.flush(60) == 0


def test_what_was_logged_before_an_error_is_there_once_the_study_is_left(uri, tmp_path):
    recipe = load("laptop", ["teacher={kind: rules}", f"tracking.uri={uri}", f"out={tmp_path}/runs"])
    study = Study(recipe, Reporter())
    study.leave_tracking()  # nothing was logged: MLflow is not even opened
    assert not Path(tmp_path, "runs", "mlflow.db").exists()
    study.tracker.fail(RECORD["run_id"], "the loss is not a number")
    study.leave_tracking()
    runs = _runs(uri)
    assert runs[RECORD["run_id"]].info.status == "FAILED"
    assert runs[recipe.folder].info.status == "RUNNING"


def test_no_secret_is_in_the_write_ahead_log(uri):
    tracker = Tracker(uri, "tsd", "runs/laptop", "", [].append)
    with _locked(uri):
        tracker.tag({"data": "s3://me:s3cr3t@bucket/x"})
        tracker.fail("one", "http://me:s3cr3t@host/ does not answer")
        _await_entries(3)
        kept = "".join(path.read_text() for path in _files())
    assert "bucket/x" in kept
    assert "s3cr3t" not in kept
    assert tracker.flush(60) == 0


@pytest.mark.timeout(120)
def test_a_study_on_an_object_store_keeps_its_log_there(uri, s3):
    tracker = Tracker(uri, "tsd", s3.uri("tracked"), "", [].append)
    folder = s3.uri("tracked/tracking")
    with _locked(uri):
        tracker.log("one", 1, {"loss": 2.0}, 1000)
        until = time.monotonic() + 60
        while not (kept := _stored(folder)):
            assert time.monotonic() < until
            time.sleep(0.2)
    assert "loss" in kept[0]
    assert tracker.flush(60) == 0
    assert not _stored(folder)


@pytest.mark.timeout(60)
def test_a_server_that_takes_a_connection_and_says_nothing_is_one_line_within_25_seconds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        began = time.monotonic()
        with pytest.raises(InputError, match=r"tracking\.uri .* does not answer"):
            Tracker(f"http://127.0.0.1:{mute.getsockname()[1]}", "tsd", "runs/laptop", "")
        assert time.monotonic() - began < 25
