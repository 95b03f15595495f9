"""Plugins and tasks from outside: what is wrong with one is said in one line before anything is computed."""

import re
import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from tsd.cli import main
from tsd.cluster import preflight
from tsd.curation import curate
from tsd.errors import TRACEBACK, DataError, InputError, PluginError, RecipeError, StorageError
from tsd.evaluation import metrics
from tsd.generation.generator import draw_table
from tsd.recipe import additions, load
from tsd.storage import folders
from tsd.study import provenance, verify
from tsd.study.verify import recipe_of
from tsd.tasks import SINGLE, modules, named
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
    "code that raises": (
        "def deep():\n    1 / 0\ndeep()",
        ["cannot be loaded", "ZeroDivisionError: division by zero", "line 4, in deep", TRACEBACK],
    ),
    "code that ends the process": ("raise SystemExit(3)", ["cannot be loaded", "SystemExit: 3", "line 3"]),
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
    "a range of two numbers": (
        process("p10", more="ranges={'q10': (1, 2)}"),
        ["'p10'", "q10", "Span(low, high, least, most)", "(1, 2)"],
    ),
    "a range of texts": (
        process("p11", more="ranges={'q11': Span('1', 2, 1, 2)}"),
        ["'p11'", "q11", "Span(low, "],
    ),
    "a curve that is none": (process("p12", "None"), ["'p12'", "returned None", "return finite floats, (length"]),
    "a curve of whole numbers": (process("p7", "(time > 0).astype(int)"), ["'p7'", "int64", "finite floats"]),
    "shocks that are not finite": (process("p8", "shocks.fill(np.nan) or time"), ["'p8'", "shocks", "nan"]),
    "a process that changes the time": (process("p9", "time.fill(0) or time"), ["cannot be loaded", "read-only"]),
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
    "settings that are defined in a function": (
        "def make():\n    class Inner(Section):\n        most: int = 3\n    return Inner\n"
        "@add_policy('q3', version='1', settings=make())\ndef q(task, case, settings):\n    return None\n",
        ["policy 'q3'", "the class Inner of a function", "define it at the top of the module"],
    ),
    "settings of a teacher that are defined in a function": (
        "def make():\n    class Inner(AddedTeacher):\n        most: int = 3\n    return Inner\n"
        + TEACHER.format(name="t3").replace("'1'", "'1', settings=make()")
        + "    def annotate(self, series): return series\n",
        ["teacher 't3'", "the class Inner of a function"],
    ),
    "settings that hide what a teacher is": (
        "import warnings\nwith warnings.catch_warnings(action='ignore'):\n"  # pydantic warns of it, too
        "    class S(AddedTeacher):\n        identity: str = 'x'\n"
        + TEACHER.format(name="t2").replace("'1'", "'1', settings=S")
        + "    def annotate(self, series): return series\n",
        ["teacher 't2'", "cannot have a field 'identity'"],
    ),
    "a policy called as a built-in reason": (
        "@add_policy('form', version='1')\ndef q(task, case, settings):\n    return None\n",
        ["policy 'form'", "built-in reason"],
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


def test_a_range_may_be_a_plain_tuple_and_a_curve_of_double_precision(tmp_path: Path) -> None:
    series = {}
    for name, value in (("plain", "np.float64(own['{}_q']) * time"), ("spanned", "own['{}_q'] * time")):
        span = "(0.5, 1, 0, 2)" if name == "plain" else "Span(0.5, 1, 0, 2)"
        text = process(name, value.format(name), f"ranges={{'{name}_q': {span}}}")
        recipe = load(
            "laptop", [RULES, f"plugins=[{written(tmp_path, text, f'{name}.py')}]", f"series.mix={{{name}: 1}}"]
        )
        assert load("laptop", [RULES, f"series.ranges={{{name}_q: [0.6, 0.7]}}"]).series.ranges
        series[name] = draw_table(recipe.asks, recipe.series, recipe.seed, 0, 64)
    assert series["plain"]["values"].equals(series["spanned"]["values"])


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


def test_a_kind_that_no_teacher_has_is_refused_with_the_nearest_or_all_of_them(tmp_path: Path) -> None:
    plugin = written(tmp_path, TEACHER.format(name="laconic") + "    def annotate(self, series): return series\n")
    plugins = f"plugins=[{plugin}]"
    said = "teacher.kind is 'laconi': there is no such teacher, did you mean 'laconic'?"
    assert said in complaint(plugins, "teacher={kind: laconi}")
    assert said in complaint(plugins, "teacher.kind=laconi")
    assert "teachers.a.kind is 'openia': there is no such teacher, did you mean 'openai'?" in complaint(
        "teachers={a: {kind: openia}, b: {kind: rules}}"
    )
    every = complaint(plugins, "teacher={kind: zzz}")
    assert "(valid: rules, local, openai, vllm" in every
    assert "laconic" in every
    assert every.endswith(", or of a plugin: name it in plugins)")
    assert "teacher.kind is 3: there is no such teacher (valid: rules" in complaint("teacher={kind: 3}")


def test_settings_that_a_later_class_of_the_same_name_hides_are_refused(tmp_path: Path) -> None:
    text = "class S(Section):\n    most: int = 3\n@add_policy('{}', version='1', settings=S)\n"
    text += "def q(task, case, settings):\n    return None\n"
    plugin = written(tmp_path, text.format("hidden_one") + text.format("hiding_one"))
    load("laptop", [RULES, f"plugins=[{plugin}]", "curation.policies={hiding_one: null}"])
    said = complaint(f"plugins=[{plugin}]", "curation.policies={hidden_one: null}")
    assert "the settings of the policy 'hidden_one' are a class S" in said
    assert "give each class a name of its own" in said


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


MODULES = {
    "one": ("TASK = replace(SINGLE, name='x')", "add the name of its task, {path}:TASK"),
    "two": (
        "A = replace(SINGLE, name='a')\nB = replace(SINGLE, name='b')",
        "add the name of its task, {path}:A or {path}:B",
    ),
    "none": ("A = SINGLE", "it has no task: assign a tsd.tasks.Task to a name in it"),
}


@pytest.mark.parametrize(("text", "said"), MODULES.values(), ids=MODULES)
def test_a_module_in_place_of_a_task_is_refused_with_the_tasks_in_it(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, f"from dataclasses import replace\nfrom tsd.tasks import SINGLE\n{text}\n", "task.py")
    assert said.format(path=path) in complaint(f"task={path}")
    (tmp_path / "mine.yaml").write_text("extends: laptop\ntask: ./task.py\n")
    with pytest.raises(RecipeError, match=re.escape(said.format(path=path))):
        load(str(tmp_path / "mine.yaml"))
    monkeypatch.chdir(tmp_path)
    assert said.format(path="./task.py") in complaint("task=./task.py")
    assert "there is no module nowhere.tasks: install it" in complaint("task=nowhere.tasks")


def test_a_module_in_place_of_a_task_is_not_run_where_a_folder_names_it(tmp_path: Path) -> None:
    path = written(tmp_path, f"open({str(tmp_path / 'ran')!r}, 'w')\n", "task.py")
    recipe = load("laptop", [RULES, f"out={tmp_path}"])
    provenance.keep(recipe, "study")
    stored = Path(recipe.folder, "recipe.yaml")
    stored.write_text(stored.read_text().replace("task: single", f"task: {path}"))
    with pytest.raises(DataError, match=re.escape(f"a module needs the name of its task, such as {path}:TASK")):
        recipe_of(recipe.folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("text", "name", "said"), TASKS.values(), ids=TASKS)
def test_a_wrong_task_gets_one_line(text: str, name: str, said: list[str], tmp_path: Path) -> None:
    head = (
        "from dataclasses import replace\nfrom tsd.tasks import SINGLE\nfrom tsd.tasks.language import Reading\n"
    )
    message = complaint(f"task={written(tmp_path, head + text, 'task.py')}:{name}")
    assert all(part in message for part in said), message


# ---- What a plugin returns, and raises


RETURNING = {
    "a_series_table": ("series.slice(1)", "returned no table of annotations"),
    "nothing": ("None", "returned NoneType"),
    "too_few": ("self.whole(series).slice(1)", "returned 1,023 rows for 1,024 series: return one row per series"),
    "another_order": ("self.whole(series.take(list(range(len(series)))[::-1]))", "in their order"),
    "a_reply_too_few": (
        "to_annotations(self.settings, self.task, self.seed, series, [Reply('{}')] * (len(series) - 1))",
        r"failed in .*plugin\.py line \d+, in annotate: ValueError: 1,023 replies for 1,024 series: give one",
    ),
    "replies_that_are_texts": (
        "to_annotations(self.settings, self.task, self.seed, series, ['{}'] * len(series))",
        r"in annotate: TypeError: reply 0 is '\{\}': give Reply\(text\)",
    ),
    "an_exception": ("series['nowhere']", r"failed in .*plugin\.py line \d+, in annotate: KeyError"),
}
WHOLE = """    def whole(self, series):
        first = [0] * len(self.task.topics)
        said = [Reply(self.task.reply(truth, first)) for truth in series["truth"].to_pylist()]
        return to_annotations(self.settings, self.task, self.seed, series, said)
"""


@pytest.fixture(scope="module")
def returning(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a plugin with policies and teachers that are all wrong in what they return."""
    teachers = "".join(
        TEACHER.format(name=name).replace("pass", "self.settings, self.task, self.seed = settings, task, seed")
        + WHOLE
        + f"    def annotate(self, series):\n        return {value}\n"
        for name, (value, _) in RETURNING.items()
    )
    return written(
        tmp_path_factory.mktemp("returning"),
        "@add_policy('number', version='1')\ndef p(task, case, settings):\n    return 3\n"
        "@add_policy('empty', version='1')\ndef p(task, case, settings):\n    return ''\n"
        "@add_policy('blank', version='1')\ndef p(task, case, settings):\n    return ' '\n"
        "@add_policy('raising', version='1')\ndef p(task, case, settings):\n    return case.truth['nowhere']\n"
        + teachers,
    )


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("number", r"the policy number, in .*plugin\.py, returned 3: return the reason"),
        ("empty", r"the policy empty, in .*plugin\.py, returned '': return .* or None to keep the response"),
        ("blank", r"the policy blank, in .*plugin\.py, returned ' ': return the reason"),
        (
            "raising",
            rf"the policy raising failed in .*plugin\.py line 14, in p: KeyError: 'nowhere'; {TRACEBACK}=1",
        ),
    ],
)
def test_a_policy_that_fails_or_returns_no_text_is_named(
    returning: str, policy: str, said: str, annotations: pa.Table, series: pa.Table
) -> None:
    recipe = load("laptop", [RULES, f"plugins=[{returning}]", f"curation.policies={{{policy}: null}}"])
    with pytest.raises(PluginError, match=said) as caught:
        curate(SINGLE, annotations, series, recipe.curation)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("kind", "said"), [(kind, said) for kind, (_, said) in RETURNING.items()], ids=RETURNING)
def test_a_teacher_that_fails_or_returns_no_annotations_is_named(
    returning: str, kind: str, said: str, series: pa.Table
) -> None:
    recipe = load("laptop", [f"plugins=[{returning}]", f"teacher.kind={kind}"])
    with pytest.raises(PluginError, match=f"the teacher {kind}.*{said}") as caught:
        in_process.annotate(recipe, series)
    assert len(str(caught.value).splitlines()) == 1


DRAWN = {
    "nan": (
        "np.where(own['{q}'] > 5.5, np.float32(np.nan), time)",
        r"returned nan for 128 points, {q} \d\.\d+ \(",
    ),
    "infinity": ("np.where(own['{q}'] > 5.5, np.float32(np.inf), time)", r"returned inf for 128 points, {q} \d"),
    "too_big": ("np.where(own['{q}'] > 5.5, np.float64(1e300), time)", r"returned inf for 128 points, {q} \d"),
    "a_number": (
        "time if own['{q}'].max() < 5.5 else np.float32(0)",
        r"float32 of shape \(\).*{q} from \d.*to \d",
    ),
    "integers": ("time if own['{q}'].max() < 5.5 else (time > 0).astype(int)", r"int64 of shape \(128, 1\)"),
    "complex": ("time if own['{q}'].max() < 5.5 else time + 1j * time", r"complex64 of shape"),
    "shocks": ("(own['{q}'].max() > 5.5 and shocks.fill(np.nan)) or time", "left shocks with nan"),
    "raises": ("time if own['{q}'].max() < 5.5 else own['x']", r"failed in .* line 5, in curve: KeyError: 'x'"),
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_process_that_is_wrong_only_in_some_of_its_range_stops_generation(name: str, tmp_path: Path) -> None:
    value, said = (text.replace("{q}", f"q_{name}") for text in DRAWN[name])
    plugin = written(tmp_path, process(f"wrong_{name}", value, f"ranges={{'q_{name}': Span(1, 9, 0, 10)}}"))
    recipe = load("laptop", [RULES, f"plugins=[{plugin}]", f"series.mix={{linear: 1, wrong_{name}: 1}}"])
    with pytest.raises(PluginError, match=f"the process wrong_{name}.*{said}") as caught:
        draw_table(recipe.asks, recipe.series, recipe.seed, 0, 8)
    assert plugin in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_settings_whose_validator_fails_are_named(tmp_path: Path) -> None:
    plugin = written(
        tmp_path,
        "from pydantic import field_validator\n"
        "class S(AddedTeacher):\n    @field_validator('kind')\n    def v(cls, value):\n        return {}[value]\n"
        + TEACHER.format(name="invalid").replace("'1'", "'1', settings=S")
        + "    def annotate(self, series): return series\n",
    )
    with pytest.raises(RecipeError, match=r"the settings of invalid failed in .*line 7, in v: KeyError") as caught:
        load("laptop", [f"plugins=[{plugin}]", "teacher={kind: invalid}"])
    assert len(str(caught.value).splitlines()) == 1


def test_whatever_else_a_plugin_raises_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "class S(AddedTeacher):\n    @property\n    def name(self):\n        return {}['x']\n"
    text += TEACHER.format(name="nameless").replace("'1'", "'1', settings=S")
    plugin = written(tmp_path, text + "    def annotate(self, series): return series\n")
    sets = ["--set", f"plugins=[{plugin}]", "--set", "teacher={kind: nameless}"]
    with pytest.raises(SystemExit) as left:
        main(["annotate", "laptop", "--dry-run", "--out", str(tmp_path), *sets])
    assert left.value.code == 2
    said = f"tsd: {plugin} line 6, in name, failed: KeyError: 'x'; {TRACEBACK}=1 prints the traceback\n"
    assert capsys.readouterr().err == said


def test_a_traceback_is_printed_where_the_environment_asks_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = written(tmp_path, "def deep():\n    raise KeyError('x')\ndeep()\n")

    def said() -> list[str]:
        with pytest.raises(SystemExit) as left:
            main(["recipes", "show", "laptop", "--set", f"plugins=[{plugin}]"])
        assert left.value.code == 2
        return capsys.readouterr().err.splitlines()

    monkeypatch.delenv(TRACEBACK, raising=False)
    (line,) = said()
    monkeypatch.setenv(TRACEBACK, "1")
    *before, last = said()
    assert last == line
    assert "Traceback" in before[0]
    assert any("raise KeyError('x')" in each for each in before)


@pytest.mark.parametrize(
    ("metric", "said"),
    [
        (
            lambda predictions, truth: 3,
            r"the metric mine, in .*test_plugins\.py, returned 3: return a number from 0",
        ),
        (
            lambda predictions, truth: None,
            r"mine, in .*test_plugins\.py, returned None: return a number from 0 to 1",
        ),
        (
            lambda predictions, truth: "0.5",
            r"mine, in .*test_plugins\.py, returned '0\.5': return a number from 0",
        ),
        (
            lambda predictions, truth: truth,
            r"mine, in .*test_plugins\.py, returned .{1,70}: return a number from 0",
        ),
        (lambda predictions, truth: float("nan"), "the metric mine, .* returned nan"),
        (
            lambda predictions, truth: 1 / 0,
            r"the metric mine, given 5 predictions, failed in .*test_plugins\.py line \d+, in <lambda>: Zero",
        ),
    ],
)
def test_a_metric_that_returns_no_fraction_is_named(
    metric: additions.Metric, said: str, annotations: pa.Table, series: pa.Table
) -> None:
    table = pa.table({"labels": annotations["labels"], "truth": series["truth"]}).slice(0, 5)
    with pytest.raises(InputError, match=said) as caught:
        metrics.measure("mine", metric, table)
    assert len(str(caught.value).splitlines()) == 1


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


def test_a_study_goes_on_where_its_plugin_lies_elsewhere_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    where = r"there is no file .*before/moved\.py with sha256 \w{16}: run this in the folder that holds moved\.py"
    with pytest.raises(InputError, match=where) as caught:
        recipe_of(before.folder)
    assert f"or copy it into {before.folder}" in str(caught.value)
    monkeypatch.chdir(tmp_path / "after")
    found = recipe_of(before.folder)
    assert found.plugins == (str(tmp_path / "after" / "moved.py"),)
    assert found.task == f"{tmp_path}/after/moved.py:TASK"
    monkeypatch.chdir(tmp_path)
    shutil.copy(tmp_path / "after" / "moved.py", before.folder)
    assert recipe_of(before.folder).plugins == (f"{before.folder}/moved.py",)
    assert load(f"{before.folder}/recipe.yaml", stored=True).asks.name == "moved"
    kept = f"{tmp_path}/gone/moved.py{modules.PIN}{modules.version(after.plugins[0])}:TASK"
    assert named(kept, before.folder).name == "moved"  # as `tsd explain` finds the task of a student's folder


def test_a_study_that_moves_with_its_plugin_needs_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    path = written(tmp_path / "here", process("moves_along"))
    made = load("laptop", [RULES, f"plugins=[{path}]", "series.mix={moves_along: 1}", f"out={tmp_path}/here/runs"])
    provenance.keep(made, "study")
    stored = yaml.safe_load(Path(made.folder, "recipe.yaml").read_text())
    assert re.fullmatch(r"\.\./\.\./plugin\.py#sha256=[0-9a-f]{16}", stored["plugins"][0])
    (tmp_path / "here").rename(tmp_path / "there")
    assert recipe_of(f"{tmp_path}/there/runs/laptop").plugins == (f"{tmp_path}/there/plugin.py",)
    again = load(f"{tmp_path}/there/runs/laptop/recipe.yaml", [f"out={tmp_path}/there/runs"])
    assert again.plugins == (f"{tmp_path}/there/plugin.py",)
    assert provenance.changed_modules(again) == {}


def test_a_check_names_the_task_and_what_each_plugin_adds(tmp_path: Path) -> None:
    task = "from dataclasses import replace\nfrom tsd.tasks import SINGLE\n"
    task = written(tmp_path, f"{task}TASK = replace(SINGLE, name='checked', version='7')\n", "task.py")
    text = (
        process("is_checked")
        + "@add_metric('checked_one', version='1')\ndef m(predictions, truth):\n    return 1\n"
    )
    plugins = written(tmp_path, text), written(tmp_path, "", "nothing.py")
    recipe = load("laptop", [RULES, f"task={task}:TASK", f"plugins=[{', '.join(plugins)}]", f"out={tmp_path}"])
    said: list[str] = []
    assert preflight.report(preflight.before_ray(recipe, "generate"), said.append)
    assert f"ok       task       {task}:TASK: checked, 4 facets, version 7" in said
    assert f"ok       plugin     {plugins[0]}: process is_checked, metric checked_one" in said
    assert f"ok       plugin     {plugins[1]}: loaded" in said


def test_a_plugin_that_changed_is_named_by_the_next_start_and_by_verify(tmp_path: Path) -> None:
    recipes = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        path = written(tmp_path / name, f"# {name}\n")
        recipes.append(load("laptop", [RULES, f"plugins=[{path}]", f"out={tmp_path}"]))
    first, second = recipes
    provenance.keep(first, "study")
    assert provenance.changed_modules(first) == {}
    (line,) = provenance.changed_modules(second).values()
    assert f"{tmp_path}/second/plugin.py has changed since {first.folder} was started (sha256 " in line
    assert "if others would result, change its version" in line
    folders.write_bytes(f"{first.folder}/series", "part-00000000.parquet", b"")
    whole = [line for checked in verify.check(first.folder) for line in checked.lines if "plugin.py" in line]
    assert whole == ["ok         plugin.py: has the content with which the study was started"]
    stored = Path(first.folder, "recipe.yaml")
    stored.write_text(re.sub("sha256=\\w+", "sha256=0123456789abcdef", stored.read_text()))
    lines = [line for checked in verify.check(first.folder) for line in checked.lines]
    (said,) = (line for line in lines if "plugin.py" in line)
    assert said.startswith("changed    plugin.py: ")
    assert "first/plugin.py has changed since" in said
    assert "sha256 0123456789abcdef, now " in said
    with pytest.raises(RecipeError, match="has another content than #sha256=0123456789abcdef: restore it"):
        load(str(stored))


# ---- Kinds and fields of plugins beside those of tsd


KIND = (
    "class S(AddedTeacher):\n    train: int = 0\n    model: str = 'm'\n    modality: str = 'plot'\n"
    + TEACHER.replace("'1'", "'1', settings=S")
)


@pytest.fixture
def kind(tmp_path: Path) -> tuple[str, str]:
    """The override that loads a teacher whose settings have names of built-in ones, and its kind."""
    name = "trains_nothing"
    text = KIND.format(name=name) + "    def annotate(self, series): return series\n"
    return f"plugins=[{written(tmp_path, text)}]", name


def test_a_teacher_with_a_field_called_train_is_no_trained_one(tmp_path: Path, kind: tuple[str, str]) -> None:
    plugins, name = kind
    recipe = load("laptop", [plugins, f"teacher={{kind: {name}, train: 3}}", f"out={tmp_path}"])
    assert recipe.teacher.model_dump() == {"kind": name, "train": 3, "model": "m", "modality": "plot"}
    assert recipe.plots.style == "compact"
    with pytest.raises(RecipeError, match="is not trained locally"):
        recipe.require_own_teacher()
    one = load("laptop", [plugins, f"teacher.kind={name}", "teacher.model=x", "teacher.train=5"])
    assert (one.teacher.model, one.teacher.train) == ("x", 5)
    assert load("laptop", [plugins, f"teacher.kind={name}"]).teacher.train == 0  # laptop's own trains a teacher
    several = load("laptop", [plugins, f"teachers={{a: {{kind: {name}, train: 2}}, b: {{kind: rules}}}}"])
    assert several.teachers["a"].train == 2
    provenance.keep(recipe, "study")
    folders.write_bytes(f"{recipe.folder}/annotations", "part-00000000.parquet", b"")
    assert "teacher" not in [checked.name for checked in verify.check(recipe.folder)]
    assert recipe_of(recipe.folder).teacher == recipe.teacher


def test_stored_settings_of_a_policy_keep_their_names_and_values(tmp_path: Path) -> None:
    plugin = written(
        tmp_path,
        "from typing import Literal\nclass S(Section):\n    modality: Literal['image', 'plot'] = 'image'\n"
        "    view: str = 'numbers'\n"
        "@add_policy('viewed', version='1', settings=S)\ndef q(task, case, settings):\n    return None\n",
    )
    given = "curation.policies={viewed: {modality: plot}}"
    recipe = load("laptop", [RULES, f"plugins=[{plugin}]", given, f"out={tmp_path}"])
    provenance.keep(recipe, "study")
    assert recipe_of(recipe.folder) == recipe
    wrong = complaint(f"plugins=[{plugin}]", "curation.policies={viewed: {modality: numbers}}")
    assert "curation.policies.viewed.modality is 'numbers': input should be" in wrong


@pytest.fixture
def shadows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Teachers and a policy of plugins that are called as sections of a recipe."""
    text = "class Q(Section):\n    most: int = 3\n" + TEACHER.format(name="an_entry")
    text += "    def annotate(self, series): return series\n"
    text += "@add_policy('an_entry', version='1', settings=Q)\ndef q(task, case, settings):\n    return None\n"
    load("laptop", [RULES, f"plugins=[{written(tmp_path, text)}]"])
    for name in ("series", "training", "count", "train_sizes"):
        monkeypatch.setitem(additions.TEACHERS, name, additions.TEACHERS["an_entry"])
    for name in ("students", "rules", "series"):
        monkeypatch.setitem(additions.POLICIES, name, additions.POLICIES["an_entry"])


@pytest.mark.usefixtures("shadows")
@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("series.count=0", "series.count is 0"),
        ("series.cuont=3", "unknown key series.cuont, did you mean 'count'?"),
        ("training.batch_size=big", "training.batch_size is 'big'"),
        ("training.batchsize=3", "unknown key training.batchsize, did you mean 'batch_size'?"),
        ("students.train_sizes=[big]", "students.train_sizes.0 is 'big'"),
        ("evaluation.vllm=maybe", "evaluation.vllm is 'maybe'"),
        ("teachers={series: {kind: series, x: 1}}", "unknown key teachers.series.x"),
        ("teachers={rules: {kind: rules, varied: often}}", "teachers.rules.varied is 'often'"),
        ("curation.policies={rules: {most: many}}", "curation.policies.rules.most is 'many'"),
        ("curation.policies={students: {mots: 1}}", "curation.policies.students.mots, did you mean 'most'?"),
    ],
)
def test_messages_name_the_key_whatever_plugins_are_called(override: str, said: str) -> None:
    assert said in complaint(override)


# ---- Recipes whose plugins are no list


DAMAGED = ("abc", "3", "[1]", "{a: b}", "[[a]]", "null", "['']")
COMMANDS = ("study", "generate", "annotate", "curate", "train", "evaluate", "report", "check")


@pytest.mark.parametrize("plugins", DAMAGED)
def test_plugins_that_are_no_list_are_refused_in_one_line_by_every_command(
    plugins: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(f"extends: laptop\nname: mine\nplugins: {plugins}\n")
    for command in (*((name,) for name in COMMANDS), ("teacher", "train"), ("recipes", "show")):
        with pytest.raises(SystemExit) as left:
            main([*command, str(tmp_path / "mine.yaml")])
        said = capsys.readouterr().err
        assert left.value.code == 2
        assert said.count("\n") == 1
        assert "plugins: must be a list of modules and .py files" in said
    assert "must be a list" in complaint(f"plugins={plugins}")


@pytest.mark.parametrize("plugins", DAMAGED)
def test_a_stored_recipe_whose_plugins_are_no_list_is_damaged(
    plugins: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = load("laptop", [RULES, f"out={tmp_path}"])
    provenance.keep(recipe, "study")
    stored = Path(recipe.folder, "recipe.yaml")
    stored.write_text(stored.read_text().replace("plugins: []", f"plugins: {plugins}"))
    folders.write_bytes(f"{recipe.folder}/series", "part-00000000.parquet", b"")
    with pytest.raises(DataError, match=r"recipe\.yaml is damaged \(plugins must be a list"):
        recipe_of(recipe.folder)
    with pytest.raises(StorageError, match=r"recipe\.yaml is damaged"):
        provenance.require(recipe, "study")
    with pytest.raises(RecipeError, match=r"recipe\.yaml: plugins must be a list"):  # as `tsd look` loads it
        load(str(stored), stored=True)
    with pytest.raises(SystemExit):
        main(["verify", recipe.folder])
    assert capsys.readouterr().err.count("\n") == 1
