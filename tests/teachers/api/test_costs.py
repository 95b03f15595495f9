"""What is billed: a budget holds, and what was sent and never answered counts at its bound."""

import asyncio
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.api_server import Answer, Server, answers_pings_alone, completion, error
from support.asked import DEAR, REPLY_USD, api

from tsd.teachers import Reply
from tsd.teachers.api.account import Cost, Earlier
from tsd.teachers.api.journal import Journal
from tsd.teachers.api.limits import SILENT_SECONDS, RateLimiter
from tsd.teachers.api.messages import DOLLARS, UNCONFIRMED

pytestmark = pytest.mark.usefixtures("quick")


def billed(server: Server) -> float:
    """What the server bills: every answer that it computed, whether it arrived or not."""
    return sum(server.tokens) / 1000


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
