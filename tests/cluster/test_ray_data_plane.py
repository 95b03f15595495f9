"""Series by the part on a real Ray: killed at random moments, the same bytes and nothing drawn twice."""

import random
import subprocess
import time
from pathlib import Path

import pytest
from support.commands import command, kill_a_worker_of, kill_all_of, run, start

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]


def parts(study: Path) -> dict[str, int]:
    """When each part was written, in ns."""
    return {path.name: path.stat().st_mtime_ns for path in (study / "series").glob("part-*.parquet")}


def wait_for(process: subprocess.Popen[bytes], study: Path, least: int) -> None:
    """Until there are so many parts; the process must still be at work."""
    until = time.monotonic() + 300
    while len(parts(study)) < least:
        assert process.poll() is None, f"it ended with {len(parts(study))} parts, before {least} were seen"
        assert time.monotonic() < until, f"{least} parts did not appear"
        time.sleep(0.01)


@pytest.mark.long("test_ray_parts.py kills the executor of all stages, and test_ray_studies.py compares the bytes")
def test_killed_at_random_moments_the_dataset_is_the_undisturbed_one(tmp_path: Path, long: bool) -> None:
    chance = random.Random(3)
    kills, all_parts = (10, 140) if long else (4, 80)
    many = (f"series.count={all_parts * 1024}", "series.length=512", "series.blocks_per_part=1", "seed=5")
    study, before, process = tmp_path / "killed" / "tiny", {}, None
    try:
        for kill in range(kills):  # of a worker, and of the driver with all that it started, in turn
            if process is None:
                process = start(command(study.parent, *many, stage="generate"))
            wait_for(process, study, len(parts(study)) + chance.randint(1, 12 if kill % 2 else 6))
            time.sleep(chance.random() * 0.05)
            before |= parts(study)
            if kill % 2:
                kill_all_of(process)
                process = None
            else:
                kill_a_worker_of(process)
    finally:
        if process is not None:
            kill_all_of(process)
    assert 0 < len(before) < all_parts
    printed = run(command(study.parent, *many, stage="generate"), cpus=2)
    assert "from before" in printed
    after = parts(study)
    assert {name: after[name] for name in before} == before, "a finished part was drawn again"

    undisturbed = tmp_path / "undisturbed" / "tiny"
    run(command(undisturbed.parent, *many, stage="generate"), cpus=1)
    names = sorted(path.name for path in (undisturbed / "series").iterdir())
    assert names == sorted(path.name for path in (study / "series").iterdir() if not path.name.startswith("."))
    for name in names:
        assert (study / "series" / name).read_bytes() == (undisturbed / "series" / name).read_bytes(), name
