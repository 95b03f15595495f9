"""The life of an engine's server: token, start and restart, the end of its owner, and its last words."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support import fake_engine
from support.engine_servers import (
    MODULES,
    PROGRAM,
    WITHIN,
    command,
    has_word,
    running,
    started,
    status,
    told,
    until,
    words_of,
)

from tsd.teachers import engine_server
from tsd.teachers.engine_server import FAILED_STARTS, EngineServer, Seen, last_words


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where engines keep their lines; their logs are in a folder of their own."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    told(monkeypatch, tmp_path)
    return tmp_path


def test_only_who_has_the_token_is_answered_and_it_stands_on_no_command_line_and_in_no_log() -> None:
    with running() as one:
        until(one.answers)
        url, token = f"{one.server.base_url}/models", one.server.token
        assert url.startswith("http://127.0.0.1:")
        assert [status(url), status(url, "x" * len(token)), status(url, token)] == [401, 401, 200]
        processes = one.processes()
        assert len(processes) == 3  # supervisor, server, and the server's child
        for process in processes:
            assert token not in " ".join(words_of(process))
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
        found = [one for one in psutil.process_iter() if has_word(one, f"--port={port}")]
        found += [child for one in found for child in one.children(recursive=True)]
        assert len(set(found)) == 3
        owner.kill()
        owner.wait(10)
    assert not fake_engine.alive(found, WITHIN)


def test_an_engine_whose_supervisor_is_killed_ends_and_is_started_again() -> None:
    with running() as one:
        until(one.answers)
        before = one.processes()
        supervisor = next(process for process in before if "engine_supervisor" in " ".join(words_of(process)))
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
    monkeypatch.setattr(engine_server, "MOST_ENDS", 3)
    told(monkeypatch, folder, lives=3.0)
    with running() as one:
        one.thread.join(4 * WITHIN)
        assert "the engine ended 3 times: " in str(one.reason)
        assert one.there.count(True) == 3 == len(fake_engine.lines(folder))


def test_ends_with_a_while_of_answers_between_them_are_forgotten(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_server, "MOST_ENDS", 2)
    monkeypatch.setattr(engine_server, "SOUND_SECONDS", 0.2)
    told(monkeypatch, folder, lives=2.0)
    with running() as one:
        until(lambda: one.there.count(True) == 5, 4 * WITHIN)
        assert one.thread.is_alive()


def test_ends_that_a_row_explains_give_no_engine_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_server, "MOST_ENDS", 2)
    with running() as one:
        for ends in range(1, 7):
            started(one, ends)
            one.seen = Seen(explained=min(ends, 4))
            one.engine().kill()
        one.thread.join(WITHIN)
        assert "the engine ended 6 times: it was killed by SIGKILL" in str(one.reason)


# ---- An engine that hangs


@pytest.fixture
def quick_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A check takes at most half a second."""
    monkeypatch.setattr(engine_server, "ANSWER_SECONDS", 0.5)


def test_an_engine_that_stands_still_is_ended_and_started_again(quick_checks: None) -> None:
    with running(hang_seconds=2.0) as one:
        until(one.answers)
        before, engine = one.processes(), one.engine()
        began = time.monotonic()
        engine.suspend()
        until(lambda: one.there.count(True) == 2)
        assert time.monotonic() - began > 2.0
        assert not fake_engine.alive(before)
        assert one.engine().pid != engine.pid
        assert status(f"{one.server.base_url}/models", one.server.token) == 200


def test_an_engine_that_hangs_each_time_is_given_up_in_words_that_say_so(
    quick_checks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_server, "MOST_ENDS", 1)
    with running(hang_seconds=1.0) as one:
        until(one.answers)
        one.engine().suspend()
        one.thread.join(WITHIN)
        assert "the engine ended 1 times: it gave no sign of life for 1.0 s or longer" in str(one.reason)
        assert "teacher.hang_timeout" in str(one.reason)


def test_an_engine_whose_client_waits_too_long_is_ended_though_it_answers_checks() -> None:
    with running() as one:
        until(one.answers)
        one.seen = Seen(overdue=True)
        until(lambda: one.there[-1:] == [False])
        one.seen = Seen()
        until(lambda: one.there.count(True) == 2)


def test_an_engine_that_loads_or_answers_for_long_goes_on(
    folder: Path, quick_checks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, folder, loads=4.0)
    with running(hang_seconds=1.0) as one:
        until(one.answers)
        time.sleep(4.0)  # its client has had no answer so far
        assert one.there == [True]
        assert len(fake_engine.lines(folder)) == 1


def test_answers_to_the_client_are_a_sign_of_life(quick_checks: None) -> None:
    with running(hang_seconds=2.0) as one:
        until(one.answers)
        one.engine().suspend()
        for _ in range(50):
            one.seen = Seen(answered=time.monotonic())
            time.sleep(0.1)
        assert one.there == [True]
        one.engine().resume()


# ---- Its interpreter's modules


def modules_of(process: psutil.Process) -> list[str]:
    """The folders in a process's PYTHONPATH."""
    return str(process.environ().get("PYTHONPATH", "")).split(os.pathsep)


def test_an_engine_of_another_python_gets_none_of_this_one_s_modules_and_its_supervisor_gets_them(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(folder))
    with running(program=[str(fake_engine.program(folder)), "--served-model-name=eyes"]) as one:
        until(one.answers)
        assert modules_of(one.engine()) == [str(MODULES)]
        assert modules_of(one.supervisor()) == [str(folder)]


@pytest.mark.parametrize("name", [Path(sys.executable).name, "python3"])
def test_an_engine_of_this_python_keeps_its_modules_whatever_name_it_is_called_by(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(folder))
    with running(program=[str(Path(sys.executable).with_name(name)), *PROGRAM[1:]]) as one:
        until(one.answers)
        assert modules_of(one.engine()) == [str(MODULES), str(folder)]
        assert modules_of(one.supervisor()) == [str(folder)]


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


# ---- Its log


def test_an_engine_whose_log_is_deleted_is_started_again_and_its_words_are_kept() -> None:
    with running() as one:
        until(one.answers)
        shutil.rmtree(one.server.log.parent)
        one.engine().kill()
        until(lambda: one.there.count(True) == 2)
        assert "arguments" in one.server.log.read_text()
        assert one.server.log.parent.stat().st_mode & 0o077 == 0


def test_words_are_read_from_a_log_that_was_deleted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_server, "MOST_ENDS", 1)
    told(monkeypatch, folder, lives=3.0)
    with running() as one:
        until(one.answers)
        shutil.rmtree(one.server.log.parent)
        one.thread.join(WITHIN)
        assert "the engine ended 1 times: arguments " in str(one.reason)


def test_an_engine_whose_log_cannot_be_written_is_started_again_with_another() -> None:
    with running() as one:
        until(one.answers)
        before = one.server.log
        before.unlink()
        before.mkdir()
        one.engine().kill()
        until(lambda: one.there.count(True) == 2)
        assert one.server.log.parent != before.parent
        assert "arguments" in one.server.log.read_text()


def test_without_any_place_for_a_log_an_engine_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(folder / "none"))
    with running() as one:
        until(one.answers)
        assert one.server.log == Path(os.devnull)


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
