"""The stores of MLflow that tests log to."""

import pytest
from support.commands import empty_mlflow
from support.mlflow_server import Server


@pytest.fixture
def uri(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/mlflow.db").write_bytes(empty_mlflow())
    return f"sqlite:///{tmp_path}/runs/mlflow.db"  # absolute: MLflow keeps one open store for each URI


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    one = Server(tmp_path_factory.mktemp("server"))
    try:
        one.start()
        yield one
    finally:
        one.kill()
