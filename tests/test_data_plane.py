"""Series by the part on a real Ray: killed at random moments, the same bytes and nothing drawn twice."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from commands import ROOT, command, environment, kill_a_worker_of, run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
PARTS = 140
MANY = (f"series.count={PARTS * 1024}", "series.length=512", "series.blocks_per_part=1", "seed=5")
KILLS = 10  # of the driver with all that it started, and of a worker, in turn


def parts(study: Path) -> dict[str, int]:
    """When each part was written, in ns."""
    return {path.name: path.stat().st_mtime_ns for path in (study / "series").glob("part-*.parquet")}


def start(out: Path) -> subprocess.Popen[bytes]:
    """`tsd generate`, in a group of its own with all that it starts."""
    quiet = subprocess.DEVNULL
    arguments = command(out, *MANY, stage="generate")
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment(2), stdout=quiet, stderr=quiet, start_new_session=True
    )


def wait_for(process: subprocess.Popen[bytes], study: Path, least: int) -> None:
    """Until there are so many parts; the process must still be at work."""
    until = time.monotonic() + 120
    while len(parts(study)) < least:
        assert process.poll() is None, f"it ended with {len(parts(study))} parts, before {least} were seen"
        assert time.monotonic() < until, f"{least} parts did not appear"
        time.sleep(0.01)


def test_killed_ten_times_at_random_moments_the_dataset_is_the_undisturbed_one(tmp_path: Path) -> None:
    chance = random.Random(3)
    study, before, process = tmp_path / "killed" / "tiny", {}, None
    try:
        for kill in range(KILLS):
            if process is None:
                process = start(study.parent)
            wait_for(process, study, len(parts(study)) + chance.randint(1, 12 if kill % 2 else 6))
            time.sleep(chance.random() * 0.05)
            before |= parts(study)
            if kill % 2:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(30)
                process = None
            else:
                kill_a_worker_of(process)
    finally:
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)
    assert 0 < len(before) < PARTS
    printed = run(command(study.parent, *MANY, stage="generate"), cpus=2)
    assert "from before" in printed
    after = parts(study)
    assert {name: after[name] for name in before} == before, "a finished part was drawn again"

    undisturbed = tmp_path / "undisturbed" / "tiny"
    run(command(undisturbed.parent, *MANY, stage="generate"), cpus=1)
    names = sorted(path.name for path in (undisturbed / "series").iterdir())
    assert names == sorted(path.name for path in (study / "series").iterdir() if not path.name.startswith("."))
    for name in names:
        assert (study / "series" / name).read_bytes() == (undisturbed / "series" / name).read_bytes(), name
