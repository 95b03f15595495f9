"""A folder keeps the recipe that made it: any other is refused by every command, and not a byte is changed."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tsd.cli import main
from tsd.errors import StorageError
from tsd.recipe import Recipe, load, to_yaml
from tsd.storage import folders
from tsd.study import provenance

COMMANDS = ("study", "generate", "annotate", "curate", "train", "evaluate", "report")
MADE = ("series", "annotations", "verdicts", "examples", "rejects", "records", "students", "predictions", "runs")
SMALL = (
    "name=mine",
    "teacher={kind: rules}",
    "students={models: [0.03M, 0.1M], train_sizes: [200, 400], seeds: [0]}",
)


def recipe(out: Path, *changes: str) -> Recipe:
    """A small recipe whose study lies under `out`."""
    return load("laptop", [*SMALL, f"out={out}", *changes])


def finished(out: Path, *changes: str, tables: tuple[str, ...] = MADE) -> Path:
    """A folder as a study leaves it: its recipe, and something in each of its tables."""
    made = recipe(out, *changes)
    for table in tables:
        folders.write_bytes(f"{made.folder}/{table}", "part-00000000.parquet", b"a part")
    for student, train_size, seed in made.students.cells() if "records" in tables else ():
        folders.write_json(f"{made.folder}/records", f"{student.name}-{train_size}-s{seed}-01234567.json", {})
    folders.write_bytes(made.folder, provenance.RECIPE, provenance.LAYOUT + to_yaml(made).encode())
    folders.write_bytes(made.folder, "report.html", b"the report")
    return Path(made.folder)


def bytes_of(folder: Path) -> dict[str, str]:
    """The digest of every file, by path."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_folder_of_another_recipe_and_leaves_every_file_as_it_was(
    tmp_path: Path, capsys: Any, command: str
) -> None:
    folder = finished(tmp_path)
    before = bytes_of(tmp_path)
    changes = [*SMALL, "series.count=60000", "training.epochs=2"]
    sets = [word for change in changes for word in ("--set", change)]
    with pytest.raises(SystemExit) as left:
        main([command, "laptop", "--out", str(tmp_path), *sets])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    for part in (str(folder), "another recipe", "series.count was 64000 and is 60000", "training.epochs", "--out"):
        assert part in said
    assert bytes_of(tmp_path) == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("seed=1", "seed was 0 and is 1"),
        ("series.length=64", "series.length was 128 and is 64"),
        ("teacher.error_rate=0.2", "teacher.error_rate"),
        ("curation.against_truth=keep", "curation.against_truth"),
        ("training.batch_size=16", "training.batch_size was 8 and is 16"),
        ("training.optimizer=adamw", "training.optimizer"),
        ("evaluation.series=10", "evaluation.series"),
        ("evaluation.validation_examples=10", "evaluation.validation_examples"),
        ("students.train_sizes=[200]", "students.train_sizes was [200, 400] and is [200]"),
        ("students.models=[0.03M]", "students.models"),
        ("students.models=[{name: 0.03M, learning_rate: 0.5}, 0.1M]", "students.models"),
        ("students.seeds=[1]", "students.seeds"),
        ("teachers={a: {kind: rules}}", "teacher was rules and is a now"),
    ],
)
def test_whatever_shapes_a_table_that_is_there_may_not_change(tmp_path: Path, change: str, named: str) -> None:
    finished(tmp_path)
    with pytest.raises(StorageError, match="another recipe") as caught:
        provenance.require(recipe(tmp_path, change), "study")
    assert named in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        "about=of something else",
        "tracking.uri=sqlite:///elsewhere.db",
        "training.workers=2",
        "training.threads=2",
        "training.packing=true",
        "training.checkpoint_every=7",
        "evaluation.workers=1",
        "students.models=[{name: 0.03M, workers: 2}, 0.1M]",
        "plots.width=560",
    ],
)
@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_for_the_machines_alone_may_change_and_the_kept_recipe_stays(
    tmp_path: Path, change: str, command: str
) -> None:
    folder = finished(tmp_path)
    before = bytes_of(folder)
    changed = recipe(tmp_path, change)
    provenance.require(changed, command)
    provenance.keep(changed, command)
    assert bytes_of(folder) == before


@pytest.mark.parametrize(
    "change",
    ["students.models=[0.03M, 0.1M, 0.3M]", "students.train_sizes=[200, 400, 800]", "students.seeds=[0, 1]"],
)
def test_students_train_sizes_and_seeds_may_come_on_top_once_they_are_trained(tmp_path: Path, change: str) -> None:
    folder = finished(tmp_path)
    before = bytes_of(folder)
    more = recipe(tmp_path, change)
    for command in ("evaluate", "report"):
        with pytest.raises(StorageError, match="run `tsd train` with this recipe first"):
            provenance.require(more, command)
    for command in ("generate", "annotate", "curate"):
        provenance.require(more, command)
        provenance.keep(more, command)
    assert bytes_of(folder) == before
    provenance.require(more, "train")
    provenance.keep(more, "train")
    assert provenance.read(more) == more
    provenance.require(more, "report")


def test_a_student_that_never_finished_may_be_left_out(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    less = recipe(tmp_path, "students.models=[0.03M]")
    for record in folder.glob("records/0.1M-*"):
        record.unlink()
    provenance.require(less, "train")
    provenance.keep(less, "train")
    assert provenance.read(less) == less


def test_later_stages_may_change_until_they_are_begun(tmp_path: Path) -> None:
    finished(tmp_path, tables=("series", "annotations"))
    changed = recipe(tmp_path, "curation.caps=0.5", "training.epochs=3", "students.models=[0.3M]")
    provenance.require(changed, "curate")
    provenance.keep(changed, "curate")
    assert provenance.read(changed) == changed
    with pytest.raises(StorageError, match=r"teacher\.error_rate"):
        provenance.require(recipe(tmp_path, "teacher.error_rate=0.5"), "annotate")


def test_a_hidden_file_in_a_folder_does_not_make_its_stage_begun(tmp_path: Path) -> None:
    folder = finished(tmp_path, tables=("series", "annotations"))
    (folder / "records").mkdir()
    (folder / "records" / ".DS_Store").write_text("stray")
    provenance.require(recipe(tmp_path, "training.epochs=2"), "study")


def test_of_several_teachers_each_is_held_against_its_own_folder(tmp_path: Path) -> None:
    two = "teachers={a: {kind: rules, error_rate: 0}, b: {kind: rules, error_rate: 0.5}}"
    whole = recipe(tmp_path, two)
    for name, one in whole.by_teacher.items():
        folders.write_bytes(f"{one.folder}/annotations", "part-00000000.parquet", name.encode())
    folders.write_bytes(f"{whole.folder}/series", "part-00000000.parquet", b"a part")
    provenance.keep(whole, "study")
    provenance.require(whole, "report")
    provenance.require(recipe(tmp_path, two[:-1] + ", c: {kind: rules}}"), "study")
    for other, named in (
        (two.replace("0.5", "0.6"), r"teachers/b was made from another recipe: teacher\.error_rate"),
        ("teachers={a: {kind: rules, error_rate: 0}}", r"teachers\.b was rules and is None"),
        ("teacher.error_rate=0.3", r"teachers\.a"),
    ):
        with pytest.raises(StorageError, match=named):
            provenance.require(recipe(tmp_path, other), "study")


def test_a_trained_study_is_not_continued_in_another_precision(tmp_path: Path) -> None:
    finished(tmp_path)
    for command in ("study", "train", "evaluate", "report"):
        with pytest.raises(StorageError, match=r"training\.gpu was False and is True now"):
            provenance.require(recipe(tmp_path, "training.gpu=true"), command)
    finished(tmp_path / "untrained", tables=("series", "annotations", "examples"))
    provenance.require(recipe(tmp_path / "untrained", "training.gpu=true"), "train")


def test_a_folder_of_an_earlier_version_is_refused_in_one_line_and_not_changed(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    kept = folder / provenance.RECIPE
    kept.write_bytes(kept.read_bytes().removeprefix(provenance.LAYOUT))
    before = bytes_of(folder)
    for command in ("study", "train", "report"):
        with pytest.raises(StorageError, match="made by an earlier version of tsd") as caught:
            provenance.require(recipe(tmp_path), command)
        assert len(str(caught.value).splitlines()) == 1
    assert bytes_of(folder) == before


def test_a_kept_recipe_that_was_cut_is_one_line(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    kept = folder / provenance.RECIPE
    for content in (kept.read_text()[:300], "name: [", ""):
        kept.write_text(content)
        with pytest.raises(StorageError, match=r"recipe\.yaml is damaged") as caught:
            provenance.require(recipe(tmp_path), "report")
        assert len(str(caught.value).splitlines()) == 1


POLICY = """from tsd.plugins import Section, add_policy
class Brief(Section):
    {field}: int = 40
@add_policy("{name}", version="1", settings=Brief)
def brief(task, case, settings):
    return None
"""


def with_policy(out: Path, name: str) -> Recipe:
    """A recipe with a policy of this name, of a plugin."""
    (out / f"{name}.py").write_text(POLICY.format(name=name, field="most"))
    return recipe(out, f"plugins=[{out}/{name}.py]", f"curation.policies={{{name}: {{most: 30}}}}")


def begin(made: Recipe) -> Path:
    """A folder in which a recipe has series, annotations and curated tables."""
    provenance.keep(made, "study")
    for table in ("series", "annotations", "verdicts", "examples", "rejects"):
        folders.write_bytes(f"{made.folder}/{table}", "part-00000000.parquet", b"a part")
    return Path(made.folder)


START = """
import sys
from tsd.errors import StorageError
from tsd.recipe import load
from tsd.study import provenance
recipe = load("laptop", sys.argv[2:])
try:
    provenance.require(recipe, sys.argv[1])
    provenance.keep(recipe, sys.argv[1])
except StorageError as error:
    print(error)
"""


def refusal(out: Path, *changes: str, command: str = "study") -> str:
    """What a command of another process, with no plugins but its recipe's, says to a folder."""
    words = [sys.executable, "-c", START, command, *SMALL, f"out={out}", *changes]
    said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=120).stdout
    assert said.count("\n") == 1, said
    return said


def test_a_recipe_without_the_plugin_that_made_a_folder_is_refused_and_the_folder_stays_as_it_was(
    tmp_path: Path,
) -> None:
    made = with_policy(tmp_path, "brief_to_remove")
    before = bytes_of(begin(made))
    for command in ("study", "curate"):
        said = refusal(tmp_path, command=command)
        assert f"{made.folder} was made with {tmp_path}/brief_to_remove.py" in said
        assert "name it in plugins or task again, or name another folder with --out" in said
        assert bytes_of(Path(made.folder)) == before
    (tmp_path / "moved").mkdir()
    (tmp_path / "brief_to_remove.py").rename(tmp_path / "moved" / "brief_to_remove.py")
    plugins = f"plugins=[{tmp_path}/moved/brief_to_remove.py]"
    assert "curation.policies" in refusal(tmp_path, plugins, "curation.policies={}")
    again = recipe(tmp_path, plugins, "curation.policies={brief_to_remove: {most: 30}}")
    provenance.require(again, "study")
    provenance.keep(again, "study")
    assert bytes_of(Path(made.folder)) == before


def test_a_plugin_that_nothing_uses_may_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "unused.py").write_text(POLICY.format(name="unused", field="most"))
    begin(recipe(tmp_path, f"plugins=[{tmp_path}/unused.py]"))
    provenance.require(recipe(tmp_path), "study")
    with pytest.raises(StorageError, match="another recipe"):
        provenance.require(recipe(tmp_path, "curation.caps=0.5"), "study")


def test_a_stored_recipe_that_does_not_fit_its_plugin_any_more_is_refused_unless_nothing_was_made(
    tmp_path: Path,
) -> None:
    made = with_policy(tmp_path, "changes")
    before = bytes_of(begin(made))
    (tmp_path / "changes.py").write_text(POLICY.format(name="changes", field="words"))
    now = f"plugins=[{tmp_path}/changes.py]", "curation.policies={changes: {words: 30}}"
    said = refusal(tmp_path, *now)
    assert "recipe.yaml cannot be read with this recipe's plugins" in said
    assert "curation.policies.changes.most" in said
    assert bytes_of(Path(made.folder)) == before
    for table in (path for path in Path(made.folder).iterdir() if path.is_dir()):
        folders.delete_folder(str(table))
    stored = Path(made.folder, provenance.RECIPE)
    stored.write_text(stored.read_text().replace("changes:\n      most", "changes:\n      unknown"))
    provenance.require(made, "study")
    provenance.keep(made, "study")
    assert provenance.read(made) == made


def test_every_field_of_a_recipe_says_what_it_shapes_or_that_it_shapes_nothing() -> None:
    whole = load("laptop", ["teacher={kind: rules}"])
    paths = {path: stage for path, _, stage in whole.shaped()}
    assert {path for path in Recipe.model_fields if Recipe.shaped_by(path) is None} == set()
    assert paths["series.count"] == "generate"
    assert paths["plots.style"] == paths["teacher.error_rate"] == "annotate"
    assert paths["evaluation.validation_examples"] == "train"
    assert not {"name", "out", "about", "tracking.uri", "training.gpu", "evaluation.workers"} & set(paths)
