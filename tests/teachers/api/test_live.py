"""The live API teacher against a real HTTP server that answers, and misbehaves, as it is told."""

import base64
import hashlib
import io
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from support.api_server import FAULTS, SOUND, Answer, Server, completion, error, unruly
from support.asked import PLOTS, SECRET, Asked, api
from support.small_disk import mounted

from tsd.errors import InputError
from tsd.generation.generator import draw_table
from tsd.recipe import PlotConfig, Recipe
from tsd.tasks import SINGLE, TASKS
from tsd.teachers.api.connection import retry_after
from tsd.teachers.api.messages import DOLLARS, INPUT, OUTPUT, ROWS
from tsd.teachers.prompts import Questions

pytestmark = pytest.mark.usefixtures("quick")

STATED = {"trend": "flat", "noise": "low", "maximum": "end", "minimum": "middle"}


# ---- What a reply becomes


def test_a_whole_reply_is_read_and_its_tokens_and_cost_are_counted(ask: Any, series: pa.Table) -> None:
    asked = ask(series.slice(10, 5), usd_per_million_input=2.0, usd_per_million_output=6.0)
    assert asked.table["series_id"].to_pylist() == [10, 11, 12, 13, 14]
    for row in asked.table.to_pylist():
        assert (row["status"], row["reason"], row["text"], row["teacher"]) == ("ok", None, SOUND, "seer")
        assert (row["labels"], row["attempts"]) == (STATED, 1)
        assert (row["input_tokens"], row["output_tokens"]) == (1000, 50)
        assert row["cost_usd"] == pytest.approx(1000 * 2e-6 + 50 * 6e-6)
        assert row["latency_ms"] > 0
    assert asked.counts[ROWS] == 5
    assert (asked.counts[INPUT], asked.counts[OUTPUT]) == (5000, 250)
    assert asked.counts[DOLLARS] == pytest.approx(5 * 0.0023)


def test_replies_stay_with_their_series_when_they_come_back_out_of_order(
    server: Server, ask: Any, series: pa.Table
) -> None:
    def answer(number: int, body: dict[str, Any]) -> Answer:
        picture = body["messages"][0]["content"][1]["image_url"]["url"]
        said = completion(hashlib.sha256(picture.encode()).hexdigest())
        return Answer(200, said, hang=0.5 if number == 3 else 0.0)

    server.answer = answer
    together = ask(series.slice(0, 12), in_flight=8, repairs=0).table
    one_by_one = [ask(series.slice(i, 1), repairs=0).table["text"][0].as_py() for i in range(12)]
    assert len(set(one_by_one)) == 12
    assert together["text"].to_pylist() == one_by_one


@pytest.mark.parametrize(
    ("reply", "status", "reason"),
    [
        (completion(None, refusal="I would rather not."), "refused", "I would rather not."),
        (completion("", finish="content_filter"), "refused", "filter"),
        (completion(SOUND[:30], finish="length"), "truncated", "max_tokens"),
        (completion(None, finish="length"), "truncated", "max_tokens"),
        (completion(None), "refused", "empty"),
        (completion("Lovely weather today."), "invalid", "trend: not mentioned"),
        (completion('{"trend": "It rises.", "noise": "It is low."}'), "invalid", "maximum: not mentioned"),
        ({**completion(), "choices": []}, "error", "empty"),
        ({**completion(), "choices": [None]}, "error", "empty"),
    ],
)
def test_a_reply_that_cannot_be_used_is_a_row_with_its_status_and_reason(
    server: Server, ask: Any, series: pa.Table, reply: Any, status: str, reason: str
) -> None:
    server.answer = lambda *_: Answer(200, reply)
    said = ask(series.slice(0, 3)).table
    assert len(said) == 3
    assert set(said["status"].to_pylist()) == {status}
    assert all(reason in row for row in said["reason"].to_pylist())


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"choices": "none"}, "empty"),
        (b"[1, 2]", "not an object"),
        (b"<html>", "not JSON"),
        (b'{"choices": [{"mess', "not JSON"),
        (b"", "not JSON"),
        (b"[" * 200_000, "nested too deeply"),
    ],
)
def test_an_answer_that_is_none_is_an_error_of_its_row_while_others_are_answered(
    server: Server, ask: Any, series: pa.Table, answer: Any, reason: str
) -> None:
    bad: list[Any] = []

    def respond(_: int, body: dict[str, Any]) -> Answer:
        bad[:] = bad or [body["messages"][0]]
        return Answer(200, answer) if body["messages"][0] == bad[0] else Answer(200, completion(), hang=0.02)

    server.answer = respond
    rows = ask(series.slice(0, 30), in_flight=2).table.to_pylist()
    assert [row["status"] for row in rows[1:]] == ["ok"] * 29
    assert rows[0]["status"] == "error"
    assert reason in rows[0]["reason"]


def test_a_series_that_cannot_be_drawn_is_an_error_of_its_row_and_ends_nothing(
    server: Server, ask: Any, series: pa.Table
) -> None:
    values = series["values"].slice(0, 8).to_pylist()
    values[3] = []
    at, field = series.schema.get_field_index("values"), series.schema.field("values")
    rows = ask(series.slice(0, 8).set_column(at, field, pa.array(values, field.type))).table.to_pylist()
    assert [row["status"] for row in rows] == ["ok"] * 3 + ["error"] + ["ok"] * 4
    assert "Error: " in rows[3]["reason"]
    assert "\n" not in rows[3]["reason"]
    assert server.asked == 7


def test_one_failed_reply_leaves_the_others_whole(server: Server, ask: Any, series: pa.Table) -> None:
    server.answer = lambda n, _: Answer(200, completion(None, refusal="no") if n == 2 else completion())
    statuses = ask(series.slice(0, 6)).table["status"].to_pylist()
    assert sorted(statuses) == ["ok"] * 5 + ["refused"]


@pytest.mark.parametrize(
    "usage", [{"prompt_tokens": -7, "completion_tokens": "many"}, {"prompt_tokens": 1e99}, "x"]
)
def test_counts_of_tokens_that_cannot_be_true_are_replaced_by_estimates(
    server: Server, ask: Any, series: pa.Table, usage: Any
) -> None:
    server.answer = lambda *_: Answer(200, completion(usage=usage))
    (row,) = ask(series.slice(0, 1)).table.to_pylist()
    assert row["status"] == "ok"
    assert 100 < row["input_tokens"] < 1000
    assert 10 < row["output_tokens"] < 100


def test_control_characters_and_halves_of_characters_do_not_spoil_the_table(
    server: Server, ask: Any, series: pa.Table
) -> None:
    server.answer = lambda *_: FAULTS["control characters"]
    said = ask(series.slice(0, 2)).table
    assert said["status"].to_pylist() == ["ok", "ok"]
    assert said["labels"].to_pylist() == [STATED, STATED]
    said["text"][0].as_py().encode()


# ---- What may pass, and what will not


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


# ---- Repairs


def test_a_reply_of_thoughts_alone_is_asked_again_as_often_as_the_recipe_says(
    server: Server, ask: Any, series: pa.Table
) -> None:
    server.answer = lambda *_: Answer(200, completion(None, finish="length"))
    (row,) = ask(series.slice(0, 1), retries=5, repairs=1).table.to_pylist()
    assert (row["status"], row["attempts"], row["output_tokens"], server.asked) == ("truncated", 2, 100, 2)
    assert [message["role"] for message in server.bodies[1]["messages"]] == ["user", "user"]


@pytest.mark.parametrize(
    "bad",
    [completion("Lovely weather today."), completion(SOUND[:40], finish="length")],
    ids=["invalid", "truncated"],
)
def test_a_reply_that_cannot_be_used_is_asked_again_with_what_is_wrong(
    server: Server, ask: Any, series: pa.Table, bad: dict[str, Any]
) -> None:
    server.answer = lambda n, _: Answer(200, bad if n == 0 else completion())
    (row,) = ask(series.slice(0, 1), repairs=2, usd_per_million_input=1.0).table.to_pylist()
    assert (row["status"], row["attempts"], row["input_tokens"], row["output_tokens"]) == ("ok", 2, 2000, 100)
    assert row["cost_usd"] == pytest.approx(2e-3)
    first, second = server.bodies
    assert second["messages"][0] == first["messages"][0]
    assert second["messages"][1] == {"role": "assistant", "content": bad["choices"][0]["message"]["content"]}
    assert "cannot be used" in second["messages"][2]["content"]


def test_repairs_end(server: Server, ask: Any, series: pa.Table) -> None:
    server.answer = lambda *_: Answer(200, completion("Lovely weather today."))
    (row,) = ask(series.slice(0, 1), repairs=3).table.to_pylist()
    assert (row["status"], row["attempts"], server.asked) == ("invalid", 4, 4)


def test_a_repair_that_fails_leaves_the_reply_that_there_was(server: Server, ask: Any, series: pa.Table) -> None:
    server.answer = lambda n, _: Answer(200, completion("Lovely weather.")) if n in (0, 3) else error(500)
    rows = ask(series.slice(0, 1), retries=1).table.to_pylist()
    assert (rows[0]["status"], rows[0]["text"]) == ("invalid", "Lovely weather.")


# ---- What is asked


def test_the_request_shows_the_plot_in_the_recipes_size_and_asks_the_teachers_prompt(
    server: Server, ask: Any, series: pa.Table
) -> None:
    ask(series.slice(0, 1), temperature=0.25, max_tokens=99)
    (body,) = server.bodies
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("seer", 0.25, 99)
    text, picture = body["messages"][0]["content"]
    assert text["text"] == SINGLE.teacher_prompt(128)
    head, _, data = picture["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    image = Image.open(io.BytesIO(base64.b64decode(data)))
    assert (image.format, image.size, image.mode) == ("PNG", (196, 140), "P")
    assert len(set(np.asarray(image).flatten().tolist())) > 2  # something is drawn


@pytest.mark.parametrize("task", list(TASKS.values()), ids=list(TASKS))
@pytest.mark.parametrize("modality", ["image", "text", "both"])
def test_a_modality_is_the_plot_the_numbers_or_both(
    server: Server, tmp_path: Path, task: Any, modality: str
) -> None:
    items = draw_table(task, Recipe(name="x", task=task.name).series, 0, 0, 2)
    Asked(api(server.url, modality=modality, repairs=0), items, tmp_path, task)
    kinds = {"image": ["text", "image_url"], "text": ["text"], "both": ["text", "image_url"]}
    for body in server.bodies:
        assert [part["type"] for part in body["messages"][0]["content"]] == kinds[modality]
    said = {body["messages"][0]["content"][0]["text"] for body in server.bodies}
    for values in items["values"].to_pylist():
        numbers = [", ".join(map(str, curve)) for curve in np.split(np.array(values), task.curves)]
        assert any(all(line in text for line in numbers) for text in said) == (modality != "image")


def test_the_replys_form_is_asked_for_by_schema(server: Server, ask: Any, series: pa.Table) -> None:
    ask(series.slice(0, 1))
    ask(series.slice(0, 1), choices=True)
    free, chosen = (body["response_format"]["json_schema"]["schema"] for body in server.bodies)
    assert free["required"] == list(SINGLE.topics)
    assert free["properties"]["trend"] == {"type": "string"}
    for topic in SINGLE.topics:
        sentences = chosen["properties"][topic]["enum"]
        assert len(sentences) == len(set(sentences))
    every = {topic: chosen["properties"][topic]["enum"][0] for topic in SINGLE.topics}
    assert SINGLE.parse(json.dumps(every)).reason is None


@pytest.mark.parametrize(
    ("refused", "sent"),
    [
        ("response_format json_schema is not supported", {"json_object"}),
        ("response_format is not supported", {None}),
        ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", {"json_schema"}),
        ("temperature does not support 0.0 with this model", {"json_schema"}),
    ],
)
def test_what_a_server_does_not_know_is_said_otherwise_and_only_the_first_request_is_spent_on_it(
    server: Server, ask: Any, series: pa.Table, refused: str, sent: set[str | None]
) -> None:
    def answer(_: int, body: dict[str, Any]) -> Answer:
        form = body.get("response_format", {}).get("type")
        unknown = {
            "response_format json_schema is not supported": form == "json_schema",
            "response_format is not supported": form is not None,
            "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.": "max_tokens" in body,
            "temperature does not support 0.0 with this model": "temperature" in body,
        }
        return error(400, refused) if unknown[refused] else Answer(200, completion())

    server.answer = answer
    said = ask(series.slice(0, 30), in_flight=8).table
    assert set(said["status"].to_pylist()) == {"ok"}
    assert server.asked <= 32
    assert {body.get("response_format", {}).get("type") for body in server.bodies[3:]} == sent


def test_an_answer_that_is_none_settles_nothing_about_what_the_server_knows(
    server: Server, ask: Any, series: pa.Table
) -> None:
    def answer(n: int, body: dict[str, Any]) -> Answer:
        if n == 0:
            return FAULTS["HTML"]
        return error(400, "response_format?") if "response_format" in body else Answer(200, completion())

    server.answer = answer
    said = ask(series.slice(0, 12), in_flight=4).table
    assert set(said["status"].to_pylist()) == {"ok"}


def test_a_server_that_asks_for_no_key_gets_none_of_ours(
    server: Server, ask: Any, series: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert len(ask(series.slice(0, 2), key_env=None).table) == 2
    assert not [sent for sent in server.keys if SECRET in sent]
    server.answer = lambda *_: error(401, "who are you?")
    assert "teacher.key_env names no variable" in ask(series.slice(0, 2), key_env=None).stopped
    assert api("https://api.openai.com/v1", key_env=None).key_variable == "OPENAI_API_KEY"


def test_the_key_is_sent_to_the_server_and_stands_in_no_row(server: Server, ask: Any, series: pa.Table) -> None:
    said = ask(series.slice(0, 2)).table
    assert server.keys == {f"Bearer {SECRET}"}
    assert SECRET not in json.dumps(said.to_pylist())
    assert SECRET not in json.dumps(api(server.url).model_dump())


def test_a_request_key_follows_what_shapes_the_reply_and_not_how_it_is_asked(
    server: Server, series: pa.Table
) -> None:
    few = series.slice(0, 2)

    def keys(plots: PlotConfig = PLOTS, **changes: Any) -> tuple[str, ...]:
        return tuple(Questions(api(server.url, **changes), SINGLE, plots, 0).keys(few))

    plain = keys()
    operational = [
        {"in_flight": 1},
        {"in_flight": 9, "workers": 3},
        {"timeout": 10},
        {"retries": 0},
        {"repairs": 0},
        {"mode": "batch"},
        {"usd_per_million_input": 3.0},
        {"requests_per_minute": 3},
        {"key_env": "PATH"},
        {"base_url": "https://another.example/v1"},
    ]
    assert {keys(**change) for change in operational} == {plain}
    shaping = [
        {"model": "other"},
        {"temperature": 0.5},
        {"max_tokens": 10},
        {"revision": "2026-11"},
        {"modality": "text"},
        {"modality": "both"},
        {"choices": True},
        {"structured": "json"},
    ]
    looks = [PlotConfig(width=196, height=168), PlotConfig(style="paper"), PLOTS.model_copy(update={"vary": True})]
    others = [keys(**change) for change in shaping] + [keys(plots) for plots in looks]
    assert len({plain, *others}) == 1 + len(shaping) + len(looks)
    assert keys(PLOTS.model_copy(update={"store": True})) == plain
    assert keys(PlotConfig(style="paper"), modality="text") == keys(modality="text")


# ---- What came stays


def test_what_the_journal_holds_is_not_asked_again(
    server: Server, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    one = ask(series.slice(0, 30), tmp_path / "one").table
    again = ask(series.slice(0, 30), tmp_path / "one").table
    assert server.asked == 30
    assert again.equals(one)
    ask(series.slice(0, 30), tmp_path / "one", temperature=0.5)
    assert server.asked == 60


def test_a_line_that_was_cut_off_costs_its_row_alone(
    server: Server, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    ask(series.slice(0, 10), tmp_path / "one")
    (file,) = (tmp_path / "one").rglob("*.jsonl")
    file.write_bytes(file.read_bytes()[:-30])
    ask(series.slice(0, 10), tmp_path / "one")
    assert server.asked == 11
    ask(series.slice(0, 10), tmp_path / "one")
    assert server.asked == 11


def test_a_repair_under_way_goes_on_where_it_was(
    server: Server, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.answer = lambda n, _: Answer(200, completion("Lovely weather.")) if n == 0 else error(401)
    assert ask(series.slice(0, 1), tmp_path / "one").table is None
    server.answer = lambda *_: Answer(200, completion())
    (row,) = ask(series.slice(0, 1), tmp_path / "one").table.to_pylist()
    assert (row["status"], row["attempts"]) == ("ok", 2)
    assert len(server.bodies[-1]["messages"]) == 3


def test_an_unruly_server_leaves_every_row_accounted_for_and_asks_nobody_twice(
    server: Server, ask: Any, series: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tsd.teachers.api.live_outages.PING_SECONDS", 20.0)
    server.answer, server.latency = unruly(0.2), 0.005
    asked = ask(series.slice(0, 600), in_flight=32, retries=6, timeout=2, usd_per_million_input=1.0)
    assert asked.table["series_id"].to_pylist() == list(range(600))
    statuses = asked.table["status"].to_pylist()
    assert set(statuses) <= {"ok", "invalid", "refused"}
    assert statuses.count("ok") > 550
    assert set(server.answered.values()) == {0}
    assert server.most_in_flight <= 32
    assert asked.counts[ROWS] == 600
    assert asked.counts[DOLLARS] == pytest.approx(sum(asked.table["cost_usd"].to_pylist()))


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
