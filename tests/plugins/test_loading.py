"""Plugins and tasks from outside: what is wrong with one is said in one line before anything is computed."""

import re
from pathlib import Path

import pyarrow as pa
import pytest
from support.plugins import RULES, TEACHER, complaint, process, written

from tsd.errors import TRACEBACK, DataError, RecipeError
from tsd.generation.generator import draw_table
from tsd.recipe import load
from tsd.study import provenance
from tsd.study.verify import recipe_of

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
        ["cannot be used", "measure returns", "trend_change"],
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
