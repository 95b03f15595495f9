"""A study's folder on real local Ray: one driver at a time, and whatever was lost or damaged is made again."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.commands import BRIEF, ROOT, TSD, alone, command, ended, environment, kill_once, run, run_each
from support.s3_server import S3

from tsd.storage import datasets, folders, lock_files, locks, manifests

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]

PLOTS = "plots.store=true"
TIMES = ("timings.json", "cpu_seconds.json")
UNALIKE = ("report.html", "scaling.png", "failures.json", "README.md", *TIMES)  # of each start anew


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished study that kept its plots. Each test leaves it as it was."""
    out = tmp_path_factory.mktemp("files")
    run(command(out, *BRIEF, PLOTS), cpus=2)
    return out / "tiny"


def contents(folder: Path) -> dict[str, str]:
    """The digest of every file whose bytes are promised."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in UNALIKE
    }


def born(folder: Path) -> dict[str, int]:
    """When each file was written, in ns."""
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def refused(arguments: list[str], **variables: str) -> str:
    """What a command says that must leave in one line."""
    done = alone(arguments, {**environment(2), **variables}) if variables else ended(arguments, 2)
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


def test_deleted_and_cut_parts_of_every_table_are_made_again_with_the_same_bytes_by_the_same_command(
    study: Path,
) -> None:
    before, parts = contents(study), sorted(study.rglob("part-*.parquet"))
    tables = {str(path.parent.relative_to(study)) for path in parts}
    assert {table.split("/")[0] for table in tables} == {
        *("series", "plots", "annotations", "verdicts", "examples", "rejects", "tokens", "predictions", "runs")
    }
    for number, path in enumerate(parts):
        if number % 2:
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: 300 if number % 4 else -50])
    for name in ("timings.json", "rejects/manifest.json"):
        (study / name).write_text((study / name).read_text()[:20])
    (tokenizer,) = (study / "tokenizers").iterdir()
    (tokenizer / "tokenizer.json").unlink()
    said = run(command(study.parent, *BRIEF, PLOTS), cpus=2)
    for table in tables:
        assert f"of {table} with the same bytes" in said
    for named in ("timings.json was damaged", f"remade tokenizers/{tokenizer.name} with the same bytes"):
        assert named in said
    assert contents(study) == before


def test_flipped_bits_are_named_by_who_reads_them_and_found_and_repaired_by_verify(study: Path) -> None:
    before = contents(study)
    assert run([*TSD, "verify", str(study)]).count("\nok ") >= 10
    for path in (*study.rglob("part-*.parquet"), *study.rglob("model.safetensors")):
        flip(path)
    said = refused(command(study.parent, *BRIEF, stage="report"))
    assert "runs/part-00000000.parquet is damaged" in said
    assert f"tsd verify {study} --repair" in said
    assert "is damaged, see above" in refused([*TSD, "verify", str(study)])
    said = run([*TSD, "verify", str(study), "--repair"], cpus=2)
    assert "is trained again" in said
    assert "remade students/" in said
    after = contents(study)
    # A student that was trained again says other seconds, in its card, its record and its row.
    timed = ("tsd.json", "files.json", "records/", "runs/")
    assert {name for name in before if after.get(name) != before[name]} <= {
        name for name in before if any(part in name for part in timed)
    }
    assert set(after) == set(before)
    assert run([*TSD, "verify", str(study)]).count("damaged") == 0


def test_what_is_made_from_a_table_that_was_made_again_is_left_alone(study: Path) -> None:
    before = born(study)
    (study / "series" / datasets.part_name(0)).unlink()
    run_each(*(command(study.parent, *BRIEF, stage=stage) for stage in ("generate", "annotate", "curate")))
    after = born(study)
    changed = {name for name in before if after[name] != before[name]}
    assert {Path(name).name for name in changed} <= {datasets.part_name(0), *TIMES}
    assert {Path(name).parent.name for name in changed if name.endswith("parquet")} == {"series"}


def test_a_manifest_that_was_cut_is_one_line_for_who_only_reads_it(study: Path) -> None:
    manifest = study / "examples" / manifests.MANIFEST
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:40])
    try:
        assert "examples/manifest.json is damaged" in refused(command(study.parent, *BRIEF, stage="report"))
    finally:
        manifest.write_bytes(whole)


def test_another_recipe_is_refused_by_every_command_and_no_byte_changes(study: Path) -> None:
    before = {str(path): path.read_bytes() for path in study.rglob("*") if path.is_file()}
    for stage, change in (("report", "series.count=5000"), ("evaluate", "training.epochs=2"), ("train", "seed=3")):
        assert "another recipe" in refused(command(study.parent, *BRIEF, change, stage=stage))
    assert {str(path): path.read_bytes() for path in study.rglob("*") if path.is_file()} == before


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, str]]:
    """Where studies lie, on a disk or in an object store, and what a process needs to reach it."""
    if request.param == "disk":
        return str(tmp_path), {}
    s3: S3 = request.getfixturevalue("s3")
    return s3.uri(tmp_path.name), s3.environment


@pytest.fixture
def processes() -> Iterator[ExitStack]:
    """What ends the processes that a test started."""
    with ExitStack() as stack:
        yield stack


def test_of_two_drivers_on_one_folder_one_works_and_the_other_leaves_in_one_line(
    place: tuple[str, dict[str, str]], study: Path, tmp_path: Path, processes: ExitStack
) -> None:
    out, variables = place
    both = []
    for stage in ("generate", "annotate"):
        arguments = command(tmp_path, *BRIEF, stage=stage)
        arguments[arguments.index("--out") + 1] = out
        both.append(arguments)
    code = "import json, sys\nfrom tsd.cli import main\nfor one in json.loads(sys.argv[1]):\n    main(one)\n"
    asked = json.dumps([arguments[len(TSD) :] for arguments in both])
    first = processes.enter_context(
        subprocess.Popen([sys.executable, "-c", code, asked], cwd=ROOT, env={**environment(2), **variables})
    )
    processes.callback(first.kill)
    wait_for_the_lock(f"{out}/tiny", first)
    for arguments in both:
        if first.poll() is None:
            said = refused(arguments, **variables)
            assert f"{out}/tiny is in use by `tsd " in said
            assert f"pid {first.pid}" in said
    assert first.wait(400) == 0
    for table in ("series", "annotations"):
        for name in folders.names(str(study / table)):
            assert folders.read_bytes(f"{out}/tiny/{table}", name) == (study / table / name).read_bytes()
    assert lock_files.NAME not in folders.names(f"{out}/tiny")


def wait_for_the_lock(folder: str, process: "subprocess.Popen[bytes]", seconds: float = 120) -> None:
    """Return once somebody holds a folder."""
    until = time.monotonic() + seconds
    while True:
        assert process.poll() is None, "the command ended before"
        assert time.monotonic() < until, "nobody took the folder"
        if folders.read_bytes(folder, lock_files.NAME):
            return
        time.sleep(0.1)


def test_a_driver_that_was_killed_leaves_the_folder_free(tmp_path: Path) -> None:
    arguments = command(tmp_path, *BRIEF, stage="generate")
    kill_once(lambda: (tmp_path / "tiny" / lock_files.NAME).exists(), arguments, cpus=1)
    with locks.hold(str(tmp_path / "tiny"), "tsd generate"):
        assert "tsd generate" in refused(arguments)
