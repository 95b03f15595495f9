"""An engine as a server process on this machine: started, watched, started again, and ended with its owner.

The server listens on 127.0.0.1 alone and requires a token, which is nowhere but in its environment. A supervisor
process (`engine_supervisor`) ends it when this process ends, however that happens. Knows neither Ray nor vLLM.
"""

import http.client
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from tsd.errors import InputError
from tsd.teachers import engine_supervisor
from tsd.teachers.api.responses import SHOWN, clean

HOST = "127.0.0.1"
MOST_STARTS = 6  # of one engine, in a stage
FAILED_STARTS = 2  # in a row without an answer, which stop the stage
LOOK_SECONDS, ANSWER_SECONDS = 0.2, 5.0
END_SECONDS = 20.0  # for the supervisor to end the server
LOGS = 50  # latest logs that are kept on a machine
GO_ON = "the same command goes on from here"

# What vLLM writes before a line: "(EngineCore pid=7) ERROR 11-29 21:45:42 [core.py:99] ".
PREFIX = re.compile(r"^(\([\w ]+pid=\d+\) ?)*([A-Z]+ [\d: -]+\[[^\]]*\] ?)?")
NAMED = re.compile(r"[\w.]+(Error|Exception): |[\w.]+: error: |.*: No module named ")
FOLLOWS = ("Engine core initialization failed",)  # an error that only says that there was another before it


class EngineServer:
    """One engine: its address and token, which stay the same when it is started again, and its log."""

    def __init__(self, command: Callable[[int], Sequence[str]], token_variable: str) -> None:
        """command: builds the server's command line from its port. It may take long, and is called by `run`.

        token_variable: environment variable from which the server reads its token.
        Raises InputError if the folder of logs belongs to another user.
        """
        self._command, self._variable = command, token_variable
        self.token = secrets.token_urlsafe(32)
        # Bound and never listening, so that nothing else gets the port before the server or between two starts.
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind((HOST, 0))
        self.port: int = self._port.getsockname()[1]
        self.base_url = f"http://{HOST}:{self.port}/v1"
        self.log = _new_log(self.port)
        self._closed = threading.Event()

    def run(self, available: Callable[[bool], None], stopped: Callable[[], bool]) -> str | None:
        """Start the server and keep it running until `close`. Blocks.

        available: called with True when the server begins to answer, with False when it has ended.
        stopped: whether a server that does not answer yet is no longer needed.
        Returns why the engine is given up, in one line; None if it was closed or is not needed.
        """
        try:
            return self._keep(available, stopped)
        except Exception as error:  # of an object store, of a library that reads the model's config, of the system
            said = (str(error).strip() or type(error).__name__).splitlines()[0]
            return f"the engine cannot be started: {said}; {GO_ON}"

    def close(self) -> None:
        """Make `run` end the server and return."""
        self._closed.set()
        self._port.close()

    def _keep(self, available: Callable[[bool], None], stopped: Callable[[], bool]) -> str | None:
        """Do what `run` says, for a command that can be built and a system that has room."""
        command = self._command(self.port)
        failed, started, words = 0, 0, ""
        while failed < FAILED_STARTS and started < MOST_STARTS:
            if self._closed.is_set() or stopped():
                return None
            started, answered = started + 1, False
            process = ServerProcess(command, self._environment(command), self.log)
            try:
                while not process.over.wait(LOOK_SECONDS):
                    if self._closed.is_set() or (not answered and stopped()):
                        return None
                    if not answered and self._answers():
                        answered = True
                        available(True)
            finally:
                available(False)
                process.end()
            failed = 0 if answered else failed + 1
            words = process.words().replace(self.token, "…")
        what = "does not start" if failed else f"ended {started} times"
        return f"the engine {what}: {words}; its log is {self.log} on {socket.gethostname()}; {GO_ON}"

    def _environment(self, command: Sequence[str]) -> dict[str, str]:
        """Return the server's environment. One of another Python installation gets none of this one's modules."""
        dropped = () if command[0] == sys.executable else ("PYTHONPATH", "PYTHONHOME")
        return {name: text for name, text in os.environ.items() if name not in dropped} | {
            self._variable: self.token
        }

    def _answers(self) -> bool:
        """Whether the server lists its model to who has the token. It does so once the model is loaded."""
        request = urllib.request.Request(
            f"{self.base_url}/models", headers={"Authorization": f"Bearer {self.token}"}
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever proxy is set
        try:
            with direct.open(request, timeout=ANSWER_SECONDS) as answer:
                return bool(answer.status == 200)
        except (OSError, http.client.HTTPException):
            return False


class ServerProcess:
    """One start of a server, under its supervisor."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """log: file to which the server's output is appended."""
        self._log = log
        self._before = log.stat().st_size  # bytes of earlier starts
        self.pid: int | None = None
        """Process id of the server, once it runs."""
        self._status: int | None = None
        self.over = threading.Event()
        """Set when the server has ended."""
        self._gone = threading.Event()  # no process of it is left
        with log.open("ab") as errors:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-P", engine_supervisor.__file__, str(log), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
            )
        threading.Thread(target=self._listen, daemon=True).start()

    def end(self) -> None:
        """End the server and wait until it has ended, at most `END_SECONDS`."""
        assert self._supervisor.stdin
        with suppress(OSError):
            self._supervisor.stdin.close()
        self._gone.wait(END_SECONDS)

    def words(self) -> str:
        """Return the server's own reason for its end, in one line."""
        with self._log.open("rb") as log:
            log.seek(self._before)
            said = log.read().decode(errors="replace")
        return last_words(said, self._status)

    def _listen(self) -> None:
        """Follow the supervisor's messages until it ends."""
        assert self._supervisor.stdout
        self._supervisor.wait()  # the process that was started ends at once; the supervisor is its child
        with self._supervisor.stdout as messages:
            for message in messages:
                word, number = message.split()
                if word == b"started":
                    self.pid = int(number)
                else:
                    self._status = int(number)
                    self.over.set()
        if self._status is None and self.pid is not None:  # the supervisor was killed: its work is done here
            _kill_session(self.pid)
        self.over.set()
        self._gone.set()


def last_words(log: str, status: int | None) -> str:
    """Return the line of a log that says why a server ended. status: its exit status, negative for a signal."""
    if status is not None and status < 0:
        return f"it was killed by {signal.Signals(-status).name}"
    lines = [line for line in (PREFIX.sub("", line.strip()).strip() for line in log.splitlines()) if line]
    errors = [line for line in lines if NAMED.match(line) and not any(words in line for words in FOLLOWS)]
    said = (errors or lines or [f"it said nothing, and its exit status was {status}"])[-1]
    return clean(said)[:SHOWN].rstrip(".")


def _kill_session(leader: int) -> None:
    """Kill all processes of a session by its leader's process id."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == leader:
                process.kill()


def log_folder() -> Path:
    """This user's folder of engine logs on each machine."""
    return Path(tempfile.gettempdir(), f"tsd-engines-{os.getuid()}")


def _new_log(port: int) -> Path:
    """Create an engine's log, and delete the oldest ones. Raises InputError if the folder is another user's."""
    folder = log_folder()
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise InputError(f"{folder} belongs to another user: set TMPDIR to a folder of your own")
    with suppress(FileNotFoundError):  # another engine of this machine deletes them, too
        for old in sorted(folder.glob("*.log"), key=lambda path: path.stat().st_mtime)[: 1 - LOGS]:
            old.unlink(missing_ok=True)
    log = folder / f"engine-{os.getpid()}-{port}.log"
    log.touch(mode=0o600)
    return log
