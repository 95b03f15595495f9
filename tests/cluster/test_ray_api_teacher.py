"""The API teacher on a real Ray: an unruly server, kill -9, a whole study, and no key in any file."""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from support.api_server import Answer, Server, completion, unruly
from support.asked import KEY, SECRET
from support.commands import (
    BRIEF,
    alone,
    command,
    ended,
    environment,
    kill_a_worker_of,
    kill_all_of,
    run,
    run_each,
    start,
)

from tsd.storage import datasets
from tsd.tasks import SINGLE

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]

IN_FLIGHT = 64
TOKENS = 1050  # of a request


@pytest.fixture(autouse=True)
def _no_bodies(server: Server) -> None:
    """So many requests are not kept."""
    server.keep_bodies = False


def teacher(server: Server, **more: object) -> list[str]:
    """Overrides that name the local API as the teacher."""
    fields = {
        "kind": "openai",
        "model": "seer",
        "base_url": server.url,
        "key_env": KEY,
        "modality": "text",
        "in_flight": IN_FLIGHT,
        **more,
    }
    return [f"teacher.{name}={value}" for name, value in fields.items()]


def truthful(_: int, body: dict[str, Any]) -> Answer:
    """What is true of the numbers that a request shows."""
    shown = body["messages"][0]["content"][0]["text"].rpartition("The values: ")[2]
    values = np.array([[int(number) for number in re.findall(r"\d+", shown)]], np.uint8)
    measures = SINGLE.measure(values)
    (labels,) = SINGLE.truth(measures, values.shape[1]).to_pylist()
    return Answer(200, completion(SINGLE.reply(labels, (0,) * len(SINGLE.topics))))


def wait_for(process: subprocess.Popen[bytes], server: Server, rows: int) -> None:
    """Until so many rows were answered; the process must still be at work."""
    until = time.monotonic() + 400
    while len(server.answered) < rows:
        assert process.poll() is None, f"it ended with {len(server.answered)} rows"
        assert time.monotonic() < until, f"{len(server.answered)} rows instead of {rows}"
        time.sleep(0.05)


def test_many_series_and_a_server_with_faults_under_kill_9(tmp_path: Path, server: Server, long: bool) -> None:
    rows, a_minute = (20_000, 18_000) if long else (3000, 2400)
    server.latency, server.answer = 0.1, unruly(0.2)
    extra = [f"series.count={rows}", "series.blocks_per_part=1"]
    run(command(tmp_path, *extra, stage="generate"), cpus=2)
    limits = {"requests_per_minute": a_minute, "tokens_per_minute": TOKENS * a_minute}
    extra += teacher(server, timeout=3, usd_per_million_input=1.0, **limits)
    arguments, kills = command(tmp_path, *extra, stage="annotate"), 0
    process = start(arguments)
    try:
        for share, victim in ((0.15, "a worker"), (0.35, "all"), (0.55, "a worker"), (0.75, "the rate limiter")):
            wait_for(process, server, round(share * rows))
            if victim == "all":
                kill_all_of(process)
                process = start(arguments)
            else:
                kill_a_worker_of(process, "_RateLimiter" if victim == "the rate limiter" else "MapBatches")
            kills += victim != "the rate limiter"  # without it no request is lost
        assert process.wait(600) == 0
    finally:
        if process.poll() is None:
            kill_all_of(process)

    table = datasets.open_dataset(f"{tmp_path}/tiny/annotations", SINGLE.tables.annotations).read()
    assert table["series_id"].to_pylist() == list(range(rows))
    statuses = dict(zip(*pc.value_counts(table["status"]).flatten(), strict=True))
    counted = {str(name): count.as_py() for name, count in statuses.items()}
    assert set(counted) <= {"ok", "invalid", "refused", "error"}
    assert counted["ok"] > 0.97 * rows
    assert counted.get("error", 0) < 0.001 * rows
    assert server.most_in_flight <= IN_FLIGHT
    assert server.most_in(60.0) <= a_minute
    assert 0 < server.most_tokens_in(60.0) <= TOKENS * a_minute
    assert sum(server.answered.values()) <= kills * IN_FLIGHT, "more was paid for twice than was in flight"
    assert not list((tmp_path / "tiny" / "annotations").rglob("*.jsonl")), "a journal outlived its part"


def test_a_whole_study_with_an_api_teacher_leaves_its_key_in_no_file(tmp_path: Path, server: Server) -> None:
    server.answer = truthful
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="ray") as ray_files:  # a socket's path must be short
        few = ("series.count=1500", "evaluation.series=40", "evaluation.validation_examples=40")
        arguments = command(tmp_path, *BRIEF, *few, *teacher(server, usd_per_million_input=1.0))
        result = alone(arguments, environment(2) | {"RAY_TMPDIR": ray_files}, timeout=600)
        assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
        assert SECRET not in result.stdout + result.stderr
        searched = 0
        for folder in (tmp_path, Path(ray_files)):
            for file in folder.rglob("*"):
                if file.is_file():
                    searched += 1
                    assert SECRET.encode() not in file.read_bytes(), file
        assert searched > 50
        assert list(Path(ray_files).rglob("*.log")), "Ray's own logs were not among them"
    assert server.keys == {f"Bearer {SECRET}"}
    assert "M tokens" in result.stdout
    kept: pa.Table = datasets.open_dataset(f"{tmp_path}/tiny/annotations", SINGLE.tables.annotations).read(
        ["status"]
    )
    assert set(kept["status"].to_pylist()) == {"ok"}


def test_a_key_that_ends_is_one_line_and_the_same_command_goes_on(tmp_path: Path, server: Server) -> None:
    extra = ["series.count=6000", "series.blocks_per_part=1"]
    run(command(tmp_path, *extra, stage="generate"), cpus=2)
    server.latency = 0.02
    refusals: list[float] = []

    def answer(number: int, _: object) -> Answer:
        if number < 3000:
            return Answer(200, completion())
        refusals.append(time.monotonic())
        return Answer(401, hang=90.0 * (len(refusals) > 1), whole=False)  # all but one hear nothing

    server.answer = answer
    arguments = command(tmp_path, *extra, *teacher(server), stage="annotate")
    result = ended(arguments, 2, timeout=300)
    assert result.returncode == 2, result.stdout + result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert server.url in result.stderr
    assert (
        time.monotonic() - refusals[0] < 40
    )  # with the requests under way, and the parts not yet begun, given up
    assert 3000 < server.asked <= 3000 + IN_FLIGHT
    server.answer = lambda *_: Answer(200, completion())
    printed = run(arguments, cpus=2)
    assert "6,000 replies, 3,000 of them from before" in printed
    assert sum(server.answered.values()) == 0


CROWD = """
import ray
from support.asked import api
from tsd.cluster.api_teacher import open_rate_limiter
from tsd.cluster.session import session

with session():
    limiter = open_rate_limiter(api("http://127.0.0.1:9/v1", in_flight=3000, requests_per_minute=60))
    waiting = [limiter.enter.remote("worker", str(n), 1000) for n in range(3000)]
    ray.get(limiter.stop.remote("enough"), timeout=60)
    print(ray.get(limiter.progress.remote(), timeout=60)[1])
"""


def test_requests_that_wait_at_the_rate_limiter_leave_room_for_news() -> None:
    printed = run([sys.executable, "-c", f"import sys; sys.path.insert(0, 'tests'){CROWD}"], cpus=2)
    assert printed.strip() == "enough"


DEAR = {"usd_per_million_input": 1000.0, "usd_per_million_output": 1000.0}  # $1.05 a reply
SMALL = ["series.count=2048", "series.blocks_per_part=1"]


def line_of(arguments: list[str], code: int) -> str:
    """Run a command that ends with this code; its only line on stderr."""
    result = ended(arguments, 2, timeout=300)
    assert result.returncode == code, result.stdout[-3000:] + result.stderr[-3000:]
    (line,) = result.stderr.splitlines()
    return line


@pytest.mark.long("test_misbehaviour.py and benchmarks/annotation_faults.py hold budgets, the tests above kill")
def test_a_budget_holds_over_kills_restarts_and_other_numbers_of_workers(tmp_path: Path, server: Server) -> None:
    run(command(tmp_path, *SMALL, stage="generate"), cpus=2)
    server.latency, budget = 0.05, 900.0

    def asking(workers: int) -> list[str]:
        more = teacher(server, workers=workers, budget_usd=budget, timeout=5, **DEAR)
        return command(tmp_path, *SMALL, *more, stage="annotate")

    process = start(asking(2))
    try:
        wait_for(process, server, 300)
    finally:
        kill_all_of(process)
    for workers in (1, 4):
        line = line_of(asking(workers), 2)
        assert "teacher.budget_usd is used up" in line
    assert 0.85 * budget < 1.05 * server.asked <= budget + 1.05
    assert sum(server.answered.values()) <= IN_FLIGHT


def test_parts_that_are_lost_and_rows_that_failed_are_made_again_without_paying_for_others(
    tmp_path: Path, server: Server
) -> None:
    refused: list[Any] = []

    def answer(number: int, body: dict[str, Any]) -> Answer:
        if number in (100, 700):
            refused.append(body["messages"][0])
        if len(refused) < 3 and body["messages"][0] in refused:
            return Answer(400, {"error": "your input was flagged"}, whole=False)
        return Answer(200, completion())

    server.answer = answer
    asking = [*SMALL, *teacher(server, **DEAR)]
    stages = ("generate", "annotate", "curate")
    run_each(*(command(tmp_path, *(asking if stage != "generate" else SMALL), stage=stage) for stage in stages))
    folder = tmp_path / "tiny" / "annotations"
    before = {path.name: path.read_bytes() for path in folder.glob("part-*.parquet")}
    table = datasets.open_dataset(str(folder), SINGLE.tables.annotations).read()
    assert table["status"].to_pylist().count("error") == 2
    paid = server.asked

    (folder / "part-00000001.parquet").unlink()
    (folder / "manifest.json").unlink()
    refused.append(None)
    printed = run_each(
        command(tmp_path, *asking, stage="annotate"),
        [*command(tmp_path, *asking, stage="annotate"), "--retry-errors"],
        command(tmp_path, *asking, stage="curate"),
    )
    assert server.asked == paid + 2  # the lost part cost nothing, and each failed row one request
    assert "2 rows ended as error and are annotated again" in printed
    after = datasets.open_dataset(str(folder), SINGLE.tables.annotations).read()
    assert set(after["status"].to_pylist()) == {"ok"}
    same = [after[row].equals(table[row]) for row in ("series_id", "request_key")]
    assert all(same)
    assert len(before) == 2
    assert sum(server.answered.values()) == 0
