"""A real Ray cluster of several nodes on this machine, each a process of its own, with its own disk if asked.

A node with its own disk lives in a mount namespace in which some folders are an empty tmpfs: what others write
there it does not see, as on another machine. Such a namespace needs no root where users may have one.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from support.commands import environment

RAY = str(Path(sys.executable).parent / "ray")
SECONDS = 120.0  # until a node must be there
ALONE = ["unshare", "--user", "--map-root-user", "--mount"]
COUNT = """
import sys
from ray._raylet import GcsClient
nodes = GcsClient(sys.argv[1]).get_all_node_info().values()
print(sum(node.state == 0 for node in nodes))
"""


@dataclass
class Cluster:
    """Nodes that run. `address` is what RAY_ADDRESS is set to."""

    address: str
    temporary: str
    env: dict[str, str]
    started: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def start(self, *options: str, hidden: Sequence[Path] = ()) -> None:
        """Start a node and wait until it is there. hidden: folders in whose place it has an empty disk."""
        command = [RAY, "start", "--block", "--disable-usage-stats", *options]
        if hidden:
            mounts = " && ".join(f'mount -t tmpfs tmpfs "{folder}"' for folder in hidden)
            command = [*ALONE, "sh", "-c", f'{mounts} && exec "$0" "$@"', *command]
        log = Path(self.temporary, f"node-{len(self.started)}.log")
        env = self.env | {"TMPDIR": str(hidden[0])} if hidden else self.env  # a disk of its own for copies, too
        with log.open("wb") as said:
            process = subprocess.Popen(command, env=env, stdout=said, stderr=said, start_new_session=True)
        self.started.append(process)
        until = time.monotonic() + SECONDS
        while self.alive() < len(self.started):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.3)

    def alive(self) -> int:
        """How many nodes are up."""
        asked = [sys.executable, "-c", COUNT, self.address]
        answer = subprocess.run(asked, env=self.env, capture_output=True, text=True, timeout=60)
        return int(answer.stdout) if answer.returncode == 0 else 0

    def driver(self, **more: str) -> dict[str, str]:
        """The environment of a command that joins it."""
        return self.env | {"RAY_ADDRESS": self.address} | more


@contextmanager
def running(*options: str, **environment_of_nodes: str) -> Iterator[Cluster]:
    """A cluster of one node with one CPU, for as long as the context lasts. options: of `ray start --head`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    temporary = tempfile.mkdtemp(prefix="tsd-", dir="/tmp")  # a socket's path has at most 107 characters
    cluster = Cluster(f"127.0.0.1:{port}", temporary, environment() | environment_of_nodes)
    head = ("--head", f"--port={port}", "--include-dashboard=false", f"--temp-dir={temporary}")
    try:
        cluster.start(*head, "--node-ip-address=127.0.0.1", "--num-cpus=1", *options)
        yield cluster
    finally:
        for process in cluster.started:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
        shutil.rmtree(temporary, ignore_errors=True)


def require_own_disks(folder: Path) -> None:
    """Skip where this machine gives no process a disk of its own."""
    try:
        trial = subprocess.run(
            [*ALONE, "mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True, timeout=30
        )
    except FileNotFoundError:
        pytest.skip("there is no unshare to give a node a disk of its own")
    if trial.returncode:
        pytest.skip(f"this machine gives no process a disk of its own: {trial.stderr.decode().strip()}")
