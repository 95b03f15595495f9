"""Plugins that a study keeps: where they are, whether they changed, and how they are named in messages."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from support.plugins import RULES, TEACHER, complaint, process, written

from tsd.cli import main
from tsd.cluster import preflight
from tsd.errors import DataError, InputError, RecipeError, StorageError
from tsd.recipe import Recipe, additions, load
from tsd.storage import folders
from tsd.study import provenance, verify
from tsd.study.verify import recipe_of
from tsd.tasks import modules, named

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


SAME = """from dataclasses import replace
from tsd.tasks import SINGLE
TASK = replace(SINGLE, name="in {}")
@add_metric("{}", version="1")
def measure(predictions, truth):
    return 1.0
"""


def named_alike(place: Path, out: Path, order: str, metric: str) -> Recipe:
    """A recipe with two plugins called facets.py, in folders of a place. That in `a` has the task, too."""
    for folder in order:
        (place / folder).mkdir(parents=True, exist_ok=True)
        written(place / folder, SAME.format(folder, f"{metric}_{order}_{folder}"), "facets.py")
    plugins = ", ".join(f"{place}/{folder}/facets.py" for folder in order)
    return load("laptop", [RULES, f"plugins=[{plugins}]", f"task={place}/a/facets.py:TASK", f"out={out}"])


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_plugins_of_one_file_name_are_told_apart_wherever_they_are_now(order: str, tmp_path: Path) -> None:
    made = named_alike(tmp_path / "first", tmp_path, order, "one")
    provenance.keep(made, "study")
    folders.write_bytes(f"{made.folder}/series", "part-00000000.parquet", b"")
    moved = named_alike(tmp_path / "second", tmp_path, order, "one")
    for same in (made, moved):
        provenance.require(same, "study")
        assert provenance.changed_modules(same) == {}
    changed = named_alike(tmp_path / "third", tmp_path, order, "other")
    provenance.require(changed, "study")
    assert set(provenance.changed_modules(changed)) == set(changed.plugins)


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
