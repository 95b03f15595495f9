"""Renamed recipe keys: an old one is refused with the new name, a stored one is read, no table's key changes."""

from pathlib import Path

import pytest
import yaml

from tsd.errors import RecipeError, StorageError
from tsd.models import card
from tsd.recipe import Recipe, load, to_yaml
from tsd.recipe.renamed import RENAMED, VALUES, new_name, renewed
from tsd.storage import folders, keys
from tsd.study import identity, outcomes, provenance, verify
from tsd.training.runs import RunRecord, RunSpec

OLD = """
teacher: {kind: openai, model: eyes, base_url: "https://host/v1", view: numbers, patience: 20.0}
students:
  view: plot
  sizes: [{name: a, size: 0.1M, view: numbers}, {name: b, size: 0.03M, view: plot}]
  volumes: [100, 200]
training: {optimiser: muon, clip: 0.5}
"""
NEW = """
teacher: {kind: openai, model: eyes, base_url: "https://host/v1", modality: text, idle_timeout: 20.0}
students:
  modality: image
  models: [{name: a, size: 0.1M, modality: text}, {name: b, size: 0.03M, modality: image}]
  train_sizes: [100, 200]
training: {optimizer: muon, max_grad_norm: 0.5}
"""
API = "teacher={kind: openai, model: eyes, base_url: 'https://host/v1', modality: "
RECORD = {
    "run_id": "a-100-s0-01234567",
    "student": "a",
    "precision": "float32",
    "parameters": 1,
    "parameters_without_embeddings": 1,
    "examples": 100,
    "tokens": 1,
    "supervised_tokens": 1,
    "flops": 1.0,
    "flops_6nd": 1.0,
    "distilled_from": None,
    "teacher_flops": None,
    "steps": 1,
    "stopped_early": False,
    "seed": 0,
    "validation_loss": 1.0,
    "train_seconds": 1.0,
    "tokens_per_second": 1.0,
    "utilisation": 0.5,
}


def complaint(*overrides: str) -> str:
    """What a recipe with these overrides is refused with."""
    with pytest.raises(RecipeError) as caught:
        load("laptop", overrides)
    return str(caught.value)


def old_override(path: str) -> str:
    """An override that sets an old key."""
    if path.startswith("students.models."):
        return f"students.models=[{{name: a, size: 0.1M, {path.rpartition('.')[2]}: 1}}]"
    if path in ("teacher.patience", "teacher.batch_size", "teacher.concurrent_batches"):  # of some kinds only
        return f"teacher={{kind: vllm, model: eyes, {path.rpartition('.')[2]}: 1}}"
    return f"{path}=1"


@pytest.mark.parametrize("path", RENAMED)
def test_an_old_key_is_refused_in_one_line_that_names_the_new_one(path: str) -> None:
    line = complaint(old_override(path))
    place = path.replace("students.models.", "students.models.0.")
    assert f"{place} is called {RENAMED[path]} now" in line
    assert len(line.splitlines()) == 1


@pytest.mark.parametrize("path", [path for path in RENAMED if path.startswith("teacher.")])
def test_an_old_key_of_one_of_several_teachers_is_refused_too(path: str) -> None:
    assert new_name(f"teachers.mine.{path.removeprefix('teacher.')}") == RENAMED[path]


@pytest.mark.parametrize(("old", "new"), VALUES.items())
@pytest.mark.parametrize("place", ["teacher", "students"])
def test_an_old_value_is_refused_in_one_line_that_names_the_new_one(place: str, old: str, new: str) -> None:
    line = complaint(f"{place}.modality={old}")
    assert line == f"recipe laptop: {place}.modality: {old} is called {new} now"


def test_another_value_is_refused_with_the_names_there_are() -> None:
    line = complaint("teacher.modality=sound")
    assert "'image'" in line
    assert "now" not in line


def test_a_stored_recipe_with_old_keys_is_the_recipe_with_the_new_ones() -> None:
    assert renewed(yaml.safe_load(OLD)) == yaml.safe_load(NEW)
    assert renewed(yaml.safe_load(NEW)) == yaml.safe_load(NEW)
    several = {"teachers": {"view": {"kind": "openai", "view": "both"}}}
    assert renewed(several) == {"teachers": {"view": {"kind": "openai", "modality": "both"}}}


def old_text(recipe: Recipe) -> str:
    """A recipe as an earlier version stored it."""
    fields = yaml.safe_load(to_yaml(recipe))
    fields["teacher"]["view"] = {"image": "plot", "text": "numbers"}[fields["teacher"].pop("modality")]
    fields["teacher"]["patience"] = fields["teacher"].pop("idle_timeout")
    students = fields["students"]
    students["view"] = {"image": "plot", "text": "numbers"}[students.pop("modality")]
    students["volumes"], students["sizes"] = students.pop("train_sizes"), students.pop("models")
    for student in students["sizes"]:
        student["view"] = {"image": "plot", "text": "numbers"}[student.pop("modality")]
    return yaml.safe_dump(fields)


def test_a_folder_that_an_earlier_version_made_is_continued_and_compared_under_the_new_names(
    tmp_path: Path,
) -> None:
    mine = load("laptop", [f"{API}image}}", f"out={tmp_path}", "name=mine"])
    folders.write_bytes(mine.folder, provenance.RECIPE, provenance.LAYOUT + old_text(mine).encode())
    folders.write_bytes(f"{mine.folder}/annotations", "part-00000000.parquet", b"a part")
    assert provenance.read(mine) == verify.recipe_of(mine.folder) == mine
    provenance.require(mine, "annotate")
    other = load("laptop", [f"{API}both}}", f"out={tmp_path}", "name=mine"])
    with pytest.raises(StorageError, match=r"teacher\.modality was image and is both now"):
        provenance.require(other, "annotate")


def test_only_a_stored_recipe_may_have_old_keys(tmp_path: Path) -> None:
    mine = load("laptop", [f"{API}image}}", f"out={tmp_path}", "name=mine"])
    file = tmp_path / "recipe.yaml"
    file.write_text(old_text(mine))
    assert load(str(file), stored=True) == mine
    with pytest.raises(RecipeError, match="now"):
        load(str(file))


@pytest.mark.parametrize(("old", "new"), VALUES.items())
def test_records_and_metadata_of_an_earlier_version_are_read(tmp_path: Path, old: str, new: str) -> None:
    spec = run("{name: a, size: 0.1M}")
    recipe = load("laptop", [f"out={tmp_path}", "name=mine"])
    folders.write_json(f"{recipe.folder}/records", f"{spec.run_id}.json", {**RECORD, "view": old})
    assert outcomes.finished(recipe, [spec]) == {spec.run_id: RunRecord(**RECORD, modality=new)}
    about = {
        "study": "mine",
        "recipe": "f00d",
        "teacher": "rules",
        "source": None,
        "adapters": False,
        "alone": False,
    }
    cards = [
        card.render({"run": RECORD, "length": [64], "task": "single", "about": about, **modality})
        for modality in ({"view": old}, {"modality": new})
    ]
    assert cards[0] == cards[1]
    assert ("image-text-to-text" in cards[0]) == (new == "image")


def run(student: str) -> RunSpec:
    """The specification of a student's only run."""
    few = ("students.train_sizes=[100]", "students.seeds=[0]")
    (spec,) = identity.plan_runs(load("laptop", [f"students={{models: [{student}]}}", *few]), "examples")
    return spec


@pytest.mark.parametrize(("modality", "view"), [("image", "plot"), ("text", "numbers"), ("both", "both")])
def test_a_teachers_identity_has_the_names_of_the_first_version(modality: str, view: str) -> None:
    shaping = load("laptop", [f"{API}{modality}}}"]).teacher.identity
    assert shaping["view"] == view
    assert "modality" not in shaping


# Computed by the version before the keys were renamed.
@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("teacher.batch_size=256", "25fd17a85b48fad0"),
        (f"{API}image}}", "884cc20ce16ded41"),
        (f"{API}text}}", "2dfd801f1e2935e8"),
        (f"{API}both}}", "45cab31452db3c1b"),
        ("teacher={kind: vllm, model: eyes, engine: {dtype: half}}", "c1e2ca5ee5174240"),
    ],
)
def test_no_key_of_an_annotation_changed(override: str, key: str) -> None:
    assert keys.digest(load("laptop", [override]).teacher.identity) == key


@pytest.mark.parametrize(
    ("student", "key"),
    [("{name: a, size: 0.1M, modality: image}", "411cbcc7bfbbe360"), ("0.1M", "15c9b2e4e5d04192")],
)
def test_no_students_part_of_a_runs_id_changed(student: str, key: str) -> None:
    assert keys.digest(run(student).identity["student"]) == key


def test_an_engines_old_keys_are_dropped_and_another_kinds_key_of_that_name_stays() -> None:
    engine = {"teacher": {"kind": "vllm", "model": "eyes", "batch_size": 8, "concurrent_batches": 2}}
    assert renewed(engine) == {"teacher": {"kind": "vllm", "model": "eyes"}}
    for each in ({"kind": "local", "batch_size": 8}, {"train": {"batch_size": 8}}):
        assert renewed({"teacher": each, "teachers": {"one": each}}) == {
            "teacher": each,
            "teachers": {"one": each},
        }
