"""MLflow in a real sqlite store: runs are found again, nothing secret is kept, a wrong URI is one line."""

import subprocess
from pathlib import Path

import pytest
from mlflow import MlflowClient
from support.mlflow_server import RECORD, logged_runs

import tsd
from tsd.errors import InputError
from tsd.tracking.tracker import Tracker


def test_a_restarted_study_goes_on_with_the_runs_it_has(uri):
    first = Tracker(uri, "tsd", "runs/laptop", "name: laptop\n")
    first.log(RECORD["run_id"], 10, {"loss": 2.0}, 1000)
    assert first.flush(60) == 0
    second = Tracker(uri, "tsd", "runs/laptop", "name: laptop\n")
    second.log(RECORD["run_id"], 20, {"loss": 1.0}, 2000)
    second.finish(RECORD, {"trend": 0.9}, 3000)
    second.close("<html>the report</html>")
    assert second.flush(60) == 0

    runs = logged_runs(uri)
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
    failed = logged_runs(uri)[RECORD["run_id"]]
    assert (failed.info.status, failed.data.tags["tsd.failed"]) == ("FAILED", "the loss is nan")
    second = Tracker(uri, "tsd", "runs/laptop", "name: laptop\n")
    second.finish(RECORD, {}, 3000)
    assert second.flush(60) == 0
    assert logged_runs(uri)[RECORD["run_id"]].info.status == "FINISHED"


def test_a_study_bears_what_it_was_made_from(uri):
    tracker = Tracker(uri, "tsd", "runs/laptop", "name: laptop\n")
    tracker.tag({"examples": "0a1b"})
    assert tracker.flush(60) == 0
    tags = logged_runs(uri)["runs/laptop"].data.tags
    assert (tags["tsd.examples"], tags["tsd.version"]) == ("0a1b", tsd.__version__)
    there = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert tags.get("tsd.commit", "").split(" ")[0] == there.stdout.strip()


@pytest.mark.timeout(240)
def test_a_server_holds_what_a_local_store_holds(server, uri):
    address = server.address
    for place in (address, uri):
        tracker = Tracker(place, "tsd", "runs/laptop", "name: laptop\n")
        tracker.log(RECORD["run_id"], 10, {"loss": 2.0}, 1000)
        tracker.finish(RECORD, {"trend": 0.9}, 3000)
        tracker.close("<html>the report</html>")
        assert tracker.flush(60) == 0
    there, here = logged_runs(address), logged_runs(uri)
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
