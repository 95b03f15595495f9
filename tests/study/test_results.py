"""Results: predictions of another engine are made again, and what is left to do is known by exact ids."""

from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from tsd.progress import Reporter
from tsd.recipe import Recipe, load
from tsd.storage import datasets, folders
from tsd.storage.schemas import EXAMPLES
from tsd.study import identity, provenance, remaining, results
from tsd.study.context import StudyContext

SIZES = "students.models=[0.1M, {name: taught, size: 0.03M, distil: {teacher: 0.1M}}]"


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    """A study of two students, of which one learns from the other."""
    return load(
        "laptop", ["teacher={kind: rules}", SIZES, "students.train_sizes=[100]", f"out={tmp_path}", "name=tiny"]
    )


def made(folder: str, schema: pa.Schema, key: str) -> datasets.Dataset:
    """A table of no rows."""
    datasets.write_part(folder, 0, schema.empty_table(), schema, key)
    return datasets.commit(folder, schema, key, 1, {})


@pytest.mark.parametrize("kept", [True, False], ids=["a recipe is kept", "no recipe is kept"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "a part"])
def test_predictions_of_another_engine_are_deleted_if_the_recipe_is_known(
    recipe: Recipe, kept: bool, whole: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    place, schema = f"{recipe.folder}/predictions", recipe.asks.tables.predictions
    made(f"{place}/same", schema, "greedy")
    made(f"{place}/other", schema, "vllm")
    if not whole:
        folders.delete_file(f"{place}/other", "manifest.json")
    if kept:
        provenance.keep(recipe, "study")
    study = StudyContext(recipe, Reporter(Console(soft_wrap=True)))
    results.drop_predictions_of_other_engines(study, {"same": "greedy", "other": "greedy", "none": "greedy"})
    assert folders.exists(f"{place}/same")
    assert folders.exists(f"{place}/other") is not kept
    assert ("predictions/other came from another engine" in capsys.readouterr().out) is kept


def test_what_is_left_to_train_is_known_by_exact_ids(recipe: Recipe) -> None:
    examples = made(f"{recipe.folder}/examples", EXAMPLES, "key")
    for run in identity.plan_runs(recipe, examples.digest):
        folders.write_json(f"{recipe.folder}/records", f"{run.run_id}.json", {})
    assert remaining.of(recipe).is_trained("taught-100-s0")
    more = recipe.model_copy(
        update={"students": recipe.students.model_copy(update={"train_sizes": (100, 200)})}
    )  # the teacher's run on most examples is another one now
    assert remaining.of(more).is_trained("0.1M-100-s0")
    assert not remaining.of(more).is_trained("taught-100-s0")
