"""The live API teacher against a real HTTP server: what a reply becomes, repairs, and what came stays."""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.api_server import FAULTS, SOUND, Answer, Server, completion, error, unruly

from tsd.teachers.api.messages import DOLLARS, INPUT, OUTPUT, ROWS

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
    asked = ask(series.slice(0, 600), in_flight=32, retries=6, timeout=5, usd_per_million_input=1.0)
    assert asked.table["series_id"].to_pylist() == list(range(600))
    statuses = asked.table["status"].to_pylist()
    assert set(statuses) <= {"ok", "invalid", "refused"}
    assert statuses.count("ok") > 550
    assert set(server.answered.values()) == {0}
    assert server.most_in_flight <= 32
    assert asked.counts[ROWS] == 600
    assert asked.counts[DOLLARS] == pytest.approx(sum(asked.table["cost_usd"].to_pylist()))
