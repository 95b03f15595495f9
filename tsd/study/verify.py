"""Verify a study's folder byte by byte: tables, students and records against their stored digests.

Input: a study's folder. Output: one line per table and per finding. Nothing is written. `set_aside` moves damaged
files away so that their stages rebuild them.

Existing files determine which others must exist. A stage starts only once earlier stages are finished, and a row
of the runs table has a record, a student and predictions. Files that nothing else implies are unfinished, not
damaged.
"""

import os
from collections.abc import Collection, Iterator
from dataclasses import replace

import pyarrow as pa
import yaml
from pydantic import ValidationError

from tsd.errors import DataError, InputError, StorageError
from tsd.recipe import ModelTeacher, Recipe, stored
from tsd.recipe.loading import first_problem
from tsd.storage import datasets, folders, manifests
from tsd.storage.schemas import EXAMPLES, PLOTS, REJECTS, TOKENS, fingerprint
from tsd.study import identity, provenance
from tsd.study.context import CPU_SECONDS, TIMINGS
from tsd.study.findings import Checked, Finding
from tsd.tasks import variants
from tsd.teachers.api.journal import ADDRESSES, FOLDER, Journal, parts_with_journals
from tsd.teachers.api.journal_archive import ARCHIVE

PAGES = {"report.html": b"</html>", "scaling.png": b"IEND\xaeB`\x82"}  # ending of each file
TABLES = ("series", "plots", "annotations", "verdicts", "examples", "rejects", "runs")
# No entry of a row is started before all earlier rows are finished.
ORDER: tuple[tuple[str, ...], ...] = (
    ("series",),
    ("plots", "teachers"),  # a study has one, both or none
    ("annotations",),
    ("verdicts",),
    ("examples", "rejects"),
    ("tokenizers",),
    ("tokens",),
    ("trials", "students", "records"),
    ("predictions",),
    ("runs",),
    tuple(PAGES),
)
# Tables that a study with several teachers has only in the teachers' folders.
ONE_TEACHERS = ("annotations", "verdicts", "examples", "rejects", "tokenizers", "tokens")
# Results of a stage, which show that it was run.
STAGES = {
    "generate": ("series",),
    "annotate": ("annotations",),
    "curate": ("verdicts", "examples", "rejects"),
    "train": ("students", "records"),
    "evaluate": ("predictions", "runs"),
    "report": tuple(PAGES),
}


def check(run: str, trusted: bool = False) -> Iterator[Checked]:
    """Check everything in a study's folder.

    trusted: run the modules that its recipe names. Yields one result at a time. Raises StorageError if there is no
    study, InputError if it names modules that may not be run.
    """
    run = run.rstrip("/")
    with folders.access_errors(run):
        begun = any(_begun(run, name) for row in ORDER for name in row)
    if not begun:
        missing = "://" not in run and not os.path.exists(run)
        raise StorageError(
            f"{run} {'does not exist' if missing else 'holds no study'}: name a folder such as runs/laptop"
        )
    yield from _check_study(run, trusted)


def _check_study(run: str, trusted: bool) -> Iterator[Checked]:
    """Check the tables, folders, records and pages of a study, then those of its teachers."""
    recipe, unreadable = _recipe(run, trusted)
    yield Checked(provenance.RECIPE, "can be read" if recipe else "", unreadable)
    if recipe:
        changed = provenance.changed_modules(recipe)
        for name in recipe.outside:
            said = changed.get(name, "has the content with which the study was started")
            yield Checked(stored.title(name), said, changed=name in changed)
    children = sorted({*folders.subfolders(f"{run}/teachers"), *(recipe.teachers if recipe else ())})
    scored = [] if children else _scored(run)
    for name in TABLES:
        after = None if name == "plots" else _after(run, name, children)
        if after or _begun(run, name):
            checked = _check_table(run, name, after, recipe)
            yield checked
            if name == "annotations":
                yield from _check_replies(run, checked)
    for name in sorted({*folders.subfolders(f"{run}/predictions"), *scored}):
        yield _check_table(run, f"predictions/{name}", "its row in runs" if name in scored else None, recipe)
    for name in folders.subfolders(f"{run}/tokens"):
        yield _check_table(run, f"tokens/{name}", None, recipe)
    yield from _check_folders(run, recipe, children)
    if not children:
        yield from _check_records(run, recipe, scored)
    yield from _check_json(run)
    yield from _check_pages(run, children)
    for name in children:
        if not folders.exists(f"{run}/teachers/{name}"):
            yield Checked(f"teachers/{name}", "not begun", finished=False)
            continue
        for checked in _check_study(f"{run}/teachers/{name}", trusted):
            yield replace(checked, name=f"teachers/{name}/{checked.name}")


def _begun(run: str, name: str) -> bool:
    """Whether a table, folder or file has any content. Teachers' folders contain recipes from the start."""
    if name == "teachers":
        places = [f"{run}/teachers/{each}" for each in folders.subfolders(f"{run}/teachers")]
        return any(_begun(place, one) for place in places for row in ORDER for one in row if one != name)
    return folders.exists(f"{run}/{name}") if name in PAGES else bool(folders.names(f"{run}/{name}"))


def _after(run: str, name: str, children: Collection[str]) -> str | None:
    """Return something that exists and requires this to be finished; None if there is nothing."""
    if (children and name in ONE_TEACHERS) or (name == "series" and "/teachers/" in run):
        return None
    row = next(number for number, names in enumerate(ORDER) if name in names)
    return next((later for names in ORDER[row + 1 :] for later in names if _begun(run, later)), None)


def set_aside(findings: list[Finding]) -> None:
    """Move damaged files away, so that their stages find them missing."""
    for finding in findings:
        if finding.part is not None:
            datasets.set_aside(finding.folder, finding.part)
        elif finding.name is not None and finding.remove:
            folders.delete_file(finding.folder, finding.name)
        elif finding.remove and folders.is_unfinished(finding.folder):
            folders.delete_folder(finding.folder)


def stages(run: str) -> list[str]:
    """Return the stages that a study has run, up to the last one with results."""
    run = run.rstrip("/")
    places = [run, *(f"{run}/teachers/{name}" for name in folders.subfolders(f"{run}/teachers"))]
    left = [any(_begun(place, name) for place in places for name in names) for names in STAGES.values()]
    return list(STAGES)[: max((number for number, there in enumerate(left, 1) if there), default=0)]


def recipe_of(run: str, trusted: bool = False) -> Recipe:
    """Return the recipe that made a study, with its current folder. Raises DataError if there is none.

    Its plugins are looked for where the recipe names them, in `run`, and in the current folder. trusted:
    run them. Raises InputError if they may not be run, or if one is in none of these places.
    """
    run = run.rstrip("/")
    content = folders.read_bytes(run, provenance.RECIPE)
    if content is None:
        raise DataError(
            f"{run} has no {provenance.RECIPE}: run the command that made it, which makes what is missing again"
        )
    try:
        fields = yaml.safe_load(content)
        if isinstance(fields, dict):
            provenance.require_layout(run, content)
            fields = stored.relocated(fields, run, trusted=trusted)
        place, _, name = run.rpartition("/")
        return Recipe.model_validate({**fields, "name": name, "out": place or "."})
    except InputError as error:
        raise InputError(f"{run} needs what its recipe names: {error}") from error
    except (yaml.YAMLError, ValueError, TypeError) as error:
        what = first_problem(error) if isinstance(error, ValidationError) else str(error).strip().splitlines()[0]
        raise DataError(
            f"{run}/{provenance.RECIPE} is damaged ({what}): delete it and run the command that made the "
            "study, which makes what is missing again"
        ) from None


def _recipe(run: str, trusted: bool) -> tuple[Recipe | None, tuple[Finding, ...]]:
    try:
        return recipe_of(run, trusted), ()
    except DataError as error:
        return None, (Finding(run, str(error)),)


def _scored(run: str) -> list[str]:
    """Return the ids of the runs table's rows; empty if it cannot be read."""
    runs = datasets.peek(f"{run}/runs", _schemas("runs", None)[0])
    try:
        return [] if runs is None else list(map(str, runs.read(["run_id"])["run_id"].to_pylist()))
    except (DataError, KeyError):
        return []


def _check_table(run: str, name: str, after: str | None, recipe: Recipe | None) -> Checked:
    """Check one table.

    after: something that exists and was made from the finished table, if any. recipe: the study's, if it can be
    read.
    """
    folder = f"{run}/{name}"
    try:
        manifest = manifests.read_manifest(folder)
    except DataError as error:
        wrong = [Finding(folder, what, part) for part, what in datasets.unreadable_parts(folder).items()]
        what = str(error).partition(": ")[2].partition(";")[0]
        return Checked(name, "", (Finding(folder, f"is damaged: {what}", name=manifests.MANIFEST), *wrong))
    if manifest is None and after is None:
        return Checked(name, "not finished", finished=False)
    if manifest is None:
        return Checked(name, "", (Finding(folder, f"is missing, but {after} exists", name=manifests.MANIFEST),))
    findings = [*_check_parts(folder, manifest), *_check_parents(run, name, manifest)]
    if manifest["schema"] not in {fingerprint(schema) for schema in _schemas(name, recipe)}:
        findings.append(Finding(folder, f"has a schema that this version does not know ({manifest['schema']})"))
    if manifest["rows"] != sum(part["rows"] for part in manifest["parts"]):
        findings.append(Finding(folder, "does not have as many rows as its parts"))
    count = len(manifest["parts"])
    return Checked(name, f"{manifest['rows']:,} rows in {count:,} part{'s' * (count != 1)}", tuple(findings))


def _check_parts(folder: str, manifest: manifests.Manifest) -> list[Finding]:
    """Check presence, size and digest of each part. A part with the right digest has the right rows and schema."""
    lost = datasets.wrong_size(folder, manifest)
    findings = [Finding(folder, what, part) for part, what in lost.items()]
    for index, part in enumerate(manifest["parts"]):
        if index not in lost and folders.file_digest(folder, part["name"]) != part["sha256"]:
            findings.append(Finding(folder, "does not have the bytes that were written", index))
    known = {part["name"] for part in manifest["parts"]}
    extra = [name for name in folders.names(folder) if datasets.PART_NAME.fullmatch(name) and name not in known]
    return [
        *findings,
        *(Finding(folder, "is not part of this table", name=name, remove=True) for name in sorted(extra)),
    ]


def _check_parents(run: str, name: str, manifest: manifests.Manifest) -> list[Finding]:
    """Check that the parent tables are unchanged, and that the row counts match."""
    folder, findings = f"{run}/{name}", []
    for parent, digest in manifest["parents"].items():
        place = _place_of(run, parent)
        if manifests.has_damaged_manifest(place):
            continue
        theirs = manifests.read_manifest(place)
        if theirs is None:
            findings.append(Finding(folder, f"was made from {parent}, which does not exist"))
        elif manifests.digest_of(theirs) != digest:
            findings.append(Finding(folder, f"was made from a {parent} that differs from the existing one"))
    if findings:
        return findings
    rows = {table: _rows(run, table) for table in ("series", "annotations", "rejects")}
    wanted = rows["series"] if name in ("plots", "annotations", "verdicts") else None
    if name == "examples" and rows["annotations"] is not None and rows["rejects"] is not None:
        wanted = rows["annotations"] - rows["rejects"]
    if wanted is not None and manifest["rows"] != wanted:
        findings.append(Finding(folder, f"has {manifest['rows']:,} rows instead of {wanted:,}"))
    return findings


def _place_of(run: str, parent: str) -> str:
    """Return the folder of a parent table. With several teachers, the series belong to the whole study."""
    if parent in TABLES:
        own = f"{run}/{parent}"
        above = f"{run.rpartition('/teachers/')[0]}/{parent}"
        return own if folders.exists(own) or "/teachers/" not in run else above
    return f"{run}/teachers/{parent}/runs"  # the runs table of all teachers has each teacher's as parent


def _rows(run: str, table: str) -> int | None:
    place = _place_of(run, table)
    if manifests.has_damaged_manifest(place):
        return None
    manifest = manifests.read_manifest(place)
    return None if manifest is None else int(manifest["rows"])


def _schemas(name: str, recipe: Recipe | None) -> list[pa.Schema]:
    """Return the schemas that a table may have: one per task, and that of the recipe's plugins."""
    own = {"plots": PLOTS, "examples": EXAMPLES, "rejects": REJECTS, "tokens": TOKENS}
    first = name.partition("/")[0]
    tasks = [*variants(), *([recipe.asks] if recipe else [])]
    return [own[first]] if first in own else [getattr(task.tables, first) for task in tasks]


def _check_replies(run: str, table: Checked) -> Iterator[Checked]:
    """Check that all stored paid replies can be read. table: the result for the annotations."""
    annotations = f"{run}/annotations"
    parts, findings = parts_with_journals(annotations), []
    for part in parts:
        try:
            Journal(annotations, part).read()
        except StorageError as error:
            name = f"part-{part:08d}{ARCHIVE}"
            what = str(error).removeprefix(f"{annotations}/{FOLDER}/{name} ")
            # An intact table holds the same replies.
            spare = what != str(error) and table.finished and not table.findings
            findings.append(
                Finding(f"{annotations}/{FOLDER}", what, name=name if what != str(error) else None, remove=spare)
            )
    if parts:
        yield Checked(f"annotations/{FOLDER}", f"{len(parts):,} journals", tuple(findings))


def _check_folders(run: str, recipe: Recipe | None, children: Collection[str]) -> Iterator[Checked]:
    """Check the folders of plain files: students, tokenizers and local teacher."""
    needed: dict[str, str | None] = {}
    if recipe and not children and (after := _after(run, "tokenizers", children)):
        needed = dict.fromkeys(_tokenizers(run, recipe), after)
    trained = recipe and isinstance(recipe.teacher, ModelTeacher) and recipe.teacher.train
    if trained and not children:
        needed["teacher"] = "annotations" if _begun(run, "annotations") else None
    there = [
        f"{kind}/{name}" for kind in ("students", "tokenizers") for name in folders.subfolders(f"{run}/{kind}")
    ]
    for name in (*there, *(name for name in needed if name not in there and name != "teacher"), "teacher"):
        if folders.exists(f"{run}/{name}"):
            yield _check_files(run, name)
        elif after := needed.get(name):
            yield Checked(name, "", (Finding(f"{run}/{name}", f"is missing, but {after} exists"),))


def _tokenizers(run: str, recipe: Recipe) -> list[str]:
    """Names of the tokenizers of trained students, as far as the examples can be read."""
    examples = datasets.peek(f"{run}/examples", EXAMPLES)
    if examples is None:
        return []
    cells = {name.rpartition("-")[0] for name in _records(run)}  # student, train size and seed
    planned = [spec for spec in identity.plan_runs(recipe, examples.digest) if not spec.student.source]
    keys = dict.fromkeys(spec.tokenizer for spec in planned if spec.run_id.rpartition("-")[0] in cells)
    return [f"tokenizers/{key}" for key in keys]


def _check_files(run: str, name: str) -> Checked:
    folder = f"{run}/{name}"
    if folders.is_unfinished(name):
        return Checked(name, "", (Finding(folder, "was not finished by the command that stored it", remove=True),))
    wrong = folders.damage(folder, read=True)
    findings = tuple(Finding(folder, what, name=file, remove=True) for file, what in wrong.items())
    count = len(folders.seals(folder))
    return Checked(
        name, f"{count} files" if count else "not checked: an earlier version wrote no digests", findings
    )


def _records(run: str) -> list[str]:
    return [name for name in folders.names(f"{run}/records") if name.endswith(".json")]


def _check_records(run: str, recipe: Recipe | None, scored: Collection[str]) -> Iterator[Checked]:
    """Check the records and their students. scored: ids of the runs table's rows."""
    folder, findings, names = f"{run}/records", [], _records(run)
    for name in names:
        run_id = name.removesuffix(".json")
        try:
            record = folders.read_fields(folder, name) or {}
        except DataError:
            findings.append(Finding(folder, "is damaged: it holds no record", name=name))
            continue
        if record.get("run_id") != run_id:
            findings.append(Finding(folder, f"is the record of {record.get('run_id')}", name=name, remove=True))
        if not folders.exists(f"{run}/students/{run_id}"):
            findings.append(Finding(folder, "has no student", name=name))
    decoded = folders.subfolders(f"{run}/predictions")
    for run_id in sorted({*scored, *decoded} - {name.removesuffix(".json") for name in names}):
        what = "its row in runs" if run_id in scored else f"predictions/{run_id}"
        findings.append(Finding(folder, f"is missing, but {what} exists", name=f"{run_id}.json"))
    if not names and not findings:
        return
    cells = (
        {f"{student.name}-{train_size}-s{seed}-" for student, train_size, seed in recipe.students.cells()}
        if recipe
        else ()
    )
    left = [cell for cell in cells if not any(name.startswith(cell) for name in names)]
    said = f"{len(names)} finished runs" + (f", {len(left)} of the recipe are missing" if left else "")
    yield Checked("records", said, tuple(findings), finished=not left)


def _check_pages(run: str, children: Collection[str]) -> Iterator[Checked]:
    """Check the report and its figure. The report is written first; one of several teachers has no figure."""
    there = {name: folders.read_bytes(run, name) for name in PAGES}
    for name, ending in PAGES.items():
        content = there[name]
        if content is not None and not content.rstrip().endswith(ending):
            yield Checked(name, "", (Finding(run, "is truncated or empty", name=name),))
        elif content is not None:
            yield Checked(name, "is whole")
        elif name == "report.html" and there["scaling.png"] is not None:
            yield Checked(name, "", (Finding(run, "is missing, but scaling.png exists", name=name),))
        elif name == "report.html" or (there["report.html"] is not None and not children):
            yield Checked(name, "not written yet", finished=False)


def _check_json(run: str) -> Iterator[Checked]:
    replies = f"annotations/{FOLDER}"
    files = [(name, dict) for name in (TIMINGS, CPU_SECONDS, "failures.json", "undecoded.json")]
    for name, kind in (*files, (f"{replies}/{ADDRESSES}", list)):
        folder, _, file = f"{run}/{name}".rpartition("/")
        try:
            found = folders.read_json(folder, file)
        except DataError:
            found = ""
        if not isinstance(found, kind) and folders.exists(f"{run}/{name}"):
            yield Checked(name, "", (Finding(folder, "is damaged", name=file, remove=True),))
