"""Check a run's folder byte by byte: every table, student and record against what its maker wrote down.

In: a run's folder. Out: a line for each table and each finding. Nothing is written; `set_aside` makes room for
what is damaged, so that the stages that made it make it again.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import yaml

from tsd import store
from tsd.errors import DataError, StorageError, TsdError
from tsd.recipe import Recipe
from tsd.schema import EXAMPLES, PLOTS, REJECTS, fingerprint
from tsd.tasks import TASKS

RECIPE = "recipe.yaml"
TABLES = ("series", "plots", "annotations", "verdicts", "examples", "rejects", "runs")
# What a stage leaves behind, by which it is known to have been run.
STAGES = {
    "generate": "series",
    "annotate": "annotations",
    "curate": "examples",
    "train": "records",
    "evaluate": "runs",
    "report": "report.html",
}


@dataclass(frozen=True)
class Finding:
    """Something that is wrong. folder: the table's or the student's. part: of the table, where it is one."""

    folder: str
    what: str
    part: int | None = None
    name: str | None = None
    """Of a file, where it is no part."""
    remove: bool = False
    """Whether the file goes when room is made for what is made again; a stage takes care of any other."""

    def __str__(self) -> str:
        file = store.part_name(self.part) if self.part is not None else self.name
        return f"{file + ' ' if file else ''}{self.what}"


@dataclass(frozen=True)
class Checked:
    """A table, or a folder of plain files, and what was found in it."""

    name: str
    said: str
    findings: tuple[Finding, ...] = ()

    @property
    def lines(self) -> list[str]:
        """To print: one for it, one more for each finding."""
        state = "damaged" if self.findings else "ok"
        said = f": {self.said}" if self.said else ""
        return [f"{state:<8} {self.name}{said}", *(f"         {finding}" for finding in self.findings)]


def check(run: str) -> Iterator[Checked]:
    """Check everything in a run's folder, one after the other. Raises StorageError where there is no run."""
    run = run.rstrip("/")
    children = _children(f"{run}/teachers")
    present = [name for name in TABLES if store.exists(f"{run}/{name}")]
    if not present and not children:
        raise StorageError(f"{run} holds no study: name a folder such as runs/laptop")
    yield _check_recipe(run)
    for name in present:
        yield _check_table(run, name)
    for name in _children(f"{run}/predictions"):
        yield _check_table(run, f"predictions/{name}")
    for name in (*(f"students/{name}" for name in _children(f"{run}/students")), "tokenizer", "teacher"):
        if store.exists(f"{run}/{name}"):
            yield _check_files(run, name)
    if store.exists(f"{run}/records"):
        yield _check_records(run)
    yield from _check_json(run)
    for name in children:
        for checked in check(f"{run}/teachers/{name}"):
            yield Checked(f"teachers/{name}/{checked.name}", checked.said, checked.findings)


def set_aside(findings: list[Finding]) -> None:
    """Make room for what is damaged: the stages that made it find it missing."""
    for finding in findings:
        if finding.part is not None:
            store.set_aside(finding.folder, finding.part)
        elif finding.name is not None and finding.remove:
            store.delete_file(finding.folder, finding.name)


def stages(run: str) -> list[str]:
    """The stages that a run has been through, as far as their tables tell."""
    run = run.rstrip("/")
    places = [run, *(f"{run}/teachers/{name}" for name in _children(f"{run}/teachers"))]
    return [stage for stage, left in STAGES.items() if any(store.exists(f"{place}/{left}") for place in places)]


def recipe_of(run: str) -> Recipe:
    """The recipe that made a run, with the folder in which it lies now. Raises DataError where there is none."""
    run = run.rstrip("/")
    content = store.read_bytes(run, RECIPE)
    if content is None:
        raise DataError(f"{run} has no {RECIPE}: run the command that made it, which makes what is missing again")
    try:
        fields = yaml.safe_load(content)
        place, _, name = run.rpartition("/")
        return Recipe.model_validate({**fields, "name": name, "out": place or "."})
    except (yaml.YAMLError, ValueError, TypeError) as error:
        what = str(error).strip().splitlines()[0]
        raise DataError(
            f"{run}/{RECIPE} is damaged ({what}): delete it and run the command that made the study, which makes "
            "what is missing again"
        ) from None


def _children(folder: str) -> list[str]:
    return sorted(name for name in store.names(folder) if not name.startswith("."))


def _check_recipe(run: str) -> Checked:
    try:
        recipe_of(run)
    except TsdError as error:
        return Checked(RECIPE, "", (Finding(run, str(error)),))
    return Checked(RECIPE, "can be read")


def _check_table(run: str, name: str) -> Checked:
    folder = f"{run}/{name}"
    if store.has_damaged_manifest(folder):
        wrong = [Finding(folder, what, part) for part, what in store.unreadable_parts(folder).items()]
        return Checked(name, "", (Finding(folder, "is no JSON", name=store.MANIFEST), *wrong))
    manifest = store.read_json(folder, store.MANIFEST)
    if manifest is None:
        return Checked(name, "not finished")
    findings = [*_check_parts(folder, manifest), *_check_parents(run, name, manifest)]
    if manifest["schema"] not in {fingerprint(schema) for schema in _schemas(name)}:
        findings.append(Finding(folder, f"has a schema that this version does not know ({manifest['schema']})"))
    if manifest["rows"] != sum(part["rows"] for part in manifest["parts"]):
        findings.append(Finding(folder, "does not have as many rows as its parts"))
    count = len(manifest["parts"])
    return Checked(name, f"{manifest['rows']:,} rows in {count:,} part{'s' * (count != 1)}", tuple(findings))


def _check_parts(folder: str, manifest: Mapping[str, Any]) -> list[Finding]:
    """Each part's presence, size and bytes. A part with the bytes of its manifest has its rows and its schema."""
    lost = store.wrong_size(folder, manifest)
    findings = [Finding(folder, what, part) for part, what in lost.items()]
    for index, part in enumerate(manifest["parts"]):
        if index not in lost and store.file_digest(folder, part["name"]) != part["sha256"]:
            findings.append(Finding(folder, "does not have the bytes that were written", index))
    known = {part["name"] for part in manifest["parts"]}
    extra = [name for name in store.names(folder) if store.PART_NAME.fullmatch(name) and name not in known]
    return [
        *findings,
        *(Finding(folder, "is no part of this table", name=name, remove=True) for name in sorted(extra)),
    ]


def _check_parents(run: str, name: str, manifest: Mapping[str, Any]) -> list[Finding]:
    """Whether the tables from which one was made are still those that lie there, and as long."""
    folder, findings = f"{run}/{name}", []
    for parent, digest in manifest["parents"].items():
        place = _place_of(run, parent)
        if place is None or store.has_damaged_manifest(place):
            continue
        theirs = store.read_json(place, store.MANIFEST)
        if theirs is None:
            findings.append(Finding(folder, f"was made from {parent}, which is not there"))
        elif store.digest(theirs) != digest:
            findings.append(Finding(folder, f"was made from another {parent} than lies there"))
    if findings:
        return findings
    rows = {table: _rows(run, table) for table in ("series", "annotations", "rejects")}
    wanted = rows["series"] if name in ("plots", "annotations", "verdicts") else None
    if name == "examples" and rows["annotations"] is not None and rows["rejects"] is not None:
        wanted = rows["annotations"] - rows["rejects"]
    if wanted is not None and manifest["rows"] != wanted:
        findings.append(Finding(folder, f"has {manifest['rows']:,} rows and not {wanted:,}"))
    return findings


def _place_of(run: str, parent: str) -> str | None:
    """Where a parent lies: the series of a study with several teachers are those of the whole."""
    if parent in TABLES:
        own = f"{run}/{parent}"
        above = f"{run.rpartition('/teachers/')[0]}/{parent}"
        return own if store.exists(own) or "/teachers/" not in run else above
    whole = f"{run}/teachers/{parent}/runs"  # the runs of all teachers name each teacher's
    return whole if store.exists(whole) else None


def _rows(run: str, table: str) -> int | None:
    place = _place_of(run, table)
    if place is None or store.has_damaged_manifest(place):
        return None
    manifest = store.read_json(place, store.MANIFEST)
    return None if manifest is None else int(manifest["rows"])


def _schemas(name: str) -> list[pa.Schema]:
    """The schemas that a table may have, one a task."""
    own = {"plots": PLOTS, "examples": EXAMPLES, "rejects": REJECTS}
    first = name.partition("/")[0]
    return [own[first]] if first in own else [getattr(task.tables, first) for task in TASKS.values()]


def _check_files(run: str, name: str) -> Checked:
    folder = f"{run}/{name}"
    wrong = store.damage(folder, read=True)
    findings = tuple(Finding(folder, what, name=file, remove=True) for file, what in wrong.items())
    count = len(store.seals(folder))
    return Checked(
        name, f"{count} files" if count else "not checked: an earlier version wrote no digests", findings
    )


def _check_records(run: str) -> Checked:
    folder, findings, names = f"{run}/records", [], _children(f"{run}/records")
    for name in names:
        run_id = name.removesuffix(".json")
        try:
            record = store.read_json(folder, name)
        except DataError:
            findings.append(Finding(folder, "is no JSON", name=name))
            continue
        if record.get("run_id") != run_id:
            findings.append(Finding(folder, f"is the record of {record.get('run_id')}", name=name, remove=True))
        if not store.exists(f"{run}/students/{run_id}"):
            findings.append(Finding(folder, "has no student", name=name))
    return Checked("records", f"{len(names)} finished runs", tuple(findings))


def _check_json(run: str) -> Iterator[Checked]:
    for name in ("timings.json", "failures.json"):
        try:
            store.read_json(run, name)
        except DataError:
            yield Checked(name, "", (Finding(run, "is no JSON", name=name, remove=True),))
