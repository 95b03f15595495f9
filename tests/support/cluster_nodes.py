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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from support.commands import environment

RAY = str(Path(sys.executable).parent / "ray")
SECONDS = 120.0  # until a node must be there
TRIES = 3  # of a start: another process may take a port between its choice and its use
ALONE = ["unshare", "--user", "--map-root-user", "--mount"]
WAIT = """
import sys, time
from ray._raylet import GcsClient
from ray.exceptions import RayError
alive = 0
while alive < int(sys.argv[2]):
    try:
        alive = sum(node.state == 0 for node in GcsClient(sys.argv[1]).get_all_node_info().values())
    except RayError:
        pass  # the first node is not there yet
    time.sleep(0.2)
"""


@dataclass
class Cluster:
    """Nodes that run. `address` is what RAY_ADDRESS is set to."""

    address: str
    temporary: str
    env: dict[str, str]
    started: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def start(self, *options: str, head: bool = False, hidden: Sequence[Path] = ()) -> None:
        """Start a node and wait until it is there. hidden: folders in whose place it has an empty disk.

        A failed start is tried again, a head's at another port. Raises RuntimeError with the last one's log.
        """
        env = self.env | {"TMPDIR": str(hidden[0])} if hidden else self.env  # a disk of its own for copies, too
        log = Path(self.temporary, f"node-{len(self.started)}.log")
        for _ in range(TRIES):
            role = self.head() if head else [f"--address={self.address}"]
            command = [RAY, "start", "--block", "--disable-usage-stats", *role, *options]
            if hidden:
                mounts = " && ".join(f'mount -t tmpfs tmpfs "{folder}"' for folder in hidden)
                command = [*ALONE, "sh", "-c", f'{mounts} && exec "$0" "$@"', *command]
            with log.open("wb") as said:
                process = subprocess.Popen(command, env=env, stdout=said, stderr=said, start_new_session=True)
            if self.came(process):
                self.started.append(process)
                return
            stop(process)
        raise RuntimeError(f"no node after {TRIES} starts of {command}: {log.read_text()}")

    def head(self) -> list[str]:
        """Options of the first node, at a port that is free now."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        options = ["--head", f"--port={port}", "--include-dashboard=false", "--node-ip-address=127.0.0.1"]
        return [*options, f"--temp-dir={self.temporary}"]

    def came(self, process: "subprocess.Popen[bytes]") -> bool:
        """Wait for one node more than before. False where the process ended or the time is over."""
        asked = [sys.executable, "-c", WAIT, self.address, str(len(self.started) + 1)]
        waiting = subprocess.Popen(asked, env=self.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + SECONDS
        while waiting.poll() is None and process.poll() is None and time.monotonic() < until:
            time.sleep(0.1)
        waiting.kill()
        return waiting.wait(30) == 0

    def driver(self, **more: str) -> dict[str, str]:
        """The environment of a command that joins it."""
        return self.env | {"RAY_ADDRESS": self.address} | more


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Kill a node with all its processes, also one that has ended by itself."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


@contextmanager
def running(*options: str, **environment_of_nodes: str) -> Iterator[Cluster]:
    """A cluster of one node with one CPU, for as long as the context lasts. options: of `ray start --head`."""
    temporary = tempfile.mkdtemp(prefix="tsd-", dir="/tmp")  # a socket's path has at most 107 characters
    cluster = Cluster("", temporary, environment() | environment_of_nodes)
    try:
        cluster.start(*options, "--num-cpus=1", head=True)
        yield cluster
    finally:
        for process in cluster.started:
            stop(process)
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
