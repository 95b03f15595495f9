"""Engines that end, hang, load for long or fall silent: which rows are errors, and how the stage ends."""

import asyncio
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from support import fake_engine
from support.asked import PLOTS, Asked
from support.vllm_recipes import teacher

from tsd.errors import InputError, TeacherError
from tsd.generation.generator import draw_table
from tsd.recipe import Recipe, VllmTeacher, load
from tsd.tasks import SINGLE
from tsd.teachers import engine_server, vllm_engine
from tsd.teachers.api.account import Earlier
from tsd.teachers.api.limits import RateLimiter
from tsd.teachers.api.live_requests import MOST_REFUSALS
from tsd.teachers.api.worker import RateLimiterClient
from tsd.teachers.preview import preview
from tsd.teachers.prompts import Questions


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Start a fake engine for a teacher with some settings, whose own are `told`."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "eyes").mkdir()
    (tmp_path / "eyes/config.json").write_text("{}")
    program = str(fake_engine.program(tmp_path))

    def asked(told: dict[str, Any], **changes: Any) -> VllmTeacher:
        for name, value in fake_engine.settings(tmp_path, **told).items():
            monkeypatch.setenv(name, value)
        return teacher(model=str(tmp_path / "eyes"), gpu=False, engine_python=program, **changes)

    yield asked
    assert vllm_engine.TOKEN not in os.environ


def test_rows_are_answered_by_an_engine_and_those_too_long_for_it_are_errors_and_stop_nothing(
    engine: Any, series: pa.Table, tmp_path: Path
) -> None:
    asked = engine({"seconds": 1.0, "limit": 2000}, modality="text", in_flight=8)
    longer = load("laptop", ["teacher={kind: rules}", "series.length=512"])
    long = draw_table(SINGLE, longer.series, 0, 0, MOST_REFUSALS + 15)
    few, rest = MOST_REFUSALS + 10, 5
    both = pa.concat_tables([series.slice(0, 1), long.slice(0, few), series.slice(1, 1), long.slice(few, rest)])
    with vllm_engine.serving(asked) as (api, keeper):
        rows = Asked(api, both, tmp_path / "annotations", keeper=keeper).table.to_pylist()
    assert [row["status"] for row in rows] == ["ok", *["error"] * few, "ok", *["error"] * rest]
    assert all("context length" in row["reason"] for row in rows if row["status"] == "error")
    assert {row["model"] for row in rows if row["status"] == "ok"} == {asked.name}


def test_rows_that_are_all_refused_stop_the_stage(engine: Any, series: pa.Table, tmp_path: Path) -> None:
    with vllm_engine.serving(engine({"limit": 10}, modality="text")) as (api, keeper):
        asked = Asked(api, series.slice(0, 100), tmp_path / "annotations", keeper=keeper)
    assert asked.table is None
    assert str(asked.stopped).startswith("the engine will not serve ")
    assert "context length" in str(asked.stopped)
    assert "teacher.max_model_len" in str(asked.stopped)


def requests_of(asked: VllmTeacher, rows: pa.Table) -> list[str]:
    """The names of the requests about some rows."""
    asking = Questions(vllm_engine.as_api(asked, 1), SINGLE, PLOTS, 0)
    return [fake_engine.named(question.messages) for question in asking.ask(rows, asking.keys(rows))]


@pytest.mark.parametrize("place", [[0], [20], [20, 21]], ids=["the first", "one among others", "two together"])
def test_a_row_that_ends_the_engine_each_time_becomes_an_error_and_the_others_are_answered(
    engine: Any, series: pa.Table, tmp_path: Path, quick: None, place: list[int]
) -> None:
    few = series.slice(0, 60)
    asked = engine({}, modality="text", in_flight=24)
    names = requests_of(asked, few)
    deadly = [names[row] for row in place]
    asked = engine({"seconds": 0.05, "deadly": deadly}, modality="text", in_flight=24)
    with vllm_engine.serving(asked) as (api, keeper):
        found = Asked(api, few, tmp_path / "annotations", keeper=keeper)
    assert found.table is not None, found.stopped
    rows = found.table.to_pylist()
    assert [row for row in range(60) if rows[row]["status"] != "ok"] == place
    tries = vllm_engine.RETRIES + 1
    for row in place:
        said = f"the engine ended {tries} times while it answered this row alone"
        assert (rows[row]["status"], rows[row]["reason"]) == ("error", said)
    assert len(fake_engine.lines(tmp_path)) <= 1 + len(place) * (tries + 2)
    counts = fake_engine.counted(tmp_path, fake_engine.ASKED)
    assert max(count for name, count in counts.items() if name not in deadly) <= 1 + 2 * len(place)


def test_an_engine_that_ends_at_every_request_stops_the_stage_in_its_own_words(
    engine: Any, series: pa.Table, tmp_path: Path, quick: None
) -> None:
    few = series.slice(0, 20)
    names = requests_of(engine({}, modality="text"), few)
    asked = engine({"deadly": names}, modality="text")
    with vllm_engine.serving(asked) as (api, keeper):
        found = Asked(api, few, tmp_path / "annotations", keeper=keeper)
    assert found.table is None
    assert str(found.stopped).startswith("the engine ended 6 times: ")
    assert len(fake_engine.lines(tmp_path)) == 6


def test_of_an_engine_that_is_killed_only_the_rows_under_way_are_asked_again(
    engine: Any, series: pa.Table, tmp_path: Path, quick: None
) -> None:
    """vLLM's core inherits the server's socket and accepts connections until it is ended, too."""
    asked = engine({"seconds": 0.1, "forks": True}, modality="text", in_flight=8)

    def kill() -> None:
        supervisor, server = supervised(tmp_path)
        while len(fake_engine.counted(tmp_path, fake_engine.ANSWERED)) < 20:
            time.sleep(0.01)
        supervisor.suspend()  # a slow machine: the end of the server is noticed late
        server.kill()
        time.sleep(2)
        supervisor.resume()

    with vllm_engine.serving(asked) as (api, keeper), ThreadPoolExecutor(1) as pool:
        killed = pool.submit(kill)
        table = Asked(api, series.slice(0, 100), tmp_path / "annotations", keeper=keeper).table
        killed.result()
    assert set(table["status"].to_pylist()) == {"ok"}
    assert 0 < sum(table["attempts"].to_pylist()) - 100 <= 8
    assert len(fake_engine.lines(tmp_path)) == 2


def supervised(folder: Path) -> list[psutil.Process]:
    """The supervisor of the first engine, and its server."""
    (server,) = map(psutil.Process, fake_engine.lines(folder))
    supervisor = server.parent()
    assert supervisor
    return [supervisor, server]


@pytest.mark.parametrize("how", ["freezes", "stalls"])
def test_the_rows_of_an_engine_that_hangs_are_asked_of_the_next_one(
    engine: Any, series: pa.Table, tmp_path: Path, quick: None, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_server, "ANSWER_SECONDS", 0.5)
    asked = engine({how: 20, "seconds": 0.05}, modality="text", in_flight=8, hang_timeout=3)
    with vllm_engine.serving(asked) as (api, keeper):
        table = Asked(api, series.slice(0, 60), tmp_path / "annotations", keeper=keeper).table
    assert set(table["status"].to_pylist()) == {"ok"}
    assert len(fake_engine.lines(tmp_path)) == 2


def test_a_slow_engine_is_left_alone(engine: Any, series: pa.Table, tmp_path: Path) -> None:
    asked = engine({"seconds": 3.0, "loads": 3.0}, modality="text", in_flight=4, hang_timeout=1)
    with vllm_engine.serving(asked) as (api, keeper):
        table = Asked(api, series.slice(0, 8), tmp_path / "annotations", keeper=keeper).table
    assert set(table["status"].to_pylist()) == {"ok"}
    assert set(table["attempts"].to_pylist()) == {1}
    assert len(fake_engine.lines(tmp_path)) == 1


def test_a_preview_goes_on_though_a_row_ends_the_engine_and_stops_if_the_engine_is_given_up(
    engine: Any, recipe: Recipe, series: pa.Table, tmp_path: Path, quick: None
) -> None:
    few = series.slice(0, 6)
    for deadly in (1, 6):
        asked = engine({}, modality="text")
        asking = recipe.model_copy(update={"teacher": asked, "plots": PLOTS})
        names = requests_of(asked, few)
        asking = asking.model_copy(update={"teacher": engine({"deadly": names[:deadly]}, modality="text")})
        folder = str(tmp_path / f"study-{deadly}/annotations")
        if deadly == 1:
            table, _ = preview(asking, few, folder, Earlier())
            assert table["status"].to_pylist() == ["error", *["ok"] * 5]
        else:
            with pytest.raises(InputError, match="the engine ended 6 times: "):
                preview(asking, few, folder, Earlier())


def test_a_preview_starts_an_engine_and_ends_it(
    engine: Any, recipe: Recipe, series: pa.Table, tmp_path: Path
) -> None:
    asking = recipe.model_copy(update={"teacher": engine({}), "plots": PLOTS})
    table, page = preview(asking, series.slice(0, 3), str(tmp_path / "study/annotations"), Earlier())
    assert table["status"].to_pylist() == ["ok"] * 3
    assert page.count("<img") == 3
    assert sum(fake_engine.counted(tmp_path, fake_engine.ANSWERED).values()) == 3


def test_a_preview_whose_engine_does_not_start_says_why(
    engine: Any, recipe: Recipe, series: pa.Table, tmp_path: Path
) -> None:
    asking = recipe.model_copy(update={"teacher": engine({"fail": "ValueError: no such model"})})
    with pytest.raises(TeacherError, match="the engine does not start: ValueError: no such model; its log is "):
        preview(asking, series.slice(0, 3), str(tmp_path / "study/annotations"), Earlier())


def test_a_preview_whose_engine_loads_for_too_long_ends(engine: Any) -> None:
    with (
        pytest.raises(TeacherError, match=r"the engine did not answer within 1\.0 s \(teacher\.idle_timeout\)"),
        vllm_engine.serving(engine({"loads": 60}, idle_timeout=1)),
    ):
        pass


def test_requests_wait_while_a_worker_s_server_is_held() -> None:
    async def waits() -> list[bool]:
        api = vllm_engine.as_api(teacher(), 1)
        limiter = RateLimiterClient(RateLimiter(api, Earlier()), api, 1)
        passed = []
        limiter.hold(True)
        waiting = asyncio.create_task(limiter.clear())
        await asyncio.sleep(0.2)
        passed.append(waiting.done())
        limiter.hold(False)
        await asyncio.wait_for(waiting, 2)
        passed.append(waiting.done())
        limiter.hold(True)
        limiter.stopped.set()
        await asyncio.wait_for(limiter.clear(), 2)  # a stage that was stopped waits for nothing
        return passed

    assert asyncio.run(waits()) == [False, True]


@pytest.mark.ray
def test_an_engine_that_falls_silent_ends_the_stage() -> None:
    from tsd.cluster.engines import patiently

    def rows() -> Iterator[dict[str, Any]]:
        yield {"part": 1}
        time.sleep(5)
        yield {"part": 2}

    began = time.monotonic()
    waiting = patiently(rows(), lambda: time.monotonic() - began, 0.2)
    assert next(waiting) == {"part": 1}
    started = time.monotonic()
    with pytest.raises(TeacherError, match=r"no engine gave a reply for 0\.2 s"):
        next(waiting)
    assert time.monotonic() - started < 2


@pytest.mark.ray
def test_replies_within_a_part_are_no_silence() -> None:
    from tsd.cluster.engines import patiently

    def rows() -> Iterator[dict[str, Any]]:
        time.sleep(1)
        yield {"part": 1}

    assert list(patiently(rows(), lambda: 0.1, 0.2)) == [{"part": 1}]


@pytest.mark.ray
def test_a_worker_that_fails_is_one_line_that_names_the_cause() -> None:
    from ray.exceptions import RayError

    from tsd.cluster.engines import cause_of, patiently

    trace = (
        "ray::Worker died\n  File x\nOSError: no model\n  File y\nTypeError: no argument 'x'\n  hint: none such\n"
    )
    assert cause_of(trace) == "TypeError: no argument 'x' hint: none such"
    assert cause_of("it went away") == "it went away"

    def rows() -> Iterator[dict[str, Any]]:
        raise RayError(trace)
        yield {}

    with pytest.raises(TeacherError) as caught:
        list(patiently(rows(), lambda: 0, 5))
    assert str(caught.value).startswith("the engine stopped: TypeError: no argument 'x' hint: none such (")
    assert "\n" not in str(caught.value)


@pytest.mark.ray
def test_rows_that_come_pass_through_and_other_errors_stay_what_they_are() -> None:
    from tsd.cluster.engines import patiently

    assert list(patiently(iter([{"part": 1}, {"part": 2}]), lambda: 0, 5)) == [{"part": 1}, {"part": 2}]

    def rows() -> Iterator[dict[str, Any]]:
        raise KeyError("part")
        yield {}

    with pytest.raises(KeyError):
        list(patiently(rows(), lambda: 0, 5))
