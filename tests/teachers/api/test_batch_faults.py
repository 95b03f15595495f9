"""Batch servers that misbehave after they were paid: no answer is lost, none is paid twice, all of it is said."""

import json
import socket
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.api_server import SOUND, Answer, completion, error
from support.asked import LIVE_USD, PRICES
from support.batch_server import BatchServer, Ending

from tsd.errors import StorageError
from tsd.teachers.api.batch_registry import BatchRegistry
from tsd.teachers.api.journal import Journal
from tsd.teachers.api.messages import DOLLARS

pytestmark = pytest.mark.usefixtures("quick")

HTML = Answer(200, b"<html><body>503 Service Temporarily Unavailable</body></html>", {"Content-Type": "text/html"})
EACH = LIVE_USD / 2  # dollars of an answer in a batch


@pytest.fixture
def server(batch_server: BatchServer) -> BatchServer:
    """The API that all these tests ask."""
    return batch_server


@pytest.fixture
def ask(ask_in_batches: Any) -> Any:
    """How they ask it."""
    return ask_in_batches


# ---- Files that cannot be read


def lines_of(server: BatchServer) -> list[bytes]:
    """The lines of the last output file."""
    return server.files[server.batches[-1]["output_file_id"]].splitlines(keepends=True)


UNREAD = {
    "HTML": lambda server: HTML,
    "empty": lambda server: Answer(200, b""),
    "cut in a line": lambda server: Answer(200, b"".join(lines_of(server))[:-40]),
    "cut between lines": lambda server: Answer(200, b"".join(lines_of(server)[:-3])),
    "cut connection": lambda server: Answer(200, b"".join(lines_of(server))[:-40], {"Content-Length": "99999"}),
    "404": lambda server: error(404, "No such File object"),
    "500": lambda server: error(500),
    "bytes": lambda server: Answer(200, b"\xff\xfe\x00\x9f" * 50),
    "brackets": lambda server: Answer(200, b"[" * 200_000),
    "another batch's file": lambda server: Answer(
        200, b"".join(lines_of(server)).replace(b'"custom_id": "', b'"custom_id": "77')
    ),
    "two answers to one": lambda server: Answer(
        200, b"".join([*lines_of(server), lines_of(server)[0].replace(b"1000", b"1001")])
    ),
}


@pytest.mark.parametrize("kind", UNREAD)
def test_a_file_that_cannot_be_read_is_read_again_and_its_answers_are_paid_once(
    server: BatchServer, ask: Any, series: pa.Table, kind: str
) -> None:
    server.instead = lambda call, n: UNREAD[kind](server) if call == "download" and n < 3 else None
    asked = ask(series.slice(0, 16), timeout=0.5, batch={"idle_timeout": 20}, **PRICES)
    assert set(asked.table["status"].to_pylist()) == {"ok"}
    assert set(asked.table["attempts"].to_pylist()) == {1}
    assert server.calls["download"] == 4
    assert server.paid_once(16)
    assert asked.counts[DOLLARS] == pytest.approx(server.usd(EACH))


@pytest.mark.parametrize("kind", UNREAD)
def test_a_file_that_is_never_whole_stops_the_stage_and_the_same_command_goes_on_once_it_is(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path, kind: str
) -> None:
    server.instead = lambda call, n: UNREAD[kind](server) if call == "download" else None
    budget = {"budget_usd": 1.0, "batch": {"idle_timeout": 0.3}, **PRICES}
    asked = ask(series.slice(0, 16), tmp_path / "one", **budget)
    assert asked.table is None
    assert len(asked.stopped.splitlines()) == 1
    assert server.batches[0]["id"] in asked.stopped
    assert server.batches[0]["output_file_id"] in asked.stopped
    assert server.calls["delete"] == 0
    assert len(server.files) == 2
    server.instead = lambda *_: None
    asked = ask(series.slice(0, 16), tmp_path / "one", **budget)
    assert set(asked.table["status"].to_pylist()) == {"ok"}
    assert len(server.batches) == 1
    assert server.paid_once(16)
    assert asked.counts[DOLLARS] == pytest.approx(server.usd(EACH))
    assert server.files == {}


def test_answers_of_a_file_that_is_never_whole_are_kept_and_the_rest_stays_reserved(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.instead = lambda call, n: UNREAD["cut in a line"](server) if call == "download" else None
    asked = ask(series.slice(0, 16), tmp_path / "one", batch={"idle_timeout": 0.3}, **PRICES)
    assert asked.table is None
    history = Journal(str(tmp_path / "one"), 0).read()
    assert len(history.replies) == 15
    (bound,) = history.account.open.values()  # of the whole batch: a budget counts it before the next request
    assert (bound.output_tokens, bound.input_tokens > 16 * 100) == (16 * 256, True)


def test_the_bound_of_a_batch_stands_in_ledger_and_journal_before_the_server_hears_of_it(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.instead = lambda call, _: error(401) if call == "upload" else None
    ask(series.slice(0, 16), tmp_path / "one")
    (registry,) = (tmp_path / "one").rglob("batches.json")
    (kept,) = json.loads(registry.read_bytes())["batches"]
    assert (kept["bound_output_tokens"], kept["id"]) == (16 * 256, None)
    assert kept["bound_input_tokens"] > 16 * 100
    opened = Journal(str(tmp_path / "one"), 0).read().account.open
    assert list(opened) == [kept["name"]]


@pytest.mark.parametrize("kind", ["null", "missing", "empty"])
def test_an_output_file_whose_id_comes_late_is_waited_for(
    server: BatchServer, ask: Any, series: pa.Table, kind: str
) -> None:
    def shown(batch: dict[str, Any], number: int) -> dict[str, Any]:
        if number >= 4:
            return batch
        other = {name: value for name, value in batch.items() if name != "output_file_id"}
        return other if kind == "missing" else {**other, "output_file_id": None if kind == "null" else ""}

    server.shown = shown
    assert set(ask(series.slice(0, 9)).table["status"].to_pylist()) == {"ok"}
    assert server.paid_once(9)


def test_an_output_file_whose_id_never_comes_stops_the_stage(
    server: BatchServer, ask: Any, series: pa.Table
) -> None:
    server.shown = lambda batch, _: {**batch, "output_file_id": None}
    asked = ask(series.slice(0, 9), batch={"idle_timeout": 0.3})
    assert asked.table is None
    assert "batch_0" in asked.stopped
    assert "0 lines of 9 completed requests" in asked.stopped
    assert (len(server.batches), server.calls["delete"]) == (1, 0)


# ---- Counts


COUNTS: dict[str, Any] = {
    "null": None,
    "zeros": {"total": 0, "completed": 0, "failed": 0},
    "words": {"total": "many", "completed": "most", "failed": None},
    "negative": {"total": 9, "completed": -9, "failed": -1},
    "a list": [9, 9, 0],
    "too many": {"total": 9, "completed": 90, "failed": 0},
}


@pytest.mark.parametrize(
    ("status", "kind"),
    [("completed", kind) for kind in COUNTS] + [("expired", kind) for kind in ("null", "zeros")],
)
def test_without_counts_that_can_be_true_a_whole_file_is_taken_and_only_an_early_end_is_asked_again(
    server: BatchServer, ask: Any, series: pa.Table, kind: str, status: str
) -> None:
    server.shown = lambda batch, _: {**batch, "request_counts": COUNTS[kind]}
    server.ending = lambda number: Ending(status, 0.5 if status == "expired" and number == 0 else 1.0)
    assert set(ask(series.slice(0, 8)).table["status"].to_pylist()) == {"ok"}
    assert server.paid_once(8)
    assert len(server.batches) == (2 if status == "expired" else 1)


def test_without_counts_a_completed_batch_with_lines_missing_is_not_asked_again(
    server: BatchServer, ask: Any, series: pa.Table
) -> None:
    server.shown = lambda batch, _: {**batch, "request_counts": None}
    server.instead = lambda call, _: UNREAD["cut between lines"](server) if call == "download" else None
    asked = ask(series.slice(0, 9), batch={"idle_timeout": 0.3})
    assert asked.table is None
    assert "6 lines of 9 requests" in asked.stopped
    assert server.paid_once(9)


def test_rows_that_the_counts_call_failed_are_asked_again_where_no_file_names_them(
    server: BatchServer, ask: Any, series: pa.Table
) -> None:
    server.answer = lambda name, _, number: error(500) if name in ("2", "3") and number == 0 else SURE
    server.shown = lambda batch, _: {**batch, "error_file_id": None}
    rows = ask(series.slice(0, 9)).table.to_pylist()
    assert [row["attempts"] for row in rows] == [1, 1, 2, 2, 1, 1, 1, 1, 1]
    assert sorted(server.asked()[1]) == ["2", "3"]
    assert server.paid_once(9)


def test_errors_are_read_again_too_before_their_rows_are_asked_again(
    server: BatchServer, ask: Any, series: pa.Table
) -> None:
    server.answer = lambda name, *_: error(400, "too long") if name == "2" else SURE
    server.instead = lambda call, n: HTML if call == "download" and n == 1 else None
    rows = ask(series.slice(0, 9)).table.to_pylist()
    assert (rows[2]["status"], rows[2]["reason"], rows[2]["attempts"]) == ("error", "400: too long", 1)
    assert len(server.batches) == 1


def test_an_empty_file_of_errors_is_no_fault(server: BatchServer, ask: Any, series: pa.Table) -> None:
    def shown(batch: dict[str, Any], _: int) -> dict[str, Any]:
        server.files["empty"] = b""  # as Azure has one for every batch
        return {**batch, "error_file_id": "empty"}

    server.shown = shown
    assert len(ask(series.slice(0, 9)).table) == 9
    assert server.calls["download"] == 2


SURE = Answer(200, completion())


# ---- Lines


def rewritten(**changes: Any) -> Any:
    """Have a line's response be written in another form."""

    def rewrite(server: BatchServer, form: str) -> Answer:
        written = []
        for text in lines_of(server):
            line = json.loads(text)
            response = line["response"]
            if form == "code in digits":
                response["status_code"] = "200"
            elif form == "id as a number":
                line["custom_id"] = int(line["custom_id"])
            elif form == "no code":
                del response["status_code"]
            elif form == "completion in its place":
                line["response"] = response["body"]
            elif form == "body as text":
                response["body"] = json.dumps(response["body"])
            elif form == "another success":
                response["status_code"] = 201
            written.append(json.dumps(line).encode())
        start = b"\xef\xbb\xbf" if form == "byte order mark" else b"\n\n"
        return Answer(200, start + b"\r\n\r\n".join(written))

    return rewrite


FORMS = (
    *("code in digits", "id as a number", "no code", "completion in its place", "body as text"),
    *("another success", "byte order mark"),
)


@pytest.mark.parametrize("form", FORMS)
def test_answers_are_read_in_whatever_form_their_lines_have(
    server: BatchServer, ask: Any, series: pa.Table, form: str
) -> None:
    server.instead = lambda call, _: rewritten()(server, form) if call == "download" else None
    rows = ask(series.slice(0, 9)).table.to_pylist()
    assert {(row["status"], row["text"]) for row in rows} == {("ok", SOUND)}
    assert server.paid_once(9)


@pytest.mark.parametrize("code", [403, 404, 451])
def test_a_refusal_of_one_row_is_that_rows_error_where_others_were_answered(
    server: BatchServer, ask: Any, series: pa.Table, code: int
) -> None:
    server.answer = lambda name, *_: error(code, "Your input was flagged") if name == "4" else SURE
    asked = ask(series.slice(0, 9))
    assert asked.stopped is None
    rows = asked.table.to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 4 + ["error"] + ["ok"] * 4
    assert "Your input was flagged" in rows[4]["reason"]


def test_a_refusal_of_all_rows_stops_the_stage(server: BatchServer, ask: Any, series: pa.Table) -> None:
    server.answer = lambda *_: error(403, "the project has no access to seer")
    asked = ask(series.slice(0, 9))
    assert asked.table is None
    assert "no access to seer" in asked.stopped
    assert len(server.batches) == 1


@pytest.mark.parametrize("form", ["text", "error in words", "detail", "error beside it"])
def test_the_servers_words_about_a_row_reach_its_reason(
    server: BatchServer, ask: Any, series: pa.Table, form: str
) -> None:
    bodies: dict[str, Any] = {
        "text": "prompt too long",
        "error in words": {"error": "prompt too long"},
        "detail": {"detail": "prompt too long"},
        "error beside it": None,
    }
    server.answer = lambda name, *_: Answer(422, bodies[form]) if name == "4" else SURE

    def beside(call: str, _: int) -> Answer | None:
        file = server.batches[-1].get("error_file_id") if server.batches else None
        if call == "download" and form == "error beside it" and file:
            told = {"code": "too_long", "message": "prompt too long"}
            server.files[file] = json.dumps({"custom_id": "4", "response": None, "error": told}).encode()
        return None

    server.instead = beside
    rows = ask(series.slice(0, 9), batch={"rounds": 1}).table.to_pylist()
    assert rows[4]["status"] == "error"
    assert "prompt too long" in rows[4]["reason"]


# ---- Statuses


@pytest.mark.parametrize(
    "status",
    ["success", "SUCCESS", "succeeded", "COMPLETED", "JOB_STATE_SUCCEEDED", "BATCH_STATE_SUCCEEDED", "ended"],
)
def test_every_word_for_a_batch_that_has_ended_is_understood(
    server: BatchServer, ask: Any, series: pa.Table, status: str
) -> None:
    server.shown = lambda batch, _: {**batch, "status": status}
    assert len(ask(series.slice(0, 9), batch={"idle_timeout": 0.3}).table) == 9
    assert len(server.batches) == 1


@pytest.mark.parametrize("status", ["TIMEOUT_EXCEEDED", "canceled", "CANCELLED", "JOB_STATE_EXPIRED", "FAILED"])
def test_every_word_for_a_batch_that_ended_early_is_understood(
    server: BatchServer, ask: Any, series: pa.Table, status: str
) -> None:
    server.ending = lambda number: Ending("expired", 0.5) if number == 0 else Ending()
    server.shown = lambda batch, _: {**batch, "status": status} if batch["id"] == "batch_0" else batch
    assert set(ask(series.slice(0, 10)).table["status"].to_pylist()) == {"ok"}
    assert server.paid_once(10)
    assert len(server.asked()[1]) == 5


def test_a_status_that_nobody_knows_is_waited_for_while_something_changes_and_then_named(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.seconds = 1.0
    server.shown = lambda batch, _: {**batch, "status": "pondering"} if batch["status"] == "in_progress" else batch
    assert len(ask(series.slice(0, 40), batch={"idle_timeout": 0.4}).table) == 40  # counts went up meanwhile
    server.shown = lambda batch, _: {**batch, "status": "pondering\nsecond line"}
    started = time.monotonic()
    asked = ask(series.slice(100, 9), tmp_path / "one", batch={"idle_timeout": 0.4})
    assert 0.4 < time.monotonic() - started < 20
    assert asked.table is None
    assert len(asked.stopped.splitlines()) == 1
    assert "pondering" in asked.stopped
    assert "batch_1" in asked.stopped
    server.shown = lambda batch, _: batch
    assert len(ask(series.slice(100, 9), tmp_path / "one").table) == 9
    assert len(server.batches) == 2


def test_a_batch_that_is_overdue_and_stands_still_stops_the_stage_and_is_collected_later(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.seconds = 3600.0
    server.shown = lambda batch, _: {**batch, "created_at": int(time.time() - 25 * 3600)}
    asked = ask(series.slice(0, 9), tmp_path / "one", batch={"idle_timeout": 0.3})
    assert asked.table is None
    assert "batch_0" in asked.stopped
    assert "25 h 00 min" in asked.stopped
    server.seconds = 0.0
    assert len(ask(series.slice(0, 9), tmp_path / "one").table) == 9
    assert server.paid_once(9)


def test_a_batch_that_failed_half_way_is_collected(server: BatchServer, ask: Any, series: pa.Table) -> None:
    server.ending = lambda number: Ending("cancelled", 0.5) if number == 0 else Ending()
    server.shown = lambda batch, _: {**batch, "status": "failed"} if batch["id"] == "batch_0" else batch
    assert set(ask(series.slice(0, 10)).table["status"].to_pylist()) == {"ok"}
    assert server.paid_once(10)


# ---- Creation


@pytest.mark.parametrize("lag", [1, 4])
def test_where_the_answer_to_a_creation_is_lost_the_list_is_given_time_to_show_the_batch(
    server: BatchServer, ask: Any, series: pa.Table, lag: int
) -> None:
    server.after = lambda call, n: Answer(reset=True) if call == "create" and n == 0 else None
    empty = Answer(200, {"object": "list", "data": [], "has_more": False})
    server.instead = lambda call, n: empty if call == "list" and n <= lag else None
    assert len(ask(series.slice(0, 9), batch={"idle_timeout": 20}).table) == 9
    assert (len(server.batches), server.calls["create"]) == (1, 1)
    assert server.paid_once(9)


def test_a_second_start_gives_the_list_time_too(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.after = lambda call, _: Answer(reset=True) if call == "create" else None
    server.instead = lambda call, n: error(401) if call == "list" and n > 0 else None
    assert ask(series.slice(0, 9), tmp_path / "one", batch={"idle_timeout": 20}).table is None
    server.after, calls = lambda *_: None, server.calls["list"]
    empty = Answer(200, {"object": "list", "data": [], "has_more": False})
    server.instead = lambda call, n: empty if call == "list" and n < calls + 3 else None
    assert len(ask(series.slice(0, 9), tmp_path / "one", batch={"idle_timeout": 20}).table) == 9
    assert server.paid_once(9)
    assert len(server.batches) == 1


def test_a_list_that_names_no_input_files_is_searched_by_digest(
    server: BatchServer, ask: Any, series: pa.Table
) -> None:
    server.after = lambda call, n: Answer(reset=True) if call == "create" and n == 0 else None

    def listed(call: str, _: int) -> Answer | None:
        batches = [{**one, "input_file_id": None} for one in server.batches]
        return Answer(200, {"object": "list", "data": batches, "has_more": True}) if call == "list" else None

    server.instead = listed  # it also gives its first page for ever
    assert len(ask(series.slice(0, 9)).table) == 9
    assert server.paid_once(9)


def test_a_creation_that_was_never_sent_is_no_reason_to_ask_a_person(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.instead = lambda call, _: error(404) if call == "list" else error(403) if call == "create" else None
    assert ask(series.slice(0, 9), tmp_path / "one").table is None
    server.instead = lambda call, _: error(404) if call == "list" else None
    assert len(ask(series.slice(0, 9), tmp_path / "one").table) == 9
    assert server.paid_once(9)


PENDING = {
    "in words": Answer(400, {"error": {"code": "BadRequest", "message": "The file file-1 is still pending."}}),
    "in a string": Answer(400, {"error": "File is not ready: status pending"}),
    "not found": error(404, "No such File object: file-1"),
    "by its status": error(400, "invalidPayload"),
}


@pytest.mark.parametrize("kind", PENDING)
def test_an_uploaded_file_that_is_still_pending_is_waited_for(
    server: BatchServer, ask: Any, series: pa.Table, kind: str
) -> None:
    def instead(call: str, number: int) -> Answer | None:
        if call == "file" and server.calls["create"] <= 5:
            return Answer(200, {"id": "file-1", "object": "file", "status": "pending"})
        return PENDING[kind] if call == "create" and number < 5 else None

    server.instead = instead
    assert len(ask(series.slice(0, 9), batch={"idle_timeout": 20}).table) == 9
    assert (server.calls["upload"], server.calls["create"]) == (1, 6)
    assert server.paid_once(9)


def test_a_file_that_stays_pending_stops_the_stage_with_the_servers_words(
    server: BatchServer, ask: Any, series: pa.Table
) -> None:
    server.instead = lambda call, _: PENDING["in words"] if call == "create" else None
    asked = ask(series.slice(0, 9), batch={"idle_timeout": 0.3})
    assert asked.table is None
    assert "The file file-1 is still pending." in asked.stopped


@pytest.mark.parametrize("code", [404, 405, 501])
def test_a_server_without_batches_is_named_before_anything_is_uploaded(
    server: BatchServer, ask: Any, series: pa.Table, code: int
) -> None:
    server.instead = lambda call, _: error(code, "Not Found") if call in ("list", "create", "poll") else None
    asked = ask(series.slice(0, 9))
    assert asked.table is None
    assert len(asked.stopped.splitlines()) == 1
    assert f"no Batch API ({code}" in asked.stopped
    assert "teacher.mode=live" in asked.stopped
    assert server.calls["upload"] == 0


@pytest.mark.parametrize("times", [1, 4])
def test_a_batch_that_is_not_known_everywhere_yet_is_looked_up_again(
    server: BatchServer, ask: Any, series: pa.Table, times: int
) -> None:
    server.instead = lambda call, n: error(404, "No batch found") if call == "poll" and n < times else None
    asked = ask(series.slice(0, 9), batch={"idle_timeout": 20})
    assert (len(asked.table), asked.stopped) == (9, None)
    assert server.paid_once(9)


def test_a_batch_that_stays_unknown_is_no_reason_to_pay_again(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.instead = lambda call, _: error(404, "No batch found") if call == "poll" else None
    asked = ask(series.slice(0, 9), tmp_path / "one", batch={"idle_timeout": 0.3})
    assert asked.table is None
    assert "batch_0" in asked.stopped
    assert "pay" not in asked.stopped
    server.instead = lambda *_: None
    assert len(ask(series.slice(0, 9), tmp_path / "one").table) == 9
    assert server.paid_once(9)


@pytest.mark.parametrize("call", ["file", "list"])
def test_where_the_disk_was_lost_one_404_is_no_reason_to_pay_again(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path, call: str
) -> None:
    server.instead = lambda name, _: error(401) if name == "download" else None
    ask(series.slice(0, 9), tmp_path / "one")
    server.calls.clear()
    server.instead = lambda name, n: error(404) if name == call and n < 3 else None
    assert len(ask(series.slice(0, 9), tmp_path / "two").table) == 9
    assert len(server.batches) == 1


def test_an_answer_about_another_batch_is_not_taken_for_this_one(
    server: BatchServer, ask: Any, series: pa.Table
) -> None:
    ask(series.slice(0, 9), repairs=0)
    server.shown = lambda batch, n: server.batches[0] if n < 6 else batch  # from a cache, say
    server.answer = lambda name, *_: Answer(200, completion(f"I am {name}"))
    rows = ask(series.slice(20, 9), repairs=0).table.to_pylist()
    assert [row["text"] for row in rows] == [f"I am {one}" for one in range(20, 29)]
    assert server.paid.total() == 18


# ---- Connections and waits


def test_the_cause_of_a_failed_connection_is_said(ask: Any, series: pa.Table) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        closed = taken.getsockname()[1]
        asked = ask(series.slice(0, 3), url=f"http://127.0.0.1:{closed}/v1", idle_timeout=0.3)
    assert asked.table is None
    assert "connection refused" in asked.stopped
    assert "timed out" not in asked.stopped


@pytest.mark.parametrize("code", [429, 503])
def test_a_server_that_asks_to_wait_for_a_day_stops_the_stage_with_its_wait(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path, code: int
) -> None:
    server.instead = lambda call, _: error(code, Retry_After="86400") if call == "poll" else None
    started = time.monotonic()
    asked = ask(series.slice(0, 9), tmp_path / "one", idle_timeout=5)
    assert time.monotonic() - started < 20
    assert asked.table is None
    assert "24 h 00 min" in asked.stopped
    server.instead = lambda *_: None
    assert len(ask(series.slice(0, 9), tmp_path / "one").table) == 9
    assert server.paid_once(9)


# ---- Ledgers


LEDGERS = {
    "cut": b'{"batches": [{"digest": "ab',
    "empty": b"",
    "no ledger": b"[1, 2]",
    "null": b"null",
    "another's": b'{"batches": [{"name": 1}], "missed": {}}',
    "newer": b'{"version": 99, "batches": [], "missed": {}}',
    "a field more": b'{"batches": [{"digest": "a", "requests": {}, "form": [], "extra": 1}], "missed": {}}',
    "no text": b"\xff\xfe\x00\x9f",
}


@pytest.mark.parametrize("kind", LEDGERS)
def test_a_ledger_that_cannot_be_read_is_an_error_of_one_line_that_names_it(tmp_path: Path, kind: str) -> None:
    (tmp_path / "batches.json").write_bytes(LEDGERS[kind])
    with pytest.raises(StorageError) as caught:
        BatchRegistry(str(tmp_path))
    assert len(str(caught.value).splitlines()) == 1
    assert str(tmp_path / "batches.json") in str(caught.value)
    assert "version" in str(caught.value)


def test_a_ledger_of_the_first_version_is_read_and_its_batches_get_their_bounds(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.instead = lambda call, _: error(401) if call == "poll" else None
    ask(series.slice(0, 9), tmp_path / "one")
    (path,) = (tmp_path / "one").rglob("batches.json")
    kept = json.loads(path.read_bytes())
    (batch,) = kept["batches"]
    for name in ("asked_at", "bound_input_tokens", "bound_output_tokens", "name"):
        del batch[name]
    path.write_text(json.dumps({"batches": [batch], "missed": {}}))
    ask(series.slice(0, 9), tmp_path / "one")
    (batch,) = json.loads(path.read_bytes())["batches"]
    assert batch["bound_output_tokens"] == 9 * 256
    server.instead = lambda *_: None
    assert len(ask(series.slice(0, 9), tmp_path / "one").table) == 9
    assert server.paid_once(9)


# ---- Any sequence of faults


CALLS = ("upload", "create", "poll", "list", "download", "file")
FAULTS = {
    "500": error(500),
    "503": error(503, Retry_After="0.05"),
    "429": error(429, Retry_After="0.05"),
    "404": error(404, "No such File object or batch"),
    "HTML": HTML,
    "cut JSON": Answer(200, b'{"id": "ba'),
    "empty": Answer(200, b""),
    "reset": Answer(reset=True),
}
Script = list[tuple[str, str, bool]]  # call, fault, whether the call is served before it


@settings(max_examples=12, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    script=st.lists(
        st.tuples(st.sampled_from(CALLS), st.sampled_from(sorted(FAULTS)), st.booleans()), min_size=1, max_size=12
    ),
    ends=st.lists(st.sampled_from([("completed", 1.0), ("expired", 0.5), ("cancelled", 0.0)]), max_size=2),
    idle=st.sampled_from([0.05, 0.5]),
)
def test_whatever_happens_in_whatever_order_every_row_is_paid_once(
    server: BatchServer,
    ask: Any,
    series: pa.Table,
    tmp_path_factory: pytest.TempPathFactory,
    script: Script,
    ends: list[tuple[str, float]],
    idle: float,
) -> None:
    folder, before = tmp_path_factory.mktemp("any"), len(server.batches)
    first = 10 * before  # rows that no example before has asked about
    left = list(script)

    def told(served: bool) -> Any:
        def hook(call: str, _: int) -> Answer | None:
            for entry in left:
                if entry[0] == call and entry[2] == served:
                    left.remove(entry)
                    return FAULTS[entry[1]]
            return None

        return hook

    server.instead, server.after = told(False), told(True)
    server.ending = lambda n: Ending(*ends[n - before]) if n - before < len(ends) else Ending()
    rows = series.slice(first, 6)
    limits = {
        "batch": {"idle_timeout": idle, "most_requests": 4, "at_once": 2},
        "idle_timeout": 0.5,
        "timeout": 1.0,
    }
    for _ in range(len(script) + 2):
        asked = ask(rows, folder, **limits)
        if asked.table is not None:
            break
        assert len(asked.stopped.splitlines()) == 1
    assert set(asked.table["status"].to_pylist()) == {"ok"}
    assert [server.paid[str(one)] for one in range(first, first + 6)] == [1] * 6
