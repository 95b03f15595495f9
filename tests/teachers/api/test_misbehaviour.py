"""Servers that bill and misbehave: what is paid, what is counted, and what the user is told."""

import asyncio
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.api_server import SOUND, Answer, Server, completion, error, serving
from support.asked import KEY, SECRET, Asked, api
from support.s3_server import serving_s3

from tsd.errors import InputError, RecipeError, StorageError
from tsd.recipe import load
from tsd.tasks import SINGLE
from tsd.teachers import Reply
from tsd.teachers.api.account import Cost, Earlier
from tsd.teachers.api.connection import require_key
from tsd.teachers.api.journal import Journal
from tsd.teachers.api.limits import NOT_REACHED, SILENT_SECONDS, RateLimiter
from tsd.teachers.api.messages import DOLLARS, FAILED, FORM, MODEL, UNCONFIRMED

pytestmark = pytest.mark.usefixtures("quick")

DEAR = {"usd_per_million_input": 1000.0, "usd_per_million_output": 1000.0}  # $1.05 a reply of 1,050 tokens
REPLY_USD = 1.05


def billed(server: Server) -> float:
    """What the server bills: every answer that it computed, whether it arrived or not."""
    return sum(server.tokens) / 1000


def answers_pings_alone(_: int, body: dict[str, Any]) -> Answer:
    """A server that fails at every row, and answers a question that shows nothing."""
    shows_nothing = isinstance(body["messages"][0]["content"], str)
    return Answer(200, completion("yes")) if shows_nothing else error(500, "broken")


# ---- Money


@pytest.mark.parametrize("fault", [{"hang": 3.0}, {"reset": True}], ids=["time-outs", "resets"])
def test_what_was_sent_and_never_answered_counts_at_its_bound_and_the_budget_holds(
    server: Server, ask: Any, series: pa.Table, tmp_path: Path, fault: dict[str, Any]
) -> None:
    server.answer = lambda n, _: Answer(200, completion(), **(fault if n % 3 == 2 else {}))
    budget = 20 * REPLY_USD
    for _ in range(3):  # over several starts
        asked = ask(series.slice(0, 60), tmp_path / "one", in_flight=8, timeout=0.5, budget_usd=budget, **DEAR)
        assert "budget_usd is used up" in asked.stopped
        assert "unconfirmed" in asked.stopped
        assert billed(server) <= budget + REPLY_USD
        assert asked.counts[DOLLARS] + asked.counts[UNCONFIRMED] >= billed(server) - 1e-9


def test_a_budget_is_the_sum_of_all_journals_also_of_parts_not_yet_begun(
    server: Server, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    with Journal(str(tmp_path / "one"), 7) as other:  # a part that an earlier start asked, with other workers
        other.sent("x-1", Cost(1000, 50, 9.0), 1000)
        other.ended("x-1", Cost(1000, 50, 9.0), "key", Reply("text"))
        other.sent("x-2", Cost(1000, 50, 0.9), 1000)
    asked = ask(series.slice(0, 40), tmp_path / "one", in_flight=4, budget_usd=10.2, **DEAR)
    assert asked.stopped
    assert server.asked == 0
    assert "$9.9 of $10.2" in asked.stopped


def test_replies_that_respect_max_tokens_never_exceed_the_budget(
    server: Server, ask: Any, series: pa.Table
) -> None:
    lengths = (10, 256, 40, 130)

    def answer(n: int, _: Any) -> Answer:
        usage = {"prompt_tokens": 1000, "completion_tokens": lengths[n % 4], "total_tokens": 1000 + lengths[n % 4]}
        return Answer(200, completion(usage=usage), hang=0.02)

    server.answer = answer
    asked = ask(series.slice(0, 200), in_flight=32, budget_usd=50.0, **DEAR)
    assert asked.table is None
    assert 45.0 < sum(1 + lengths[n % 4] / 1000 for n in range(server.asked)) <= 50.0
    assert server.most_in_flight <= 32


def test_thinking_that_stands_in_the_total_alone_is_billed_and_held_by_the_budget(
    server: Server, ask: Any, series: pa.Table
) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 2890}
    server.answer = lambda *_: Answer(200, completion(usage=usage), hang=0.05)
    asked = ask(series.slice(0, 60), in_flight=16, budget_usd=30.0, **DEAR)
    spent = 2.89 * server.asked
    assert asked.counts[DOLLARS] == pytest.approx(spent)
    assert spent <= 30.0 + 2.89


def test_few_are_in_flight_until_ten_usages_are_known(server: Server, ask: Any, series: pa.Table) -> None:
    most: list[int] = []

    def answer(n: int, _: Any) -> Answer:
        if n < 11:
            most.append(server.in_flight)
        return Answer(200, completion(), hang=0.3)

    server.answer = answer
    ask(series.slice(0, 40), in_flight=16)
    assert max(most) <= 4
    assert server.most_in_flight > 4


def test_a_refused_connection_costs_nothing_and_a_500_costs_nothing(
    server: Server, ask: Any, series: pa.Table
) -> None:
    server.answer = lambda n, _: error(500) if n % 2 == 0 else Answer(200, completion(), hang=0.01)
    asked = ask(series.slice(0, 20), in_flight=4, retries=9, **DEAR)
    assert asked.counts[UNCONFIRMED] == 0
    assert asked.counts[DOLLARS] == pytest.approx(20 * REPLY_USD)


def test_tokens_of_a_reply_of_half_the_limit_delay_what_follows(
    server: Server, ask: Any, series: pa.Table
) -> None:
    long = {"prompt_tokens": 1000, "completion_tokens": 14_000, "total_tokens": 15_000}
    server.answer = lambda n, _: Answer(200, completion(usage=long if n == 0 else None))
    stop = threading.Event()

    def work() -> None:
        ask(series.slice(0, 30), in_flight=8, tokens_per_minute=30_000, idle_timeout=6.0)
        stop.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(8)
    assert 1 <= server.asked <= 15
    assert server.most_tokens_in(60.0) <= 30_000


def test_what_a_disk_or_a_store_does_not_take_whole_is_no_line(tmp_path: Path) -> None:
    script = """
import resource, sys
from tsd.errors import StorageError
from tsd.teachers import Reply
from tsd.teachers.api.account import Cost
from tsd.teachers.api.journal import Journal
with Journal(sys.argv[1], 0) as journal:
    journal.sent("a", Cost(10, 10, 1.0), 10)
    resource.setrlimit(resource.RLIMIT_FSIZE, (250, resource.RLIM_INFINITY))
    try:
        journal.ended("a", Cost(10, 5, 0.5), "key", Reply("x" * 300))
    except StorageError as error:
        print(error)
"""
    out = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=60)
    assert "cannot write to" in out.stdout, out.stderr
    history = Journal(str(tmp_path), 0).read()
    assert (history.replies, list(history.account.open)) == ({}, ["a"])


def test_a_ping_tells_nothing_of_what_rows_cost(
    server: Server, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.answer = answers_pings_alone
    assert ask(series.slice(0, 1), tmp_path, retries=0, **DEAR).counts[DOLLARS] > 0
    history = Journal(str(tmp_path), 0).read()
    assert history.account.replies == 0
    assert history.account.estimator.input_ratio == 1.0


def test_an_outage_costs_questions_that_show_nothing_once_it_is_seen(
    server: Server, ask: Any, series: pa.Table
) -> None:
    page = Answer(200, b"<html>Please log in</html>", whole=False)  # whoever reads it cannot know what it cost
    server.answer = lambda n, _: Answer(200, completion()) if n < 20 else page
    asked = ask(series.slice(0, 200), in_flight=4, idle_timeout=6.0, **DEAR)
    assert "given no answer" in asked.stopped
    asked_of_rows = [body for body in server.bodies if not isinstance(body["messages"][0]["content"], str)]
    assert len(asked_of_rows) < 20 + 30
    assert len(server.bodies) > len(asked_of_rows)


def test_after_an_outage_a_server_that_answers_rows_alone_is_found_again(
    server: Server, ask: Any, series: pa.Table
) -> None:
    started = time.monotonic()

    def answer(_: int, body: dict[str, Any]) -> Answer:
        shows_nothing = isinstance(body["messages"][0]["content"], str)
        down = 0.3 < time.monotonic() - started < 3.0
        return error(503) if down or shows_nothing else Answer(200, completion(), hang=0.05)

    server.answer = answer
    assert set(ask(series.slice(0, 100), in_flight=8).table["status"].to_pylist()) == {"ok"}


def test_a_row_that_no_minute_has_room_for_is_that_rows_error(server: Server, ask: Any, series: pa.Table) -> None:
    words = "Request too large for seer on tokens per min (TPM): Limit {}, Requested 41000."
    bad: list[Any] = []

    def answer(n: int, body: dict[str, Any]) -> Answer:
        if n == 5:
            bad.append(body["messages"])
        if body["messages"] in bad:
            return error(429, words.format("30,000"))
        return error(429, words.format("90,000"), Retry_After="1") if n == 8 else Answer(200, completion())

    server.answer = answer
    rows = ask(series.slice(0, 12), in_flight=1).table.to_pylist()
    assert Counter(row["status"] for row in rows) == {"ok": 11, "error": 1}
    assert server.asked == 13


def test_a_stage_that_has_asked_nothing_blames_no_server() -> None:
    async def work() -> str | None:
        rate_limiter = RateLimiter(api("http://127.0.0.1:9/v1", idle_timeout=0.1), Earlier())
        for _ in range(3):
            await asyncio.sleep(0.1)
            _, stopped = await rate_limiter.progress()
        return stopped

    assert asyncio.run(work()) is None


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


@contextmanager
def speaking_no_tls() -> Iterator[int]:
    """A port on which something answers that is not TLS."""
    listener = socket.create_server(("127.0.0.1", 0))

    def work() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                client.recv(100)
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    threading.Thread(target=work, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


@pytest.mark.parametrize(
    ("url", "cause"),
    [("http://127.0.0.1:9/v1", "connection refused"), ("http://no-such-host.invalid/v1", "unknown host"),
     ("https://127.0.0.1:{port}/v1", "TLS")],
)  # fmt: skip
def test_the_innermost_cause_of_a_failed_connection_is_said_soon(
    series: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, cause: str
) -> None:
    monkeypatch.setenv(KEY, "k")
    monkeypatch.setattr("tsd.teachers.api.limits.UNREACHED_SECONDS", 1.0)
    with speaking_no_tls() as port:
        started = time.monotonic()
        asked = Asked(api(url.format(port=port), idle_timeout=60), series.slice(0, 5), tmp_path)
    assert cause in asked.stopped
    assert "cannot be reached" in asked.stopped
    assert time.monotonic() - started < 20
    assert asked.counts[UNCONFIRMED] == 0


def test_a_certificate_that_nobody_signed_is_named() -> None:
    from tsd.teachers.api.connection import cause_of, never_sent

    inner = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    inner.verify_message = "self-signed certificate"
    outer = OSError("cannot connect")
    outer.__cause__ = inner
    assert cause_of(outer) == "TLS: self-signed certificate"
    assert never_sent(outer)


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


# ---- Who answers


def test_the_model_that_answers_and_its_fingerprint_are_kept(server: Server, ask: Any, series: pa.Table) -> None:
    def answer(n: int, _: Any) -> Answer:
        version = "seer-2025" if n < 3 else "seer-2026"
        return Answer(200, {**completion(), "model": version, "system_fingerprint": "fp_1"})

    server.answer = answer
    asked = ask(series.slice(0, 6), in_flight=1)
    assert asked.table["model"].to_pylist() == ["seer-2025"] * 3 + ["seer-2026"] * 3
    assert set(asked.table["fingerprint"].to_pylist()) == {"fp_1"}
    assert asked.counts[f"{MODEL}seer-2025 (fp_1)"] == 3


def test_another_address_does_not_ask_again(server: Server, ask: Any, series: pa.Table, tmp_path: Path) -> None:
    ask(series.slice(0, 10), tmp_path / "one")
    again = ask(series.slice(0, 10), tmp_path / "one", base_url=server.url.replace("127.0.0.1", "localhost"))
    assert len(again.table) == 10
    assert server.asked == 10


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (" https://api.example.com/v1 ", "https://api.example.com/v1"),
        ("https://api.example.com/v1/", "https://api.example.com/v1"),
        ("https://api.example.com/v1/chat/completions", "https://api.example.com/v1"),
        (
            "https://x.openai.azure.com/openai/v1?api-version=preview",
            "https://x.openai.azure.com/openai/v1?api-version=preview",
        ),
    ],
)
def test_an_address_loses_what_was_copied_with_it(given: str, wanted: str) -> None:
    assert api(given).base_url == wanted


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("api.example.com/v1", "https://api.example.com/v1"),
        ("https://api.example.com:99999/v1", "port"),
        ("https://api.example.com/v1?key=abc", "teacher.key_env"),
        ("ftp://api.example.com/v1", "https://host/v1"),
        ("https:///v1", "https://host/v1"),
    ],
)
def test_an_address_that_cannot_be_one_is_refused_in_one_line(given: str, words: str) -> None:
    with pytest.raises(RecipeError, match="base_url") as caught:
        load("laptop", ["teacher={kind: openai, model: seer}", f"teacher.base_url={json.dumps(given)}"])
    assert words in str(caught.value)
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "words"),
    [("sk-1\n", "line break"), ("sk-1\r\n", "line break"), ("\u201csk-1\u201d", "curly quote"), ("sk 1", "space"),
     ("sk-\u00e9", "U+00E9"), ("   ", "holds no key"), ("\ufeffsk-1", "byte order mark")],
)  # fmt: skip
def test_a_key_that_can_be_none_is_refused_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch, key: str, words: str
) -> None:
    monkeypatch.setenv(KEY, key)
    with pytest.raises(InputError, match=KEY) as caught:
        require_key(api("http://127.0.0.1:9/v1"))
    assert words in str(caught.value)
    assert "sk" not in str(caught.value)


# ---- The journal


def test_a_clock_set_back_does_not_let_an_invalid_reply_beat_its_repair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = iter((2000.0, 1000.0))
    monkeypatch.setattr("tsd.teachers.api.journal.time.time", lambda: next(now, 1500.0))
    with Journal(str(tmp_path), 0) as journal:
        journal.add("a", Reply("Lovely weather.", "invalid"))
        journal.add("a", Reply(SOUND, repairs=1))
    assert Journal(str(tmp_path), 0).replies()["a"].text == SOUND


def test_lines_of_another_version_are_one_line_for_the_user_and_unknown_fields_are_passed_over(
    tmp_path: Path,
) -> None:
    with Journal(str(tmp_path), 0) as journal:
        journal.add("a", Reply(SOUND))
    (file,) = tmp_path.rglob("*.jsonl")
    lines = file.read_bytes()
    file.write_bytes(lines + b'{"v": 2, "at": 1.0, "key": "b", "status": "ok", "text": "x", "mood": "good"}\n')
    assert Journal(str(tmp_path), 0).replies()["b"].text == "x"
    for broken in (b'{"v": 99, "key": "b"}\n', b'{"v": 2, "at": 1.0, "ended": "x", "billed": "much"}\n'):
        file.write_bytes(lines + broken)
        with pytest.raises(StorageError) as caught:
            Journal(str(tmp_path), 0).read()
        assert len(str(caught.value).splitlines()) == 1
        assert "part-00000000" in str(caught.value)


def test_a_journal_of_the_first_version_is_read_and_its_dollars_count(tmp_path: Path) -> None:
    folder = tmp_path / "replies" / "part-00000000"
    folder.mkdir(parents=True)
    row = {"text": SOUND, "status": "ok", "reason": None, "attempts": 2, "input_tokens": 7, "output_tokens": 5}
    line = {"key": "a", "at": 1.0, **row, "cost_usd": 0.5, "latency_ms": 3.0, "repairs": 0}
    (folder / "replies.jsonl").write_text(json.dumps(line) + "\n")
    with Journal(str(tmp_path), 0) as journal:
        history = journal.read()
        assert (history.replies["a"].text, history.account.billed) == (SOUND, Cost(7, 5, 0.5))
        journal.sent("r", Cost(1, 1, 9.0), 1)
        journal.ended("r", Cost(1, 1, 0.25), "a", Reply(SOUND, repairs=1, cost_usd=0.75))
    history = Journal(str(tmp_path), 0).read()
    assert history.account.billed.usd == pytest.approx(0.75)


def test_what_is_kept_of_a_finished_part_makes_it_again_and_costs_count_once(
    server: Server, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.answer = lambda n, _: (
        Answer(200, completion(None, refusal="no")) if n == 2 else Answer(200, completion())
    )
    folder = tmp_path / "one"
    table = ask(series.slice(0, 10), folder).table
    with Journal(str(folder), 0) as journal:
        spent = journal.read().account.billed
        journal.keep(table)
        assert journal.read().account.billed == spent  # the folder is still there
        journal.delete()
    assert Journal(str(folder), 0).read().account.billed == spent
    assert not list(folder.rglob("*.jsonl"))
    assert ask(series.slice(0, 10), folder).table.equals(table)
    assert server.asked == 10


def archived(folder: Path) -> Path:
    """The archive of a part with 64 replies."""
    replies = {f"{n:032x}": Reply(SOUND, input_tokens=1000 + n, output_tokens=50, cost_usd=0.7) for n in range(64)}
    with Journal(str(folder), 0) as journal:
        for key, reply in replies.items():
            journal.add(key, reply)
        journal.keep(SINGLE.tables.annotations.empty_table())
        journal.delete()
    assert Journal(str(folder), 0).replies() == replies
    (path,) = folder.rglob("*.jsonl.zst")
    return path


def test_an_archive_that_was_cut_emptied_or_changed_anywhere_is_one_line_that_names_it(tmp_path: Path) -> None:
    path = archived(tmp_path)
    whole, history = path.read_bytes(), Journal(str(tmp_path), 0).read()
    cut = [whole[:length] for length in range(0, len(whole), len(whole) // 20)]
    flipped = [
        whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :]
        for place in range(0, len(whole), 3)
    ]
    refused = []
    for content in (*cut, *flipped, b"garbage", whole + b"x"):
        path.write_bytes(content)
        try:
            assert Journal(str(tmp_path), 0).read() == history, "other contents were read"
        except StorageError as error:
            refused.append(str(error))
    assert all(line.startswith(f"{path} is damaged") and "\n" not in line for line in refused)
    assert len(refused) >= len(cut) + 0.9 * len(flipped)


def test_an_archive_without_a_seal_is_read_where_an_earlier_version_wrote_it_and_else_lacks_its_end(
    tmp_path: Path,
) -> None:
    path = archived(tmp_path)
    history = Journal(str(tmp_path), 0).read()
    head, *replies, _ = pa.input_stream(path, compression="zstd").read().split(b"\n")
    for version in (2, 3):
        with pa.output_stream(path, compression="zstd") as sink:
            sink.write(b"\n".join([json.dumps({**json.loads(head), "v": version}).encode(), *replies]))
        if version == 2:
            assert Journal(str(tmp_path), 0).read() == history
    with pytest.raises(StorageError, match="its end is missing"):
        Journal(str(tmp_path), 0).read()


def test_a_long_reply_is_not_sent_back_whole(server: Server, ask: Any, series: pa.Table) -> None:
    long = "Lovely weather. " * 300_000
    server.answer = lambda n, _: Answer(200, completion(long) if n == 0 else completion())
    assert ask(series.slice(0, 1)).table["status"].to_pylist() == ["ok"]
    assert len(json.dumps(server.bodies[1])) < len(json.dumps(server.bodies[0])) + 10_000


def test_lines_in_an_object_store_are_stored_without_a_next_one_and_before_anything_is_sent(
    server: Server, series: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_s3() as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        folder = s3.uri("annotations")
        with Journal(folder, 0) as journal:
            journal.add("a", Reply(SOUND))
            until = time.monotonic() + 20
            while "a" not in Journal(folder, 0).replies():  # as another process would see it
                assert time.monotonic() < until
                time.sleep(0.1)
        bounds: list[int] = []

        def answer(*_: Any) -> Answer:
            bounds.append(len(Journal(folder, 0).read().account.open))
            return Answer(200, completion())

        server.answer = answer
        table = Asked(api(server.url, in_flight=1), series.slice(0, 3), folder).table
        assert set(table["status"].to_pylist()) == {"ok"}
        assert bounds == [1, 1, 1]
        with Journal(folder, 0) as journal:
            journal.keep(table)
            journal.delete()
        assert Asked(api(server.url), series.slice(0, 3), folder).table.equals(table)
        assert server.asked == 3
        lost = Journal(folder, 1)
        lost.__enter__()
    monkeypatch.setattr("tsd.teachers.api.journal_files.PUT_WAIT", 0.01)
    lost.sent("a", Cost(10, 10, 1.0), 10)  # the store is gone
    with pytest.raises(StorageError):
        asyncio.run(lost.stored())
    with pytest.raises(StorageError):
        lost.flush()


# ---- The gate


def test_requests_of_a_dead_worker_that_waited_at_the_gate_are_written_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tsd.teachers.api.limits.SILENT_SECONDS", 0.3)
    assert SILENT_SECONDS > 1

    async def work() -> tuple[float, Any]:
        rate_limiter = RateLimiter(
            api("http://127.0.0.1:9/v1", budget_usd=10.0, max_tokens=100, **DEAR), Earlier()
        )
        for number in range(4):
            assert await rate_limiter.enter("dead", f"dead-{number}", 1000)
        waiting = asyncio.create_task(rate_limiter.enter("dead", "dead-4", 1000))  # four are enough at first
        await asyncio.sleep(0.6)
        counts, _ = await rate_limiter.progress()
        waiting.cancel()
        return counts[UNCONFIRMED], counts

    lost, _ = asyncio.run(work())
    assert lost == pytest.approx(4 * 1.1)
