"""Plugins and tasks from outside: what is wrong with one is said in one line before anything is computed."""

from pathlib import Path

import pyarrow as pa
import pytest

from tsd.curation import curate
from tsd.errors import InputError, RecipeError
from tsd.evaluation import metrics
from tsd.recipe import Recipe, additions, load
from tsd.storage import folders
from tsd.study import provenance
from tsd.study.verify import recipe_of
from tsd.tasks import SINGLE
from tsd.teachers import in_process

RULES = "teacher={kind: rules}"
HEAD = "import numpy as np\nfrom tsd.plugins import *\n"
PROCESS = "@add_process('{name}', version='1'{more})\ndef curve(own, time, shocks, rng):\n    return {value}\n"


def written(folder: Path, text: str, name: str = "plugin.py") -> str:
    """The path of a plugin with this text."""
    path = folder / name
    path.write_text(HEAD + text)
    return str(path)


def process(name: str, value: str = "time", more: str = "") -> str:
    return PROCESS.format(name=name, value=value, more=f", {more}" if more else "")


def complaint(*overrides: str) -> str:
    """The one line that loading a wrong recipe ends with."""
    with pytest.raises(RecipeError) as caught:
        load("laptop", [RULES, *overrides])
    message = str(caught.value)
    assert "\n" not in message
    return message


TEACHER = "@add_teacher('{name}', version='1')\nclass One:\n    def __init__(self, settings, task, seed): pass\n"

WRONG = {
    "code that raises": ("1 / 0", ["cannot be loaded", "ZeroDivisionError: division by zero"]),
    "code that is none": ("def", ["cannot be loaded", "SyntaxError"]),
    "an import that is missing": ("import nowhere_at_all", ["cannot be loaded", "nowhere_at_all"]),
    "a built-in process": (process("linear"), ["built-in process 'linear'", "another name"]),
    "a process that no recipe could name": (process("p 0"), ["'p 0'", "small letters"]),
    "a parameter of another process": (
        process("p1", more="ranges={'season_period': Span(1, 2, 1, 2)}"),
        ["'p1'", "'season_period'"],
    ),
    "a range outside its bounds": (process("p2", more="ranges={'q2': Span(1, 9, 1, 2)}"), ["'p2'", "q2", "high"]),
    "a curve of another shape": (process("p3", "np.zeros(7)"), ["'p3'", "(length, batch)", "(7,)"]),
    "a curve that is not finite": (process("p4", "time + np.inf"), ["'p4'", "finite"]),
    "a process without a version": (process("p5", more="").replace("'1'", "1"), ["version", '"1"', "1"]),
    "a process of one argument": (
        "@add_process('p6', version='1')\ndef curve(time):\n    return time\n",
        ["'p6'", "(own, time, shocks, rng)"],
    ),
    "a policy of one argument": (
        "@add_policy('q1', version='1')\ndef q(case):\n    return None\n",
        ["policy 'q1'", "(task, case, settings)"],
    ),
    "settings that are none": (
        "@add_policy('q2', version='1', settings=dict)\ndef q(task, case, settings):\n    return None\n",
        ["policy 'q2'", "subclass of Section"],
    ),
    "a policy that no recipe could name": (
        "@add_policy('A policy', version='1')\ndef q(task, case, settings):\n    return None\n",
        ["'A policy'", "small letters"],
    ),
    "a metric of one argument": (
        "@add_metric('m1', version='1')\ndef m(predictions):\n    return 1\n",
        ["metric 'm1'", "(predictions, truth)"],
    ),
    "a metric called as a column": (
        "@add_metric('seed', version='1')\ndef m(predictions, truth):\n    return 1\n",
        ["metric 'seed'", "column of the runs table"],
    ),
    "a built-in teacher": (
        TEACHER.format(name="rules") + "    def annotate(self, series): return series\n",
        ["built-in teacher of kind 'rules'", "another name"],
    ),
    "a teacher that annotates nothing": (TEACHER.format(name="t1"), ["teacher 't1'", "annotate(series)"]),
}


@pytest.mark.parametrize(("text", "said"), WRONG.values(), ids=WRONG)
def test_a_wrong_plugin_gets_one_line_that_names_it_and_what_is_wrong(
    text: str, said: list[str], tmp_path: Path
) -> None:
    path = written(tmp_path, text)
    message = complaint(f"plugins=[{path}]")
    assert path in message
    assert all(part in message for part in said), message


def test_a_module_that_is_missing_is_named_with_what_to_do(tmp_path: Path) -> None:
    assert "there is no module nowhere.at_all: install it" in complaint("plugins=[nowhere.at_all]")
    assert f"there is no file {tmp_path}/gone.py" in complaint(f"plugins=[{tmp_path}/gone.py]")
    assert "plugins" in complaint("plugins=nowhere")


def test_a_name_that_another_plugin_has_taken_is_refused_and_the_same_file_is_loaded_once(tmp_path: Path) -> None:
    first = written(tmp_path, process("taken_twice"), "first.py")
    second = written(tmp_path, process("taken_twice"), "second.py")
    load("laptop", [RULES, f"plugins=[{first}]"])
    load("laptop", [RULES, f"plugins=[{tmp_path}/../{tmp_path.name}/first.py]"])
    assert "adds a process 'taken_twice' as well" in complaint(f"plugins=[{first}, {second}]")


def test_what_no_plugin_adds_is_refused_with_what_there_is(tmp_path: Path) -> None:
    plugin = written(
        tmp_path,
        process("hillside")
        + "class Few(Section):\n    '''Few.'''\n    most: int = 3\n    '''Most.'''\n"
        + "@add_policy('few', version='1', settings=Few)\ndef few(task, case, settings):\n    return None\n"
        + "@add_metric('mine', version='1')\ndef mine(predictions, truth):\n    return 1\n",
    )
    named = f"plugins=[{plugin}]"
    assert "there is no process 'hillsid', did you mean 'hillside'?" in complaint(named, "series.mix={hillsid: 1}")
    assert "there is no policy 'fewer', did you mean 'few'?" in complaint(named, "curation.policies={fewer: {}}")
    assert "there is no metric 'mines', did you mean 'mine'?" in complaint(named, "evaluation.metrics=[mines]")
    assert "evaluation.metrics: mine is" in complaint(named, "evaluation.metrics=[mine, mine]")
    wrong = complaint(named, "curation.policies={few: {most: many}}")
    assert "curation.policies.few.most is 'many'" in wrong
    unknown = complaint(named, "curation.policies={few: {mots: 1}}")
    assert "curation.policies.few.mots, did you mean 'most'?" in unknown


def test_paths_start_at_the_recipes_folder(tmp_path: Path) -> None:
    written(tmp_path, process("beside_the_recipe"))
    (tmp_path / "mine.yaml").write_text(
        "extends: laptop\nplugins: [plugin.py]\nseries: {mix: {beside_the_recipe: 1}}\n"
    )
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "theirs.yaml").write_text("extends: ../mine.yaml\nname: theirs\n")
    for recipe in ("mine.yaml", "more/theirs.yaml"):
        loaded = load(str(tmp_path / recipe), [RULES])
        assert loaded.outside == (str(tmp_path / "plugin.py"),)
        assert loaded.asks.tables.series.field("process").type == pa.string()


TASKS = {
    "an object that is none": ("TASK = 3", "TASK", ["has no task 'TASK'", "SINGLE"]),
    "a name that is not there": ("TASK = SINGLE", "TAKS", ["has no task 'TAKS'", "TASK"]),
    "the name of a built-in task": ("TASK = SINGLE", "TASK", ["'single'", "rename it"]),
    "a phrasing that is read as nothing": (
        "TASK = replace(SINGLE, name='x', facets=(replace(SINGLE.facets[0], phrasings=('It is {}?!',) * 4,"
        " read=lambda text: Reading(None)), *SINGLE.facets[1:]))",
        "TASK",
        ["cannot be used", "trend: 'It is increasing?!' is read as None"],
    ),
    "a measure that is not named": (
        "TASK = replace(SINGLE, name='x', measures={})",
        "TASK",
        ["cannot be used", "measure returns", "trend_delta"],
    ),
}


@pytest.mark.parametrize(("text", "name", "said"), TASKS.values(), ids=TASKS)
def test_a_wrong_task_gets_one_line(text: str, name: str, said: list[str], tmp_path: Path) -> None:
    head = (
        "from dataclasses import replace\nfrom tsd.tasks import SINGLE\nfrom tsd.tasks.language import Reading\n"
    )
    message = complaint(f"task={written(tmp_path, head + text, 'task.py')}:{name}")
    assert all(part in message for part in said), message


# ---- What a plugin returns


@pytest.fixture(scope="module")
def returning(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A recipe with a policy that returns a number and a teacher that returns too few rows."""
    plugin = written(
        tmp_path_factory.mktemp("returning"),
        "@add_policy('text', version='1')\ndef p(task, case, settings):\n    return 3\n"
        + TEACHER.format(name="too_few")
        + "    def annotate(self, series):\n        return series.slice(1)\n",
    )
    return load("laptop", [f"plugins=[{plugin}]", "teacher.kind=too_few", "curation.policies={text: null}"])


def test_a_policy_that_returns_no_text_is_named(
    returning: Recipe, annotations: pa.Table, series: pa.Table
) -> None:
    with pytest.raises(InputError, match="the policy text returned 3"):
        curate(SINGLE, annotations, series, returning.curation)


def test_a_teacher_that_returns_no_annotations_is_named(returning: Recipe, series: pa.Table) -> None:
    with pytest.raises(InputError, match="the teacher too_few returned no table of annotations"):
        in_process.annotate(returning, series)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (lambda predictions, truth: 3, "the metric mine returned 3: return a number from 0 to 1"),
        (lambda predictions, truth: float("nan"), "the metric mine returned nan"),
        (lambda predictions, truth: 1 / 0, "the metric mine failed on 5 predictions: division by zero"),
    ],
)
def test_a_metric_that_returns_no_fraction_is_named(
    metric: additions.Metric, said: str, annotations: pa.Table, series: pa.Table
) -> None:
    table = pa.table({"labels": annotations["labels"], "truth": series["truth"]}).slice(0, 5)
    with pytest.raises(InputError, match=said):
        metrics.measure("mine", metric, table)


def test_a_metrics_interval_covers_its_value_and_shrinks_with_more_rows(
    annotations: pa.Table, series: pa.Table
) -> None:
    def right(predictions: pa.Table, truth: pa.ChunkedArray) -> float:
        pairs = zip(predictions["labels"].to_pylist(), truth.to_pylist(), strict=True)
        return sum(said == known for said, known in pairs) / len(truth)

    whole = pa.table({"labels": annotations["labels"], "truth": series["truth"]})
    many, few = (metrics.measure("right", right, whole.slice(0, rows)) for rows in (1024, 64))
    assert many == metrics.measure("right", right, whole)
    for found in (many, few):
        assert found.low < found.value < found.high
    assert many.high - many.low < (few.high - few.low) / 2


# ---- A study whose plugin has moved


def test_a_study_goes_on_where_its_plugin_lies_elsewhere_now(tmp_path: Path) -> None:
    task = "from dataclasses import replace\nfrom tsd.tasks import SINGLE\nTASK = replace(SINGLE, name='moved')\n"
    recipes = []
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
        path = written(tmp_path / name, task, "moved.py")
        recipes.append(load("laptop", [RULES, f"task={path}:TASK", f"out={tmp_path}", f"plugins=[{path}]"]))
    before, after = recipes
    provenance.keep(before, "study")
    folders.write_bytes(f"{before.folder}/series", "part-00000000.parquet", b"")
    provenance.require(after, "study")
    (tmp_path / "before" / "moved.py").unlink()
    assert provenance.read(after) is not None
    provenance.require(after, "study")
    with pytest.raises(InputError, match=r"there is no file .*before/moved\.py"):
        recipe_of(before.folder)
