"""Batch servers that misbehave after they were paid: statuses, creation, connections, any sequence of faults."""

import socket
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.api_server import HTML, Answer, completion, error
from support.batch_server import BatchServer, Ending

pytestmark = pytest.mark.usefixtures("quick")


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
