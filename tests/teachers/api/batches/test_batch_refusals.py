"""Batch servers that refuse or fail for a while: what is tried again, what stops the stage; none is paid twice."""

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.api_server import Answer, completion, error
from support.asked import SECRET
from support.batch_server import BatchServer, Ending

pytestmark = pytest.mark.usefixtures("quick")


# ---- What the server will not do


@pytest.mark.parametrize("call", ["upload", "create", "poll", "download"])
@pytest.mark.parametrize("code", [401, 403])
def test_a_key_that_is_refused_stops_the_stage_with_one_line_and_the_next_start_pays_nothing_twice(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path, call: str, code: int
) -> None:
    server.instead = lambda name, _: error(code, f"expired\nkey {SECRET}") if name == call else None
    asked = ask(series.slice(0, 9), tmp_path / "one")
    assert asked.table is None
    assert len(asked.stopped.splitlines()) == 1
    assert server.url in asked.stopped
    assert str(code) in asked.stopped
    assert SECRET not in asked.stopped
    assert server.calls[call] == 1
    server.instead = lambda *_: None
    assert set(ask(series.slice(0, 9), tmp_path / "one").table["status"].to_pylist()) == {"ok"}
    assert server.paid_once(9)


def test_a_key_that_ends_while_a_batch_is_under_way_stops_the_stage_and_the_batch_is_collected_later(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.seconds = 1.0
    server.instead = lambda name, number: error(401, "expired") if name == "poll" and number >= 3 else None
    asked = ask(series.slice(0, 9), tmp_path / "one")
    assert (asked.table, len(server.batches)) == (None, 1)
    assert "expired" in asked.stopped
    server.instead = lambda *_: None
    assert len(ask(series.slice(0, 9), tmp_path / "one").table) == 9
    assert len(server.batches) == 1
    assert server.paid_once(9)


def test_a_batch_that_the_server_does_not_know_for_long_stops_the_stage_and_says_where_it_is_kept(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.seconds = 60
    server.instead = lambda name, number: error(401) if name == "poll" else None
    ask(series.slice(0, 3), tmp_path / "one")
    server.batches.clear()
    server.instead = lambda *_: None
    asked = ask(series.slice(0, 3), tmp_path / "one")
    assert asked.table is None
    assert "batch_0" in asked.stopped
    (registry,) = (tmp_path / "one").rglob("batches.json")
    assert str(registry) in asked.stopped


def test_a_batch_that_fails_stops_the_stage_with_what_is_wrong_and_can_be_submitted_again(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    wrong = {"code": "invalid_json_line", "message": "This line is not parseable", "line": 3, "param": None}
    server.ending = lambda number: Ending("failed", 0.0, (wrong,)) if number == 0 else Ending()
    asked = ask(series.slice(0, 5), tmp_path / "one")
    assert asked.table is None
    assert "This line is not parseable (line 3)" in asked.stopped
    assert len(asked.stopped.splitlines()) == 1
    assert len(ask(series.slice(0, 5), tmp_path / "one").table) == 5
    assert server.paid_once(5)


def test_a_full_queue_of_the_provider_is_waited_for(server: BatchServer, ask: Any, series: pa.Table) -> None:
    full = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached", "line": None, "param": None}
    server.ending = lambda number: Ending("failed", 0.0, (full,)) if number < 6 else Ending()
    rows = ask(series.slice(0, 5), batch={"rounds": 1}).table.to_pylist()
    assert {(row["status"], row["attempts"]) for row in rows} == {("ok", 1)}
    assert len(server.batches) == 7


def test_requests_that_are_all_refused_stop_the_stage_once_nothing_can_be_said_otherwise(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.answer = lambda *_: error(400, "I know no pictures")
    asked = ask(series.slice(0, 5), tmp_path / "one")
    assert asked.table is None
    assert "400: I know no pictures" in asked.stopped
    assert len(server.batches) == 3  # by schema, as JSON, in words
    server.answer = lambda *_: Answer(200, completion())
    assert set(ask(series.slice(0, 5), tmp_path / "one").table["status"].to_pylist()) == {"ok"}


def test_what_a_server_does_not_know_is_said_otherwise_in_the_next_batch(
    server: BatchServer, ask: Any, series: pa.Table
) -> None:
    def answer(_: str, body: dict[str, Any], __: int) -> Answer:
        said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return error(400, said) if "max_tokens" in body else Answer(200, completion())

    server.answer, server.seconds = answer, 0.2
    asked = ask(series.slice(0, 20), batch={"most_requests": 5, "at_once": 2})
    assert {(row["status"], row["attempts"]) for row in asked.table.to_pylist()} == {("ok", 1)}
    assert all("response_format" in line["body"] for lines in server.lines for line in lines)
    assert len(server.batches) <= 8
    assert server.paid_once(20)


def test_an_account_that_runs_dry_stops_the_stage_and_keeps_what_was_answered(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    dry = Answer(429, {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}})
    server.answer = lambda name, *_: dry if int(name) >= 6 else Answer(200, completion())
    asked = ask(series.slice(0, 9), tmp_path / "one")
    assert asked.table is None
    assert "quota" in asked.stopped
    server.answer = lambda *_: Answer(200, completion())
    rows = ask(series.slice(0, 9), tmp_path / "one").table.to_pylist()
    assert {(row["status"], row["attempts"]) for row in rows} == {("ok", 1)}
    assert server.paid_once(9)


# ---- What may pass


FAULTS = {
    "500": error(500),
    "429": error(429, Retry_After="0.1"),
    "HTML": Answer(200, b"<html>", {"Content-Type": "text/html"}),
    "not JSON": Answer(200, b'{"id": "ba'),
    "empty": Answer(200, {}),
    "reset": Answer(reset=True),
    "hang": Answer(200, {}, hang=3.0),
}


@pytest.mark.parametrize("call", ["upload", "create", "poll", "list", "download"])
@pytest.mark.parametrize("fault", FAULTS)
def test_calls_that_fail_are_made_again_and_no_batch_is_paid_twice(
    server: BatchServer, ask: Any, series: pa.Table, call: str, fault: str
) -> None:
    kinds: tuple[str, ...] = ("instead", "after") if call in ("create", "poll") else ("instead",)
    for kind in kinds:
        setattr(server, kind, lambda name, number: FAULTS[fault] if name == call and number < 2 else None)
        first = 20 * len(server.batches)
        said = ask(series.slice(first, 6), timeout=0.5).table
        assert set(said["status"].to_pylist()) == {"ok"}
        server.calls.clear()
        setattr(server, kind, lambda *_: None)
    assert set(server.paid.values()) == {1}
    assert len(server.batches) == len(kinds)


@pytest.mark.parametrize("page", [1, 100])
def test_a_batch_whose_acceptance_was_not_heard_is_found_and_not_submitted_again(
    server: BatchServer, ask: Any, series: pa.Table, page: int
) -> None:
    server.page = page
    server.after = lambda name, number: Answer(reset=True) if name == "create" and number % 2 == 0 else None
    said = ask(series.slice(0, 30), batch={"most_requests": 10, "at_once": 1}).table
    assert set(said["status"].to_pylist()) == {"ok"}
    assert len(server.batches) == 3
    assert server.paid_once(30)


def test_waiting_for_a_batch_is_not_silence(server: BatchServer, ask: Any, series: pa.Table) -> None:
    server.seconds = 2.0
    asked = ask(series.slice(0, 4), idle_timeout=0.3, batch={"poll_seconds": 0.7})
    assert (len(asked.table), asked.stopped) == (4, None)


@pytest.mark.parametrize("fault", ["500", "hang", "reset"])
def test_a_server_that_does_not_answer_polls_stops_the_stage(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path, fault: str
) -> None:
    server.instead = lambda name, number: FAULTS[fault] if name == "poll" else None
    started = time.monotonic()
    asked = ask(series.slice(0, 4), tmp_path / "one", idle_timeout=1.0, timeout=0.3)
    assert asked.table is None
    assert "has given no answer for 1." in asked.stopped
    assert 1.0 < time.monotonic() - started < 10
    server.instead = lambda *_: None
    assert len(ask(series.slice(0, 4), tmp_path / "one").table) == 4
    assert server.paid_once(4)


def test_polls_that_are_only_ever_told_to_wait_stop_the_stage(
    server: BatchServer, ask: Any, series: pa.Table
) -> None:
    server.instead = lambda name, number: error(429, Retry_After="1") if name == "poll" else None
    started = time.monotonic()
    asked = ask(series.slice(0, 4), idle_timeout=1.0)
    assert asked.table is None
    assert "has refused every request for " in asked.stopped
    assert 2.0 < time.monotonic() - started < 10
