"""Limits and budgets, measured by the server that is asked."""

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.api_server import Server
from support.asked import api

from tsd.teachers.api.account import Earlier
from tsd.teachers.api.limits import RateLimiter, request_limiter
from tsd.teachers.api.messages import BUSY, FAILED, Report

pytestmark = pytest.mark.usefixtures("quick")


def test_no_more_is_under_way_than_the_recipe_says(server: Server, ask: Any, series: pa.Table) -> None:
    server.latency = 0.02
    ask(series.slice(0, 200), in_flight=7)
    assert server.most_in_flight == 7


def test_requests_per_minute_are_kept_and_used(server: Server, ask: Any, series: pa.Table) -> None:
    started = time.monotonic()
    ask(series.slice(0, 60), requests_per_minute=1200, in_flight=16)
    took = time.monotonic() - started
    # 20 a second; of which 1,200 in no minute, and no burst of more than a second's
    assert server.most_in(1.0) <= 41
    assert 2.0 <= took <= 6.0


def test_tokens_per_minute_are_kept(server: Server, ask: Any, series: pa.Table) -> None:
    started = time.monotonic()
    ask(series.slice(0, 40), tokens_per_minute=1050 * 600, in_flight=16)  # 10 requests a second
    took = time.monotonic() - started
    assert server.most_in(1.0) <= 21
    assert server.most_tokens_in(1.0) <= 21 * 1050
    assert took >= 2.5


@pytest.mark.parametrize("limit", [1, 2, 3, 59, 60, 61, 1200, 100_000])
def test_a_limit_of_requests_is_kept_to_the_last_one_and_used(limit: int) -> None:
    limiter = request_limiter(limit)
    assert limiter
    rate = limiter.max_rate / limiter.time_period
    assert limiter.max_rate >= 1  # aiolimiter refuses what it can never let pass
    most = limiter.max_rate + 60 * rate  # a full bucket, and what flows in during that minute
    assert 0.95 * limit <= most - 1 < limit


def test_a_request_a_minute_is_enough_for_one(server: Server, ask: Any, series: pa.Table) -> None:
    assert len(ask(series.slice(0, 1), requests_per_minute=1).table) == 1


@pytest.mark.parametrize(
    ("asked_for", "answered", "stopped"),
    [(60.0, False, False), (60.0, True, False), (None, False, True), (0.1, False, True)],
    ids=["a long wait is granted", "and not taken back by what was under way", "none was asked for", "it is over"],
)
def test_being_told_to_wait_is_no_answer_beyond_the_wait_that_was_asked_for(
    asked_for: float | None, answered: bool, stopped: bool
) -> None:
    async def work() -> str | None:
        rate_limiter = RateLimiter(api("http://127.0.0.1:9/v1", idle_timeout=1.0), Earlier())
        await rate_limiter.pause(asked_for)
        failures = Counter({FAILED + BUSY: 1})
        await rate_limiter.report("worker", Report(Counter(), failures=failures, answers=int(answered)))
        await asyncio.sleep(1.5)
        return (await rate_limiter.progress())[1]

    reason = asyncio.run(work())
    assert (reason is not None) == stopped
    assert reason is None or "has refused every request for 1." in reason


@pytest.mark.parametrize(
    ("budget", "affordable"),
    [({"budget_usd": 0.0105 * 2, "usd_per_million_input": 10.0, "usd_per_million_output": 10.0}, 2),
     ({"budget_tokens": 10_500}, 10)],
    ids=["dollars", "tokens"],
)  # fmt: skip
def test_a_budget_stops_the_stage_before_it_is_exceeded_and_counts_earlier_starts(
    server: Server, ask: Any, series: pa.Table, tmp_path: Path, budget: dict[str, Any], affordable: int
) -> None:
    server.latency = 0.01
    budget |= {"max_tokens": 50}  # as long as each reply is: what is reserved is what is billed
    first = ask(series.slice(0, 40), tmp_path / "one", in_flight=4, **budget)
    assert first.table is None
    assert "budget" in first.stopped
    assert server.asked == affordable
    assert len(server.answered) == affordable
    again = ask(series.slice(0, 40), tmp_path / "one", in_flight=4, **budget)
    assert again.table is None
    assert server.asked == affordable
    whole = ask(series.slice(0, 40), tmp_path / "one", in_flight=4, max_tokens=50)
    assert set(whole.table["status"].to_pylist()) == {"ok"}
    assert server.asked == 40
