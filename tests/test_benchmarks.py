"""The scripts in `benchmarks/`: asking for help starts none, and the tables in the documents are theirs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = sorted(path for path in BENCHMARKS.glob("*.py") if '__name__ == "__main__"' in path.read_text())
HELP, REFUSED = "--help", "--no-such-option"

# All scripts in one process: what they import takes most of the time.
CALLS = """
import contextlib, io, json, runpy, sys
ended = []
for script in sys.argv[2:]:
    for option in sys.argv[1].split():
        said, argv, code = io.StringIO(), sys.argv, None
        sys.argv = [script, option]
        try:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                runpy.run_path(script, run_name="__main__")
        except SystemExit as end:
            code = end.code
        sys.argv = argv
        ended.append([script, option, code, said.getvalue()])
print(json.dumps(ended))
"""


@pytest.fixture(scope="module")
def ended() -> dict[tuple[str, str], tuple[int | None, str]]:
    """Exit status and output of each script with each option. A script that starts its work takes too long."""
    done = subprocess.run(
        [sys.executable, "-c", CALLS, f"{HELP} {REFUSED}", *map(str, SCRIPTS)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, BENCHMARKS)))},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return {(script, option): (code, said) for script, option, code, said in json.loads(done.stdout)}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_benchmark_says_what_it_does_and_refuses_what_it_does_not_know(script: Path, ended: Any) -> None:
    code, said = ended[str(script), HELP]
    assert code == 0, said
    assert script.read_text().partition('"""')[2].partition("\n")[0] in said
    code, said = ended[str(script), REFUSED]
    assert code == 2, said
    assert REFUSED in said


def ablations(*arguments: str) -> str:
    """What `benchmarks/ablations.py` prints."""
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / "ablations.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout


def test_the_tables_of_ablations_are_what_the_script_prints() -> None:
    printed = ablations("--table")
    assert len(printed.splitlines()) > 10
    for part in printed.split("\n\n"):
        assert part.strip() in (ROOT / "docs" / "ablations.md").read_text()


@pytest.mark.parametrize(
    ("cases", "gain", "share", "cost"),
    [
        # 100 of 360 ms two at once are 18 s of 720 s; half as long again without the code
        ([(0.36, 1.5, 100, 2)], 0.5, 0.025, 0.0125),
        # the case that the study does counts alone
        ([(0.36, 1.5, 100, 2), (9.0, 0.5, 0, 1)], 0.5, 0.025, 0.0125),
        # none is used by the study: all count the same
        ([(1.0, 1.2, 0, 1), (3.0, 1.0, 0, 1)], 0.05, 0.0, 0.0),
    ],
)
def test_a_gain_is_weighted_by_what_the_study_does(
    cases: list[tuple[float, float, int, int]],
    gain: float,
    share: float,
    cost: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from ablations import summary  # type: ignore[import-not-found]

    found = summary([dict(zip(("ours", "ratio", "uses", "at_once"), each, strict=True)) for each in cases])
    assert [found.gain, found.share, found.cost] == pytest.approx([gain, share, cost])


@pytest.mark.parametrize(
    ("gain", "cost", "said", "met"),
    [
        (0.5, 0.2, "stays", True),
        (0.05, 0.02, "goes", False),
        (0.05, 0.04, "open: a small gain, but over 3% of the study", False),
    ],
)
def test_a_small_gain_misses_its_bound_and_is_open_where_the_study_would_lose_too_much(
    gain: float, cost: float, said: str, met: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    from ablations import STUDY, bounds, summary, verdict

    seconds = cost / gain * STUDY  # of the study, in one case that it does once
    cases = [{"ours": seconds, "ratio": 1 + gain, "uses": 1, "at_once": 1}]
    assert verdict("plots", summary(cases)) == said
    found, _ = bounds({"plots": {"cases": cases}})
    assert found.met is met
