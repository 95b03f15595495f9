"""The journal: lines and archives that were cut, of other versions, and in an object store."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.api_server import SOUND, Answer, Server, completion
from support.asked import Asked, api
from support.s3_server import serving_s3

from tsd.errors import StorageError
from tsd.tasks import SINGLE
from tsd.teachers import Reply
from tsd.teachers.api.account import Cost
from tsd.teachers.api.journal import Journal

pytestmark = pytest.mark.usefixtures("quick")


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
