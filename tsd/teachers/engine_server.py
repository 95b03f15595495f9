"""An engine as a server process on this machine: started, watched, started again, and ended with its owner.

The server listens on 127.0.0.1 alone and requires a token, which is nowhere but in its environment. A supervisor
process (`engine_supervisor`) ends it when this process ends, however that happens. Knows neither Ray nor vLLM.
"""

import http.client
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

from tsd.progress import clock
from tsd.teachers import engine_supervisor
from tsd.teachers.api.responses import SHOWN, clean
from tsd.teachers.engine_log import EngineLog, read_since

HOST = "127.0.0.1"
MOST_ENDS = 6  # of one engine that no row explains, with less than `SOUND_SECONDS` between them
FAILED_STARTS = 2  # in a row without an answer, which stop the stage
SOUND_SECONDS = 600.0  # of a server that answers, after which its earlier ends are forgotten
HANG_SECONDS = 600.0  # without a sign of life
LOOK_SECONDS, ANSWER_SECONDS = 0.2, 5.0
CHECK_SECONDS = 5.0  # between two checks of a server that answers
END_SECONDS = 20.0  # for the supervisor to end the server
GO_ON = "the same command goes on from here"

# What vLLM writes before a line: "(EngineCore pid=7) ERROR 11-29 21:45:42 [core.py:99] ".
PREFIX = re.compile(r"^(\([\w ]+pid=\d+\) ?)*([A-Z]+ [\d: -]+\[[^\]]*\] ?)?")
NAMED = re.compile(r"[\w.]+(Error|Exception): |[\w.]+: error: |.*: No module named ")
FOLLOWS = ("Engine core initialization failed",)  # an error that only says that there was another before it


class Seen(NamedTuple):
    """What the client of a server has seen of it."""

    answered: float = 0.0
    """When the latest answer came (`time.monotonic`, seconds); 0 if none did."""
    overdue: bool = False
    """Whether requests wait far longer for an answer than any has so far."""
    explained: int = 0
    """Ends of the server that one row alone caused."""
    doubted: bool = False
    """Whether a connection broke off, so that requests wait until the server is known to answer."""


class EngineServer:
    """One engine: its address and token, which stay the same when it is started again, and its log."""

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        token_variable: str,
        modules: Path | None = None,
        hang_seconds: float = HANG_SECONDS,
    ) -> None:
        """command: builds the server's command line from its port. It may take long, and is called by `run`.

        token_variable: environment variable from which the server reads its token. modules: folder in which its
        interpreter finds further modules. hang_seconds: time without any sign of life, once it has answered, after
        which it is ended and started again.
        """
        self._command, self._variable, self._modules = command, token_variable, modules
        self.hang_seconds = hang_seconds
        self.token = secrets.token_urlsafe(32)
        # Bound and never listening, so that nothing else gets the port before the server or between two starts.
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._port.bind((HOST, 0))
        self.port: int = self._port.getsockname()[1]
        self.base_url = f"http://{HOST}:{self.port}/v1"
        self._log = EngineLog(self.port)
        self._checked = self._alive = 0.0  # latest check of a server that answers, and latest that it answered
        self._closed = threading.Event()

    @property
    def log(self) -> Path:
        """The file with what the server prints."""
        return self._log.path

    def run(
        self, available: Callable[[bool], None], stopped: Callable[[], bool], seen: Callable[[], Seen] = Seen
    ) -> str | None:
        """Start the server and keep it running until `close`. Blocks.

        available: called with True when the server begins to answer, and when it answers after a doubt; with
        False when it has ended or is ended.
        stopped: whether a server that does not answer yet is no longer needed. seen: what its client knows of it.
        Returns why the engine is given up, in one line; None if it was closed or is not needed.
        """
        try:
            return self._keep(available, stopped, seen)
        except Exception as error:  # of an object store, of a library that reads the model's config, of the system
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return f"the engine cannot be started: {reason}; {GO_ON}"

    def close(self) -> None:
        """Make `run` end the server and return."""
        self._closed.set()
        self._port.close()

    def _keep(
        self, available: Callable[[bool], None], stopped: Callable[[], bool], seen: Callable[[], Seen]
    ) -> str | None:
        """Do what `run` says, for a command that can be built and a system that has room."""
        command = self._command(self.port)
        environment = self._environment(command)
        failed, ends, explained, words = 0, 0, 0, ""
        while failed < FAILED_STARTS and ends - (seen().explained - explained) < MOST_ENDS:
            if self._closed.is_set() or stopped():
                return None
            process = ServerProcess(command, {**os.environ, self._variable: self.token}, environment, self._log)
            began: float | None = None  # when it answered for the first time
            hung = ""
            try:
                while not (hung or process.over.wait(LOOK_SECONDS)):
                    if self._closed.is_set() or (began is None and stopped()):
                        return None
                    if began is not None:
                        known = seen()
                        hung = self._hangs(known)
                        if known.doubted and not process.over.is_set() and self._answers():
                            available(True)
                    elif self._answers():
                        began = self._checked = self._alive = time.monotonic()
                        available(True)
            finally:
                available(False)
                process.end()
            failed = 0 if began is not None else failed + 1
            if began is not None and time.monotonic() - began >= SOUND_SECONDS:
                ends, explained = 0, seen().explained
            ends += 1
            words = hung or process.words().replace(self.token, "…")
        what = "does not start" if failed else f"ended {ends} times"
        return f"the engine {what}: {words}; its log is {self.log} on {socket.gethostname()}; {GO_ON}"

    def _hangs(self, seen: Seen) -> str:
        """Say why a server that has answered must be ended; "" if it need not be.

        It hangs if neither its client nor a check has had an answer for `hang_seconds`, or if its client says so.
        A server that computes slowly answers the checks.
        """
        if time.monotonic() - self._checked >= min(CHECK_SECONDS, self.hang_seconds / 3):
            if self._answers():
                self._alive = time.monotonic()
            self._checked = time.monotonic()
        silent = time.monotonic() - max(self._alive, seen.answered)
        if silent < self.hang_seconds and not seen.overdue:
            return ""
        what = "gave no sign of life" if silent >= self.hang_seconds else "answered no request"
        return f"it {what} for {clock(self.hang_seconds)} or longer (teacher.hang_timeout) and was ended"

    def _environment(self, command: Sequence[str]) -> dict[str, str | None]:
        """Return the variables that the server alone has, None for those that it does not get.

        Another Python installation gets none of this one's modules.
        """
        own = _same_python(command[0])
        paths = [str(self._modules or ""), os.environ.get("PYTHONPATH", "") if own else ""]
        changes: dict[str, str | None] = {"PYTHONPATH": os.pathsep.join(path for path in paths if path) or None}
        return changes if own else {**changes, "PYTHONHOME": None}

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

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        own: Mapping[str, str | None],
        log: EngineLog,
    ) -> None:
        """environment: of the supervisor. own: variables that the server has instead, None for none.

        log: the server's output is appended to it.
        """
        self.pid: int | None = None
        """Process id of the server, once it runs."""
        self._status: int | None = None
        self._said = ""
        self.over = threading.Event()
        """Set when the server has ended."""
        self._gone = threading.Event()  # no process of it is left
        self._log = log.open()
        self._before = os.fstat(self._log.fileno()).st_size  # bytes of earlier starts
        try:
            self._supervisor = subprocess.Popen(
                [sys.executable, "-P", engine_supervisor.__file__, json.dumps(own), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=environment,
            )
        except BaseException:
            self._log.close()
            raise
        threading.Thread(target=self._listen, daemon=True).start()

    def end(self) -> None:
        """End the server and wait until it has ended, at most `END_SECONDS`."""
        assert self._supervisor.stdin
        with suppress(OSError):
            self._supervisor.stdin.close()
        self._gone.wait(END_SECONDS)
        self._said = read_since(self._log, self._before)
        self._log.close()

    def words(self) -> str:
        """Return the server's own reason for its end, in one line. Call `end` before."""
        return last_words(self._said, self._status)

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


def _same_python(program: str) -> bool:
    """Whether a program is the interpreter of this process's environment, under whatever name."""
    found = shutil.which(program)
    if found is None:
        return False
    places = [(os.path.realpath(os.path.dirname(one)), os.path.realpath(one)) for one in (found, sys.executable)]
    return places[0] == places[1]


def _kill_session(leader: int) -> None:
    """Kill all processes of a session by its leader's process id."""
    for process in psutil.process_iter():
        with suppress(psutil.Error, ProcessLookupError):
            if os.getsid(process.pid) == leader:
                process.kill()
