"""The offline Batch API teacher against a real HTTP server with files and batches."""

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
