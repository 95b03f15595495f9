"""MLflow off the critical path: what cannot be delivered waits in a write-ahead log and delays nothing."""

import contextlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from pyarrow import fs
from support.mlflow_server import RECORD, logged_runs

import tsd
from tsd.cluster.study import Study
from tsd.errors import InputError
from tsd.progress import Reporter
from tsd.recipe import load
from tsd.storage import folders
from tsd.tracking.tracker import Tracker


def _curve(place, experiment="tsd"):
    run = logged_runs(place, experiment)[RECORD["run_id"]]
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
    run = logged_runs(server.address, "killed")[RECORD["run_id"]]
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
    run = logged_runs(uri)[RECORD["run_id"]]
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
    assert logged_runs(uri)[RECORD["run_id"]].data.metrics.keys() == {"loss", "rate"}
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
    assert logged_runs(uri)[RECORD["run_id"]].data.params["seed"] == "0"
    # An earlier start's end is not this one's.
    assert logged_runs(uri)["runs/laptop"].info.status == "RUNNING"
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


def test_what_was_logged_before_an_error_is_there_once_the_study_is_left(tmp_path):
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    recipe = load("laptop", ["teacher={kind: rules}", f"tracking.uri={uri}", f"out={tmp_path}/runs"])
    study = Study(recipe, Reporter())
    study.leave_tracking()  # nothing was logged: MLflow is not even opened
    assert not Path(tmp_path, "new", "mlflow.db").exists()
    study.tracker.fail(RECORD["run_id"], "the loss is not a number")
    study.leave_tracking()
    runs = logged_runs(uri)
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
