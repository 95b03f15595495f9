"""The commands that tests of whole stages run, each in a process of its own."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import psutil

from support.standing import Standing, shared

ROOT = Path(__file__).parents[2]
TSD = (sys.executable, "-m", "tsd.cli")
Ended: TypeAlias = "subprocess.CompletedProcess[str]"
# Variables that tsd and its libraries set at import, in this process too. A command sets them itself.
SET_BY_IMPORTS = ("RAY_", "TUNE_", "LOG_NAME_", "MLFLOW_", "_MLFLOW_", "GIT_PYTHON_", "TORCHINDUCTOR_", "_RJEM_")
SHARED = 2  # logical CPUs of the Ray that commands share
TINY = (
    "name=tiny",
    "teacher={kind: rules}",
    "series.count=6000",
    "students.models=[0.03M]",
    "students.train_sizes=[200,1600]",
    "students.seeds=[0]",
    "training.concurrent_trials=1",  # its runs share a trial: the processes of another take longer than they do
    "training.checkpoint_every=40",
    "evaluation.series=200",
    "evaluation.batch_size=100",
    "evaluation.validation_examples=100",
    "evaluation.workers=1",  # the second would import torch for longer than the first decodes
)
LOGGED = ("study", "teacher train", "train", "evaluate")  # stages that log to MLflow
# What a study takes where nobody looks at how much its students have learned.
BRIEF = ("series.count=4000", "students.train_sizes=[40]")


def command(out: Path, *extra: str, stage: str = "study") -> list[str]:
    """The command line of a tiny study that writes everything under `out`."""
    database = out / "mlflow.db"
    if stage in LOGGED and not database.exists():
        out.mkdir(parents=True, exist_ok=True)
        database.write_bytes(empty_mlflow())
    overrides = [*TINY, f"tracking.uri=sqlite:///{database}", *extra]
    sets = [word for override in overrides for word in ("--set", override)]
    return [*TSD, *stage.split(), "laptop", "--out", str(out), *sets]


@lru_cache(maxsize=1)
def empty_mlflow() -> bytes:
    """A database of MLflow without a run: to create its tables takes longer than what a tiny study logs."""
    from tsd.tracking.mlflow_client import MlflowClient

    with tempfile.TemporaryDirectory() as folder:
        MlflowClient(f"sqlite:///{folder}/mlflow.db").search_experiments()
        return Path(folder, "mlflow.db").read_bytes()


def run(arguments: list[str], cpus: int | None = None, timeout: float = 800) -> str:
    """Run a command to its end and return what it printed; its exit code must be 0."""
    return printed(ended(arguments, cpus, timeout))


def printed(result: Ended) -> str:
    """What a command printed; its exit code must be 0."""
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return result.stdout


def run_each(*commands: list[str], cpus: int = SHARED, timeout: float = 800) -> str:
    """Run several one after the other and return what all printed."""
    return "".join(run(arguments, cpus, timeout) for arguments in commands)


def run_on_one_ray(*commands: list[str], cpus: int, timeout: float = 800) -> str:
    """The same on a Ray of so many logical CPUs, started for them alone."""
    process = Standing(cpus, ROOT, environment())
    try:
        said = [process.run(arguments[len(TSD) :], timeout) for arguments in commands]
    finally:
        process.close()
    assert not [code for code, *_ in said if code], said
    return "".join(stdout for _, stdout, _ in said)


def ended(arguments: list[str], cpus: int | None = None, timeout: float = 800) -> Ended:
    """Run a command, or a program that is given by `-c`, to its end, whatever comes of it.

    Where two CPUs are asked for, as nearly everywhere, in the process that commands share.
    """
    env = environment(cpus)
    is_command = arguments[: len(TSD)] == list(TSD)
    able = cpus == SHARED and (is_command or arguments[:2] == [sys.executable, "-c"])
    if able and (process := shared(SHARED, ROOT, env)):
        asked = arguments[len(TSD) if is_command else 1 :]
        return subprocess.CompletedProcess(arguments, *process.run(asked, timeout))
    return alone(arguments, env, timeout)


def run_alone(arguments: list[str], cpus: int, timeout: float = 800) -> str:
    """Run a command to its end in a process of its own; its exit code must be 0."""
    return printed(alone(arguments, environment(cpus), timeout))


def alone(arguments: list[str], env: dict[str, str], timeout: float = 800) -> Ended:
    """Run a command in a process of its own, as a user does."""
    return subprocess.run(
        arguments, cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout, check=False
    )


def start(arguments: list[str], cpus: int | None = SHARED) -> subprocess.Popen[bytes]:
    """A command in a group of its own with all that it starts. What it says of errors is the test's."""
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment(cpus), stdout=subprocess.DEVNULL, start_new_session=True
    )


def kill_once(so: Callable[[], bool], arguments: list[str], cpus: int | None = None, timeout: float = 800) -> None:
    """Start a command and `kill -9` it and all that it started once something is so."""
    process = start(arguments, cpus)
    try:
        until = time.monotonic() + timeout
        while not so():
            assert process.poll() is None, "the command ended before"
            assert time.monotonic() < until, "nothing came of it"
            time.sleep(0.02)
    finally:
        kill_all_of(process)


def kill_all_of(process: "subprocess.Popen[Any]") -> None:
    """`kill -9` a command and all that it started, and wait until none of them can write any more."""
    started: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        started = psutil.Process(process.pid).children(recursive=True)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for child in started:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    process.wait(30)
    assert not psutil.wait_procs(started, 30)[1]


def environment(cpus: int | None = None) -> dict[str, str]:
    """This environment without a cluster to join; `cpus` logical CPUs for a local Ray."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(SET_BY_IMPORTS)}
    # A job's `python` is the first in the PATH of the cluster that runs it.
    clean["PATH"] = f"{Path(sys.executable).parent}:{clean['PATH']}"
    return clean | {"RAY_AUTH_MODE": "disabled"} | ({"TSD_CPUS": str(cpus)} if cpus else {})


def worker_of(process: subprocess.Popen[bytes], kind: str = "MapBatches") -> psutil.Process | None:
    """One of the processes that work at a stage's parts, or at what the kind says, if one is at work just now."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if any(kind in word for word in child.cmdline()):
                return child
        except psutil.Error:
            continue
    return None


def kill_a_worker_of(process: subprocess.Popen[bytes], kind: str = "MapBatches", timeout: float = 200) -> None:
    """`kill -9` such a process as soon as one is at work; the command must still be."""
    until = time.monotonic() + timeout
    while (worker := worker_of(process, kind)) is None:
        assert process.poll() is None, "the command ended before"
        assert time.monotonic() < until, "no worker was found at work"
        time.sleep(0.005)
    worker.kill()
