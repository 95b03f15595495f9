"""The tutorial `docs/extending.md`: its blocks are files, which run as a study of their own."""

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from rich.console import Console
from support.commands import ROOT, SHARED, TSD, run
from support.tutorial import write_files

from tsd.curation import curate
from tsd.evaluation import metrics, scoring
from tsd.generation.generator import draw_table
from tsd.progress import Reporter
from tsd.recipe import Recipe, additions, load
from tsd.recipe.reference import commented
from tsd.reporting.report import score_titles
from tsd.series import processes
from tsd.storage import datasets
from tsd.storage.schemas import EXAMPLES, INTERVAL, REJECTS
from tsd.study import identity, results
from tsd.study.plan import plan
from tsd.tasks import SINGLE
from tsd.teachers import in_process


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tutorial's files."""
    place = tmp_path_factory.mktemp("tutorial")
    write_files(place)
    return place


@pytest.fixture(scope="module")
def mine(folder: Path) -> Recipe:
    """The tutorial's recipe."""
    return load(str(folder / "mine.yaml"), [f"out={folder}/runs"])


@pytest.fixture(scope="module")
def series(mine: Recipe) -> pa.Table:
    return draw_table(mine.asks, mine.series, mine.seed, 0, 1024)


@pytest.fixture(scope="module")
def curated(mine: Recipe, series: pa.Table) -> tuple[pa.Table, pa.Table, Any]:
    return curate(mine.asks, in_process.annotate(mine, series), series, mine.curation)


def test_the_facet_is_balanced_and_stated_in_every_example(
    mine: Recipe, series: pa.Table, curated: tuple[pa.Table, pa.Table, Any]
) -> None:
    assert mine.asks.names == (*SINGLE.names, "range")
    truth = {row["series_id"]: row for row in series.to_pylist()}
    share = sum(row["truth"]["range"] == "wide" for row in truth.values()) / len(truth)
    assert 0.4 < share < 0.6
    for row in truth.values():
        spread = max(row["values"]) - min(row["values"])
        assert row["measures"]["spread"] == spread
        assert (row["truth"]["range"] == "wide") == (spread >= 70)
    examples = curated[0].to_pylist()
    assert len(examples) > 300
    for example in examples:
        assert "range" in json.loads(example["completion"])
        labels = mine.asks.parse(example["completion"]).labels
        assert labels == truth[example["series_id"]]["truth"]


def test_the_process_has_its_share_and_a_column_for_its_parameter(series: pa.Table) -> None:
    rows = series.to_pylist()
    drawn = [row for row in rows if row["process"] == "sawtooth"]
    assert 250 < len(drawn) < 450
    assert all(0.1 <= row["parameters"]["tooth"] <= 0.5 for row in drawn)
    assert all(row["parameters"]["tooth"] is None for row in rows if row["process"] != "sawtooth")
    assert {row["process"] for row in rows} == {"linear", "season", "sawtooth"}


def test_the_policy_rejects_long_replies_with_its_name(
    mine: Recipe, curated: tuple[pa.Table, pa.Table, Any]
) -> None:
    examples, rejects, _ = curated
    reasons = rejects["reason"].to_pylist()
    assert reasons.count("brief: more than 46 words") > 20
    words = [len(" ".join(mine.asks.sentences(text)).split()) for text in examples["completion"].to_pylist()]
    assert max(words) <= 46


def test_the_metric_stands_in_the_runs_table_with_an_interval(
    mine: Recipe, series: pa.Table, tmp_path: Path
) -> None:
    recipe = mine.model_copy(update={"out": str(tmp_path)})
    truth = series["truth"].to_pylist()
    said = [{**labels, "trend": "flat"} for labels in truth]  # right for one class of three
    table = pa.table(
        {
            "run_id": ["run"] * len(truth),
            "series_id": series["series_id"],
            "text": [""] * len(truth),
            "labels": pa.array(said, recipe.asks.tables.labels),
            "truth": series["truth"],
        }
    )
    found = scoring.score(table)
    for name in recipe.evaluation.metrics:
        found[name] = metrics.measure(name, additions.METRICS[name].measure, table)
    assert found["balanced_trend"].value == pytest.approx(1 / 3)
    assert found["balanced_trend"].low <= 1 / 3 <= found["balanced_trend"].high
    schema = recipe.asks.tables.runs
    assert schema.field("balanced_trend").type == INTERVAL
    values = {pa.string(): "x", pa.int64(): 1, pa.float64(): 1.0, pa.bool_(): False}
    plain = [field for field in schema if field.name not in found and field.type != INTERVAL]
    row = {field.name: values[field.type] for field in plain}
    runs = pa.Table.from_pylist([row | {name: each.as_dict() for name, each in found.items()}], schema)
    results.write_runs(recipe, runs, {}, Reporter(Console()))
    kept = datasets.open_dataset(f"{recipe.folder}/runs", schema).read().to_pylist()
    assert kept[0]["balanced_trend"]["value"] == pytest.approx(1 / 3)
    assert score_titles(recipe.asks)["balanced_trend"] == "balanced trend"


def test_the_teacher_describes_each_series_in_its_own_words(mine: Recipe, series: pa.Table, folder: Path) -> None:
    recipe = load(str(folder / "mine.yaml"), ["teacher={kind: terse, phrasing: 1}"])
    table = in_process.annotate(recipe, series)
    assert table["labels"].to_pylist() == series["truth"].to_pylist()
    assert set(table["teacher"].to_pylist()) == {"terse"}
    assert "The range of values is" in table["text"][0].as_py()
    first = load(str(folder / "mine.yaml"), ["teacher.kind=terse"])
    assert first.teacher.identity == {"kind": "terse", "phrasing": 0, "version": "1"}
    assert "by the teacher terse" in plan(first, "annotate")


def test_the_recipe_is_printed_with_its_settings_and_loads_again(folder: Path, tmp_path: Path) -> None:
    recipe = load(str(folder / "mine.yaml"), ["teacher.kind=terse", f"out={folder}/runs"])
    text = commented(recipe)
    for said in ("# Maximum number of words in a response.", "most_words: 46\n", "phrasing: 0  # default"):
        assert said in text
    (tmp_path / "again.yaml").write_text(text)
    assert load(str(tmp_path / "again.yaml")) == recipe
    assert yaml.safe_load(text)["plugins"] == [str(folder / "my_additions.py")]


def test_a_recipe_brings_its_plugins_to_a_process_that_lacks_their_files(
    folder: Path, series: pa.Table, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "gone")
    recipe = load(str(tmp_path / "gone" / "mine.yaml"), ["teacher={kind: terse}"])
    (tmp_path / "recipe").write_bytes(pickle.dumps(recipe))
    shutil.rmtree(tmp_path / "gone")
    code = (
        "import pickle, sys\n"
        "from pathlib import Path\n"
        "recipe = pickle.loads(Path(sys.argv[1]).read_bytes())\n"
        "from tsd.generation.generator import draw_table\n"
        "from tsd.teachers import in_process\n"
        "table = draw_table(recipe.asks, recipe.series, recipe.seed, 0, 8)\n"
        "Path(sys.argv[2]).write_bytes(pickle.dumps((recipe, table, in_process.annotate(recipe, table))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "recipe", tmp_path / "made"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    same, table, said = pickle.loads((tmp_path / "made").read_bytes())
    assert same == recipe
    assert table.equals(series.slice(0, 8))
    assert said["labels"].to_pylist() == table["truth"].to_pylist()


def keys(recipe: Recipe, table: datasets.Dataset) -> dict[str, str]:
    """The keys of what plugins may shape."""
    return {
        "series": identity.series_key(recipe),
        "annotations": identity.annotations_key(recipe, table),
        "curation": identity.curation_key(recipe, table, table),
        "runs": str(identity.added_metrics(recipe)),
    }


@pytest.fixture
def table(mine: Recipe, tmp_path: Path) -> datasets.Dataset:
    """A table of no series."""
    schema = mine.asks.tables.series
    datasets.write_part(str(tmp_path), 0, schema.empty_table(), schema, "key")
    return datasets.commit(str(tmp_path), schema, "key", 1, {})


@pytest.mark.parametrize(
    ("registry", "name", "shaped"),
    [
        (processes.ADDED, "sawtooth", "series"),
        (additions.TEACHERS, "terse", "annotations"),
        (additions.POLICIES, "brief", "curation"),
        (additions.METRICS, "balanced_trend", "runs"),
    ],
    ids=["process", "teacher", "policy", "metric"],
)
def test_another_version_changes_the_key_of_what_it_shapes_and_no_other(
    folder: Path,
    table: datasets.Dataset,
    registry: dict[str, Any],
    name: str,
    shaped: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = load(str(folder / "mine.yaml"), ["teacher.kind=terse"])
    before = keys(recipe, table)
    monkeypatch.setitem(registry, name, replace(registry[name], version="2"))
    after = keys(recipe, table)
    assert [each for each in before if before[each] != after[each]] == [shaped]


def test_what_a_recipe_does_not_use_of_a_plugin_changes_no_key_and_no_table(
    mine: Recipe, table: datasets.Dataset, folder: Path
) -> None:
    plain = load("laptop", ["teacher={kind: rules}"])
    beside = load("laptop", ["teacher={kind: rules}", f"plugins=[{folder}/my_additions.py]"])
    assert keys(plain, table) == keys(beside, table)
    assert beside.asks is plain.asks is SINGLE
    few = [draw_table(each.asks, each.series, each.seed, 0, 64) for each in (plain, beside)]
    assert few[0].equals(few[1])


def test_where_the_files_lie_changes_no_key(mine: Recipe, table: datasets.Dataset, folder: Path) -> None:
    elsewhere = mine.model_copy(update={"task": f"{folder}/../{folder.name}/my_facets.py:TASK"})
    assert elsewhere.task != mine.task
    assert keys(elsewhere, table) == keys(mine, table)
    assert {path: value for path, value, _ in elsewhere.shaped()}["task"] == "single-with-range"


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_workers_of_ray_make_the_same_tables(mine: Recipe, series: pa.Table, folder: Path) -> None:
    for stage in ("generate", "annotate", "curate"):
        run([*TSD, stage, str(folder / "mine.yaml"), "--out", f"{folder}/runs"], cpus=SHARED)
    drawn = datasets.open_dataset(f"{mine.folder}/series", mine.asks.tables.series).read()
    assert drawn.slice(0, 1024).combine_chunks().equals(series.combine_chunks())
    examples = datasets.open_dataset(f"{mine.folder}/examples", EXAMPLES).read()
    rejects = datasets.open_dataset(f"{mine.folder}/rejects", REJECTS).read()
    assert all("range" in json.loads(text) for text in examples["completion"].to_pylist())
    assert "brief: more than 46 words" in rejects["reason"].to_pylist()
    said = run([*TSD, "verify", mine.folder, "--trust-code"], cpus=SHARED)
    assert "damaged" not in said
