"""Live servers that fail, refuse or say to wait: what is tried again, and what stops the stage."""

import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from support.api_server import FAULTS, SOUND, Answer, Server, completion, error
from support.asked import SECRET
from support.small_disk import mounted

from tsd.errors import InputError
from tsd.tasks import SINGLE
from tsd.teachers.api.connection import retry_after

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize("fault", ["500", "reset", "HTML", "truncated JSON", "empty choices"])
def test_a_server_that_recovers_costs_attempts_and_no_row(
    server: Server, ask: Any, series: pa.Table, fault: str
) -> None:
    server.answer = lambda n, _: FAULTS[fault] if n < 2 else Answer(200, completion())
    (row,) = ask(series.slice(0, 1)).table.to_pylist()
    assert (row["status"], row["attempts"]) == ("ok", 3)
    assert server.asked == 3


def test_a_server_that_hangs_costs_an_attempt(server: Server, ask: Any, series: pa.Table) -> None:
    server.answer = lambda n, _: Answer(200, completion(), hang=5.0 if n == 0 else 0.0)
    (row,) = ask(series.slice(0, 1), timeout=0.5).table.to_pylist()
    assert (row["status"], row["attempts"]) == ("ok", 2)


def test_a_row_that_never_succeeds_beside_others_that_do_is_an_error_after_its_attempts(
    server: Server, ask: Any, series: pa.Table
) -> None:
    bad: list[Any] = []

    def answer(_: int, body: dict[str, Any]) -> Answer:
        if not bad:
            bad.append(body["messages"])
        return error(500) if body["messages"] == bad[0] else Answer(200, completion(), hang=0.02)

    server.answer = answer
    rows = ask(series.slice(0, 20), in_flight=2).table.to_pylist()
    assert [row["status"] for row in rows[1:]] == ["ok"] * 19
    assert (rows[0]["status"], rows[0]["text"], rows[0]["reason"]) == ("error", None, "500: no")
    assert rows[0]["labels"] == dict.fromkeys(SINGLE.classes)
    assert rows[0]["attempts"] >= 3


def test_an_outage_is_waited_for_and_costs_no_row(server: Server, ask: Any, series: pa.Table) -> None:
    down = [True]
    threading.Timer(0.6, lambda: down.clear()).start()
    server.answer = lambda *_: error(503) if down else Answer(200, completion())
    said = ask(series.slice(0, 8), retries=9).table
    assert set(said["status"].to_pylist()) == {"ok"}


def test_being_told_to_wait_is_no_attempt_and_holds_everybody_back(
    server: Server, ask: Any, series: pa.Table
) -> None:
    server.answer = lambda n, _: error(429, Retry_After="1") if n == 10 else Answer(200, completion(), hang=0.02)
    said = ask(series.slice(0, 60), in_flight=4, retries=0).table
    assert set(said["status"].to_pylist()) == {"ok"}
    assert set(said["attempts"].to_pylist()) == {1}
    told = server.times[10]
    after = [moment - told for moment in server.times if moment > told]
    assert not [late for late in after if 0.3 < late < 0.95], "somebody did not wait"


@pytest.mark.parametrize("headers", [{}, {"Retry_After": "0"}])
def test_waits_grow_where_the_server_does_not_say_how_long(
    server: Server, ask: Any, series: pa.Table, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str]
) -> None:
    monkeypatch.setattr("tsd.teachers.api.limits.FIRST_PAUSE", 0.2)
    server.answer = lambda n, _: error(429, **headers) if n < 3 else Answer(200, completion())
    (row,) = ask(series.slice(0, 1), retries=0).table.to_pylist()
    assert (row["status"], row["attempts"]) == ("ok", 1)
    waits = np.diff(server.times[:4])
    assert waits[0] >= 0.19
    assert waits[1] >= 0.39
    assert waits[2] >= 0.79


@pytest.mark.parametrize("code", [400, 401, 403, 404])
def test_what_no_retry_will_mend_stops_the_stage_with_one_line(
    server: Server, ask: Any, series: pa.Table, code: int
) -> None:
    server.answer = lambda *_: error(code, f"no such thing\nand your key is {SECRET}")
    asked = ask(series.slice(0, 40), in_flight=8)
    assert asked.table is None
    assert len(asked.stopped.splitlines()) == 1
    assert server.url in asked.stopped
    assert str(code) in asked.stopped
    assert SECRET not in asked.stopped
    assert server.asked <= 3  # a 400 may be about the reply's form: that was said in three ways


def test_a_key_that_ends_in_the_middle_stops_the_stage_and_what_came_is_kept(
    server: Server, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.answer = lambda n, _: Answer(200, completion(), hang=0.01) if n < 50 else error(401, "expired")
    first = ask(series.slice(0, 100), tmp_path / "one", in_flight=4)
    assert first.table is None
    assert "expired" in first.stopped
    assert server.asked <= 50 + 4
    server.answer = lambda *_: Answer(200, completion())
    before = server.asked
    again = ask(series.slice(0, 100), tmp_path / "one", in_flight=4)
    assert set(again.table["status"].to_pylist()) == {"ok"}
    assert server.asked == before + 50
    assert set(server.answered.values()) == {0}


def test_a_missing_key_is_said_before_anything_is_sent(
    server: Server, ask: Any, series: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TSD_TEST_KEY")
    with pytest.raises(InputError, match="TSD_TEST_KEY") as caught:
        ask(series.slice(0, 1))
    assert len(str(caught.value).splitlines()) == 1
    assert server.asked == 0


def test_a_wait_until_a_date_is_until_then_with_a_zone_or_without() -> None:
    for zone in ("GMT", "-0000"):  # Python takes the latter for no zone at all
        until = datetime.now(UTC) + timedelta(seconds=30)
        wait = retry_after({"retry-after": until.strftime(f"%a, %d %b %Y %H:%M:%S {zone}")})
        assert wait is not None
        assert 28 < wait <= 30


def test_a_row_that_the_server_will_not_take_is_an_error_beside_others_that_it_takes(
    server: Server, ask: Any, series: pa.Table
) -> None:
    server.answer = lambda n, _: error(400, f"too long\n{SECRET}") if n in (3, 5) else Answer(200, completion())
    rows = ask(series.slice(0, 12), in_flight=1).table.to_pylist()
    assert [row["status"] for row in rows].count("ok") == 10
    for row in (row for row in rows if row["status"] != "ok"):
        assert (row["status"], row["reason"], row["attempts"]) == ("error", "400: too long", 1)
    assert server.asked == 12


def test_a_repair_that_the_server_will_not_take_leaves_the_reply_that_there_was(
    server: Server, ask: Any, series: pa.Table
) -> None:
    said = {0: Answer(200, completion()), 1: Answer(200, completion("Lovely weather.")), 2: error(400, "too long")}
    server.answer = lambda n, _: said[n]
    rows = ask(series.slice(0, 2), in_flight=1).table.to_pylist()
    assert {row["text"] for row in rows} == {SOUND, "Lovely weather."}
    assert server.asked == 3


def test_a_server_that_takes_no_row_any_more_stops_the_stage(server: Server, ask: Any, series: pa.Table) -> None:
    server.answer = lambda n, _: error(400, "maintenance") if n >= 30 else Answer(200, completion())
    asked = ask(series.slice(0, 200), in_flight=4)
    assert asked.table is None
    assert "maintenance" in asked.stopped
    assert server.asked <= 30 + 20 + 4


def test_a_stop_does_not_wait_for_what_is_under_way(server: Server, ask: Any, series: pa.Table) -> None:
    server.answer = lambda n, _: (
        error(401, "expired") if n == 40 else Answer(200, completion(), hang=90.0 * (n > 20))
    )
    started = time.monotonic()
    asked = ask(series, in_flight=24, timeout=120)
    assert "expired" in asked.stopped
    assert time.monotonic() - started < 20


def test_a_stop_waits_for_answers_as_long_as_they_have_taken_and_none_is_paid_for_twice(
    server: Server, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.answer = lambda n, _: (
        error(401, "expired") if n == 1 else Answer(200, completion(), hang=4.0 if n == 0 else 7.0)
    )
    first = ask(series.slice(0, 12), tmp_path / "one", in_flight=4)
    assert "expired" in first.stopped
    assert len(server.answered) == 4  # the first, and the three under way, 7 s after they were asked for
    server.answer = lambda *_: Answer(200, completion())
    again = ask(series.slice(0, 12), tmp_path / "one", in_flight=4)
    assert set(again.table["status"].to_pylist()) == {"ok"}
    assert set(server.answered.values()) == {0}


def test_an_answer_that_comes_byte_by_byte_is_not_waited_for_beyond_the_timeout(
    server: Server, ask: Any, series: pa.Table
) -> None:
    server.answer = lambda n, _: Answer(200, completion(), drip=0.05 if n == 1 else 0.0)
    started = time.monotonic()
    rows = ask(series.slice(0, 3), in_flight=1, timeout=1.0).table.to_pylist()
    assert time.monotonic() - started < 10
    assert sorted(row["attempts"] for row in rows) == [1, 1, 2]


FULL = """
import sys
from pathlib import Path
from support.api_server import Answer, completion, serving
from support.asked import KEY, Asked, api
from tsd.generation.generator import draw_table
from tsd.recipe import load
from tsd.tasks import SINGLE
import os; os.environ[KEY] = "k"
recipe = load("laptop")
series = draw_table(SINGLE, recipe.series, recipe.seed, 0, 1024)
with serving() as server:
    asked = Asked(api(server.url, in_flight=4, modality="text"), series, Path(sys.argv[1]))
    print(asked.table, server.asked, asked.stopped)
"""


def test_what_cannot_be_kept_is_not_paid_for(tmp_path: Path) -> None:
    done = mounted("size=64k", tmp_path / "disk", FULL)
    assert done.returncode == 0, done.stderr
    table, asked, stopped = done.stdout.split(" ", 2)
    assert table == "None"
    assert 20 < int(asked) < 300
    assert "no space left" in stopped


def test_a_server_that_stops_answering_stops_the_stage(server: Server, ask: Any, series: pa.Table) -> None:
    server.answer = lambda n, _: Answer(200, completion(), hang=0.0 if n < 5 else 60.0)
    started = time.monotonic()
    asked = ask(series.slice(0, 20), in_flight=4, idle_timeout=1.0, timeout=60)
    assert asked.table is None
    assert "no answer for 1." in asked.stopped
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("headers", [{}, {"Retry_After": "1"}])
def test_a_server_that_only_ever_says_to_wait_stops_the_stage_and_the_same_command_goes_on(
    server: Server, ask: Any, series: pa.Table, tmp_path: Path, headers: dict[str, str]
) -> None:
    server.answer = lambda n, _: error(429, **headers) if n >= 5 else Answer(200, completion())
    started = time.monotonic()
    asked = ask(series.slice(0, 20), tmp_path / "one", in_flight=4, idle_timeout=4.0)
    took = time.monotonic() - started
    assert asked.table is None
    (line,) = asked.stopped.splitlines()
    assert f"{server.url} has refused every request for " in line
    assert "the same command goes on" in line
    assert 4.0 + sum(map(int, headers.values())) < took < 30
    server.answer = lambda *_: Answer(200, completion())
    asked_before = len(server.answered)
    assert set(ask(series.slice(0, 20), tmp_path / "one").table["status"].to_pylist()) == {"ok"}
    assert (asked_before, server.answered.total()) == (5, 0)


def test_an_unused_account_is_not_waited_for(server: Server, ask: Any, series: pa.Table) -> None:
    spent = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    server.answer = lambda *_: Answer(429, spent, whole=False)
    asked = ask(series.slice(0, 5))
    assert "quota" in asked.stopped
    assert server.asked == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"retry-after": "0"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_a_wait_is_read_from_headers_in_every_form(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds
