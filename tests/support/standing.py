"""Commands one after the other in one process with a Ray of its own, whose start takes longer than a small stage.

For commands and programs that run to their end. What is killed or needs another environment runs by itself.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

from support.asked import KEY, SECRET

# Reads one command a line, or "-c" with a program, and says its exit code. What it prints goes to the files that
# the line names.
PROGRAM = """
import json, os, sys, traceback
asked, said = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", buffering=1)
from tsd.cli import main
from tsd.cluster.session import session
with session():
    for line in asked:
        arguments, *files = json.loads(line)
        for number, name in enumerate(files, start=1):
            with open(name, "wb") as file:
                os.dup2(file.fileno(), number)
        code = 0
        try:
            if arguments[0] == "-c":
                sys.argv = ["-c", *arguments[2:]]
                exec(arguments[1], {"__name__": "__main__"})
            else:
                main(arguments)
        except SystemExit as left:
            code = left.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        print(code, file=said)
"""


class Standing:
    """Such a process, as long as nothing stops it."""

    def __init__(self, cpus: int, root: Path, environment: dict[str, str]) -> None:
        self.environment = environment | {"TSD_CPUS": str(cpus)}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=root,
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        atexit.register(self.close)

    def run(self, arguments: list[str], timeout: float) -> tuple[int, str, str]:
        """The exit code of a command, and what it printed to stdout and stderr."""
        assert self.process.stdin
        assert self.process.stdout
        with tempfile.TemporaryDirectory() as folder:
            files = [f"{folder}/stdout", f"{folder}/stderr"]
            late = threading.Timer(timeout, self.stop)
            late.start()
            try:
                self.process.stdin.write(json.dumps([arguments, *files]) + "\n")
                self.process.stdin.flush()
                code = self.process.stdout.readline()
            finally:
                late.cancel()
            printed = [Path(file).read_text() if Path(file).exists() else "" for file in files]
        if not code:
            self.stop()
        assert code, f"the command did not end in {timeout} s:\n{printed[0][-3000:]}{printed[1][-3000:]}"
        return int(code), printed[0], printed[1]

    def close(self) -> None:
        """Let it end as a command ends, and its Ray with it."""
        if self.process.poll() is None and self.process.stdin:
            self.process.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        self.stop()

    def stop(self) -> None:
        """Kill it with all that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(30)


def shared(cpus: int, root: Path, environment: dict[str, str]) -> Standing | None:
    """The one of this test process, started if need be; None where a command needs another environment."""
    global _shared
    wanted = {name: value for name, value in environment.items() if name != "PYTEST_CURRENT_TEST"}
    if _shared is None or _shared.process.poll() is not None:
        _shared = Standing(cpus, root, wanted | {KEY: SECRET})
    return _shared if wanted.items() <= _shared.environment.items() else None


_shared: Standing | None = None
