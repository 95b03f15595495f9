"""Servers that misbehave: which rows become errors, and what the user is told."""

import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.api_server import Answer, Server, answers_pings_alone, completion, error, serving
from support.asked import DEAR, KEY, REPLY_USD, SECRET, Asked, api

from tsd.teachers.api.limits import NOT_REACHED
from tsd.teachers.api.messages import DOLLARS, FAILED, FORM

pytestmark = pytest.mark.usefixtures("quick")


# ---- Outages and rows


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("latency", [0.02, 0.3])
def test_an_outage_of_the_server_makes_no_row_an_error(
    server: Server, ask: Any, series: pa.Table, retries: int, latency: float
) -> None:
    started = time.monotonic()

    def answer(*_: Any) -> Answer:
        down = 0.6 < time.monotonic() - started < 2.6
        return error(503) if down else Answer(200, completion(), hang=latency)

    server.answer = answer
    said = ask(series.slice(0, 300), in_flight=64, retries=retries).table
    assert server.asked > 300
    assert Counter(said["status"].to_pylist()) == {"ok": 300}


def test_requests_that_find_no_server_are_no_attempts(
    series: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, SECRET)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(Asked, api(f"http://127.0.0.1:{port}/v1"), series.slice(0, 20), tmp_path)
        time.sleep(1)  # the server starts late
        with serving(port):
            asked = asking.result(60)
    assert asked.counts[FAILED + NOT_REACHED + "connection refused"] > 1
    rows = asked.table.to_pylist()
    assert {(row["status"], row["attempts"]) for row in rows} == {("ok", 1)}


@pytest.mark.parametrize(("latency", "rows"), [(0.02, 300), (0.2, 100)])
@pytest.mark.parametrize("retries", [0, 2])
def test_a_row_that_fails_while_others_are_answered_is_tried_no_more_than_asked(
    server: Server, ask: Any, series: pa.Table, retries: int, latency: float, rows: int
) -> None:
    bad: list[Any] = []

    def answer(n: int, body: dict[str, Any]) -> Answer:
        if n == 10:
            bad.append(body["messages"])
        return error(500) if body["messages"] in bad else Answer(200, completion(), hang=latency)

    server.answer = answer
    said = ask(series.slice(0, rows), in_flight=4, retries=retries).table
    assert Counter(said["status"].to_pylist()) == {"ok": rows - 1, "error": 1}
    assert server.asked == rows + retries


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_that_fail_with_no_others_left_are_errors_once_the_server_is_seen_to_work(
    server: Server, ask: Any, series: pa.Table, rows: int
) -> None:
    server.answer = answers_pings_alone
    said = ask(series.slice(0, rows), retries=1).table.to_pylist()
    assert [(row["status"], row["reason"]) for row in said] == [("error", "500: broken")] * rows


@pytest.mark.parametrize("code", [400, 403])
@pytest.mark.parametrize("number", [0, 5])
def test_moderation_of_one_row_is_that_rows_error_and_the_schema_stays(
    server: Server, ask: Any, series: pa.Table, code: int, number: int
) -> None:
    bad: list[Any] = []

    def answer(n: int, body: dict[str, Any]) -> Answer:
        if n == number:
            bad.append(body["messages"][0])
        flagged = body["messages"][0] in bad
        return error(code, "Your input was flagged by our moderation") if flagged else Answer(200, completion())

    server.answer = answer
    rows = ask(series.slice(0, 12), in_flight=1).table.to_pylist()
    assert Counter(row["status"] for row in rows) == {"ok": 11, "error": 1}
    assert {body["response_format"]["type"] for body in server.bodies} == {"json_schema"}
    assert server.asked == 12


def test_one_unexplained_400_on_the_first_request_does_not_drop_the_schema(
    server: Server, ask: Any, series: pa.Table
) -> None:
    server.answer = lambda n, _: error(400, "Bad request") if n == 0 else Answer(200, completion())
    asked = ask(series.slice(0, 20), in_flight=4)
    assert set(asked.table["status"].to_pylist()) == {"ok"}
    assert {body["response_format"]["type"] for body in server.bodies} == {"json_schema"}
    assert asked.counts[FORM + "json_schema"] == 20


def test_the_form_in_which_replies_are_asked_for_is_counted(server: Server, ask: Any, series: pa.Table) -> None:
    def answer(_: int, body: dict[str, Any]) -> Answer:
        schema = body.get("response_format", {}).get("type") == "json_schema"
        return Answer(400, {"error": "json_schema is not supported"}) if schema else Answer(200, completion())

    server.answer = answer
    assert ask(series.slice(0, 5)).counts[FORM + "json_object"] == 5


# ---- What the server says


FORMS_OF_AN_ERROR = {
    "OpenAI": {"error": {"message": "no such model", "type": "invalid_request_error", "code": "model_not_found"}},
    "a string": {"error": "no such model"},
    "FastAPI": {"detail": "no such model"},
    "FastAPI's list": {"detail": [{"loc": ["body", "model"], "msg": "no such model", "type": "value_error"}]},
    "Mistral": {"object": "error", "message": "no such model", "type": "invalid_model", "code": "1500"},
    "Mistral's detail": {"object": "error", "message": {"detail": [{"msg": "no such model"}]}},
    "vLLM": {"object": "error", "message": "no such model", "type": "NotFoundError", "param": None, "code": 404},
    "Gemini": [{"error": {"code": 404, "message": "no such model", "status": "NOT_FOUND"}}],
    "OpenRouter": {"error": {"code": 404, "message": "no such model", "metadata": {"provider_name": "x"}}},
    "a message": {"message": "no such model"},
    "a list": {"errors": [{"message": "no such model"}]},
    "plain text": b"no such model",
    "HTML": b"<html><head><style>p {}</style></head><body><p>no such model</p></body></html>",
    "a JSON string": b'"no such model"',
}


@pytest.mark.parametrize("body", FORMS_OF_AN_ERROR.values(), ids=list(FORMS_OF_AN_ERROR))
def test_the_servers_words_reach_the_user_in_whatever_form_they_come(
    server: Server, ask: Any, series: pa.Table, body: Any
) -> None:
    server.answer = lambda *_: Answer(404, body, whole=False)
    stopped = ask(series.slice(0, 5)).stopped
    assert "404: " in stopped
    assert "no such model" in stopped
    assert len(stopped.splitlines()) == 1


@pytest.mark.parametrize("place", ["body", "choice"])
def test_an_error_in_an_answer_of_status_200_is_a_pause_and_costs_nothing(
    server: Server, ask: Any, series: pa.Table, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr("tsd.teachers.api.limits.FIRST_PAUSE", 0.2)
    said = {"error": {"code": 429, "message": "slow down"}}
    body = said if place == "body" else {**completion(), "choices": [{"index": 0, **said}]}
    server.answer = lambda n, _: Answer(200, body, whole=False) if n == 1 else Answer(200, completion())
    asked = ask(series.slice(0, 6), in_flight=1, **DEAR)
    assert set(asked.table["status"].to_pylist()) == {"ok"}
    assert set(asked.table["attempts"].to_pylist()) == {1}
    assert asked.counts[DOLLARS] == pytest.approx(6 * REPLY_USD)


def test_an_error_in_an_answer_of_status_200_that_no_retry_mends_stops_the_stage(
    server: Server, ask: Any, series: pa.Table
) -> None:
    server.answer = lambda *_: Answer(
        200, {"error": {"code": 402, "message": "insufficient credits"}}, whole=False
    )
    assert "insufficient credits" in ask(series.slice(0, 5)).stopped
    assert server.asked == 1


@pytest.mark.parametrize("code", [503, 529])
def test_being_told_to_wait_is_honoured_by_all_whatever_the_code(
    server: Server, ask: Any, series: pa.Table, code: int
) -> None:
    server.answer = lambda n, _: error(code, Retry_After="1") if n == 10 else Answer(200, completion(), hang=0.02)
    said = ask(series.slice(0, 40), in_flight=4, retries=0).table
    assert set(said["status"].to_pylist()) == {"ok"}
    after = [moment - server.times[10] for moment in server.times if moment > server.times[10]]
    assert not [late for late in after if 0.3 < late < 0.95]


def test_a_wait_of_a_day_stops_the_stage_with_one_line(server: Server, ask: Any, series: pa.Table) -> None:
    server.answer = lambda *_: error(429, Retry_After="86400")
    started = time.monotonic()
    stopped = ask(series.slice(0, 5)).stopped
    assert "24 h 00 min" in stopped
    assert time.monotonic() - started < 30


# ---- A stop on quality


def test_too_few_usable_rows_stop_the_stage_with_reasons_and_an_example(
    server: Server, ask: Any, series: pa.Table
) -> None:
    server.answer = lambda n, _: Answer(
        200, completion() if n < 10 else completion("Lovely weather today."), hang=0.1
    )
    asked = ask(series, in_flight=8, quality={"last": 40, "least_usable": 0.5})
    assert "of the last 40 rows are usable" in asked.stopped
    assert "trend: not mentioned" in asked.stopped
    assert "Lovely weather today." in asked.stopped
    assert len(asked.stopped.splitlines()) == 1
    assert server.asked < 150
    server.answer = lambda *_: Answer(200, completion("Lovely weather today."))
    whole = ask(series.slice(0, 120), in_flight=8, quality={"last": 40, "least_usable": 0.0}, repairs=0)
    assert whole.table is not None
