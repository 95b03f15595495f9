"""Files of answers that cannot be read, counts that cannot be true, lines of any form: no answer is lost."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.api_server import HTML, SOUND, SURE, Answer, error
from support.asked import LIVE_USD, PRICES
from support.batch_server import BatchServer, Ending

from tsd.teachers.api.journal import Journal
from tsd.teachers.api.messages import DOLLARS

pytestmark = pytest.mark.usefixtures("quick")

EACH = LIVE_USD / 2  # dollars of an answer in a batch


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
