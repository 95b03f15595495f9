"""Versions of plugins in a study's folder: a bumped one is refused by name, a changed file stays known."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tsd.errors import StorageError
from tsd.recipe import Recipe, additions, load
from tsd.series import processes
from tsd.storage import folders
from tsd.study import provenance, versions
from tsd.study.verify import recipe_of

PLUGIN = """from tsd.plugins import *

@add_process("{name}_p", version="1")
def curve(own, time, shocks, rng):
    return time

@add_policy("{name}_q", version="1")
def reject(task, case, settings):
    return None

@add_metric("{name}_m", version="1")
def measure(predictions, truth):
    return 1

@add_teacher("{name}_t", version="1")
class Teacher:
    def __init__(self, settings, task, seed):
        pass

    def annotate(self, series):
        return series
"""
TASK = """from dataclasses import replace
from tsd.tasks import SINGLE
TASK = replace(SINGLE, name="{name}", version="{version}")
"""
REGISTERED = {
    "process": (processes.ADDED, "p"),
    "policy": (additions.POLICIES, "q"),
    "metric": (additions.METRICS, "m"),
    "teacher": (additions.TEACHERS, "t"),
}
STAGES = ("series", "annotations", "verdicts")

Bump = Callable[[str, str, str], None]


@pytest.fixture
def bump(monkeypatch: pytest.MonkeyPatch) -> Bump:
    """Change the version of an addition of a kind and name, as a process that loads a changed file does."""

    def change(kind: str, name: str, version: str) -> None:
        registered, letter = REGISTERED[kind]
        key = f"{name}_{letter}"
        monkeypatch.setitem(registered, key, replace(registered[key], version=version))

    return change


def recipe(folder: Path, name: str, task: str = "1") -> Recipe:
    """A recipe that uses a plugin of each kind, and a task outside tsd of this version."""
    place = folder / task
    place.mkdir(exist_ok=True)
    (folder / "plugin.py").write_text(PLUGIN.format(name=name))
    (place / "task.py").write_text(TASK.format(name=f"{name} task", version=task))
    mix, policies, metrics = f"series.mix={{{name}_p: 1}}", f"curation.policies={{{name}_q: null}}", f"[{name}_m]"
    sets = [f"plugins=[{folder}/plugin.py]", f"task={place}/task.py:TASK", mix, policies]
    return load("laptop", [*sets, f"teacher={{kind: {name}_t}}", f"evaluation.metrics={metrics}", f"out={folder}"])


def begin(made: Recipe, *tables: str) -> None:
    """Leave the folder as a study does that has begun these tables."""
    provenance.keep(made, "study")
    for table in tables:
        folders.write_bytes(f"{made.folder}/{table}", "part-00000000.parquet", b"a part")


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("task", "the task bumped task"),
        ("process", "the process bumped_p"),
        ("policy", "the policy bumped_q"),
        ("teacher", "the teacher bumped_t"),
    ],
)
def test_a_bumped_version_is_refused_with_its_name_and_both_versions(
    kind: str, what: str, tmp_path: Path, bump: Bump
) -> None:
    first = recipe(tmp_path, "bumped")
    begin(first, *STAGES)
    provenance.require(first, "study")
    if kind == "task":
        bumped = recipe(tmp_path, "bumped", task="2.0")
    else:
        bump(kind, "bumped", "2.0")
        bumped = recipe(tmp_path, "bumped")
    with pytest.raises(StorageError) as caught:
        provenance.require(bumped, "study")
    assert str(caught.value).startswith(
        f"{first.folder} was made from another recipe: the version of {what} was 1 and is 2.0 now: name another"
    )
    assert len(str(caught.value).splitlines()) == 1


def test_a_version_may_change_until_its_stage_has_begun_and_is_recorded_then(tmp_path: Path, bump: Bump) -> None:
    made = recipe(tmp_path, "later")
    begin(made, "series")
    bump("policy", "later", "2")
    provenance.require(made, "study")
    begin(made, "annotations", "verdicts")
    bump("policy", "later", "3")
    with pytest.raises(StorageError, match="the version of the policy later_q was 2 and is 3 now"):
        provenance.require(made, "study")
    bump("policy", "later", "2")
    bump("metric", "later", "2")
    provenance.require(made, "study")  # the runs table is made again


@pytest.mark.parametrize("line", [b"", b"# versions {\n", b"# versions []\n", b'# versions {"generate": 3}\n'])
def test_a_stored_recipe_without_readable_versions_is_compared_by_keys(
    line: bytes, tmp_path: Path, bump: Bump
) -> None:
    made = recipe(tmp_path, "stored")
    begin(made, "series")
    path = Path(made.folder, provenance.RECIPE)
    recorded = versions.read(path.read_bytes())
    assert recorded["generate"] == {"the task stored task": "1", "the process stored_p": "1"}
    assert recipe_of(made.folder) == made
    path.write_bytes(path.read_bytes().replace(versions.line(recorded), line))
    bump("process", "stored", "2")
    provenance.require(made, "study")
    provenance.keep(made, "study")  # what made the series stays unknown
    assert "generate" not in versions.read(path.read_bytes())
    assert recipe_of(made.folder) == made


def rewritten(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch, policy: str = "1", used: str = "pq"
) -> Recipe:
    """The recipe as another process loads it that finds the plugin's file with another content.

    policy: its version. used: letters of what the recipe uses.
    """
    for registered, letter in REGISTERED.values():
        monkeypatch.delitem(registered, f"{name}_{letter}", raising=False)
    place = Path(tempfile.mkdtemp(dir=folder))
    text = PLUGIN.format(name=name).replace(f'"{name}_q", version="1"', f'"{name}_q", version="{policy}"')
    (place / "plugin.py").write_text(f"# in {place}\n{text}")
    uses = {
        "p": f"series.mix={{{name}_p: 1}}",
        "q": f"curation.policies={{{name}_q: null}}",
        "m": f"evaluation.metrics=[{name}_m]",
    }
    sets = [uses[letter] for letter in used]
    return load("laptop", ["teacher={kind: rules}", f"plugins=[{place}/plugin.py]", f"out={folder}", *sets])


def has_changed(one: Recipe) -> bool:
    """Whether the next start says that the plugin's file changed."""
    return bool(provenance.changed_modules(one))


def test_a_module_that_changed_stays_known_while_there_are_tables_that_it_shapes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(rewritten(tmp_path, "lasting", monkeypatch), "series")
    for policy in ("1", "2"):  # the second is stored
        edited = rewritten(tmp_path, "lasting", monkeypatch, policy)
        provenance.require(edited, "annotate")
        assert has_changed(edited)
        provenance.keep(edited, "annotate")
        assert has_changed(edited)
    stored = versions.read(Path(edited.folder, provenance.RECIPE).read_bytes())
    assert stored["curate"] == {"the policy lasting_q": "2"}
    assert recipe_of(edited.folder, trusted=True) == edited


def test_a_module_counts_as_it_was_when_its_first_table_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(rewritten(tmp_path, "first", monkeypatch))
    edited = rewritten(tmp_path, "first", monkeypatch)
    assert has_changed(edited)
    begin(edited, "series")
    assert not has_changed(edited)


@pytest.mark.parametrize(("used", "lasts"), [("q", False), ("m", False), ("p", True)])
def test_a_module_that_shapes_no_table_that_is_there_is_stored_anew(
    used: str, lasts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(rewritten(tmp_path, f"anew_{used}", monkeypatch, used=used), "series", "annotations")
    edited = rewritten(tmp_path, f"anew_{used}", monkeypatch, used=used)
    assert has_changed(edited)
    provenance.keep(edited, "curate")
    assert has_changed(edited) is lasts


def test_a_study_without_plugins_records_no_versions(tmp_path: Path) -> None:
    made = load("laptop", ["teacher={kind: rules}", f"out={tmp_path}"])
    provenance.keep(made, "study")
    assert versions.MARK not in Path(made.folder, provenance.RECIPE).read_bytes()
