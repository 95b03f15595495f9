"""Engines as servers on a real Ray, with a program in the place of vLLM: killed engines, workers and drivers."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import fake_engine
from support.commands import ROOT, alone, command, environment, kill_a_worker_of, kill_all_of, run_alone

from tsd.recipe import PlotConfig, VllmTeacher
from tsd.storage import datasets
from tsd.tasks import SINGLE
from tsd.teachers.prompts import Questions
from tsd.teachers.vllm_engine import RETRIES

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

COUNT, IN_FLIGHT = 2048, 8
WITHIN = 30.0  # seconds in which no process of an engine may be left
SERIES = (f"series.count={COUNT}", "series.blocks_per_part=1", "series.length=32")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study's folder with its series."""
    out = tmp_path_factory.mktemp("drawn")
    run_alone(command(out, *SERIES, stage="generate"), cpus=2)
    return out / "tiny"


class Stage:
    """An annotation stage with two engines, in a folder of its own."""

    def __init__(self, folder: Path, drawn: Path, told: dict[str, Any]) -> None:
        self.folder, self.out, self.engines = folder, folder / "out", folder / "engines"
        self.engines.mkdir(parents=True)
        shutil.copytree(drawn, self.out / "tiny")
        (folder / "eyes").mkdir()
        (folder / "eyes/config.json").write_text("{}")
        fields = {
            "kind": "vllm",
            "model": str(folder / "eyes"),
            "gpu": False,
            "modality": "text",
            "replicas": 2,
            "in_flight": IN_FLIGHT,
            "engine_python": str(fake_engine.program(folder)),
        }
        self.arguments = command(self.out, *SERIES, f"teacher={json.dumps(fields)}", stage="annotate")
        self.environment = {
            **environment(2),
            **fake_engine.settings(self.engines, **told),
            "TMPDIR": str(folder),
            "RAY_TMPDIR": "/tmp",
        }
        self.process: subprocess.Popen[str] | None = None
        self.seen: set[psutil.Process] = set()

    def start(self) -> subprocess.Popen[str]:
        """Start the command."""
        self.process = subprocess.Popen(
            self.arguments,
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        return self.process

    def until(self, so: Callable[[], Any], seconds: float = 300.0) -> Any:
        """Wait until something is so, while the command is at work, and return it."""
        assert self.process
        end = time.monotonic() + seconds
        while not (found := so()):
            self.look()
            assert self.process.poll() is None, self.process.communicate()[0][-3000:]
            assert time.monotonic() < end, "it did not become so"
            time.sleep(0.05)
        self.look()
        return found

    def look(self) -> None:
        """Remember the processes of the engines that run now."""
        for process in psutil.process_iter():
            try:
                words = " ".join(process.cmdline())
                ours = "fake_engine" in words or "engine_supervisor" in words
                if ours and str(self.folder) in words:
                    self.seen |= {process, *process.children(recursive=True)}
            except psutil.Error:
                continue

    def answered(self) -> dict[int, int]:
        """How many rows each engine has answered, by its process id."""
        return {
            pid: sum(line["word"] == fake_engine.ANSWERED for line in lines)
            for pid, lines in fake_engine.lines(self.engines).items()
        }

    def both_answered(self, rows: int) -> list[int]:
        """The two engines, once each has answered so many rows."""
        counts = self.answered()
        return [*counts] if len(counts) == 2 and min(counts.values()) >= rows else []

    def end(self, seconds: float = 400.0) -> str:
        """Wait for the end of the command, which must be a good one; what it printed."""
        assert self.process
        printed, _ = self.process.communicate(timeout=seconds)
        assert self.process.returncode == 0, printed[-3000:]
        return str(printed)

    def rows(self, errors: Sequence[int] = ()) -> list[dict[str, Any]]:
        """The annotations. Every series has a reply, but for those that are named."""
        folder = str(self.out / "tiny/annotations")
        rows = datasets.open_dataset(folder, SINGLE.tables.annotations).read().to_pylist()
        assert [row["series_id"] for row in rows] == list(range(COUNT))
        assert [row["series_id"] for row in rows if row["status"] != "ok"] == [*errors]
        return list(rows)

    def again(self) -> int:
        """How many requests were sent that had been sent before."""
        counts = fake_engine.counted(self.engines, fake_engine.ASKED)
        assert len(counts) == COUNT
        return counts.total() - COUNT

    def close(self) -> None:
        """End the command, and see that its engines end with it."""
        if self.process and self.process.poll() is None:
            self.look()
            kill_all_of(self.process)
        if self.process and self.process.stdout:
            self.process.stdout.close()
        assert not fake_engine.alive(self.seen, WITHIN)


@pytest.fixture
def stage(tmp_path: Path, drawn: Path) -> Iterator[Callable[..., Stage]]:
    """Begin stages, which end with the test."""
    stages: list[Stage] = []

    def begin(**told: Any) -> Stage:
        stages.append(Stage(tmp_path / str(len(stages)), drawn, told))
        return stages[-1]

    yield begin
    for one in stages:
        one.close()


def test_of_two_engines_one_is_killed_only_its_rows_in_flight_are_asked_again_and_no_file_holds_a_token(
    stage: Callable[..., Stage],
) -> None:
    one = stage(seconds=0.1)
    one.start()
    killed, _ = one.until(lambda: one.both_answered(100))
    tokens = {process.environ()["VLLM_API_KEY"] for process in fake_engine.alive(one.seen)}
    assert len(tokens) == 2
    said = " ".join(" ".join(process.cmdline()) for process in psutil.process_iter() if _readable(process))
    assert not [token for token in tokens if token in said]
    psutil.Process(killed).kill()
    printed = one.end()
    assert not [token for token in tokens if token in printed]
    files = [path for path in one.folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".log" for path in files)
    for path in files:
        content = path.read_bytes()
        assert not [token for token in tokens if token.encode() in content], path
    one.rows()
    lines = fake_engine.lines(one.engines)
    assert len(lines) == 3  # it was started again
    assert 0 < one.again() <= IN_FLIGHT
    counts = fake_engine.counted(one.engines, fake_engine.ASKED)
    twice = {request for request, count in counts.items() if count > 1}
    assert twice <= {line["request"] for line in lines[killed]}
    assert sum(row["attempts"] - 1 for row in one.rows()) <= IN_FLIGHT
    assert not fake_engine.alive(one.seen, WITHIN)


def test_a_row_that_ends_its_engine_each_time_is_an_error_and_the_stage_goes_on(
    stage: Callable[..., Stage], drawn: Path
) -> None:
    deadly = 700
    asked = VllmTeacher.model_validate({"kind": "vllm", "model": "eyes", "modality": "text"})
    asking = Questions(asked, SINGLE, PlotConfig(), 0)
    row = datasets.open_dataset(str(drawn / "series"), SINGLE.tables.series).read().slice(deadly, 1)
    (question,) = asking.ask(row, asking.keys(row))
    one = stage(seconds=0.05, deadly=[fake_engine.named(question.messages)])
    one.start()
    one.end()
    found = one.rows(errors=[deadly])[deadly]
    assert found["status"] == "error"
    assert found["reason"] == f"the engine ended {RETRIES + 1} times while it answered this row alone"
    assert len(fake_engine.lines(one.engines)) <= 2 + 2 + RETRIES + 1  # ended among others, among few, and alone


def test_a_worker_that_is_killed_takes_its_engine_with_it_and_the_stage_goes_on(
    stage: Callable[..., Stage],
) -> None:
    one = stage(seconds=0.1)
    process = one.start()
    one.until(lambda: one.both_answered(100))
    before = set(one.seen)
    kill_a_worker_of(process)
    one.until(lambda: len(fake_engine.lines(one.engines)) == 3)
    gone = [engine for engine in before if engine not in fake_engine.alive(before)]
    assert len(gone) >= 2  # a server and the process below it
    one.end()
    one.rows()
    assert one.again() <= 2 * IN_FLIGHT


@pytest.mark.long("test_vllm.py kills the driver of a vLLM engine; here a worker is killed")
def test_no_engine_outlives_a_driver_that_is_killed_and_its_replies_are_not_asked_again(
    stage: Callable[..., Stage],
) -> None:
    one = stage(seconds=0.1)
    process = one.start()
    one.until(lambda: one.both_answered(100))
    assert len(one.seen) >= 6  # two supervisors, two servers, and the process below each
    process.kill()  # the driver alone: Ray's own processes end when they miss it
    process.wait(10)
    assert not fake_engine.alive(one.seen, WITHIN)
    kill_all_of(process)
    assert process.stdout
    process.stdout.close()
    one.start()
    one.end()
    one.rows()
    assert one.again() <= 2 * IN_FLIGHT


def test_an_engine_that_does_not_start_is_one_line_with_its_own_words_and_the_place_of_its_log(
    stage: Callable[..., Stage],
) -> None:
    one = stage(fail="Traceback:\nValueError: the model has no such layers")
    result = alone(one.arguments, one.environment, timeout=300)
    assert result.returncode != 0
    (line,) = result.stderr.splitlines()
    assert "the engine does not start: ValueError: the model has no such layers; its log is " in line
    log = Path(line.partition("its log is ")[2].partition(" on ")[0])
    assert "no such layers" in log.read_text()
    assert log.read_text().count("no such layers") == 2  # starts


def _readable(process: psutil.Process) -> bool:
    try:
        return bool(process.cmdline())
    except psutil.Error:
        return False
