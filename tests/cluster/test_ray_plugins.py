"""Plugins of every kind, and a task of their own, in a whole study on a real Ray whose workers lack the files."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cluster_nodes import Cluster, require_own_disks, running
from support.commands import ROOT, SHARED, TSD, ended, kill_all_of, run
from support.tutorial import write_files

from tsd.generation.generator import draw_table
from tsd.recipe import Recipe, load
from tsd.storage import datasets, folders
from tsd.storage.schemas import EXAMPLES, REJECTS
from tsd.tasks import modules, named

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]

SMALL = (
    "series.count=3072",
    "teacher={kind: terse, phrasing: 0}",
    "plugins=[PROJECT/my_additions.py, PROJECT/choosy.py]",
    "curation.policies={brief: {most_words: 30}, choosy: null}",
    "students={models: [0.03M], train_sizes: [64], seeds: [0]}",
    "evaluation={series: 40, validation_examples: 40, batch_size: 40, metrics: [balanced_trend]}",
)

CHOOSY = """from tsd.plugins import add_policy


@add_policy("choosy", version="1")
def choosy(task, case, settings):
    return "narrow" if case.truth["range"] == "narrow" else None
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of docs/extending.md, which only the driver's node has."""
    place = tmp_path_factory.mktemp("project")
    require_own_disks(place)
    write_files(place)
    (place / "choosy.py").write_text(CHOOSY)
    return place


@pytest.fixture(scope="module")
def cluster(project: Path) -> Iterator[Cluster]:
    """A head without CPUs, and a node with two on whose disk the project's folder is empty."""
    with running("--num-cpus=0") as two:
        two.start("--num-cpus=2", hidden=[project])
        yield two


def test_a_study_with_plugins_of_all_kinds_runs_on_nodes_that_lack_their_files(
    cluster: Cluster, project: Path, tmp_path: Path
) -> None:
    small = [each.replace("PROJECT", str(project)) for each in SMALL]
    sets = [*small, f"tracking.uri=sqlite:///{tmp_path}/mlflow.db"]
    process = subprocess.Popen(
        [*TSD, "study", str(project / "mine.yaml"), "--out", str(tmp_path), *(f"--set={each}" for each in sets)],
        cwd=ROOT,
        env=cluster.driver(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=900)
    finally:
        if process.poll() is None:
            kill_all_of(process)
    assert process.returncode == 0, out[-3000:] + err[-3000:]
    recipe = load(str(project / "mine.yaml"), [*sets, f"out={tmp_path}"])
    require_made_by_plugins(recipe)
    said = run([*TSD, "verify", recipe.folder, "--trust-code"], cpus=SHARED)
    assert "damaged" not in said
    assert "changed" not in said


def require_made_by_plugins(recipe: Recipe) -> None:
    """Each table has what only the plugin makes: process and facet, teacher, policy, metric."""
    tables, folder = recipe.asks.tables, recipe.folder
    series = datasets.open_dataset(f"{folder}/series", tables.series).read()
    here = draw_table(recipe.asks, recipe.series, recipe.seed, 0, 1024)
    assert series.slice(0, 1024).combine_chunks().equals(here.combine_chunks())
    assert "sawtooth" in series["process"].to_pylist()
    assert {row["range"] for row in series["truth"].to_pylist()} == {"narrow", "wide"}
    annotations = datasets.open_dataset(f"{folder}/annotations", tables.annotations).read()
    assert set(annotations["teacher"].to_pylist()) == {"terse"}
    assert annotations["labels"].to_pylist() == series["truth"].to_pylist()
    rejects = datasets.open_dataset(f"{folder}/rejects", REJECTS).read()["reason"].to_pylist()
    narrow = [row["range"] for row in series["truth"].to_pylist()].count("narrow")
    assert rejects == ["choosy: narrow"] * narrow
    examples = datasets.open_dataset(f"{folder}/examples", EXAMPLES)
    assert examples.rows + len(rejects) == recipe.series.count
    (row,) = datasets.open_dataset(f"{folder}/runs", tables.runs).read().to_pylist()
    assert (
        0 <= row["balanced_trend"]["low"] <= row["balanced_trend"]["value"] <= row["balanced_trend"]["high"] <= 1
    )
    card = folders.read_json(f"{folder}/students/{row['run_id']}", "tsd.json")
    assert f"my_facets.py{modules.PIN}" in card["task"]
    assert named(card["task"]).name == "single-with-range"


FAILING = {
    "process": "@add_process('p', version='1', ranges={'q': Span(1, 9, 0, 10)})\n"
    "def wrong(own, time, shocks, rng):\n    return np.where(own['q'] > 5.5, np.float32(np.nan), time)\n",
    "teacher": "@add_teacher('t', version='1')\nclass T:\n    def __init__(self, settings, task, seed):\n"
    "        self.asked = seed.nothing\n    def annotate(self, series):\n        return series\n",
    "policy": "@add_policy('c', version='1')\n"
    "def wrong(task, case, settings):\n    return case.truth['nowhere']\n",
}
STAGES = {
    "process": ("generate", "series.mix={p: 1}", "the process p, in {plugin}, returned nan for 128 points, q "),
    "teacher": (
        "annotate",
        "teacher={kind: t}",
        "the teacher t failed in {plugin} line 6, in __init__: AttributeError",
    ),
    "policy": (
        "curate",
        "curation.policies={c: null}",
        "the policy c failed in {plugin} line 5, in wrong: KeyError",
    ),
}


@pytest.mark.parametrize("kind", FAILING)
def test_a_plugin_that_fails_in_a_worker_ends_the_command_in_one_line(kind: str, tmp_path: Path) -> None:
    plugin = tmp_path / f"failing_{kind}.py"
    plugin.write_text("import numpy as np\nfrom tsd.plugins import *\n" + FAILING[kind])
    stage, change, said = STAGES[kind]
    sets = ["teacher={kind: rules}", "series.count=1024", f"plugins=[{plugin}]", change]

    def command(stage: str) -> list[str]:
        return [*TSD, stage, "laptop", "--out", str(tmp_path), *(f"--set={each}" for each in sets)]

    before = {"process": (), "teacher": ("generate",), "policy": ("generate", "annotate")}[kind]
    for each in before:
        run(command(each), cpus=SHARED)
    done = ended(command(stage), cpus=SHARED)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert said.format(plugin=plugin) in line
