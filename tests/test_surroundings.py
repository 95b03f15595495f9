"""Whatever a notebook, a cluster or a shell left in the environment, a command works."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SMALL = (
    "series.count=1000",
    "teacher={kind: rules}",
    "students.models=[0.03M]",
    "students.train_sizes=[16]",
    "evaluation={series: 50, validation_examples: 50}",
)
DRAWN = """
import hashlib, io
import numpy as np
from tsd.plots import plotter
from tsd.plots.figures import style
from tsd.recipe import load
recipe = load("laptop", ["teacher={kind: rules}", "plots.style=paper"])
look = plotter.choose_look(recipe.plots, 0, 1)
values = np.arange(128).astype("uint8") % 100
print(hashlib.sha256(plotter.Plotter()([values], [look])[0]).hexdigest())
from tsd.reporting.scaling_figure import STYLE, Figure
with style(STYLE):
    figure = Figure()
    figure.add_subplot(title="a $title$").plot([1, 2])
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
print(hashlib.sha256(drawn.getvalue()).hexdigest())
"""


def run(arguments: list[str], folder: Path, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """Run Python in a folder with these variables added."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def as_ever(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The digests of what is drawn where nothing is set."""
    done = run(["-c", DRAWN], tmp_path_factory.mktemp("plain"))
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "backend", ["module://matplotlib_inline.backend_inline", "module://no.such.module", "nonsense", "TkAgg"]
)
def test_pictures_are_the_same_whatever_backend_a_notebook_asks_for(
    backend: str, as_ever: bytes, tmp_path: Path
) -> None:
    done = run(["-c", DRAWN], tmp_path, MPLBACKEND=backend)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == as_ever


@pytest.mark.parametrize("place", ["named", "beside"])
def test_pictures_are_the_same_whatever_settings_a_person_has(place: str, as_ever: bytes, tmp_path: Path) -> None:
    settings = (
        "text.usetex: True\nfont.size: 30\nbackend: nonsense\nno.such: 3\naxes.facecolor: red\nsavefig.dpi: 9\n"
    )
    (tmp_path / "matplotlibrc").write_text(settings)
    (tmp_path / "other").mkdir()
    named = {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc")} if place == "named" else {}
    done = run(["-c", DRAWN], tmp_path / "other" if named else tmp_path, **named)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == as_ever


def test_matplotlib_in_a_notebook_keeps_what_the_notebook_asked_for(tmp_path: Path) -> None:
    code = "import os, tsd.plots.figures; print(os.environ['MPLBACKEND'])"
    assert run(["-c", code], tmp_path, MPLBACKEND="nonsense").stdout == b"nonsense\n"


JUPYTER = {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "JPY_PARENT_PID": "1", "TERM": "xterm"}
ASCII = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "LC_ALL": "C"}
NO_HOME = {"HOME": "/proc/none", "XDG_CACHE_HOME": "/proc/none", "MPLCONFIGDIR": "/proc/none"}
ODD = {  # what has nothing to do with one another, together: a command takes seconds
    "Jupyter, warnings that are errors": JUPYTER | {"PYTHONWARNINGS": "error"},
    "a narrow terminal without our signs": ASCII | {"COLUMNS": "1", "LINES": "0", "TERM": "dumb", "NO_COLOR": "1"},
    "no home, columns that are no number": NO_HOME | {"COLUMNS": "wide", "FORCE_COLOR": "1"},
}


@pytest.mark.parametrize("environment", ODD.values(), ids=ODD)
def test_a_command_works_in_odd_surroundings(environment: dict[str, str], tmp_path: Path) -> None:
    sets = [word for one in SMALL for word in ("--set", one)]
    done = run(["-m", "tsd.cli", "study", "laptop", "--dry-run", *sets], tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"laptop" in done.stdout


def test_an_error_is_one_line_on_a_terminal_without_our_signs(tmp_path: Path) -> None:
    done = run(["-m", "tsd.cli", "study", "ärger"], tmp_path, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
