"""How tsd is installed: from its checkout, under a name that is free, and never as a stranger's package."""

import ast
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tsd.errors import EXTRAS, how_to_install

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEXTS = sorted(
    path
    for pattern in (
        "*.md",
        "*.yaml",
        "*.txt",
        "Makefile",
        "docs/**/*.md",
        "docs/**/*.yaml",
        "tsd/**/*",
        "jobs/*.py",
    )
    for path in ROOT.glob(pattern)
    if path.is_file() and path.suffix in ("", ".md", ".yaml", ".txt", ".py", ".j2")
)
# What would fetch the package of that name from an index: pip install tsd, 'tsd[vllm]', uv add tsd, tsd==1
STRANGERS = re.compile(
    r"(?:pip|uv|pipx|poetry|conda)\s+(?:pip\s+)?(?:install|add|run)\s+(?:-\S+\s+)*['\"]?tsd(?![\w./-])|\btsd\[|\btsd[=~><]=\d"
)


def test_no_text_of_the_project_installs_the_package_of_a_stranger() -> None:
    assert len(TEXTS) > 100
    found = {
        str(path.relative_to(ROOT)): match[0]
        for path in TEXTS
        if path.name != "CHANGELOG.md" and (match := STRANGERS.search(path.read_text()))
    }
    assert found == {}


@pytest.mark.parametrize(
    "line", ["pip install 'tsd[vllm]'", "pip install tsd", 'uv pip install -U "tsd"', "uv add tsd", "tsd==0.1.0"]
)
def test_what_would_fetch_it_is_recognised(line: str) -> None:
    assert STRANGERS.search(line)


def test_the_package_has_a_name_of_its_own_and_keeps_its_import_and_its_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == "timeseries-distillation"
    assert project["scripts"] == {"tsd": "tsd.cli:main"}
    assert project["optional-dependencies"]["vllm"] == [EXTRAS["vllm"]]


def test_the_licence_is_apache_2_and_whole() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (project["license"], project["license-files"]) == ("Apache-2.0", ["LICENSE"])
    text = (ROOT / "LICENSE").read_text()
    for part in ("Version 2.0, January 2004", "9. Accepting Warranty", "END OF TERMS AND CONDITIONS", "APPENDIX"):
        assert part in text


def test_an_extra_is_installed_from_the_checkout_or_as_what_it_is(tmp_path: Path, monkeypatch: object) -> None:
    from tsd import errors

    assert how_to_install("vllm") == f"pip install -e '{ROOT}[vllm]'"
    elsewhere = tmp_path / "site-packages" / "tsd" / "errors.py"
    monkeypatch.setattr(errors, "__file__", str(elsewhere))  # type: ignore[attr-defined]
    assert how_to_install("vllm") == "pip install vllm==0.29.0"


def test_no_module_asks_for_the_version_of_an_installed_package_of_ours() -> None:
    for path in (ROOT / "tsd").rglob("*.py"):
        assert not re.search(r"metadata\.\w+\(['\"]tsd['\"]\)", path.read_text())


def test_every_library_that_is_imported_is_declared_and_the_other_way_round() -> None:
    imports = {"pillow": "PIL", "pyyaml": "yaml"}  # where the import has another name
    elsewhere = {"pillow", "vllm"}  # what transformers reads pictures with; of an environment of its own
    declared = {re.match(r"[\w-]+", line)[0] for line in PROJECT["dependencies"]}
    used = set()
    for path in [*(ROOT / "tsd").rglob("*.py"), *(ROOT / "jobs").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                used |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                used.add(str(node.module).partition(".")[0])
    used -= {"tsd", *sys.stdlib_module_names}
    assert {imports.get(name, name) for name in declared - elsewhere} == used - elsewhere


TORCH_BUILD = runpy.run_path(str(ROOT / ".ci" / "torch_build.py"))
CUDA_PLAN = dict.fromkeys(TORCH_BUILD["WHEELS"], "1") | {"torch": TORCH_BUILD["TORCH"], "sympy": "1.14.0"}
CPU_PLAN = {"torch": "2.13.0+cpu", "sympy": "1.14.0"}


def test_the_cuda_download_is_stated_with_how_to_accept_it() -> None:
    assert TORCH_BUILD["refusal"](CUDA_PLAN, "python3.12", "3.12") == (
        "For Python 3.12 pip finds only a CUDA build of torch, a download of 2.7 GB. "
        "To accept it: make setup PYTHON=python3.12 CUDA=yes"
    )
    assert TORCH_BUILD["refusal"](CPU_PLAN, "python3.13", "3.13") is None


def test_a_cuda_build_with_a_package_of_unknown_size_is_stated_roughly() -> None:
    assert "a download of roughly 2.7 GB" in TORCH_BUILD["refusal"](CUDA_PLAN | {"nvidia-new": "1"}, "p", "3.12")
    assert "a download of roughly 2.7 GB" in TORCH_BUILD["refusal"](CUDA_PLAN | {"torch": "2.14.0"}, "p", "3.12")


def test_the_sizes_of_the_cuda_download_belong_to_the_torch_that_is_installed() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert TORCH_BUILD["TORCH"] == pinned["torch"]


# A Python whose environments have a pip that only writes down what it is asked, and answers a dry run with a plan
STAND_IN = r"""#!/bin/sh
case "$*" in
"-c "*print*version_info*) echo {version};;
"-m venv "*) for bin; do bin="$bin/bin"; done; mkdir -p "$bin"; cp "$0" "$bin/python"; cp "$0" "$bin/pip";;
"-m pip "* | install\ *) echo "$*" >> "{log}"; case "$*" in *--dry-run*) cat "{plan}";; esac;;
*) exec "{python}" "$@";;
esac
"""


@pytest.fixture
def set_up(tmp_path: Path):
    """Run `make setup` in a copy of what it reads, with a stand-in for pip; gives its output and pip's calls."""
    if shutil.which("make") is None:
        pytest.skip("needs make")
    checkout, log, plan, python = (tmp_path / name for name in ("checkout", "log", "plan", "python3.12"))
    (checkout / ".ci").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt", ".ci/torch_build.py"):
        shutil.copy(ROOT / name, checkout / name)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}

    def run(
        packages: dict[str, str], *settings: str, version: str = "3.12"
    ) -> tuple[subprocess.CompletedProcess[str], str]:
        install = [{"metadata": {"name": name, "version": version}} for name, version in packages.items()]
        plan.write_text(json.dumps({"install": install}) if packages else "")
        python.write_text(STAND_IN.format(log=log, plan=plan, python=sys.executable, version=version))
        python.chmod(0o755)
        done = subprocess.run(
            ["make", "setup", f"PYTHON={python}", *settings],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return done, log.read_text() if log.exists() else ""

    return run


def test_set_up_stops_before_a_cuda_build_is_downloaded(set_up) -> None:
    done, asked = set_up(CUDA_PLAN)
    assert done.returncode != 0
    said = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("make")]
    assert len(said) == 1, said
    assert "a download of 2.7 GB" in said[0]
    assert said[0].endswith("python3.12 CUDA=yes")
    assert "--dry-run" in asked
    assert "-e ." not in asked


def test_set_up_of_the_default_python_goes_on_and_states_the_download(set_up) -> None:
    done, asked = set_up(CUDA_PLAN, version="3.11")
    assert done.returncode == 0, done.stderr
    assert "a download of 2.7 GB" in done.stderr
    assert "-e .[dev]" in asked


@pytest.mark.parametrize(("plan", "settings"), [(CPU_PLAN, []), (CUDA_PLAN, ["CUDA=yes"])])
def test_set_up_goes_on_with_a_cpu_build_and_with_an_accepted_cuda_build(set_up, plan, settings) -> None:
    done, asked = set_up(plan, *settings)
    assert done.returncode == 0, done.stderr
    assert asked.splitlines()[-1].endswith("-c constraints.txt -e .[dev]")


def test_set_up_stops_where_pip_finds_no_torch(set_up) -> None:
    done, asked = set_up({})
    assert done.returncode != 0
    assert "pip found no torch" in done.stderr
    assert "-e ." not in asked


def test_set_up_names_the_pythons_that_it_takes(set_up) -> None:
    done, asked = set_up(CPU_PLAN, "PYTHON=no-such-python")
    assert done.returncode != 0
    assert "Python 3.11, 3.12 or 3.13 is needed" in done.stdout
    assert asked == ""
    assert PROJECT["requires-python"] == ">=3.11,<3.14"
