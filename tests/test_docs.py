"""The documents against the checkout: layout, links, paths, and the decision records with their index."""

import ast
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
RECORDS = sorted((ROOT / "docs" / "decisions").glob("*.md"))
MOST_WORDS = 200  # of a decision record, its heading included

HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
RECORD = re.compile(r"^## (\d+)\. (.+)$", re.MULTILINE)
INDEXED = re.compile(r"^\| (\d+) \| \[(.+)\]\((.+)\) \|$", re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# A path in code, such as `tests/`, or the script in `python benchmarks/large.py --check`.
PATH = re.compile(r"(?<![\w./-])((?:tsd|tests|benchmarks|jobs|docs)/[\w./-]*)")

every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def anchors(document: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = HEADING.findall(document.read_text())
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def missing_targets(document: Path) -> list[str]:
    """The relative links of a document that lead nowhere, to no file or to no heading of it."""
    missing = []
    for link in LINK.findall(document.read_text()):
        if "://" in link or link.startswith("mailto:"):
            continue
        place, _, anchor = unquote(link).partition("#")
        target = document.parent / place if place else document
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.append(link)
    return missing


def missing_paths(document: Path) -> list[str]:
    """The paths of the checkout that a document names in code and that are not there."""
    code = re.findall(r"`([^`\n]+)`", document.read_text())
    named = {path.rstrip(".") for text in code for path in PATH.findall(text)}
    return sorted(path for path in named if not (ROOT / path).exists())


def records() -> dict[int, tuple[Path, str, str]]:
    """File, heading and whole text of each decision record, by number."""
    found: dict[int, tuple[Path, str, str]] = {}
    for file in RECORDS:
        text = file.read_text()
        for record in re.split(r"^(?=## )", text, flags=re.MULTILINE)[1:]:
            match = RECORD.match(record)
            assert match, f"{file.name}: {record.splitlines()[0]!r} has no number"
            number = int(match[1])
            assert number not in found, f"two records have the number {number}"
            found[number] = file, match[2], record
    return found


def layers() -> list[set[str]]:
    """The layers that `test_architecture` enforces, the lowest first."""
    for node in ast.parse((ROOT / "tests" / "test_architecture.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS":
            return list(ast.literal_eval(node.value))
    raise AssertionError("test_architecture.py has no LAYERS")


def test_the_readme_lays_out_every_folder_and_module_once_and_nothing_else() -> None:
    layout = (ROOT / "README.md").read_text().split("## The layout")[1]
    rows = [
        cell for row in re.findall(r"^\| (`.+?) \|", layout, re.MULTILINE) for cell in re.findall("`(.+?)`", row)
    ]
    there = {f"tsd/{path.name}" for path in (ROOT / "tsd").glob("*.py") if path.name != "__init__.py"}
    there |= {
        f"tsd/{path.name}/"
        for path in (ROOT / "tsd").iterdir()
        if path.is_dir() and (any(path.rglob("*.py")) or any(path.glob("*.yaml")))
    }
    assert sorted(rows) == sorted(there | {"jobs/", "tests/", "benchmarks/", "docs/"})


def test_the_architecture_page_draws_the_layers_that_are_enforced() -> None:
    drawing = (ROOT / "docs" / "architecture.md").read_text().split("```")[1]
    drawn = [set(re.split(r" {2,}", row)[0].split(", ")) for row in drawing.strip().splitlines()]
    assert drawn == [layer - {"tsd"} for layer in reversed(layers())]


@every_document
def test_every_relative_link_leads_somewhere(document: Path) -> None:
    assert missing_targets(document) == []


@every_document
def test_every_path_of_the_checkout_that_is_named_exists(document: Path) -> None:
    assert missing_paths(document) == []


def test_a_decision_record_says_context_decision_and_cost_in_few_words() -> None:
    for number, (_, _, text) in records().items():
        labels = re.findall(r"^\*\*(\w+)\.\*\*", text, re.MULTILINE)
        assert labels == ["Context", "Decision", "Cost"], f"record {number}"
        assert len(text.split()) <= MOST_WORDS, f"record {number} has {len(text.split())} words"


def test_the_index_lists_every_decision_record_in_order() -> None:
    index = INDEXED.findall((ROOT / "docs" / "decisions.md").read_text())
    listed = [(int(number), title, link.partition("#")[0]) for number, title, link in index]
    kept = [(number, title, f"decisions/{file.name}") for number, (file, title, _) in sorted(records().items())]
    assert listed == kept


def test_a_link_and_a_path_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A page\n[self](#a-page) [none](#other) [file](gone.md)\n`tsd/cli.py`, `python tests/gone.py -q`\n"
    )
    assert missing_targets(page) == ["#other", "gone.md"]
    assert missing_paths(page) == ["tests/gone.py"]
