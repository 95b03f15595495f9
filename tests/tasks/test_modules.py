"""Modules outside tsd: by name and content, wherever their file is, and in processes that lack the file."""

import importlib
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from support.commands import TSD

from tsd.cluster import node_checks
from tsd.errors import InputError, PluginError, TsdError
from tsd.recipe import load
from tsd.storage import datasets
from tsd.study import provenance
from tsd.tasks import SINGLE, modules, trust

SERIES = SINGLE.tables.series

TEXT = "class Kept:\n    '''Something that is pickled by its module's name.'''\n\n\nVALUE = {value}\n"


def written(folder: Path, value: str, name: str = "held.py") -> str:
    """The path of a file with this value."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(TEXT.format(value=value))
    return str(folder / name)


def test_a_module_is_the_same_wherever_its_file_is_and_another_one_with_another_content(tmp_path: Path) -> None:
    first, moved = written(tmp_path / "a", "1"), written(tmp_path / "b", "1")
    assert modules.load(first) is modules.load(moved)
    other = modules.load(written(tmp_path / "c", "2"))
    assert other is not modules.load(first)
    assert (other.VALUE, modules.load(first).VALUE) == (2, 1)
    assert modules.version(first) == modules.version(moved)


def test_a_name_with_a_digest_finds_a_file_that_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, study, here = tmp_path / "old", tmp_path / "study", tmp_path / "here"
    name = modules.pinned(written(old, "3"), str(study))
    assert name.startswith("../old/held.py#sha256=")
    assert modules.found(name, str(study)) == f"{old}/held.py"
    (old / "held.py").unlink()
    with pytest.raises(InputError, match=r"there is no file .*old/held\.py with sha256") as caught:
        modules.found(name, str(study))
    assert len(str(caught.value).splitlines()) == 1
    written(here, "4")  # of the same name with another content
    monkeypatch.chdir(here)
    with pytest.raises(InputError, match="there is no file"):
        modules.found(name, str(study))
    written(study, "3")
    assert modules.found(name, str(study)) == f"{study}/held.py"
    (study / "held.py").unlink()
    written(here, "3")
    assert modules.found(name, str(study)) == f"{here}/held.py"


def test_another_content_at_the_same_place_is_refused_or_accepted(tmp_path: Path) -> None:
    path = written(tmp_path, "5")
    name = f"{path}{modules.PIN}0123456789abcdef"
    with pytest.raises(InputError, match="has another content than #sha256=0123456789abcdef: restore it"):
        modules.found(name)
    assert modules.found(name, changed=True) == path
    assert modules.found("json#sha256=0123456789abcdef", changed=True) == "json"
    with pytest.raises(InputError, match="json has another content"):
        modules.found("json#sha256=0123456789abcdef")
    assert modules.found(modules.pinned("json")) == "json"


def test_a_file_reaches_a_process_that_lacks_it(tmp_path: Path) -> None:
    path = written(tmp_path / "gone", "6")
    module = modules.load(path)
    sent = modules.sent(path), modules.sent("json")
    assert sent[1].content is None
    (tmp_path / "sent").write_bytes(pickle.dumps((sent, pickle.dumps(module.Kept()))))
    shutil.rmtree(tmp_path / "gone")
    code = (
        "import pickle, sys\n"
        "from pathlib import Path\n"
        "from tsd.tasks import modules\n"
        "sent, kept = pickle.loads(Path(sys.argv[1]).read_bytes())\n"
        "loaded = [one.load() for one in sent]\n"
        "name = modules.pinned(sent[0].name)\n"
        "print(loaded[0].VALUE, modules.load(sent[0].name) is loaded[0], modules.found(name) == sent[0].name)\n"
        "print(type(pickle.loads(kept)).__module__ == loaded[0].__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "sent")],
        cwd=tmp_path,
        env={"PYTHONPATH": str(Path(modules.__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == ["6", "True", "True", "True"], done.stderr


def test_what_a_file_raises_is_pickled_as_one_line_with_its_traceback(tmp_path: Path) -> None:
    path = tmp_path / "raises.py"
    path.write_text("def deep():\n    return {}['x']\n\n\ndeep()\n")
    with pytest.raises(
        PluginError, match=r"raises\.py cannot be loaded: KeyError: 'x' \(.* line 2, in deep"
    ) as caught:
        modules.load(str(path))
    again = pickle.loads(pickle.dumps(caught.value))
    assert isinstance(again, TsdError)
    assert str(again) == str(caught.value)
    assert "return {}['x']" in again.trace
    path.write_text("VALUE = 7\n")
    assert modules.load(str(path)).VALUE == 7


def test_a_file_that_cannot_be_decoded_or_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "binary.py"
    path.write_bytes(b"VALUE = '\xff'\n")
    with pytest.raises(PluginError, match=r"binary\.py cannot be loaded"):
        modules.load(str(path))
    with pytest.raises(InputError, match="there is no file"):
        modules.load(str(tmp_path / "gone.py"))


@pytest.mark.parametrize("differs", [None, "plug.py", "needs.py", "__init__.py", "plug.py gone", "needs.py gone"])
def test_a_package_of_another_content_on_a_node_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, differs: str | None
) -> None:
    name = f"spread_{re.sub(r'[^a-z]', '_', str(differs))}"
    driver, node = tmp_path / "driver", tmp_path / "node"
    (driver / name).mkdir(parents=True)
    (driver / name / "__init__.py").write_text("")
    (driver / name / "needs.py").write_text("VALUE = 1\n")
    (driver / name / "plug.py").write_text("from . import needs\n")
    shutil.copytree(driver, node)
    (node / name / "more.py").write_text("")  # which the driver has not loaded
    if differs:
        file, _, gone = differs.partition(" ")
        (node / name / file).write_text("needs = 2\n")
        if gone:
            (node / name / file).unlink()
    monkeypatch.syspath_prepend(str(driver))
    modules.load(f"{name}.plug")
    (driver / name / "needs.py").write_text("VALUE = 3\n")  # edited after the driver loaded it
    need = node_checks.Need(str(tmp_path), "token", outside=(modules.sent(f"{name}.plug"),))
    (tmp_path / "need").write_bytes(pickle.dumps(need))
    code = (
        "import pickle, sys\n"
        "from pathlib import Path\n"
        "from tsd.cluster import node_checks\n"
        "print(node_checks._outside_fault(pickle.loads(Path(sys.argv[1]).read_bytes())))\n"
    )
    paths = f"{Path(modules.__file__).parents[2]}:{node}"
    words = [sys.executable, "-c", code, str(tmp_path / "need")]
    done = subprocess.run(words, env={"PYTHONPATH": paths}, capture_output=True, text=True, timeout=120)
    said = done.stdout.strip()
    assert said.count("\n") == 0, done.stderr
    if differs is None:
        assert said == "None"
    elif differs == "plug.py gone":
        assert said.startswith(f"lacks the plugin {name}.plug (there is no module")
    elif differs == "needs.py gone":
        assert "cannot use a plugin" in said
    else:
        whole = name if differs == "__init__.py" else f"{name}.{differs.removesuffix('.py')}"
        assert said.startswith(f"has another {whole} than the driver (sha256 ")
        assert said.endswith(": install the same there")


@pytest.mark.parametrize(
    ("name", "package", "unlike"),
    [("facets", "facets", None), ("team.facets", "team", None), ("team.facets", "team", "team.needs")],
)
def test_other_modules_of_a_namespace_package_may_differ_between_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, package: str, unlike: str | None
) -> None:
    company = f"company_{package}_{unlike is None}".lower()
    (tmp_path / "shared" / company / "team").mkdir(parents=True)
    for file in ("facets", "team/__init__", "team/facets", "team/needs"):
        (tmp_path / "shared" / company / f"{file}.py").write_text("VALUE = 1\n")
    (tmp_path / "driver" / company).mkdir(parents=True)
    (tmp_path / "driver" / company / "monitor.py").write_text("VALUE = 2\n")
    for path in ("shared", "driver"):
        monkeypatch.syspath_prepend(str(tmp_path / path))
    for one in ("monitor", "facets", "team.needs"):
        importlib.import_module(f"{company}.{one}")
    sent = modules.sent(f"{company}.{name}")
    assert {one for one, _ in sent.files} >= {f"{company}.{name}"}
    assert all(one.startswith(f"{company}.{package}") for one, _ in sent.files)
    if unlike:
        (tmp_path / "shared" / company / f"{unlike.replace('.', '/')}.py").write_text("VALUE = 3\n")
    (tmp_path / "sent").write_bytes(pickle.dumps(sent))
    code = "import pickle, sys\npickle.loads(open(sys.argv[1], 'rb').read()).load()\n"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "sent")],
        env={"PYTHONPATH": f"{Path(modules.__file__).parents[2]}:{tmp_path}/shared"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode == 0) == (unlike is None), done.stderr
    assert unlike is None or f"this node has another {company}.{unlike} than the driver" in done.stderr


# ---- Code that a folder names


TASK = """import os
os.close(os.open("{mark}", os.O_CREAT))
from dataclasses import replace
from tsd.tasks import SINGLE
TASK = replace(SINGLE, name="{name}")
"""


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A folder with a student and a study whose module leaves the file `ran` beside it."""
    folder = tmp_path / "foreign"
    folder.mkdir()
    text = TASK.format(mark=tmp_path / "ran", name="foreign")
    (folder / "theirs.py").write_text(text)
    name = f"/nowhere/theirs.py{modules.PIN}{modules._digest(text.encode())}"
    (folder / "config.json").write_text("{}")
    (folder / "tsd.json").write_text(f'{{"task": "{name}:TASK", "modality": "text", "length": 64}}')
    fields = {**load("laptop").model_dump(mode="json"), "plugins": [name], "task": f"{name}:TASK"}
    (folder / "recipe.yaml").write_bytes(provenance.LAYOUT + yaml.safe_dump(fields, sort_keys=False).encode())
    datasets.write_part(f"{folder}/series", 0, SERIES.empty_table(), SERIES, "key")
    datasets.commit(f"{folder}/series", SERIES, "key", 1, {})
    (tmp_path / "x.csv").write_text("v\n" + "\n".join(map(str, range(64))))
    return folder


READING = {
    "explain": ("explain", "../x.csv", "--model", "."),
    "verify": ("verify", "."),
    "repair": ("verify", ".", "--repair"),
    "look": ("look", ".", "--plots"),
}


@pytest.mark.parametrize("command", READING)
@pytest.mark.parametrize("inside", [False, True])
def test_code_that_a_folder_names_runs_only_with_consent(foreign: Path, command: str, inside: bool) -> None:
    """inside: the command is run in the folder."""
    here = foreign if inside else foreign.parent
    words = [word.replace("../x.csv", f"{foreign.parent}/x.csv") for word in READING[command]]
    words = [str(foreign) if word == "." and not inside else word for word in words]

    def said(*more: str) -> str:
        done = subprocess.run([*TSD, *words, *more], cwd=here, capture_output=True, text=True, timeout=300)
        return done.stderr

    refused = said()
    assert refused.count("\n") == 1
    assert "theirs.py: read it, and add --trust-code if you trust it" in refused
    assert not (foreign.parent / "ran").exists()
    if command != "repair":  # which would start Ray
        assert "--trust-code" not in said("--trust-code")
        assert (foreign.parent / "ran").exists()


def test_a_module_by_its_dotted_name_needs_consent_as_well_and_one_that_was_run_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(tmp_path, "3", "dotted_foreign.py")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match="names code that would be run, dotted_foreign: read it"):
        trust.require([f"dotted_foreign{modules.PIN}0123456789abcdef"], "a/student")
    assert "dotted_foreign" not in sys.modules
    path = written(tmp_path / "mine", "33")
    with pytest.raises(InputError, match=r"^hub/student names code that would be run, hub/student/held\.py: "):
        trust.require([path], str(tmp_path / "mine"), "hub/student")
    modules.load(path)
    modules.load("dotted_foreign")
    trust.require(["dotted_foreign", path, modules.pinned(path)], "a/student")
    (tmp_path / "mine" / "held.py").write_text("VALUE = 34\n")
    assert modules.load(path).VALUE == 33  # the content that was run before
    with pytest.raises(InputError, match="names code"):
        trust.require([str(shutil.copytree(tmp_path / "mine", tmp_path / "copy") / "held.py")], "a/student")
