"""Load a recipe: `extends`, overrides, and one-line error messages."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from tsd.errors import InputError, RecipeError
from tsd.recipe import additions
from tsd.recipe.renamed import new_name, new_value
from tsd.recipe.section import Section, nearest
from tsd.recipe.stored import references, relocated
from tsd.recipe.study import Recipe, located
from tsd.recipe.teacher_kinds import kinds
from tsd.tasks import is_module, modules, tasks_of

NO_SECTION = "must be a section of keys, such as {key: value}"
SHAPES = {  # what YAML calls the shapes for which pydantic has Python's names
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), NO_SECTION),
    "tuple_type": "must be a list, such as [a, b]",
}
WHOLE = ("mix",)  # mappings that are replaced as a whole, not merged


def load(source: str, overrides: Sequence[str] = (), *, stored: bool = False, trusted: bool = False) -> Recipe:
    """Load a recipe by name or path and apply overrides such as `series.count=1000`.

    The order of overrides matters only if two set the same field: plugins are loaded first, a section is set
    before its fields, and a teacher's kind before its other fields. Raises RecipeError with one line that names
    the place, the value and the fix.

    stored: the file is a study's own recipe, whose modules may have moved. They are run only if they are trusted.
    """
    data = _resolve(source, ())
    if stored:
        data = _relocated(source, data, trusted)
    given = {override.partition("=")[0] for override in overrides}
    ordered = sorted(overrides, key=_rank)
    first = [override for override in ordered if override.startswith("plugins=")]
    for override in first:
        _apply(data, override, given)
    _load_plugins(source, data)
    for override in ordered[len(first) :]:
        _apply(data, override, given)
    if not stored:
        _require_task_in_module(source, data.get("task"))
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"recipe {source}: {first_problem(error)}") from _cause(error)


def names() -> list[str]:
    """The names of the recipes that are part of tsd."""
    return sorted(Path(str(entry)).stem for entry in _folder().iterdir() if str(entry).endswith(".yaml"))


def to_yaml(recipe: Recipe, stored: bool = False, earlier: Mapping[str, str] | None = None) -> str:
    """The fully resolved recipe as YAML. Loading it gives the same recipe.

    stored: for the study's folder, with a digest for each module outside tsd. earlier: digests to store in place
    of those of now, by module.
    """
    fields = {**recipe.model_dump(mode="json"), **(references(recipe, earlier or {}) if stored else {})}
    return yaml.safe_dump(fields, sort_keys=False, width=100)


def _relocated(source: str, data: Mapping[str, Any], trusted: bool) -> dict[str, Any]:
    """The data of a study's own recipe with its modules where they are now."""
    try:
        return relocated(data, str(Path(source).parent), trusted=trusted)
    except (InputError, ValueError) as error:
        raise RecipeError(f"recipe {source}: {error}") from error


def _load_plugins(source: str, data: dict[str, Any]) -> None:
    """Load the plugins of a recipe, in place, since overrides may name what they add."""
    if "plugins" not in data:
        return
    try:
        data["plugins"] = [modules.found(one) for one in modules.listed(data["plugins"])]
        for one in data["plugins"]:
            modules.load(one)
    except InputError as error:
        raise RecipeError(f"recipe {source}: plugins: {error}") from error


def _require_task_in_module(source: str, task: object) -> None:
    """Raise RecipeError, with the tasks that there are, if the recipe names a module in place of a task in it."""
    if not isinstance(task, str) or not is_module(task):
        return
    try:
        there = tasks_of(task)
    except InputError as error:
        raise RecipeError(f"recipe {source}: task: {error}") from error
    whole = " or ".join(f"{task}:{name}" for name in there)
    fix = (
        f"add the name of its task, {whole}"
        if there
        else "it has no task: assign a tsd.tasks.Task to a name in it"
    )
    raise RecipeError(f"recipe {source}: task is {task!r}: {fix}")


def _folder() -> Any:
    return resources.files("tsd") / "recipes"


def _resolve(source: str, seen: tuple[str, ...]) -> dict[str, Any]:
    """The recipe's data with everything that it extends merged in. seen: files on the way, to detect cycles."""
    if source.endswith((".yaml", ".yml")):
        source = os.path.normpath(source)  # normalised, so that cycles are detected
    if source in seen:
        raise RecipeError(f"recipe {source} extends itself: {' → '.join((*seen, source))}")
    data = _read(source)
    if source.endswith((".yaml", ".yml")):
        _locate(data, str(Path(source).parent))
    parent = data.pop("extends", None)
    if parent is None:
        return data
    if not isinstance(parent, str):
        raise RecipeError(f"recipe {source}: extends must be the name or path of a recipe, not {parent!r}")
    if parent.endswith((".yaml", ".yml")):
        parent = str(Path(source).parent / parent)
    return _merged(_resolve(parent, (*seen, source)), data)


def _locate(data: dict[str, Any], folder: str) -> None:
    """Make the paths of a recipe file's plugins and task absolute, in place. folder: the file's."""
    if isinstance(data.get("plugins"), list):
        data["plugins"] = [
            modules.located(one, folder) if isinstance(one, str) else one for one in data["plugins"]
        ]
    if isinstance(data.get("task"), str):
        data["task"] = located(data["task"], folder)


def _read(source: str) -> dict[str, Any]:
    """The data of a recipe file or built-in recipe. Raises RecipeError if missing, unreadable or no mapping."""
    if source.endswith((".yaml", ".yml")):
        path = Path(source)
        if not path.is_file():
            raise RecipeError(
                f"there is no recipe file {source}: give a path that exists, or one of {', '.join(names())}"
            )
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"recipe {source} cannot be read: {_why(error)}") from None
    elif source in names():
        text = (_folder() / f"{source}.yaml").read_text(encoding="utf-8")
    else:
        raise RecipeError(
            f"there is no recipe {source!r}{nearest(source, names())} (the path of a file ends in .yaml)"
        )
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        place = getattr(error, "problem_mark", None)
        line = f" line {place.line + 1}" if place else ""
        raise RecipeError(f"recipe {source}{line} is not YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(data, dict):
        raise RecipeError(f"recipe {source} must be a mapping of sections, not {type(data).__name__}")
    return data


def _why(error: OSError | UnicodeDecodeError) -> str:
    return f"not UTF-8 at byte {error.start}" if isinstance(error, UnicodeDecodeError) else str(error.strerror)


def _merged(base: dict[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """Merge a section key by key. A mix, or a teacher of another kind, replaces the old one as a whole."""
    merged = dict(base)
    for key, value in change.items():
        old = merged.get(key)
        merged[key] = value
        if isinstance(old, dict) and isinstance(value, Mapping) and key not in WHOLE:
            kind = old.get("kind")
            if value.get("kind", kind) == kind:
                merged[key] = _merged(old, value)
    return merged


def _rank(override: str) -> tuple[bool, int, bool]:
    """Sort key of an override: plugins first, then fewer sections, then `kind` before other fields."""
    path = override.partition("=")[0].split(".")
    return path != ["plugins"], len(path), path[-1] != "kind"


def _apply(data: dict[str, Any], override: str, given: Collection[str]) -> None:
    """Apply one override in place. given: the paths of all overrides, whose fields must not be dropped."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise RecipeError(f"--set {override}: expected a.b=value")
    said = " ".join(override.split())  # on one line, as messages are
    *sections, last = path.split(".")
    place = data
    if sections and sections[-1] in WHOLE:
        raise RecipeError(
            f"--set {said}: a {sections[-1]} is given whole, such as {'.'.join(sections)}={{linear: 1}}"
        )
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"--set {said}: {section} is a value, not a section")
        place = inner
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):  # an impossible date raises ValueError
        raise RecipeError(f"--set {said}: {text!r} is not a YAML value") from None
    if sections and sections[0] in ("teacher", "teachers") and len(sections) == 1 + (sections[0] == "teachers"):
        _drop_what_does_not_fit(place, last, value, ".".join(sections), given)
    place[last] = value


def _drop_what_does_not_fit(
    teacher: dict[str, Any], field: str, value: Any, above: str, given: Collection[str]
) -> None:
    """Drop inherited fields of a teacher that conflict with an override.

    These are fields of another kind and, if the kind is set too, `model` beside `train` or the reverse.
    """
    if field == "kind" and str(value) in kinds():
        fields = kinds()[str(value)].model_fields
        # Fields of a plugin's kind have meanings of their own, whatever their names.
        added = teacher.get("kind") != value and not additions.TEACHERS.keys().isdisjoint(
            (str(value), str(teacher.get("kind")))
        )
        for other in [other for other in teacher if added or other not in fields]:
            del teacher[other]
    if str(teacher.get("kind")) in additions.TEACHERS:
        return
    instead = {"model": "train", "train": "model"}.get(field)
    alone = f"{above}.kind" in given and f"{above}.{instead}" not in given
    if instead is not None and value is not None and alone:
        teacher.pop(instead, None)


def first_problem(error: ValidationError) -> str:
    """One validation error as one line, and the number of others: a renamed key or value, else the first."""
    problems = error.errors()
    problem = next((each for each in problems if _renaming(each)), problems[0])
    # Errors at a prefix of the first one's place follow from it and are not counted.
    others = [each for each in problems if each["loc"] != problem["loc"][: len(each["loc"])]]
    return (_renaming(problem) or _complaint(problem)) + (f" (and {len(others)} more)" if others else "")


def _renaming(problem: ErrorDetails) -> str | None:
    """Say the new name of a key or value that was renamed; None if the problem is another one."""
    if _is_added(problem["loc"]):  # a plugin's settings never had other names
        return None
    place = ".".join(map(str, _location(problem)))
    if problem["type"] == "extra_forbidden":
        new = new_name(place)
        there = list(_fields_at(problem["loc"][:-1]))
        return f"{place} is called {new} now" if new in there else None
    new = new_value(place, problem["input"])
    return f"{place}: {problem['input']} is called {new} now" if new else None


def _complaint(problem: ErrorDetails) -> str:
    """A validation error as one line: place, value, and what is wrong."""
    location = _location(problem)
    place, given = ".".join(map(str, location)), problem["input"]
    if problem["type"] == "extra_forbidden":
        return f"unknown key {place}{nearest(str(location[-1]), list(_fields_at(problem['loc'][:-1])))}"
    if problem["type"] == "missing":
        return f"{place} is missing"
    # A URI is rejected for the password in it, which a message must not repeat.
    shown = "" if isinstance(given, Mapping | BaseModel) or "://" in str(given) else f" is {given!r}:"
    message = SHAPES.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    said = f"{place}{shown or ':'} " if place else ""  # errors that span sections name the fields themselves
    return f"{said}{message[0].lower()}{message[1:]}"


def _location(problem: ErrorDetails) -> list[int | str]:
    """The place of a problem in the recipe, without the marks that pydantic adds."""
    location = problem["loc"]
    return [part for i, part in enumerate(location) if part != "[key]" and not _is_kind(location, i)]


def _cause(error: ValidationError) -> Exception | None:
    """The exception of a validator that is the first validation error, if there is one."""
    found = error.errors()[0].get("ctx", {}).get("error")
    return found if isinstance(found, Exception) else None


def _is_kind(location: Sequence[int | str], i: int) -> bool:
    """Whether a part of a location is no key of the recipe but the kind of a teacher, as pydantic inserts it."""
    place = {"teacher": 1, "teachers": 2}.get(str(location[0]))
    return i == place and location[i] in kinds()


def _is_added(location: Sequence[int | str]) -> bool:
    """Whether a location is in the settings of a plugin's teacher or policy."""
    kind = any(_is_kind(location, i) and part in additions.TEACHERS for i, part in enumerate(location))
    return kind or tuple(location[:2]) == ("curation", "policies")


def _fields_at(location: Sequence[int | str]) -> Iterator[str]:
    """The valid field names at a location in the recipe, as pydantic reports it.

    Names that are no fields are keys of a mapping.
    """
    models: list[Any] = [Recipe]
    for i, part in enumerate(location):
        if _is_kind(location, i):
            models = [kinds()[str(part)]]
        elif tuple(location[:i]) == ("curation", "policies") and part in additions.POLICIES:
            models = [additions.POLICIES[str(part)].settings]
        elif isinstance(part, str) and any(part in model.model_fields for model in models):
            fields = [model.model_fields[part] for model in models if part in model.model_fields]
            models = [inner for field in fields for inner in _models_in(field.annotation)]
    for model in models:
        yield from model.model_fields


def _models_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for inner in getattr(annotation, "__args__", ()):
        yield from _models_in(inner)
