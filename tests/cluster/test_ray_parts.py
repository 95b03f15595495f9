"""The executor of all part-wise stages on a real Ray: killed at random moments, same bytes, nothing made twice."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.commands import ROOT, environment, kill_a_worker_of, kill_all_of

from tsd.cluster.nodes import DEATHS

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]

DRIVER = """
import os, sys, time
import pyarrow as pa
from rich.console import Console
from tsd.cluster import parts
from tsd.cluster.session import session
from tsd.progress import Reporter
from tsd.storage import datasets
from tsd.storage.schemas import REJECTS

folder, kind, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
KEYS = {"first": "0123456789abcdef", "second": "fedcba9876543210", "broken": "0011223344556677"}


def make(target, part):
    if target == "broken":
        raise parts.FailedError("it cannot be made")
    time.sleep(0.1)
    made = []
    for copy in ("a", "b"):
        rows = [
            {"series_id": part * 10 + i, "teacher": target, "reason": copy, "text": str((part * 7919 + i) % 101)}
            for i in range(part % 4)
        ]
        table = pa.Table.from_pylist(rows, REJECTS)
        made.append(datasets.write_part(f"{folder}/{target}-{copy}", part, table, REJECTS, KEYS[target], part))
    with open(f"{folder}/log", "a") as log:
        log.write(f"{target} {part} {os.getpid()}\\n")
    return made


class Keeps:
    def __init__(self, word):
        self.word, self.made = word, 0

    def __call__(self, target, part):
        self.made += 1
        return make(target, part)


def target(name):
    return parts.Target(tuple((f"{folder}/{name}-{copy}", KEYS[name]) for copy in "ab"), count, name)


with session(), Reporter(Console(file=sys.stdout)).stage("Make", 1, "") as step:
    targets = [target(name) for name in ("first", "broken", "second")]
    options = {"work": make} if kind == "function" else {"work": Keeps, "arguments": ("word",), "workers": 2}
    made = parts.make(targets=targets, step=step, num_cpus=1, **options)
    assert made.failed == {"broken": "it cannot be made"}, made.failed
    for name in ("first", "second"):
        for output, copy in zip(made.parts[name], "ab", strict=True):
            assert sorted(output) == list(range(count)), sorted(output)
            datasets.commit(f"{folder}/{name}-{copy}", REJECTS, KEYS[name], count, {}, output)
"""


def begin(folder: Path, kind: str, count: int) -> "subprocess.Popen[bytes]":
    """The driver, in a group of its own."""
    arguments = [sys.executable, "-c", DRIVER, str(folder), kind, str(count)]
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment(2), stdout=subprocess.DEVNULL, start_new_session=True
    )


def written(folder: Path) -> dict[str, int]:
    """When each part was written, in ns."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.glob("*/part-*.parquet")}


def whole(folder: Path) -> dict[str, int]:
    """`written` of the parts that have both outputs. A part that has the first alone is rightly made again."""
    times = dict[str, int]()
    for second in folder.glob("*-b/part-*.parquet"):
        for path in (second, folder / f"{second.parent.name[:-1]}a" / second.name):
            times[str(path.relative_to(folder))] = path.stat().st_mtime_ns
    return times


TASKS = pytest.param("function", marks=pytest.mark.long("here actors are killed, in place of tasks"))


@pytest.mark.parametrize("kind", [TASKS, "class"])
def test_killed_again_and_again_every_part_is_made_and_none_that_was_whole_is_made_again(
    kind: str, tmp_path: Path, long: bool
) -> None:
    chance = random.Random(len(kind))
    kills, count = (10, 100) if long else (2, 30)
    folder, process, before = tmp_path / "killed", None, dict[str, int]()
    folder.mkdir()
    try:
        for kill in range(kills):  # of a worker, and of the driver with all that it started, in turn
            if process is None:
                process = begin(folder, kind, count)
            least, until = len(written(folder)) + chance.randint(2, 14), time.monotonic() + 300
            while len(written(folder)) < least:
                assert process.poll() is None, f"it ended after {kill} kills"
                assert time.monotonic() < until, f"{least} parts did not appear"
                time.sleep(0.01)
            time.sleep(chance.random() * 0.1)
            before = whole(folder) | before  # when each was written that was then whole
            if kill % 2:
                kill_all_of(process)
                process = None
            else:
                kill_a_worker_of(process)
    finally:
        if process is not None:
            kill_all_of(process)
    process = begin(folder, kind, count)
    assert process.wait(300) == 0
    after = written(folder)
    assert {name for name in before if after[name] != before[name]} == set()
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    assert begin(undisturbed, kind, count).wait(300) == 0
    assert sorted(after) == sorted(written(undisturbed))
    for name in [*after, *(f"{target}-{copy}/manifest.json" for target in ("first", "second") for copy in "ab")]:
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes(), name
    log = (undisturbed / "log").read_text().splitlines()
    assert len(log) == len({line.rpartition(" ")[0] for line in log}) == 2 * count
    assert len({line.split()[-1] for line in log}) > 1 or os.cpu_count() == 1, "one worker made all"


FAULTY = """
import os, signal, sys
from rich.console import Console
from tsd.cluster import parts
from tsd.cluster.session import session
from tsd.errors import ClusterError, InputError, StorageError, TsdError
from tsd.progress import Reporter
from tsd.storage import locks

folder = sys.argv[1]


def full(target, part):
    raise StorageError("/data is full: free 3 GB")


def killed(target, part):
    with open(f"{folder}/{target}", "a") as log:
        log.write(f"{part}\\n")
    os.kill(os.getpid(), signal.SIGKILL)


def taken_over(target, part):
    raise locks.TakenOverError("another command works here")


class NoKey:
    def __init__(self):
        raise InputError("the environment variable X holds no key")


class TooLarge:
    def __init__(self):
        killed("constructor", -1)


with session(), Reporter(Console(file=sys.stderr)).stage("Make", 1, "") as step:
    for work in (full, taken_over, NoKey, killed, TooLarge):
        target = parts.Target(((f"{folder}/made", "0123456789abcdef"),), 1, "call")
        try:
            parts.make(work, [target], step, num_cpus=1)
        except TsdError as error:
            print(type(error).__name__, str(error), sep=": ")
"""


def test_a_workers_error_keeps_its_kind_and_one_that_dies_again_and_again_ends_the_command(tmp_path: Path) -> None:
    arguments = [sys.executable, "-c", FAULTY, str(tmp_path)]
    done = subprocess.run(arguments, cwd=ROOT, env=environment(1), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    said = [line for line in done.stdout.splitlines() if "(raylet)" not in line]  # Ray's own notes of each death
    *kept, call, constructor = said
    assert kept == [
        "StorageError: /data is full: free 3 GB",
        "TakenOverError: another command works here",
        "InputError: the environment variable X holds no key",
    ]
    for line in (call, constructor):
        assert line.startswith(
            f"ClusterError: {DEATHS} worker processes died one after the other at the same part"
        )
    assert (tmp_path / "call").read_text() == "0\n" * DEATHS
    assert (tmp_path / "constructor").read_text() == "-1\n" * DEATHS
    assert "Traceback" not in done.stderr
    assert "Deprecat" not in done.stderr
