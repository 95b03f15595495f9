"""Offline batches over several starts: killed anywhere, with another disk, in another mode, for another model."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from aiohttp import web
from support.api_server import SOUND, SURE, Answer, Server, completion, error, listening
from support.asked import KEY, LIVE_USD, PRICES, SECRET, Asked, in_batches
from support.batch_server import BatchServer, Ending
from support.commands import kill_once

from tsd.generation.generator import draw_table
from tsd.recipe import load
from tsd.tasks import SINGLE
from tsd.teachers.api.messages import DOLLARS

pytestmark = pytest.mark.usefixtures("quick")


def ask_in_a_child(url: str, folder: str, count: int) -> None:
    """What a child process does: ask about the first series of the laptop recipe."""
    recipe = load("laptop")
    some = draw_table(SINGLE, recipe.series, recipe.seed, 0, 1024).slice(0, count)
    Asked(in_batches(url), some, Path(folder))


def killed(url: str, folder: Path, count: int, so: Callable[[], bool]) -> None:
    """Ask in a process of its own, and kill it once something is so."""
    paths = [str(place) for place in (Path(__file__).parent, Path(__file__).parents[3])]
    code = (
        f"import sys; sys.path[:0] = {paths}; from test_batch_restarts import ask_in_a_child; "
        f"ask_in_a_child({url!r}, {str(folder)!r}, {count})"
    )
    kill_once(so, [sys.executable, "-c", code], timeout=240)


def test_killed_between_submit_and_collect_a_second_start_collects_the_batch(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.seconds = 3600.0
    killed(server.url, tmp_path / "one", 30, lambda: server.calls["poll"] >= 2)
    assert (len(server.batches), sum(server.paid.values())) == (1, 0)
    server.seconds = 0.0
    asked = ask(series.slice(0, 30), tmp_path / "one")
    assert set(asked.table["status"].to_pylist()) == {"ok"}
    assert len(server.batches) == 1
    assert server.paid_once(30)
    assert asked.table.equals(ask(series.slice(0, 30)).table)  # the one of a start that nobody disturbed


@pytest.mark.parametrize("lists", [True, False], ids=["listed", "not listed"])
def test_killed_between_acceptance_and_its_note_a_second_start_finds_the_batch_or_asks_for_it(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path, lists: bool
) -> None:
    server.after = lambda name, _: Answer(200, {}, hang=60.0) if name == "create" else None
    killed(server.url, tmp_path / "one", 30, lambda: len(server.batches) == 1)
    server.after = lambda *_: None
    server.instead = lambda name, _: error(404) if name == "list" and not lists else None
    asked = ask(series.slice(0, 30), tmp_path / "one")
    if not lists:  # nobody but a person can know
        assert asked.table is None
        assert len(asked.stopped.splitlines()) == 1
        (registry,) = (tmp_path / "one").rglob("batches.json")
        kept = json.loads(registry.read_bytes())
        (batch,) = kept["batches"]
        assert (str(registry) in asked.stopped, batch["file"] in asked.stopped) == (True, True)
        batch["id"] = "batch_0"
        registry.write_text(json.dumps(kept))
        asked = ask(series.slice(0, 30), tmp_path / "one")
    assert len(asked.table) == 30
    assert len(server.batches) == 1
    assert server.paid_once(30)


def test_killed_before_acceptance_a_second_start_submits_the_batch(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.instead = lambda name, _: Answer(200, {}, hang=60.0) if name == "create" else None
    killed(server.url, tmp_path / "one", 30, lambda: server.calls["create"] == 1)
    server.instead = lambda *_: None
    assert len(ask(series.slice(0, 30), tmp_path / "one").table) == 30
    assert server.paid_once(30)
    assert server.files == {}  # nor does what was uploaded first stay behind


@pytest.mark.parametrize("bad", [True, False])
def test_killed_while_collecting_a_second_start_takes_each_answer_once(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path, bad: bool
) -> None:
    def answer(name: str, _: Any, number: int) -> Answer:
        if name == "4":
            return error(500)
        return Answer(200, completion("Lovely weather." if bad and name == "2" and number < 2 else SOUND))

    server.answer, server.seconds = answer, 0.5
    server.instead = lambda name, number: error(401) if name in ("poll", "delete") else None
    ask(series.slice(0, 9), tmp_path / "one", batch={"rounds": 1}, **PRICES)
    (registry,) = (tmp_path / "one").rglob("batches.json")
    under_way = registry.read_bytes()
    server.instead = lambda name, number: error(401) if name in ("create", "delete") else None
    ask(series.slice(0, 9), tmp_path / "one", batch={"rounds": 1}, **PRICES)
    registry.write_bytes(under_way)  # what a kill would leave: answers in the journal, the ledger as it was
    server.instead = lambda name, number: error(401) if name == "delete" else None
    asked = ask(series.slice(0, 9), tmp_path / "one", batch={"rounds": 1}, repairs=2, **PRICES)
    rows = asked.table.to_pylist()
    assert [row["status"] for row in rows if row["series_id"] != 4] == ["ok"] * 8
    assert (rows[4]["status"], rows[4]["attempts"]) == ("error", 2)
    assert rows[2]["attempts"] == server.paid["2"] == (3 if bad else 1)
    assert [row["attempts"] for row in rows if row["series_id"] not in (2, 4)] == [1] * 7
    assert asked.counts[DOLLARS] == pytest.approx(server.paid.total() * LIVE_USD / 2)


def test_where_the_disk_was_lost_the_server_is_asked_for_the_batch_before_it_is_submitted(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.seconds = 1.0
    server.instead = lambda name, _: error(401) if name == "poll" else None
    ask(series.slice(0, 9), tmp_path / "one")
    server.instead = lambda *_: None
    assert len(ask(series.slice(0, 9), tmp_path / "another").table) == 9
    assert len(server.batches) == 1
    assert server.paid_once(9)


def test_a_batch_that_ended_half_done_between_two_starts_has_only_its_missing_rows_asked_again(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.seconds = 3600.0
    server.ending = lambda number: Ending("expired", 0.5) if number == 0 else Ending()
    killed(server.url, tmp_path / "one", 30, lambda: server.calls["poll"] >= 1)
    server.seconds = 0.0
    server.instead = lambda name, number: error(401) if name == "create" else None
    assert ask(series.slice(0, 30), tmp_path / "one").table is None
    server.instead = lambda *_: None
    rows = ask(series.slice(0, 30), tmp_path / "one").table.to_pylist()
    assert {row["status"] for row in rows} == {"ok"}
    assert sorted(row["attempts"] for row in rows) == [1] * 15 + [2] * 15
    assert list(map(len, server.asked())) == [30, 15]
    assert server.paid_once(30)


@pytest.mark.parametrize("modes", [("live", "batch"), ("batch", "live")])
def test_switching_between_live_and_batch_pays_nothing_twice(
    series: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, modes: tuple[str, str]
) -> None:
    monkeypatch.setenv(KEY, SECRET)
    live, batches = Server(), BatchServer()
    with listening([*batches.routes(), web.post("/v1/chat/completions", live.handle)]) as url:
        tables = [
            Asked(in_batches(url, mode=mode), series.slice(0, count), tmp_path).table
            for mode, count in zip(modes, (5, 12), strict=True)
        ]
    counts = {"live": live.asked, "batch": sum(batches.paid.values())}
    assert [counts[mode] for mode in modes] == [5, 7]
    keys = [table["request_key"].to_pylist() for table in tables]
    assert keys[0] == keys[1][:5]
    assert set(tables[1]["status"].to_pylist()) == {"ok"}


def test_live_does_not_ask_what_batches_under_way_ask(
    series: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, SECRET)
    live, batches = Server(), BatchServer(seconds=3600.0)
    with listening([*batches.routes(), web.post("/v1/chat/completions", live.handle)]) as url:
        batches.instead = lambda name, _: error(401) if name == "poll" else None
        Asked(in_batches(url), series.slice(0, 5), tmp_path)
        batches.instead = lambda *_: None
        asked = Asked(in_batches(url, mode="live"), series.slice(0, 5), tmp_path)
        assert (asked.table, live.asked) == (None, 0)
        assert "teacher.mode=batch" in asked.stopped
        assert str(next(tmp_path.rglob("batches.json"))) in asked.stopped
        batches.seconds = 0.0
        assert len(Asked(in_batches(url), series.slice(0, 5), tmp_path).table) == 5
    assert (live.asked, batches.paid_once(5)) == (0, True)


def test_another_model_does_not_wait_for_the_batches_of_the_one_before(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.seconds = 3600.0
    server.instead = lambda name, _: error(401) if name == "poll" else None
    ask(series.slice(0, 5), tmp_path / "one")
    server.instead, server.seconds = lambda *_: None, 0.0
    server.born[0] += 3600.0  # the first is under way still
    table = ask(series.slice(0, 5), tmp_path / "one", model="another").table
    assert set(table["teacher"].to_pylist()) == {"another"}
    assert [lines[0]["body"]["model"] for lines in server.lines] == ["seer", "another"]
    server.born[0] = 0.0
    assert len(ask(series.slice(0, 5), tmp_path / "one").table) == 5
    assert len(server.batches) == 2


def test_another_model_does_not_inherit_what_the_one_before_left_unanswered(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.answer = lambda name, body, _: error(400, "no") if name == "3" and body["model"] == "seer" else SURE
    first = ask(series.slice(0, 5), tmp_path / "one").table.to_pylist()
    assert [row["status"] for row in first] == ["ok", "ok", "ok", "error", "ok"]
    second = ask(series.slice(0, 5), tmp_path / "one", model="another").table.to_pylist()
    assert {row["status"] for row in second} == {"ok"}
    assert {row["attempts"] for row in second} == {1}


def test_answers_are_on_disk_before_the_server_may_forget_them(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(
        "tsd.teachers.api.journal_files.os.fsync", lambda file: synced.append(os.fstat(file).st_size)
    )
    before: list[int] = []
    server.instead = lambda name, _: before.append(max(synced, default=0)) if name == "delete" else None
    ask(series.slice(0, 9), tmp_path / "one")
    (journal,) = (tmp_path / "one").rglob("*.jsonl")
    assert min(before) == journal.stat().st_size > 0
