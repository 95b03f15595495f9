"""The `tsd` command: what is wrong is one line and exit code 2, before Ray starts or anything is written."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import typer

from tsd import __version__
from tsd.cli import app, main
from tsd.errors import StorageError
from tsd.recipe import load, names
from tsd.storage import datasets

STAGES = ("generate", "annotate", "curate", "train", "evaluate", "report")
COMMANDS = ("study", *STAGES, "explain", "look", "check", "verify", "teacher", "recipes")


@pytest.fixture
def refused(capsys):
    """Run a command that must be refused; gives what it says, one line."""

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert left.value.code == 2
        assert out == ""
        assert err.startswith("tsd: ")
        assert err.count("\n") == 1
        ray = sys.modules.get("ray")
        assert ray is None or not ray.is_initialized()
        return err

    return run


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("series.cuont=10", "series.cuont, did you mean 'count'?"),
        ("training.batch_size=big", "training.batch_size is 'big'"),
        ("series.count=0", "series.count is 0"),
        ("series.split=[0.9,0.9,0.1]", "split must sum to 1"),
        ("students.models=[0.3m]", "did you mean '0.3M'?"),
        ("series.count", "expected a.b=value"),
    ],
)
def test_a_wrong_recipe_is_refused_before_anything_is_written(refused, tmp_path, override, named):
    assert named in refused("study", "laptop", "--out", tmp_path / "out", "--set", override)
    assert not (tmp_path / "out").exists()


def test_a_recipe_file_with_a_wrong_value_names_the_file_and_the_field(refused, tmp_path):
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("extends: laptop\nname: mine\nseries: {length: long}\n")
    said = refused("study", recipe, "--out", tmp_path / "out")
    assert "mine.yaml" in said
    assert "series.length is 'long'" in said
    recipe.write_text("name: [")
    assert "is not YAML" in refused("study", recipe, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_missing_recipe_names_those_there_are(refused, tmp_path):
    assert "did you mean 'laptop'?" in refused("study", "labtop", "--out", tmp_path / "out")
    assert "laptop" in refused("study", tmp_path / "gone.yaml", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["studdy"], "studdy"),
        (["study", "--foo"], "--foo"),
        (["explain"], "file"),
        (["study", "laptop", "more"], "more"),
    ],
)
def test_an_unknown_command_or_option_is_named_with_exit_code_2(capsys, arguments, named):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 2
    err = capsys.readouterr().err
    assert named in err
    assert "Traceback" not in err


def test_recipes_lists_every_recipe_with_a_line_on_what_it_is_for(capsys):
    main(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == names()
    assert "laptop" in names()
    assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)


@pytest.mark.parametrize("name", names())
def test_a_recipe_that_is_shown_loads_to_the_same_recipe(name, tmp_path, capsys):
    main(["recipes", "show", name, "--set", "seed=7"])
    path = tmp_path / "copy.yaml"
    path.write_text(capsys.readouterr().out)
    assert load(str(path)) == load(name, ["seed=7"])


@pytest.mark.parametrize(
    "command", [(), *((name,) for name in COMMANDS), ("recipes", "show"), ("recipes", "reference")]
)
def test_every_command_explains_itself(command, capsys):
    group = typer.main.get_command(app)
    assert set(group.commands) == set(COMMANDS)
    main([*command, "--help"])
    out = capsys.readouterr().out
    assert "Usage:" in out
    explained = group
    for name in command:
        explained = explained.commands[name]
    assert explained.help
    assert explained.help.split()[0] in out
    for parameter in explained.params:
        assert getattr(parameter, "help", None), f"{parameter.name} of {command} has no explanation"


@pytest.mark.parametrize("module", ["tsd", "tsd.cli"])
def test_the_version_is_printed_by_the_command_and_by_python_m(module, capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"tsd {__version__}\n"
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"tsd {__version__}\n", "")


def test_a_shell_completes_the_names_of_commands():
    """As bash asks for it, once `tsd --install-completion` told it how."""
    asked = {"_TSD_COMPLETE": "complete_bash", "COMP_WORDS": "tsd tea", "COMP_CWORD": "1"}
    program = "import sys\nfrom tsd.cli import main\nsys.argv = ['tsd']\nmain()\n"
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, **asked}, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["teacher"], "")


def test_help_comes_at_once_without_the_heavy_libraries():
    program = (
        "import sys\nfrom tsd.cli import main\nmain(['--help'])\n"
        "heavy = {'ray', 'torch', 'transformers', 'mlflow', 'polars', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, timeout=60)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs a folder that nobody can write to")
@pytest.mark.parametrize("stage", ["study", "generate"])
def test_a_folder_that_cannot_be_written_is_refused_before_ray_starts(refused, stage):
    said = refused(stage, "laptop", "--out", "/proc/x")
    assert "cannot write to /proc/x/laptop" in said
    assert "--out" in said
    ray = sys.modules.get("ray")
    assert ray is None or not ray.is_initialized()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_refused_before_ray_starts(refused, small_disk):
    said = refused("study", "laptop", "--out", small_disk)
    assert "MiB free and about" in said
    assert "--out" in said


def test_what_a_full_disk_cut_short_is_not_taken_for_whole(small_disk):
    import numpy as np
    import pyarrow as pa

    schema = pa.schema([("noise", pa.int64())])
    noise = np.random.default_rng(0).integers(0, 2**62, 100_000)  # 800 kB: one fits 1 MiB and two do not
    table = pa.table({"noise": noise}, schema)
    folder = str(small_disk / "series")
    datasets.write_part(folder, 0, table, schema, "key")
    with pytest.raises(StorageError, match="no space left on device; name another folder"):
        datasets.write_part(folder, 1, table, schema, "key")
    assert datasets.finished_parts(folder, "key") == {0: datasets.Part(100_000)}
    assert datasets.find_finished(folder, schema, "key") is None
    assert [path.name for path in (small_disk / "series").iterdir()] == [datasets.part_name(0)]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_command_that_is_stopped_says_how_to_go_on(name, tmp_path):
    recipe = tmp_path / "long.yaml"  # takes seconds to read
    recipe.write_text("about: x\n" + "".join(f"k{i}: [1, 2, 3]\n" for i in range(200_000)))
    program = "import sys, yaml, tsd.recipe, tsd.cli\nprint('ready', flush=True)\ntsd.cli.main(sys.argv[1:])\n"
    process = subprocess.Popen(
        [sys.executable, "-c", program, "study", str(recipe), "--dry-run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(1.0)
        process.send_signal(getattr(signal, name))
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out == ""
    assert err == "tsd: stopped; the same command goes on from here\n"
