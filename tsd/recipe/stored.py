"""How the recipe in a study's folder names the modules outside tsd: plugins, and the module of its task.

Each has a digest of its content, and a file the path from the study's folder: both may move together. A module
that changed since is named to the user. Keys of artefacts depend on the versions that a plugin states instead.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from tsd.errors import InputError
from tsd.recipe.study import Recipe
from tsd.tasks import modules, trust


def references(recipe: Recipe, earlier: Mapping[str, str]) -> dict[str, Any]:
    """The fields that the stored recipe has in place of the recipe's own; none without modules outside tsd.

    earlier: digests to store in place of those of now, by module.
    """
    fields: dict[str, Any] = {}
    if recipe.plugins:
        fields["plugins"] = [modules.pinned(one, recipe.folder, earlier.get(one)) for one in recipe.plugins]
    module, colon, attribute = recipe.task.rpartition(":")
    if colon:
        fields["task"] = f"{modules.pinned(module, recipe.folder, earlier.get(module))}:{attribute}"
    return fields


def task_reference(recipe: Recipe) -> str:
    """The name of a task as students' folders have it: with an absolute path and a digest if it is outside tsd."""
    module, colon, attribute = recipe.task.rpartition(":")
    return f"{modules.pinned(module)}:{attribute}" if colon else recipe.task


def relocated(fields: Mapping[str, Any], folder: str, *, trusted: bool = False) -> dict[str, Any]:
    """Stored fields with every module where it is now. The modules are loaded, also if their content changed.

    folder: the study's. trusted: run modules that this process has not run yet. Raises InputError if they may not
    be run, if one is missing or cannot be loaded, ValueError if `plugins` is no list.
    """
    fields = dict(fields)
    try:
        plugins = modules.listed(fields.get("plugins", []))
    except InputError as error:
        raise ValueError(f"plugins {error}") from None
    if not trusted:
        trust.require(modules_of(fields), folder)
    if plugins:
        fields["plugins"] = [modules.found(one, folder, changed=True) for one in plugins]
    module, colon, attribute = str(fields.get("task", "")).rpartition(":")
    if colon:
        fields["task"] = f"{modules.found(module, folder, changed=True)}:{attribute}"
    for name in (*fields.get("plugins", ()), *([fields["task"].rpartition(":")[0]] if colon else ())):
        modules.load(name)
    return fields


def modules_of(fields: Mapping[str, Any]) -> list[str]:
    """The modules that stored fields name, with their digests: plugins, and that of the task.

    Raises InputError if `plugins` is no list.
    """
    module, colon, _ = str(fields.get("task", "")).rpartition(":")
    return [*modules.listed(fields.get("plugins", [])), *([module] if colon else [])]


def changes(fields: Mapping[str, Any], recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield each module of a recipe whose content is not that of the stored fields, with one line about it."""
    for name, then in digests(fields, recipe).items():
        now = modules.version(name)
        if now != then:
            yield (
                name,
                f"{name} has changed since {recipe.folder} was started (sha256 {then}, now {now}): its "
                "tables were made by the earlier content; if others would result, change its version",
            )


def digests(fields: Mapping[str, Any], recipe: Recipe) -> dict[str, str]:
    """The digest that stored fields have for each module of a recipe; none if `plugins` is no list."""
    try:
        found = matched(fields, recipe)
    except InputError:
        return {}
    digests: dict[str, str] = {}
    for name, module in found.items():  # the best match first
        if modules.PIN in name:
            digests.setdefault(module, name.partition(modules.PIN)[2])
    return digests


def matched(fields: Mapping[str, Any], recipe: Recipe) -> dict[str, str]:
    """The module of a recipe that each module of stored fields is now, by its stored name; others are left out.

    Files may have moved or changed. Those of one name are told apart by their content, then by their place, then
    by their order, in which the task's module comes first. Raises InputError if `plugins` is no list.
    """
    names, theirs = _task_first(modules_of(fields), fields.get("task")), _task_first(recipe.outside, recipe.task)
    found: dict[str, str] = {}
    criteria: tuple[Callable[[str, str], bool], ...] = (
        lambda name, one: name.partition(modules.PIN)[2] == modules.version(one),
        lambda name, one: modules.unpinned(modules.located(name, recipe.folder)) == one,
        lambda name, one: one not in found.values(),
        lambda name, one: True,
    )
    for fits in criteria:
        for name in names:
            alike = (one for one in theirs if title(one) == title(name) and fits(name, one))
            if name not in found and (one := next(alike, None)):
                found[name] = one
    return found


def _task_first(names: Iterable[str], task: object) -> list[str]:
    """Names of modules, each once, with that of the task first."""
    return sorted(dict.fromkeys(names), key=lambda name: name != str(task).rpartition(":")[0])


def title(name: str) -> str:
    """What identifies a module beside its content: a file's name without folders, or the dotted name."""
    return modules.unpinned(name).rpartition("/")[2]
