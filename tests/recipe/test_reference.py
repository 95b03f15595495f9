"""The recipe's reference: the page and the schema in `docs/` follow from the models, and fit real recipes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tsd.recipe import Recipe, load, names, reference
from tsd.recipe.section import Section

ROOT = Path(__file__).parents[2]
FILES = sorted([*(ROOT / "tsd" / "recipes").glob("*.yaml"), *(ROOT / "docs" / "studies").glob("*.yaml")])
BLOCKS = [
    block
    for page in (ROOT / "README.md", ROOT / "docs" / "extending.md")
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.DOTALL)
]


@pytest.fixture(scope="module")
def validator() -> jsonschema.Draft202012Validator:
    schema = json.loads((ROOT / "docs" / reference.SCHEMA).read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def as_json(text: str) -> Any:
    """A YAML text as an editor sees it: keys are texts."""
    return json.loads(json.dumps(yaml.safe_load(text)))


def sections() -> Iterator[type[Section]]:
    """Every model of a recipe that a plugin does not add."""
    left: list[type[Section]] = [Section]
    while left:
        for model in left.pop().__subclasses__():
            left.append(model)
            if model.__module__.startswith("tsd.recipe.") and model.__module__ != "tsd.recipe.additions":
                yield model


def test_the_page_and_the_schema_in_docs_follow_from_the_models(tmp_path: Path) -> None:
    for place in reference.write(str(tmp_path)):
        kept = ROOT / "docs" / Path(place).name
        assert Path(place).read_text() == kept.read_text(), f"run `make reference`, which writes {kept}"


@pytest.mark.parametrize("model", list(sections()), ids=lambda model: model.__name__)
def test_every_key_of_a_recipe_is_described(model: type[Section]) -> None:
    assert model.__doc__
    page = (ROOT / "docs" / reference.PAGE).read_text()
    for name, field in model.model_fields.items():
        about = field.description or (field.default.__doc__ if isinstance(field.default, Section) else None)
        assert about, f"{model.__name__}.{name}"
        assert f"| `{name}` |" in page, f"{model.__name__}.{name}"


def test_the_page_has_types_bounds_and_defaults() -> None:
    page = (ROOT / "docs" / reference.PAGE).read_text()
    for row in (
        "| `name` | text | required |",
        "| `own_range` | number from 0 to 1 | `0.4` |",
        "| `batch_size` | integer > 0 | `8` |",
        '| `optimizer` | `adamw` or `muon` | `"adamw"` |',
        "| `betas` | 2 × (number ≥ 0 and < 1) | `[0.9, 0.98]` |",
    ):
        assert row in page, row


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_recipe_file_fits_the_schema(path: Path, validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(as_json(path.read_text()))


@pytest.mark.parametrize("text", BLOCKS)
def test_a_recipe_in_a_document_fits_the_schema(text: str, validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(as_json(text))


@pytest.mark.parametrize("name", names())
def test_a_whole_recipe_fits_the_schema(name: str, validator: jsonschema.Draft202012Validator) -> None:
    validator.validate(load(name).model_dump(mode="json"))


@pytest.mark.parametrize(
    "text",
    [
        "series: {cuont: 3}",
        "series: {count: many}",
        "series: {count: 0}",
        "teacher: {kind: rules, eror_rate: 1}",
        "teacher: {kind: openai, in_flight: 0}",
        "training: {optimizer: sgd}",
        "curation: {against_truth: fix}",
        "students: {models: [3]}",
        "extends: 3",
        "sereis: {}",
    ],
)
def test_a_wrong_recipe_does_not_fit_the_schema(text: str, validator: jsonschema.Draft202012Validator) -> None:
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(as_json(text))


def test_a_teacher_of_a_plugin_fits_the_schema(validator: jsonschema.Draft202012Validator) -> None:
    validator.validate({"teacher": {"kind": "mine", "anything": 3}, "curation": {"policies": {"a": {"b": 1}}}})


# ---- With comments


@pytest.mark.parametrize("name", names())
def test_a_recipe_with_comments_loads_as_the_same_recipe(name: str, tmp_path: Path) -> None:
    path = tmp_path / "commented.yaml"
    path.write_text(reference.commented(load(name)))
    assert load(str(path)) == load(name)


def test_comments_describe_every_key_once_and_mark_what_is_a_default() -> None:
    recipe = load("laptop", ["teacher={kind: rules}", "seed=7", "students.models=[0.03M, 0.1M]"])
    text = reference.commented(recipe)
    flat = " ".join(line.strip().removeprefix("# ") for line in text.splitlines())
    for field in Recipe.model_fields.values():
        assert field.description is None or " ".join(field.description.split()) in flat
    assert "\nseed: 7\n" in text
    assert "\nplugins: []  # default\n" in text
    assert "  length: 128  # default\n" in text
    assert "  count: 64000\n" in text
    assert text.count("# Name in tables and folders.") == 1
    assert text.count("name: 0.1M\n") == 1
    assert max(map(len, (line for line in text.splitlines() if line.strip().startswith("#")))) < 110


@pytest.mark.parametrize("name", names())
def test_comments_mark_the_defaults_that_a_task_or_a_truth_has(name: str) -> None:
    given = yaml.safe_load((ROOT / "tsd" / "recipes" / f"{name}.yaml").read_text()).get("series", {})
    lines = reference.commented(load(name)).split("\nseries:\n")[1].split("\nplots:")[0].splitlines()
    marked = {line.split(":")[0].strip() for line in lines if line.endswith("# default")}
    written = {line.split(":")[0].strip() for line in lines if not line.lstrip().startswith("#")}
    assert written - marked <= {*given, "count", "blocks_per_part"}
    assert marked >= {"noise_rms", "oversampling", "drift"}
