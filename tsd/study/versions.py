"""The versions of the task outside tsd and of the plugins that shape a study's tables, beside its stored recipe.

Keys hold them as hashes only. With this record, a folder of another version is refused by name. Versions of
metrics are left out: their runs table is made again.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Set

from tsd.recipe import AddedTeacher, Recipe, additions
from tsd.recipe.additions import POLICIES, TEACHERS
from tsd.series.processes import added
from tsd.tasks import modules

MARK = b"# versions "
"""Begin of the line in the stored recipe, before its fields."""
Versions = Mapping[str, Mapping[str, str]]
"""By stage and by what has the version, such as "the process sawtooth"."""


def of(recipe: Recipe) -> Versions:
    """The versions that a recipe uses now."""
    generate = {f"the task {recipe.asks.name}": recipe.asks.version} if ":" in recipe.task else {}
    generate |= {f"the process {name}": process.version for name, process in added(recipe.series.mix).items()}
    teacher = recipe.teacher
    asked = isinstance(teacher, AddedTeacher)
    return {
        "generate": generate,
        "annotate": {f"the teacher {teacher.kind}": TEACHERS[teacher.kind].version} if asked else {},
        "curate": {f"the policy {name}": POLICIES[name].version for name in sorted(recipe.curation.policies)},
    }


def to_keep(recipe: Recipe, recorded: Versions, made: Set[str]) -> Versions:
    """What to record: for stages with results the versions that made them, as far as known; else those of now."""
    now = of(recipe)
    kept = {stage: recorded.get(stage, {}) if stage in made else versions for stage, versions in now.items()}
    return {stage: dict(versions) for stage, versions in kept.items() if versions}


def shaped_by(module: str, recipes: Iterable[Recipe]) -> set[str]:
    """The stages whose tables a module outside tsd shapes; all of them if it adds nothing itself.

    recipes: the study's, and those of its teachers. Metrics shape none: the runs table is made again.
    """
    adds = {f"the {what}" for what in additions.of_module(modules.load(module).__name__)}
    shaped: set[str] = set()
    for one in recipes:
        mine = adds | ({f"the task {one.asks.name}"} if one.task.rpartition(":")[0] == module else set())
        shaped |= {stage for stage, versions in of(one).items() if not mine or mine & versions.keys()}
    return shaped


def line(versions: Versions) -> bytes:
    """The line for the stored recipe; empty without versions."""
    return MARK + json.dumps(versions, sort_keys=True).encode() + b"\n" if versions else b""


def read(content: bytes | None) -> Versions:
    """The versions in the content of a stored recipe; empty if it has none, or a line that cannot be read."""
    found = next((each for each in (content or b"").splitlines() if each.startswith(MARK)), b"")
    try:
        versions = json.loads(found.removeprefix(MARK))
    except ValueError:
        return {}
    whole = isinstance(versions, dict) and all(isinstance(each, dict) for each in versions.values())
    return versions if whole else {}


def differences(recipe: Recipe, recorded: Versions, made: Set[str]) -> Iterator[tuple[str, str, str]]:
    """Yield each addition whose results are of another version: what it is, the version then, and the one now."""
    for stage, versions in of(recipe).items():
        for what, now in versions.items():
            then = recorded.get(stage, {}).get(what, now)
            if stage in made and then != now:
                yield what, then, now
