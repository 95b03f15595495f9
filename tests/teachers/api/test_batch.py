"""The offline Batch API teacher against a real HTTP server with files and batches, and real kills."""

import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.api_server import SOUND, Answer, completion, error, serving
from support.asked import LIVE_USD, PLOTS, PRICES, SECRET, api
from support.batch_server import BatchServer, Ending

from tsd.tasks import SINGLE
from tsd.teachers.api.messages import BATCHED, BATCHES, COMPLETED, DOLLARS, INPUT, OUTPUT, ROWS
from tsd.teachers.prompts import Questions

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def server(batch_server: BatchServer) -> BatchServer:
    """The API that all these tests ask."""
    return batch_server


@pytest.fixture
def ask(ask_in_batches: Any) -> Any:
    """How they ask it."""
    return ask_in_batches


# ---- A batch


def test_a_batch_is_submitted_waited_for_and_collected_at_its_own_price(
    server: BatchServer, ask: Any, series: pa.Table
) -> None:
    server.seconds = 0.3
    asked = ask(series.slice(10, 40), **PRICES)
    assert asked.table["series_id"].to_pylist() == list(range(10, 50))
    for row in asked.table.to_pylist():
        assert (row["status"], row["text"], row["attempts"], row["teacher"]) == ("ok", SOUND, 1, "seer")
        assert (row["input_tokens"], row["output_tokens"]) == (1000, 50)
        assert row["cost_usd"] == pytest.approx(LIVE_USD / 2)
    assert server.asked() == [[str(one) for one in range(10, 50)]]
    assert asked.counts[ROWS] == 40
    assert (asked.counts[INPUT], asked.counts[OUTPUT]) == (40_000, 2_000)
    assert asked.counts[DOLLARS] == pytest.approx(40 * LIVE_USD / 2)


def test_the_progress_tells_of_the_batches_under_way_and_forgets_those_that_ended(
    server: BatchServer, ask: Any, series: pa.Table
) -> None:
    server.seconds = 1.0
    asked = ask(series.slice(0, 20), batch={"most_requests": 10})
    assert max((counts[BATCHES], counts[BATCHED]) for counts in asked.seen) == (2, 20)
    assert 0 < max(counts[COMPLETED] for counts in asked.seen) < 20
    assert [asked.counts[name] for name in (BATCHES, BATCHED, COMPLETED)] == [0, 0, 0]


def test_answers_find_their_series_in_whatever_order_they_come(
    server: BatchServer, ask: Any, series: pa.Table
) -> None:
    server.answer = lambda name, *_: Answer(200, completion(f"I am {name}"))
    said = ask(series.slice(0, 50), repairs=0).table
    assert said["text"].to_pylist() == [f"I am {one}" for one in range(50)]


def test_a_request_in_a_batch_is_a_live_request(server: BatchServer, ask: Any, series: pa.Table) -> None:
    ask(series.slice(0, 20), temperature=0.5)
    with serving() as live:
        ask(series.slice(0, 20), temperature=0.5, mode="live", url=live.url)
    bodies = [line["body"] for line in server.lines[0]]
    live.bodies.sort(key=lambda body: bodies.index(body))  # raises where one is not among them
    assert live.bodies == bodies
    assert bodies[0]["response_format"]["type"] == "json_schema"
    assert {(line["method"], line["url"]) for line in server.lines[0]} == {("POST", "/v1/chat/completions")}


def test_no_batch_has_more_requests_than_the_provider_takes(
    server: BatchServer, ask: Any, series: pa.Table
) -> None:
    server.seconds = 0.2
    asked = ask(series.slice(0, 50), batch={"most_requests": 20, "at_once": 2})
    assert sorted(map(len, server.asked())) == [10, 20, 20]
    assert server.most_under_way == 2
    assert asked.table["series_id"].to_pylist() == list(range(50))
    assert server.paid_once(50)


def test_no_file_is_larger_than_the_provider_takes(server: BatchServer, ask: Any, series: pa.Table) -> None:
    sizes: list[int] = []
    server.after = lambda call, _: sizes.append(len(list(server.files.values())[-1])) if call == "upload" else None
    asked = ask(series.slice(0, 600), batch={"most_megabytes": 1})
    assert max(sizes) <= 10**6
    assert min(sizes[:-1]) > 0.97 * 10**6  # and is filled
    assert len(sizes) >= 2
    assert server.paid_once(600)
    assert len(asked.table) == 600


def test_files_are_deleted_from_the_server_when_a_batch_is_collected(
    server: BatchServer, ask: Any, series: pa.Table
) -> None:
    server.answer = lambda name, *_: error(500) if name == "3" else Answer(200, completion())
    ask(series.slice(0, 5), batch={"rounds": 1})
    assert server.calls["upload"] == 2
    assert server.files == {}
    server.instead = lambda call, _: error(403, "not allowed") if call == "delete" else None
    assert len(ask(series.slice(10, 5)).table) == 5  # who may not delete asks all the same


def test_no_file_holds_the_key(server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path) -> None:
    server.instead = lambda call, _: error(403) if call == "delete" else None
    ask(series.slice(0, 5), tmp_path / "one")
    assert server.keys == {f"Bearer {SECRET}"}
    written = [path for path in (tmp_path / "one").rglob("*") if path.is_file()]
    assert len(written) == 3  # the journal, its lock and the ledger
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    assert not [name for name, content in server.files.items() if SECRET.encode() in content]


# ---- Rows without an answer


@pytest.mark.parametrize("status", ["expired", "cancelled"])
def test_of_a_batch_that_ended_half_done_only_the_missing_rows_are_asked_again(
    server: BatchServer, ask: Any, series: pa.Table, status: str
) -> None:
    server.ending = lambda number: Ending(status, 0.5) if number == 0 else Ending()
    asked = ask(series.slice(0, 40), **PRICES)
    first, second = server.asked()
    assert (len(first), len(second)) == (40, 20)
    assert server.paid_once(40)
    assert set(asked.table["status"].to_pylist()) == {"ok"}
    attempts = dict(zip(first, asked.table["attempts"].to_pylist(), strict=True))
    assert {name for name, count in attempts.items() if count == 2} == set(second)
    assert asked.counts[DOLLARS] == pytest.approx(40 * LIVE_USD / 2)


def test_what_no_batch_answers_is_an_error_after_as_many_as_the_recipe_says(
    server: BatchServer, ask: Any, series: pa.Table
) -> None:
    server.ending = lambda _: Ending("expired", 0.0)
    asked = ask(series.slice(0, 6), batch={"rounds": 2})
    assert len(server.batches) == 3
    for row in asked.table.to_pylist():
        assert (row["status"], row["text"], row["attempts"]) == ("error", None, 3)
        assert "batch_expired" in row["reason"]
    assert asked.counts[ROWS] == 6


@pytest.mark.parametrize(
    ("given", "status", "reason", "batches"),
    [
        (error(400, "this picture"), "error", "400: this picture", 1),
        (Answer(400, {"error": {"code": "content_filter", "message": "no"}}), "refused", "filter", 1),
        (Answer(200, completion(None, refusal="I would rather not.")), "refused", "rather not", 1),
        (error(500), "error", "500: no", 3),
        (error(429), "error", "429: no", 3),
        (Answer(200, completion(None)), "refused", "empty", 1),
        (Answer(200, b""), "error", "not an object", 3),
        (Answer(200, completion("Lovely weather today.")), "invalid", "not mentioned", 2),
    ],
    ids=["400", "filter", "refusal", "500", "429", "empty", "no body", "invalid"],
)
def test_a_row_that_fails_is_a_row_with_its_status_and_reason_beside_others_that_do_not(
    server: BatchServer, ask: Any, series: pa.Table, given: Answer, status: str, reason: str, batches: int
) -> None:
    if given.body == b"":
        given = Answer(200, None)  # type: ignore[arg-type]
    server.answer = lambda name, *_: given if name == "7" else Answer(200, completion())
    asked = ask(series.slice(0, 12), batch={"rounds": 2})
    rows = asked.table.to_pylist()
    assert [row["status"] for row in rows if row["series_id"] != 7] == ["ok"] * 11
    assert rows[7]["status"] == status
    assert reason in rows[7]["reason"]
    assert rows[7]["attempts"] == len(server.batches) == batches
    assert [len(names) for names in server.asked()[1:]] == [1] * (batches - 1)


def test_what_an_answer_without_a_reply_has_cost_is_counted(
    server: BatchServer, ask: Any, series: pa.Table
) -> None:
    server.answer = lambda _, __, number: Answer(200, completion(finish="error" if number == 0 else "stop"))
    asked = ask(series.slice(0, 2), **PRICES)
    for row in asked.table.to_pylist():
        assert (row["status"], row["attempts"], row["input_tokens"]) == ("ok", 2, 2000)
        assert row["cost_usd"] == pytest.approx(LIVE_USD)
    assert asked.counts[DOLLARS] == pytest.approx(2 * LIVE_USD)


# ---- Repairs


def test_a_reply_that_cannot_be_used_is_asked_again_in_the_next_batch_with_what_is_wrong(
    server: BatchServer, ask: Any, series: pa.Table
) -> None:
    bad = {"2": completion("Lovely weather today."), "5": completion(SOUND[:40], finish="length")}
    server.answer = lambda name, _, number: Answer(
        200, bad.get(name, completion()) if number == 0 else completion()
    )
    asked = ask(series.slice(0, 8), repairs=2, **PRICES)
    assert server.asked()[1:] == [["2", "5"]]
    for line in server.lines[1]:
        question, said, told = line["body"]["messages"]
        assert question == server.lines[0][int(line["custom_id"])]["body"]["messages"][0]
        assert said["content"] == bad[line["custom_id"]]["choices"][0]["message"]["content"]
        assert "cannot be used" in told["content"]
    rows = asked.table.to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    assert (rows[2]["attempts"], rows[2]["input_tokens"], rows[0]["attempts"]) == (2, 2000, 1)
    assert asked.counts[DOLLARS] == pytest.approx(10 * LIVE_USD / 2)


def test_repairs_end_and_one_without_an_answer_leaves_the_reply_that_there_was(
    server: BatchServer, ask: Any, series: pa.Table
) -> None:
    server.answer = lambda *_: Answer(200, completion("Lovely weather."))
    (row,) = ask(series.slice(0, 1), repairs=3).table.to_pylist()
    assert (row["status"], row["attempts"], len(server.batches)) == ("invalid", 4, 4)
    server.answer = lambda _, __, number: Answer(200, completion("Lovely.")) if number == 4 else error(500)
    (row,) = ask(series.slice(1, 1), repairs=1, batch={"rounds": 1}).table.to_pylist()
    assert (row["status"], row["text"], row["attempts"], len(server.batches)) == ("invalid", "Lovely.", 3, 7)


# ---- What the server will not do


@pytest.mark.parametrize("call", ["upload", "create", "poll", "download"])
@pytest.mark.parametrize("code", [401, 403])
def test_a_key_that_is_refused_stops_the_stage_with_one_line_and_the_next_start_pays_nothing_twice(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path, call: str, code: int
) -> None:
    server.instead = lambda name, _: error(code, f"expired\nkey {SECRET}") if name == call else None
    asked = ask(series.slice(0, 9), tmp_path / "one")
    assert asked.table is None
    assert len(asked.stopped.splitlines()) == 1
    assert server.url in asked.stopped
    assert str(code) in asked.stopped
    assert SECRET not in asked.stopped
    assert server.calls[call] == 1
    server.instead = lambda *_: None
    assert set(ask(series.slice(0, 9), tmp_path / "one").table["status"].to_pylist()) == {"ok"}
    assert server.paid_once(9)


def test_a_key_that_ends_while_a_batch_is_under_way_stops_the_stage_and_the_batch_is_collected_later(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.seconds = 1.0
    server.instead = lambda name, number: error(401, "expired") if name == "poll" and number >= 3 else None
    asked = ask(series.slice(0, 9), tmp_path / "one")
    assert (asked.table, len(server.batches)) == (None, 1)
    assert "expired" in asked.stopped
    server.instead = lambda *_: None
    assert len(ask(series.slice(0, 9), tmp_path / "one").table) == 9
    assert len(server.batches) == 1
    assert server.paid_once(9)


def test_a_batch_that_the_server_does_not_know_for_long_stops_the_stage_and_says_where_it_is_kept(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.seconds = 60
    server.instead = lambda name, number: error(401) if name == "poll" else None
    ask(series.slice(0, 3), tmp_path / "one")
    server.batches.clear()
    server.instead = lambda *_: None
    asked = ask(series.slice(0, 3), tmp_path / "one")
    assert asked.table is None
    assert "batch_0" in asked.stopped
    (registry,) = (tmp_path / "one").rglob("batches.json")
    assert str(registry) in asked.stopped


def test_a_batch_that_fails_stops_the_stage_with_what_is_wrong_and_can_be_submitted_again(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    wrong = {"code": "invalid_json_line", "message": "This line is not parseable", "line": 3, "param": None}
    server.ending = lambda number: Ending("failed", 0.0, (wrong,)) if number == 0 else Ending()
    asked = ask(series.slice(0, 5), tmp_path / "one")
    assert asked.table is None
    assert "This line is not parseable (line 3)" in asked.stopped
    assert len(asked.stopped.splitlines()) == 1
    assert len(ask(series.slice(0, 5), tmp_path / "one").table) == 5
    assert server.paid_once(5)


def test_a_full_queue_of_the_provider_is_waited_for(server: BatchServer, ask: Any, series: pa.Table) -> None:
    full = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached", "line": None, "param": None}
    server.ending = lambda number: Ending("failed", 0.0, (full,)) if number < 6 else Ending()
    rows = ask(series.slice(0, 5), batch={"rounds": 1}).table.to_pylist()
    assert {(row["status"], row["attempts"]) for row in rows} == {("ok", 1)}
    assert len(server.batches) == 7


def test_requests_that_are_all_refused_stop_the_stage_once_nothing_can_be_said_otherwise(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.answer = lambda *_: error(400, "I know no pictures")
    asked = ask(series.slice(0, 5), tmp_path / "one")
    assert asked.table is None
    assert "400: I know no pictures" in asked.stopped
    assert len(server.batches) == 3  # by schema, as JSON, in words
    server.answer = lambda *_: Answer(200, completion())
    assert set(ask(series.slice(0, 5), tmp_path / "one").table["status"].to_pylist()) == {"ok"}


def test_what_a_server_does_not_know_is_said_otherwise_in_the_next_batch(
    server: BatchServer, ask: Any, series: pa.Table
) -> None:
    def answer(_: str, body: dict[str, Any], __: int) -> Answer:
        said = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        return error(400, said) if "max_tokens" in body else Answer(200, completion())

    server.answer, server.seconds = answer, 0.2
    asked = ask(series.slice(0, 20), batch={"most_requests": 5, "at_once": 2})
    assert {(row["status"], row["attempts"]) for row in asked.table.to_pylist()} == {("ok", 1)}
    assert all("response_format" in line["body"] for lines in server.lines for line in lines)
    assert len(server.batches) <= 8
    assert server.paid_once(20)


def test_an_account_that_runs_dry_stops_the_stage_and_keeps_what_was_answered(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    dry = Answer(429, {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}})
    server.answer = lambda name, *_: dry if int(name) >= 6 else Answer(200, completion())
    asked = ask(series.slice(0, 9), tmp_path / "one")
    assert asked.table is None
    assert "quota" in asked.stopped
    server.answer = lambda *_: Answer(200, completion())
    rows = ask(series.slice(0, 9), tmp_path / "one").table.to_pylist()
    assert {(row["status"], row["attempts"]) for row in rows} == {("ok", 1)}
    assert server.paid_once(9)


# ---- What may pass


FAULTS = {
    "500": error(500),
    "429": error(429, Retry_After="0.1"),
    "HTML": Answer(200, b"<html>", {"Content-Type": "text/html"}),
    "not JSON": Answer(200, b'{"id": "ba'),
    "empty": Answer(200, {}),
    "reset": Answer(reset=True),
    "hang": Answer(200, {}, hang=3.0),
}


@pytest.mark.parametrize("call", ["upload", "create", "poll", "list", "download"])
@pytest.mark.parametrize("fault", FAULTS)
def test_calls_that_fail_are_made_again_and_no_batch_is_paid_twice(
    server: BatchServer, ask: Any, series: pa.Table, call: str, fault: str
) -> None:
    kinds: tuple[str, ...] = ("instead", "after") if call in ("create", "poll") else ("instead",)
    for kind in kinds:
        setattr(server, kind, lambda name, number: FAULTS[fault] if name == call and number < 2 else None)
        first = 20 * len(server.batches)
        said = ask(series.slice(first, 6), timeout=0.5).table
        assert set(said["status"].to_pylist()) == {"ok"}
        server.calls.clear()
        setattr(server, kind, lambda *_: None)
    assert set(server.paid.values()) == {1}
    assert len(server.batches) == len(kinds)


@pytest.mark.parametrize("page", [1, 100])
def test_a_batch_whose_acceptance_was_not_heard_is_found_and_not_submitted_again(
    server: BatchServer, ask: Any, series: pa.Table, page: int
) -> None:
    server.page = page
    server.after = lambda name, number: Answer(reset=True) if name == "create" and number % 2 == 0 else None
    said = ask(series.slice(0, 30), batch={"most_requests": 10, "at_once": 1}).table
    assert set(said["status"].to_pylist()) == {"ok"}
    assert len(server.batches) == 3
    assert server.paid_once(30)


def test_waiting_for_a_batch_is_not_silence(server: BatchServer, ask: Any, series: pa.Table) -> None:
    server.seconds = 2.0
    asked = ask(series.slice(0, 4), idle_timeout=0.3, batch={"poll_seconds": 0.7})
    assert (len(asked.table), asked.stopped) == (4, None)


@pytest.mark.parametrize("fault", ["500", "hang", "reset"])
def test_a_server_that_does_not_answer_polls_stops_the_stage(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path, fault: str
) -> None:
    server.instead = lambda name, number: FAULTS[fault] if name == "poll" else None
    started = time.monotonic()
    asked = ask(series.slice(0, 4), tmp_path / "one", idle_timeout=1.0, timeout=0.3)
    assert asked.table is None
    assert "has given no answer for 1." in asked.stopped
    assert 1.0 < time.monotonic() - started < 10
    server.instead = lambda *_: None
    assert len(ask(series.slice(0, 4), tmp_path / "one").table) == 4
    assert server.paid_once(4)


def test_polls_that_are_only_ever_told_to_wait_stop_the_stage(
    server: BatchServer, ask: Any, series: pa.Table
) -> None:
    server.instead = lambda name, number: error(429, Retry_After="1") if name == "poll" else None
    started = time.monotonic()
    asked = ask(series.slice(0, 4), idle_timeout=1.0)
    assert asked.table is None
    assert "has refused every request for " in asked.stopped
    assert 2.0 < time.monotonic() - started < 10


# ---- Budgets


@pytest.fixture
def dear(server: BatchServer, series: pa.Table) -> int:
    """Have every reply be as long as it may; the tokens of a request then."""
    teacher = api(server.url)
    questions = Questions(teacher, SINGLE, PLOTS, 0)
    (question,) = questions.ask(series.slice(0, 1), ["key"])
    usage = {"prompt_tokens": question.tokens, "completion_tokens": teacher.max_tokens}
    server.answer = lambda *_: Answer(200, completion(usage=usage))
    return question.tokens + teacher.max_tokens


@pytest.mark.parametrize("kind", ["dollars", "tokens"])
def test_a_batch_that_may_exceed_the_budget_is_not_submitted_and_what_came_is_kept(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path, dear: int, kind: str
) -> None:
    server.seconds = 0.2
    dollars = {"budget_usd": 24 * dear * 1e-6 / 2, "usd_per_million_input": 1.0, "usd_per_million_output": 1.0}
    budget = dollars if kind == "dollars" else {"budget_tokens": 24 * dear}
    limits = {"batch": {"most_requests": 10, "at_once": 1}}
    first = ask(series.slice(0, 40), tmp_path / "one", **limits, **budget)
    assert first.table is None
    assert "budget" in first.stopped
    assert sum(server.paid.values()) == 20  # 30 would be more than 24
    again = ask(series.slice(0, 40), tmp_path / "one", **limits, **budget)
    assert again.table is None
    assert len(server.batches) == 2
    assert len(ask(series.slice(0, 40), tmp_path / "one", **limits).table) == 40
    assert server.paid_once(40)


def test_a_budget_counts_prompts_by_what_they_have_cost_so_far(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    # A prompt is billed at 1,000 tokens, more than five times its estimate, and a reply may have 256.
    limits: dict[str, Any] = {"budget_tokens": 60_000, "batch": {"most_requests": 10, "at_once": 1}}
    for _ in range(2):
        asked = ask(series.slice(0, 100), tmp_path / "one", **limits)
        assert asked.table is None
        assert "budget_tokens" in asked.stopped
        assert 45_000 < 1050 * server.paid.total() <= 60_000


def test_batches_under_way_count_against_the_budget_those_of_an_earlier_start_too(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path, dear: int
) -> None:
    server.seconds, limits = 3.0, {"batch": {"most_requests": 10}}
    server.instead = lambda name, _: error(401) if name == "poll" else None
    ask(series.slice(0, 10), tmp_path / "one", **limits)
    server.instead = lambda *_: None
    asked = ask(series.slice(0, 40), tmp_path / "one", budget_tokens=25 * dear, **limits)
    assert asked.table is None
    assert "budget_tokens" in asked.stopped
    assert (server.paid.total(), server.most_under_way) == (20, 2)
