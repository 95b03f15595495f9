"""Renamed recipe keys: an old one is refused with the new name, and no key of a table changes."""

import pytest

from tsd.errors import RecipeError
from tsd.recipe import load
from tsd.recipe.renamed import RENAMED, VALUES, new_name, new_value
from tsd.storage import keys

API = "teacher={kind: openai, model: eyes, base_url: 'https://host/v1', modality: "


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


@pytest.mark.parametrize("place", ["teacher.engine.modality", "evaluation.modality", "modality"])
def test_a_value_of_another_key_of_that_name_is_no_old_one(place: str) -> None:
    assert new_value(place, "plot") is None
    assert (
        new_value("teachers.mine.modality", "plot") == new_value("students.models.3.modality", "plot") == "image"
    )


def test_a_renamed_key_is_named_beside_another_problem() -> None:
    line = complaint("series.count=-1", "teacher={kind: vllm, model: eyes, view: numbers}")
    assert "teacher.view is called modality now" in line
    assert "1 more" in line


def test_another_value_is_refused_with_the_names_there_are() -> None:
    line = complaint("teacher.modality=sound")
    assert "'image'" in line
    assert "now" not in line


@pytest.mark.parametrize(("modality", "view"), [("image", "plot"), ("text", "numbers"), ("both", "both")])
def test_a_teachers_identity_has_the_names_of_the_first_version(modality: str, view: str) -> None:
    shaping = load("laptop", [f"{API}{modality}}}"]).teacher.identity
    assert shaping["view"] == view
    assert "modality" not in shaping


# Computed by the version before the keys were renamed.
@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("teacher.train={size: 0.3M, pictures: 60000, learning_rate: 0.0035}", "25fd17a85b48fad0"),
        (f"{API}image}}", "884cc20ce16ded41"),
        (f"{API}text}}", "2dfd801f1e2935e8"),
        (f"{API}both}}", "45cab31452db3c1b"),
        ("teacher={kind: vllm, model: eyes, engine: {dtype: half}}", "c1e2ca5ee5174240"),
    ],
)
def test_no_key_of_an_annotation_changed(override: str, key: str) -> None:
    assert keys.digest(load("laptop", [override]).teacher.identity) == key
