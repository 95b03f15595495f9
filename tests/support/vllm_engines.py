"""What the tests of real vLLM engines share: engines that stay small, their processes, what they have replied."""

import importlib.util
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from support.commands import ROOT, environment

MARKS = [
    pytest.mark.vllm,
    pytest.mark.usefixtures("small_engines"),
    pytest.mark.timeout(2400),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm"),
]
LONGEST = 2048  # tokens
START = 1200.0  # seconds until engines reply, of which some start at once on two cores
SMALL = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 16, "skip_mm_profiling": True}
FEW = {  # what keeps an engine small on a machine without GPU and without network
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


def made(by: str, folder: Path) -> Path:
    """A model's folder; made in a process of its own, which takes torch's memory with it."""
    code = f"from pathlib import Path; from support.tiny_qwen import {by}; {by}(Path({str(folder)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment(), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return folder


def status_of(engine: psutil.Process, path: str) -> int:
    """The status of an engine's answer to who has no token."""
    (port,) = [word.partition("=")[2] for word in engine.cmdline() if word.startswith("--port=")]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def requests_at(server: psutil.Process) -> int:
    """How many connections a server has: one for each request under way, and those that its client keeps."""
    with suppress(psutil.Error):
        return sum(one.status == psutil.CONN_ESTABLISHED for one in server.net_connections("tcp"))
    return 0


def engines_of(model: Path) -> list[list[psutil.Process]]:
    """The processes of each engine whose server has started: its supervisor, its server, and what that started."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = " ".join(process.cmdline())
            # A supervisor has no child before it has started its server.
            if "engine_supervisor.py" in words and f"--model={model}" in words and (servers := process.children()):
                found.append([process, *servers, *servers[0].children(recursive=True)])
    return found


def kill_session(leader: subprocess.Popen[bytes]) -> None:
    """`kill -9` a process and all that it started: Ray's workers and vLLM's have groups of their own."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == leader.pid:
                process.kill()
    leader.wait(30)
    if leader.stdout is not None:
        leader.stdout.close()


def replies_in(journal: Path) -> list[dict[str, Any]]:
    """The lines of a journal's files that hold a reply."""
    texts = [file.read_text() for file in sorted(journal.glob("*.jsonl"))]
    lines = [json.loads(line) for text in texts for line in text.splitlines()[:-1] if line]
    return [line for line in lines if "key" in line]
