"""Consent to what `tsd verify RUN --repair` runs, unpickles or contacts only because the study's folder names it.

Whoever made the folder chose its recipe and its checkpoints. `tsd.tasks.trust` asks for consent to its modules.
"""

from collections.abc import Iterator

from tsd.errors import InputError
from tsd.recipe import ApiTeacher, Recipe, VllmTeacher
from tsd.storage import folders
from tsd.tasks import trust

ON_DISK = ("sqlite:", "file:")  # MLflow's stores that are sent no credentials
CHECKPOINTS = ("trials", "teacher-checkpoints")  # in the folder of a study or of one of its teachers


def require(recipe: Recipe, run: str) -> None:
    """Raise InputError with one line for the first thing that needs consent. Runs and reads nothing.

    recipe: the one in the folder. run: the user's name for the folder.
    """
    for found in _named(recipe):
        raise InputError(
            f"{run} names {found}: look at {run}/recipe.yaml, and add {trust.OPTION} if you trust it; or run "
            "`tsd study` with a recipe of your own, which makes lost parts again"
        )
    for folder in _checkpoints(recipe):
        raise InputError(
            f"{folder} has checkpoints, and reading them can run code: delete that folder, which trains the "
            f"unfinished models from the start, or add {trust.OPTION} if you trust whoever made it"
        )


def _named(recipe: Recipe) -> Iterator[str]:
    """What the recipe names: programs, and servers that are sent a secret of the environment."""
    teachers = {f"teachers.{name}": one for name, one in recipe.teachers.items()} or {"teacher": recipe.teacher}
    for place, teacher in teachers.items():
        if isinstance(teacher, VllmTeacher):
            if teacher.engine_python is not None:
                yield f"an interpreter that would be run, {place}.engine_python={teacher.engine_python}"
            yield f"a vLLM engine that would be started, {place}.model={teacher.model}"
        if isinstance(teacher, ApiTeacher) and teacher.key_variable is not None:
            to = f"{place}.base_url={teacher.base_url}"
            yield f"a server that would be sent the variable {teacher.key_variable}, {to}"
    uri = recipe.tracking.uri
    if uri.startswith("databricks") or ("://" in uri and not uri.startswith(ON_DISK)):
        yield f"a server that would be sent MLflow's credentials, tracking.uri={uri}"


def _checkpoints(recipe: Recipe) -> Iterator[str]:
    """Folders of checkpoints, whose metadata torch unpickles."""
    for one in (recipe, *recipe.by_teacher.values()):
        places = (f"{one.folder}/{name}" for name in CHECKPOINTS)
        yield from (place for place in places if folders.exists(place))
