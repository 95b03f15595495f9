"""Provenance of a study's folder: the recipe of its tables, stored once and compared with every later recipe.

The recipe is stored as `recipe.yaml`, with the versions of plugins, see `tsd.study.versions`. A later recipe may
differ in settings that only concern machines and in stages that have no results yet. It may add students, train
sizes, seeds and teachers. Any other difference is refused before anything is written.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import yaml
from pydantic import ValidationError

from tsd.errors import InputError, StorageError
from tsd.recipe import ModelTeacher, Recipe, Student, stored, to_yaml
from tsd.recipe.loading import first_problem
from tsd.storage import folders, keys
from tsd.study import versions
from tsd.tasks import modules

RECIPE = "recipe.yaml"
LAYOUT = b"# layout 3 of a study's folder\n"
"""First line of the stored recipe. Change it whenever older folders cannot be continued: they are refused."""
MADE = {
    "generate": ("series",),
    "annotate": ("annotations",),
    "curate": ("verdicts", "examples", "rejects"),
    "train": ("trials", "students", "records"),
    "evaluate": ("predictions", "runs"),
}
"""Folders that exist once a stage has started."""
GROWS = ("study", "train")
"""Commands that train missing students."""
LATER = ("evaluate", "report")
"""Commands that use existing students."""
BY_NAME = ("students", "teachers")
"""Sections that may grow later. Their entries are compared one by one."""


@dataclass(frozen=True)
class Difference:
    """A field in which a recipe differs from the one that made a folder."""

    folder: str
    path: str
    was: object
    now: object

    def __str__(self) -> str:
        return f"{self.path} was {_short(self.was)} and is {_short(self.now)} now"


def require(recipe: Recipe, command: str) -> None:
    """Raise StorageError if the study's folder holds tables that this recipe does not produce. Writes nothing."""
    found = [*_differences(recipe, command)]
    for one in recipe.by_teacher.values():
        found += _differences(one, command)
    if not found:
        return
    first, others = found[0], [difference.path for difference in found[1:]]
    more = f" (and {', '.join(others[:3])}{', …' if len(others) > 3 else ''})" if others else ""
    first_train = "run `tsd train` with this recipe first, " if first.path.startswith("students.") else ""
    raise StorageError(
        f"{first.folder} was made from another recipe: {first}{more}: "
        f"{first_train if command in LATER else ''}name another folder with --out or --set name=, or set it back"
    )


def keep(recipe: Recipe, command: str) -> None:
    """Store the recipe in each folder without one, or in which this command adds to the stored recipe.

    While a module shapes a table that was begun, its digest stays that of the content which began it. `require`
    must have passed.
    """
    each = (recipe, *recipe.by_teacher.values())
    begun = {stage for one in each for stage in _made(one.folder)}
    shaping = {name for name in recipe.outside if versions.shaped_by(name, each) & begun}
    for one in each:
        there, made = read(one), _made(one.folder)
        recorded = _recorded(one.folder)
        kept = versions.to_keep(one, recorded, made)
        digests = stored.digests(_read_fields(one.folder) or {}, one)
        earlier = {name: digest for name, digest in digests.items() if name in shaping}
        differs = there is None or _identity(there) != _identity(one) or kept != recorded
        if "evaluate" not in begun:  # else a metric may have changed without a new version
            differs |= any(digest != earlier.get(name, modules.version(name)) for name, digest in digests.items())
        if there is None or (differs and ("train" not in made or command in (*GROWS, *LATER))):
            text = to_yaml(one, stored=True, earlier=earlier).encode()
            folders.write_bytes(one.folder, RECIPE, LAYOUT + versions.line(kept) + text)


def read(recipe: Recipe) -> Recipe | None:
    """Return the recipe stored in a folder, with the name and location of `recipe` and of its modules.

    None if there is none; then only the tables' keys can be compared. A stored module is the one of the same name
    that `recipe` names, wherever its file is now. No other is run, since nobody but the folder asks for it: where
    the stored recipe cannot be read without it, the folder is refused unless it has no results.
    Raises StorageError if the file is damaged, of an earlier version, or cannot be read with the recipe's modules.
    """
    fields = _read_fields(recipe.folder)
    if fields is None:
        return None
    placed = {"name": recipe.name, "out": recipe.out, "plugins": recipe.plugins}
    try:
        moved = {**fields, **placed, "task": _moved(fields, recipe)}
        return Recipe.model_validate(stored.relocated(moved, recipe.folder))
    except (ValidationError, InputError) as error:
        if not _begun(recipe.folder):
            return None
        raise StorageError(_unreadable(fields, recipe, error)) from error


def changed_modules(recipe: Recipe) -> dict[str, str]:
    """Return each plugin, and the task's module, that changed since the recipe was stored, with one line about it.

    Raises StorageError as `read` does.
    """
    return dict(stored.changes(_read_fields(recipe.folder) or {}, recipe))


def _read_fields(folder: str) -> dict[str, object] | None:
    """Return the fields of a stored recipe under current names; None without one. Raises StorageError."""
    content = folders.read_bytes(folder, RECIPE)
    if content is None:
        return None
    try:
        fields = yaml.safe_load(content)
        whole = isinstance(fields, dict) and "tracking" in fields  # the last section
        modules.listed(fields.get("plugins", []) if whole else [])
    except (yaml.YAMLError, UnicodeDecodeError, InputError):
        whole = False
    if not whole:
        raise StorageError(
            f"{folder}/{RECIPE} is damaged: delete it; the recipe is then compared with the tables' keys"
        )
    require_layout(folder, content)
    found: dict[str, object] = fields
    return found


def _moved(fields: Mapping[str, object], recipe: Recipe) -> object:
    """The task of stored fields, with the path that its module has in a recipe that names the same one."""
    written = fields.get("task")
    module, colon, attribute = str(written).rpartition(":")
    return f"{stored.matched(fields, recipe).get(module, module)}:{attribute}" if colon else written


def _unreadable(fields: Mapping[str, object], recipe: Recipe, error: ValidationError | InputError) -> str:
    """Say in one line why a stored recipe cannot be read with the modules of another one, and what to do."""
    folder, elsewhere = recipe.folder, "name another folder with --out or --set name="
    known = {stored.title(one) for one in recipe.outside}
    lacking = [one for one in stored.modules_of(fields) if stored.title(one) not in known]
    if lacking:
        names = " and ".join(modules.unpinned(modules.located(one, folder)) for one in lacking)
        return (
            f"{folder} was made with {names}, which this recipe does not name: name it in plugins or task again, "
            f"or {elsewhere}"
        )
    what = first_problem(error) if isinstance(error, ValidationError) else str(error)
    return (
        f"{folder}/{RECIPE} cannot be read with this recipe's plugins ({what}): restore them, delete the file "
        f"(only the tables' keys are compared then), or {elsewhere}"
    )


def require_layout(folder: str, content: bytes) -> None:
    """Raise StorageError if a stored recipe was written by an earlier version. content: of the file."""
    if not content.startswith(LAYOUT):
        raise StorageError(
            f"{folder} was made by an earlier version of tsd: finish it with that version, or name another folder "
            "with --out"
        )


def _differences(recipe: Recipe, command: str) -> Iterator[Difference]:
    """Yield the differences between a recipe and the one that made its folder."""
    old, folder = read(recipe), recipe.folder
    if old is None:
        return
    made = _made(folder)
    for what, then, current in versions.differences(recipe, _recorded(folder), made):
        yield Difference(folder, f"the version of {what}", then, current)
    was, now = dict(_fixed(old, made)), dict(_fixed(recipe, made))
    for path in [*was, *(path for path in now if path not in was)]:
        if was.get(path) != now.get(path):
            yield Difference(folder, path, was.get(path), now.get(path))
    if "annotate" in made and recipe.teachers and not old.teachers:
        yield Difference(folder, "teacher", old.teacher.name, ", ".join(recipe.teachers))
    if "train" in made:
        yield from _lost_students(old, recipe, command)
    for name, teacher in old.teachers.items():
        if name not in recipe.teachers and "annotate" in _made(f"{folder}/teachers/{name}"):
            yield Difference(folder, f"teachers.{name}", teacher.name, None)


def _recorded(folder: str) -> versions.Versions:
    return versions.read(folders.read_bytes(folder, RECIPE))


def _made(folder: str) -> set[str]:
    """Return the stages that have results in a folder."""
    there = set(folders.names(folder))
    return {
        stage
        for stage, tables in MADE.items()
        if any(table in there and folders.names(f"{folder}/{table}") for table in tables)
    }


def _begun(folder: str) -> bool:
    """Whether any stage has results in a folder, or in those of its teachers."""
    names = [f"{folder}/teachers/{name}" for name in folders.names(f"{folder}/teachers")]
    return any(map(_made, (folder, *names)))


def _fixed(recipe: Recipe, made: set[str]) -> Iterator[tuple[str, object]]:
    """Yield path and value of each field that may no longer change, except students."""
    with_plots = _shows_plots(recipe)
    for path, value, stage in recipe.shaped():
        section = path.partition(".")[0]
        if stage not in made or section in BY_NAME or (section == "plots" and not with_plots):
            continue
        yield path, value
    if "train" in made:
        yield "training.gpu", recipe.training.gpu  # another precision: other runs, all of them


def _shows_plots(recipe: Recipe) -> bool:
    """Whether plots affect any result: a teacher uses them, or they are stored."""
    sees_images = isinstance(recipe.teacher, ModelTeacher) and recipe.teacher.sees_images
    return sees_images or "plots" in folders.names(recipe.folder)


def _lost_students(old: Recipe, new: Recipe, command: str) -> Iterator[Difference]:
    """Yield differences in students: trained ones that the recipe lacks.

    For commands after training, also students of the recipe that the stored one lacks.
    """
    records = folders.names(f"{old.folder}/records")
    had, has = _cells(old), _cells(new)
    missing = [cell for cell in had if cell not in has and any(name.startswith(f"{cell[0]}-") for name in records)]
    extra = [cell for cell in has if cell not in had] if command in LATER else []
    if not missing and not extra:
        return
    for field in ("models", "train_sizes", "seeds"):
        was, now = getattr(old.students, field), getattr(new.students, field)
        if field == "models":
            was, now = ({student.name: _shape(student) for student in models} for models in (was, now))
        if was != now:
            yield Difference(old.folder, f"students.{field}", was, now)


def _cells(recipe: Recipe) -> dict[tuple[str, str], None]:
    """Return every run by the prefix of its id and the hash of its student."""
    return {
        (f"{student.name}-{train_size}-s{seed}", keys.digest(_shape(student))): None
        for student, train_size, seed in recipe.students.cells()
    }


def _shape(student: Student) -> dict[str, object]:
    return student.model_dump(include=student.shaping(), exclude_none=True, exclude={"name"})


def _identity(recipe: Recipe) -> str:
    """Hash of all fields that affect tables."""
    teachers = {name: teacher.identity for name, teacher in recipe.teachers.items()}
    apart = (*BY_NAME, *(() if _shows_plots(recipe) else ("plots",)))
    values = {path: repr(value) for path, value, _ in recipe.shaped() if path.partition(".")[0] not in apart}
    return keys.digest([values, teachers, list(_cells(recipe)), recipe.training.gpu])


def _short(value: object) -> str:
    text = str(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else f"{text[:79]}…"
