"""A real MLflow server, and what a store of MLflow's holds."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from urllib.request import urlopen

from mlflow import MlflowClient

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


def logged_runs(uri, experiment="tsd"):
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return {run.info.run_name: run for run in client.search_runs([found.experiment_id])}


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
        while not answers(f"{self.address}/health"):
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


def answers(url):
    try:
        with urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False
