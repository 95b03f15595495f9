"""Real local Ray: a study as a submitted job, and the file that brings a cluster up."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import BRIEF, ROOT, TINY, environment, run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]


@pytest.fixture
def cluster() -> Iterator[str]:
    """A real Ray head with a job server, on ports of its own; its address."""
    ray = str(Path(sys.executable).parent / "ray")
    temporary = f"/tmp/tsd-ray-{os.getpid()}"
    with socket.socket() as free:  # for its agent: another Ray on this machine may hold the usual port
        free.bind(("127.0.0.1", 0))
        agent = free.getsockname()[1]
    start = [
        *(ray, "start", "--head", "--block", "--port=0", "--num-cpus=2", "--disable-usage-stats"),
        # pytest's own folders are too deep for the 107 characters that the path of a socket may have
        *("--include-dashboard=true", "--dashboard-port=8299", f"--temp-dir={temporary}"),
        f"--dashboard-agent-listen-port={agent}",
    ]
    quiet = subprocess.DEVNULL
    head = subprocess.Popen(start, env=environment(), stdout=quiet, stderr=quiet, start_new_session=True)
    try:
        until = time.monotonic() + 180
        while not _answers("http://127.0.0.1:8299/api/version"):
            assert head.poll() is None, "ray start ended"
            assert time.monotonic() < until, "the job server does not answer"
            time.sleep(0.5)
        _wait_for_an_agent("http://127.0.0.1:8299", until)
        yield "http://127.0.0.1:8299"
    finally:
        os.killpg(head.pid, signal.SIGKILL)  # with all that it started; `ray stop` would stop every Ray there is
        head.wait(60)
        shutil.rmtree(temporary, ignore_errors=True)


def _wait_for_an_agent(address: str, until: float) -> None:
    """Until the job server has an agent that runs jobs: it answers sooner than that."""
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(address)
    while True:
        try:
            client.submit_job(entrypoint="true")
        except RuntimeError:  # "No available agent to submit job"
            if time.monotonic() > until:
                raise
            time.sleep(0.5)
        else:
            return


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def test_a_submitted_job_finishes_a_tiny_study(cluster: str, tmp_path: Path) -> None:
    ray = str(Path(sys.executable).parent / "ray")
    overrides = [*TINY, *BRIEF, f"out={tmp_path}", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    sets = [word for override in overrides for word in ("--set", override)]
    runtime = json.dumps({"excludes": [".git", ".venv", ".venv-vllm", "runs"]})
    submit = [ray, "job", "submit", "--address", cluster, "--working-dir", ".", "--runtime-env-json", runtime]
    printed = run([*submit, "--", "python", "jobs/study.py", "laptop", *sets], timeout=600)
    assert "succeeded" in printed
    assert (tmp_path / "tiny" / "report.html").is_file()


def test_the_cluster_file_passes_rays_own_validation() -> None:
    import yaml
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    validate_config(prepare_config(config))
    kinds = config["available_node_types"]
    workers = {name: kind for name, kind in kinds.items() if name != config["head_node_type"]}
    assert all(kind["min_workers"] == 0 < kind["max_workers"] for kind in workers.values())
    assert sum("GPU" in kind["resources"] for kind in workers.values()) == 2
    assert "GPU" not in kinds[config["head_node_type"]]["resources"]
