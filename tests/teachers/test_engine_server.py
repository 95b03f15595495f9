"""The life of an engine's server: token, start and restart, the end of its owner, and its last words."""

import os
import signal
import subprocess
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

from tsd.teachers import engine_server
from tsd.teachers.engine_server import FAILED_STARTS, EngineServer, last_words

WITHIN = 30.0  # seconds in which no process of an engine may be left
PROGRAM = [sys.executable, fake_engine.__file__, "--served-model-name=eyes", "--scale=7"]


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

    def __init__(self) -> None:
        self.server = EngineServer(command, "VLLM_API_KEY")
        self.there: list[bool] = []
        self.reason: str | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.reason = self.server.run(self.there.append, lambda: False)

    def answers(self) -> bool:
        """Whether it was said to answer, and has not ended since."""
        return self.there[-1:] == [True]

    def processes(self) -> list[psutil.Process]:
        """All processes of the engine, its supervisor first."""
        port = f"--port={self.server.port}"
        owned = [one for one in psutil.process_iter() if _has(one, port)]
        below = [child for one in owned for child in one.children(recursive=True)]
        return list(dict.fromkeys([*owned, *below]))

    def engine(self) -> psutil.Process:
        """The server's own process."""
        (found,) = [one for one in self.processes() if _words(one)[1:2] == [fake_engine.__file__]]
        return found


def _words(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return [str(word) for word in process.cmdline()]
    return []


def _has(process: psutil.Process, word: str) -> bool:
    return word in _words(process)


@contextmanager
def running() -> Iterator[Running]:
    """A server, closed at the end, after which nothing of it may be left."""
    one = Running()
    try:
        yield one
    finally:
        left = one.processes()
        one.server.close()
        one.thread.join(WITHIN)
        assert not one.thread.is_alive()
        assert not fake_engine.alive(left, WITHIN)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where engines keep their lines; their logs are in a folder of their own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    told(monkeypatch, tmp_path)
    return tmp_path


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


def test_only_who_has_the_token_is_answered_and_it_stands_on_no_command_line_and_in_no_log() -> None:
    with running() as one:
        until(one.answers)
        url, token = f"{one.server.base_url}/models", one.server.token
        assert url.startswith("http://127.0.0.1:")
        assert [status(url), status(url, "x" * len(token)), status(url, token)] == [401, 401, 200]
        processes = one.processes()
        assert len(processes) == 3  # supervisor, server, and the server's child
        for process in processes:
            assert token not in " ".join(_words(process))
            assert token in process.environ().values()
        assert "arguments" in one.server.log.read_text()
        assert token not in one.server.log.read_text()
        assert one.server.log.stat().st_mode & 0o077 == 0
        assert one.server.log.parent.stat().st_mode & 0o077 == 0


OWNER = """
import sys
from support import fake_engine
from tsd.teachers.engine_server import EngineServer

def command(port):
    return [sys.executable, fake_engine.__file__, "--served-model-name=eyes", f"--port={port}"]

server = EngineServer(command, "VLLM_API_KEY")
server.run(lambda there: print(server.port, there, flush=True), lambda: False)
"""


def test_an_engine_and_what_it_started_end_with_an_owner_that_is_killed() -> None:
    paths = os.pathsep.join([str(Path(fake_engine.__file__).parents[1]), str(Path(__file__).parents[2])])
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout
    with owner.stdout:
        port, there = owner.stdout.readline().split()
        assert there == "True"
        found = [one for one in psutil.process_iter() if _has(one, f"--port={port}")]
        found += [child for one in found for child in one.children(recursive=True)]
        assert len(set(found)) == 3
        owner.kill()
        owner.wait(10)
    assert not fake_engine.alive(found, WITHIN)


def test_an_engine_whose_supervisor_is_killed_ends_and_is_started_again() -> None:
    with running() as one:
        until(one.answers)
        before = one.processes()
        supervisor = next(process for process in before if "engine_supervisor" in " ".join(_words(process)))
        supervisor.kill()
        assert not fake_engine.alive(before, WITHIN)
        until(lambda: one.there.count(True) == 2)


def test_an_engine_that_is_killed_is_started_again_at_the_same_address_and_with_the_same_token() -> None:
    with running() as one:
        until(one.answers)
        url, before = f"{one.server.base_url}/models", one.processes()
        one.engine().kill()
        until(lambda: one.there.count(True) == 2)
        assert one.there == [True, False, True]
        assert status(url, one.server.token) == 200
        assert not fake_engine.alive(before)


def test_an_engine_that_does_not_start_is_given_up_after_two_starts_in_its_own_words(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = "(EngineCore pid=7) ERROR 11-29 21:45:42 [core.py:99] ValueError: no kernel for this\nbye\n"
    told(monkeypatch, folder, fail=trace)
    with running() as one:
        one.thread.join(WITHIN)
        reason = str(one.reason)
        assert reason.startswith("the engine does not start: ValueError: no kernel for this; its log is ")
        assert "\n" not in reason
        assert str(one.server.log) in reason
        assert one.server.log.read_text().count("bye") == FAILED_STARTS
        assert True not in one.there


def test_a_program_that_does_not_exist_is_one_line(folder: Path) -> None:
    server = EngineServer(lambda port: [str(folder / "none"), f"--port={port}"], "VLLM_API_KEY")
    reason = str(server.run(lambda _: None, lambda: False))
    server.close()
    assert reason.startswith("the engine does not start: FileNotFoundError: ")
    assert "\n" not in reason


def test_an_engine_that_ends_again_and_again_is_given_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_server, "MOST_STARTS", 3)
    told(monkeypatch, folder, lives=3.0)
    with running() as one:
        one.thread.join(4 * WITHIN)
        assert "the engine ended 3 times: " in str(one.reason)
        assert one.there.count(True) == 3 == len(fake_engine.lines(folder))


def test_a_command_that_cannot_be_built_is_a_reason() -> None:
    def fails(_: int) -> list[str]:
        raise OSError("the model is gone\nfor good")

    server = EngineServer(fails, "VLLM_API_KEY")
    assert str(server.run(lambda _: None, lambda: False)).startswith(
        "the engine cannot be started: the model is gone; "
    )
    server.close()


def test_an_engine_that_is_not_needed_any_more_is_not_started() -> None:
    server = EngineServer(command, "VLLM_API_KEY")
    assert server.run(lambda _: None, lambda: True) is None
    server.close()


def test_few_logs_are_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_server, "LOGS", 3)
    logs = []
    for _ in range(5):
        server = EngineServer(command, "VLLM_API_KEY")
        server.close()
        logs.append(server.log)
        os.utime(server.log, (len(logs), len(logs)))
    assert [log.exists() for log in logs] == [False, False, True, True, True]


VLLM = "(APIServer pid=9) ERROR 11-29 21:45:42 [core.py:99] "


@pytest.mark.parametrize(
    ("log", "code", "words"),
    [
        ("Traceback\n  File x\nValueError: too little memory.\n", 1, "ValueError: too little memory"),
        (
            f"{VLLM}ValueError: No space\n{VLLM}RuntimeError: Engine core initialization failed. See above.\n",
            1,
            "ValueError: No space",
        ),
        ("usage: x\napi_server.py: error: unrecognized arguments: --no-such=1\n", 2, None),
        ("/usr/bin/python3: No module named vllm\n", 1, "/usr/bin/python3: No module named vllm"),
        ("ValueError: an older one\n", -signal.SIGKILL, "it was killed by SIGKILL"),
        ("", 1, "it said nothing, and its exit status was 1"),
        ("the end\n\n", 0, "the end"),
        (f"ValueError: {'long ' * 100}", 1, f"ValueError: {'long ' * 100}"[:200].rstrip(".")),
    ],
)
def test_the_last_words_of_an_engine_are_its_first_cause(log: str, code: int, words: str | None) -> None:
    said = last_words(log, code)
    assert said == (words or "api_server.py: error: unrecognized arguments: --no-such=1")
