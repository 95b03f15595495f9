"""The server of a fake engine, kept running by a thread."""

import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from support import fake_engine
from tsd.teachers import engine_supervisor
from tsd.teachers.engine_server import EngineServer, Seen

WITHIN = 30.0  # seconds in which no process of an engine may be left
PROGRAM = [sys.executable, fake_engine.__file__, "--served-model-name=eyes", "--scale=7"]
MODULES = Path(__file__).parent


def command(port: int) -> list[str]:
    """The command line of a fake engine."""
    return [*PROGRAM, f"--port={port}"]


def until(so: Callable[[], Any], seconds: float = WITHIN) -> Any:
    """Wait until something is so, and return it."""
    end = time.monotonic() + seconds
    while not (found := so()):
        assert time.monotonic() < end, "it did not become so"
        time.sleep(0.02)
    return found


class Running:
    """A server that is kept running by a thread, and what that thread was told."""

    def __init__(self, hang_seconds: float = 60.0, program: list[str] | None = None) -> None:
        words = program or PROGRAM
        self.server = EngineServer(lambda port: [*words, f"--port={port}"], "VLLM_API_KEY", MODULES, hang_seconds)
        self.seen = Seen()
        self.there: list[bool] = []
        self.reason: str | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.reason = self.server.run(self.there.append, lambda: False, lambda: self.seen)

    def answers(self) -> bool:
        """Whether it was said to answer, and has not ended since."""
        return self.there[-1:] == [True]

    def processes(self) -> list[psutil.Process]:
        """All processes of the engine, its supervisor first."""
        port = f"--port={self.server.port}"
        owned = [one for one in psutil.process_iter() if has_word(one, port)]
        below = [child for one in owned for child in one.children(recursive=True)]
        return list(dict.fromkeys([*owned, *below]))

    def supervisor(self) -> psutil.Process:
        """The process that ends the server."""
        (found,) = [one for one in self.processes() if engine_supervisor.__file__ in words_of(one)]
        return found

    def engine(self) -> psutil.Process:
        """The server's own process."""
        (found,) = [one for one in self.processes() if words_of(one)[1:2] == [fake_engine.__file__]]
        return found


def words_of(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return [str(word) for word in process.cmdline()]
    return []


def has_word(process: psutil.Process, word: str) -> bool:
    return word in words_of(process)


def started(one: Running, times: int) -> None:
    """Wait until a server has answered after so many starts."""
    until(lambda: one.there.count(True) == times, 2 * WITHIN)


@contextmanager
def running(**how: Any) -> Iterator[Running]:
    """A server, closed at the end, after which nothing of it may be left."""
    one = Running(**how)
    try:
        yield one
    finally:
        left = one.processes()
        one.server.close()
        one.thread.join(WITHIN)
        assert not one.thread.is_alive()
        assert not fake_engine.alive(left, WITHIN)


def told(monkeypatch: pytest.MonkeyPatch, folder: Path, **more: Any) -> None:
    """Say what the next engine does."""
    for name, value in fake_engine.settings(folder, **more).items():
        monkeypatch.setenv(name, value)


def status(url: str, token: str | None = None) -> int:
    """The status of an answer to who sends this token."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
