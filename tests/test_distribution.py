"""How tsd is installed: from its checkout, under a name that is free, and never as a stranger's package."""

import re
import tomllib
from pathlib import Path

import pytest

from tsd.errors import EXTRAS, how_to_install

ROOT = Path(__file__).parents[1]
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
