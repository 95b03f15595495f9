"""What `tsd verify` finds: what must lie in a study's folder follows from what else lies there."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.s3_server import S3

from tsd.errors import StorageError
from tsd.recipe import Recipe, load, to_yaml
from tsd.storage import datasets, folders, manifests
from tsd.storage.schemas import EXAMPLES, REJECTS
from tsd.study import identity, provenance, remaining, restoring, verify
from tsd.tasks import SINGLE
from tsd.teachers import Reply
from tsd.teachers.api.journal import Journal

TABLES = SINGLE.tables
RUN = "a-10-s0-01234567"
BRIEF = (
    "teacher={kind: rules}",
    "students.models=[{name: a, size: 0.03M, learning_rate: 1e-3}]",
    "students.train_sizes=[10]",
    "students.seeds=[0]",
    "name=tiny",
)


def some(kind: pa.DataType, number: int) -> Any:
    """A value of an Arrow type."""
    if pa.types.is_struct(kind):
        return {field.name: some(field.type, number) for field in kind}
    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        return [some(kind.value_type, number)]
    if pa.types.is_string(kind):
        return f"{number}"
    if pa.types.is_binary(kind):
        return b""
    return bool(number) if pa.types.is_boolean(kind) else number


def fill(folder: Path, schema: pa.Schema, count: int, *parents: Path, **fixed: Any) -> None:
    """A finished table of so many rows."""
    rows = [{field.name: some(field.type, i) for field in schema} | fixed for i in range(count)]
    datasets.write_part(str(folder), 0, pa.Table.from_pylist(rows, schema), schema, "key")
    digests = {
        path.parent.name if path.name == "runs" else path.name: manifests.digest_of(
            json.loads((path / manifests.MANIFEST).read_text())
        )
        for path in parents
    }
    datasets.commit(str(folder), schema, "key", 1, digests)


def seal(folder: Path, **files: str) -> None:
    """A sealed folder of plain files."""
    local = folder.parent / "local"
    local.mkdir(parents=True)
    for name, content in files.items():
        (local / name).write_text(content)
    folders.copy_folder(str(local), str(folder), sealed=True)
    shutil.rmtree(local)


def annotate(place: Path, series: Path) -> None:
    fill(place / "annotations", TABLES.annotations, 10, series)
    with Journal(str(place / "annotations"), 0) as journal:
        journal.add("a", Reply("text"))
        journal.keep(TABLES.annotations.empty_table())
        journal.delete()


def finish(place: Path, series: Path, recipe: Recipe) -> None:
    """All that comes after the annotations."""
    said = place / "annotations"
    fill(place / "verdicts", TABLES.verdicts, 10, series, said)
    fill(place / "examples", EXAMPLES, 8, series, said)
    fill(place / "rejects", REJECTS, 2, series, said)
    examples = datasets.open_dataset(str(place / "examples"), EXAMPLES).digest
    for student in recipe.students.models:
        seal(place / "tokenizers" / identity.tokenizer_key(recipe, student, examples), tokenizer="{}")
    seal(place / f"students/{RUN}", weights="weights")
    folders.write_json(str(place / "records"), f"{RUN}.json", {"run_id": RUN})
    fill(place / f"predictions/{RUN}", TABLES.predictions, 3, series, run_id=RUN)
    fill(place / "runs", TABLES.runs, 1, series, place / "examples", run_id=RUN)
    (place / "report.html").write_text("<html></html>\n")
    (place / "scaling.png").write_bytes(b"PNG...." + verify.PAGES["scaling.png"])


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """Of the study below."""
    return load("laptop", [*BRIEF, f"out={tmp_path}"])


def stored(recipe: Recipe) -> str:
    """A recipe as a study's folder keeps it."""
    return provenance.LAYOUT.decode() + to_yaml(recipe)


@pytest.fixture
def run(recipe: Recipe) -> Path:
    """A finished study."""
    place = Path(recipe.folder)
    fill(place / "series", TABLES.series, 10)
    (place / "recipe.yaml").write_text(stored(recipe))
    annotate(place, place / "series")
    finish(place, place / "series", recipe)
    return place


def states(run: Path) -> dict[str, str]:
    """What is said of each thing that is not ok: by its name, the first finding or `unfinished`."""
    found = {}
    for checked in verify.check(str(run)):
        state, _, _ = checked.lines[0].partition(" ")
        if state != "ok":
            found[checked.name] = str(checked.findings[0]) if checked.findings else state
    return found


def test_a_whole_study_is_ok_line_by_line(run: Path) -> None:
    assert states(run) == {}
    assert verify.stages(str(run)) == list(verify.STAGES)


PREDICTED = f"predictions/{RUN}"


@pytest.mark.parametrize(
    "table",
    ["series", "annotations", "verdicts", "examples", "rejects", "runs", PREDICTED],
    ids=lambda name: name[:9],
)
@pytest.mark.parametrize("lost", ["manifest", "folder"])
def test_a_table_that_later_ones_were_made_from_is_damaged_without_its_manifest_and_without_its_folder(
    run: Path, table: str, lost: str
) -> None:
    if lost == "manifest":
        (run / table / manifests.MANIFEST).unlink()
    else:
        shutil.rmtree(run / table)
    assert states(run)[table].startswith("manifest.json is missing, but ")
    assert verify.stages(str(run)) == list(verify.STAGES)


def deleted(*names: str) -> Callable[[Path], None]:
    """Delete files and folders of a study."""

    def work(run: Path) -> None:
        for name in names:
            shutil.rmtree(run / name) if (run / name).is_dir() else (run / name).unlink()

    return work


def written(name: str, content: bytes) -> Callable[[Path], None]:
    """Write a file of a study anew."""
    return lambda run: (run / name).write_bytes(content) and None


RECORD, ARCHIVED = f"records/{RUN}.json", "annotations/replies/part-00000000.jsonl.zst"


@pytest.mark.parametrize(
    ("damage", "name", "said"),
    [
        (deleted("records"), "records", f"{RUN}.json is missing, but its row in runs exists"),
        (deleted("records", "students", "predictions"), "records", f"{RUN}.json is missing, but its row in runs"),
        (
            deleted("records", "students", "predictions"),
            PREDICTED,
            "manifest.json is missing, but its row in runs",
        ),
        (deleted("records", "runs"), "records", f"{RUN}.json is missing, but predictions/{RUN} exists"),
        (deleted("students"), "records", f"{RUN}.json has no student"),
        (
            deleted(f"students/{RUN}/weights", f"students/{RUN}/files.json"),
            f"students/{RUN}",
            "its files they are",
        ),
        (deleted("report.html"), "report.html", "report.html is missing, but scaling.png exists"),
        (written("report.html", b""), "report.html", "report.html is truncated or empty"),
        (written("report.html", b"<html>"), "report.html", "report.html is truncated or empty"),
        (written("scaling.png", b"\x89PNG"), "scaling.png", "scaling.png is truncated or empty"),
        (written(ARCHIVED, b"garbage"), "annotations/replies", "part-00000000.jsonl.zst is damaged"),
        (written(ARCHIVED, b""), "annotations/replies", "part-00000000.jsonl.zst is damaged"),
        (written(RECORD, b"[]"), "records", f"{RUN}.json is damaged"),
        (written(RECORD, b"null"), "records", f"{RUN}.json is damaged"),
        (written(RECORD, b"{}"), "records", f"{RUN}.json is the record of None"),
        (written("series/manifest.json", b"[]"), "series", "manifest.json is damaged: it holds no fields"),
        (
            written("series/manifest.json", b'{"parts": []}'),
            "series",
            "manifest.json is damaged: it has no schema",
        ),
        (written("runs/manifest.json", b"\xff"), "runs", "manifest.json is damaged"),
        (written("timings.json", b"[]"), "timings.json", "timings.json is damaged"),
        (written("cpu_seconds.json", b"[]"), "cpu_seconds.json", "cpu_seconds.json is damaged"),
        (written("undecoded.json", b"{"), "undecoded.json", "undecoded.json is damaged"),
        (written("annotations/replies/addresses.json", b"{}"), "annotations/replies/addresses.json", "addresses"),
    ],
)
def test_what_is_lost_or_damaged_of_a_finished_study_is_said(
    run: Path, damage: Callable[[Path], None], name: str, said: str
) -> None:
    damage(run)
    assert states(run)[name].startswith(said)
    assert verify.stages(str(run)) == list(verify.STAGES)


@pytest.mark.parametrize("stray", [".DS_Store", ".nfs0000000000000001", "Thumbs.db"])
def test_files_that_are_not_of_a_study_are_passed_over(run: Path, recipe: Recipe, stray: str) -> None:
    before, left = states(run), remaining.of(recipe)
    for name in ("predictions", "tokens", "tokenizers", "students", "records", "teachers"):
        (run / name).mkdir(exist_ok=True)
        (run / name / stray).write_text("stray")
    assert states(run) == before
    assert remaining.of(recipe) == left


@pytest.mark.parametrize("kind", ["students", "tokenizers"])
def test_what_a_killed_command_left_of_a_folder_is_no_damage_and_deleted_by_a_repair(run: Path, kind: str) -> None:
    folder = next((run / kind).iterdir())
    hidden, visible = (run / kind / f"{dot}{folder.name}.{'0' * 32}" for dot in (".", ""))
    shutil.copytree(folder, hidden)
    assert states(run) == {}
    shutil.copytree(folder, visible)  # as earlier versions left it, cut off before its files were there
    (visible / "files.json").unlink()
    assert states(run) == {f"{kind}/{visible.name}": "was not finished by the command that stored it"}
    verify.set_aside([finding for checked in verify.check(str(run)) for finding in checked.findings])
    restoring.delete_unfinished(str(run))
    assert list((run / kind).iterdir()) == [folder]
    assert states(run) == {}


def test_a_tokenizer_that_a_trained_student_needs_is_missed(run: Path) -> None:
    (tokenizer,) = (run / "tokenizers").iterdir()
    deleted(f"tokenizers/{tokenizer.name}")(run)
    assert states(run) == {f"tokenizers/{tokenizer.name}": "is missing, but students exists"}


def test_a_folder_of_an_earlier_version_is_refused_in_one_line(run: Path, recipe: Recipe) -> None:
    (run / "recipe.yaml").write_text(to_yaml(recipe))
    for read in (verify.recipe_of, lambda folder: list(verify.check(folder))):
        with pytest.raises(StorageError, match="made by an earlier version") as caught:
            read(str(run))
        assert len(str(caught.value).splitlines()) == 1


def test_an_archive_that_is_damaged_goes_only_where_its_part_is_whole(run: Path) -> None:
    (run / ARCHIVED).write_bytes(b"garbage")
    (run / "annotations/part-00000000.parquet").rename(run / "aside")
    for whole in (False, True):
        if whole:
            (run / "aside").rename(run / "annotations/part-00000000.parquet")
        verify.set_aside([finding for checked in verify.check(str(run)) for finding in checked.findings])
        assert (run / ARCHIVED).exists() is not whole
    assert states(run) == {}


@pytest.mark.parametrize(
    ("there", "unfinished"),
    [
        (("series",), {"report.html"}),
        (("series", "annotations"), {"report.html"}),
        (("series", "annotations", "verdicts", "examples"), {"report.html"}),
        (("series", "annotations", "verdicts", "examples", "rejects", "tokenizers"), {"report.html"}),
        (("series", "annotations", "verdicts", "examples", "rejects", "tokenizers", "students"), {"report.html"}),
        (("predictions/",), {PREDICTED, "report.html"}),
        (("runs/",), {"runs", "report.html"}),
        (("rejects/",), {"rejects", "report.html"}),
    ],
)
def test_a_study_that_was_stopped_is_unfinished_and_not_damaged(
    run: Path, there: tuple[str, ...], unfinished: set[str]
) -> None:
    """there: what is finished; with a slash, what is under way, and then all before it is finished."""
    order = [name for row in verify.ORDER for name in row]
    last = order.index(there[-1].rstrip("/"))
    under_way = there[-1].endswith("/")
    for name in order[last + 1 :] if under_way else [name for name in order if name not in there]:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if under_way:
        folder = PREDICTED if there[-1] == "predictions/" else there[-1].rstrip("/")
        (run / folder / manifests.MANIFEST).unlink()
    assert states(run) == dict.fromkeys(unfinished, "unfinished")


def test_the_recipe_says_which_runs_are_still_to_be_trained(run: Path, recipe: Recipe) -> None:
    more = load("laptop", [*BRIEF, f"out={recipe.out}", "students.train_sizes=[10, 20]"])
    (run / "recipe.yaml").write_text(stored(more))
    assert states(run) == {"records": "unfinished"}


def test_a_study_with_several_teachers_misses_the_runs_and_the_folder_of_each(tmp_path: Path) -> None:
    recipe = load("laptop", [*BRIEF[1:], f"out={tmp_path}", "teachers={one: {kind: rules}, two: {kind: rules}}"])
    run = Path(recipe.folder)
    fill(run / "series", TABLES.series, 10)
    (run / "recipe.yaml").write_text(stored(recipe))
    assert states(run) == dict.fromkeys(["report.html", "teachers/one", "teachers/two"], "unfinished")
    for name, one in recipe.by_teacher.items():
        place = run / f"teachers/{name}"
        place.mkdir(parents=True)
        (place / "recipe.yaml").write_text(stored(one))
    assert states(run) == dict.fromkeys(
        ["report.html", "teachers/one/report.html", "teachers/two/report.html"], "unfinished"
    )
    (run / "series/manifest.json").rename(run / "aside")
    assert states(run)["series"] == "unfinished"
    (run / "aside").rename(run / "series/manifest.json")
    for name in recipe.by_teacher:
        annotate(run / f"teachers/{name}", run / "series")
        finish(run / f"teachers/{name}", run / "series", recipe.by_teacher[name])
    fill(run / "runs", TABLES.runs, 2, *(run / f"teachers/{name}/runs" for name in recipe.by_teacher))
    (run / "report.html").write_text("<html></html>")
    assert states(run) == {}
    shutil.rmtree(run / "teachers/one/runs")
    assert states(run) == {
        "runs": "was made from one, which does not exist",
        "teachers/one/runs": "manifest.json is missing, but report.html exists",
    }
    shutil.rmtree(run / "teachers")
    assert states(run)["runs"] == "was made from one, which does not exist"
    shutil.rmtree(run / "series")
    assert states(run)["series"] == "manifest.json is missing, but runs exists"


@pytest.mark.parametrize("run", ["foo://x", "s3:///x", "s3://missing/x"])
def test_a_place_that_cannot_be_read_is_one_line(run: str, s3: S3) -> None:
    with pytest.raises(StorageError, match=r"no study|name a folder that exists") as caught:
        list(verify.check(run))
    assert str(caught.value).startswith(run)
    assert len(str(caught.value).splitlines()) == 1
