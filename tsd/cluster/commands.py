"""What a command does once its recipe is loaded: lock the folder, check what it needs, run a stage.

Ray and torch are imported only once they are needed: what is wrong with a folder or a recipe is said before.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.markup import escape

from tsd.recipe import Recipe
from tsd.storage import locks
from tsd.storage.folders import require_writable

if TYPE_CHECKING:
    from tsd.study.findings import Finding


def run(recipe: Recipe, stage: str, preview: int | None = None, retry_errors: bool = False) -> None:
    """Run a stage, "study" for all of them or "teacher" for the local teacher, as the only writer of its folder.

    preview: annotate so many rows and stop. retry_errors: annotate the rows again that ended as `error`.
    """
    require_writable(recipe.folder, recipe.bytes_needed)
    with locks.hold(recipe.folder, f"tsd {'teacher train' if stage == 'teacher' else stage} {recipe.name}"):
        _run_alone(recipe, stage, preview, retry_errors)


def _run_alone(recipe: Recipe, stage: str, preview: int | None, retry_errors: bool) -> None:
    """Run a stage. The folder's lock must be held."""
    from tsd.cluster import preflight
    from tsd.progress import Reporter
    from tsd.study import provenance

    reporter = Reporter()
    provenance.require(recipe, stage)
    for line in provenance.changed_modules(recipe).values():
        reporter.say(f"[yellow]changed:[/] {escape(line)}")
    preflight.require(preflight.before_ray(recipe, stage, asks=bool(preview or retry_errors)))
    if stage == "teacher":
        from tsd.study.local_teacher import prepare_alone

        prepare_alone(recipe, reporter)
        return
    from tsd.cluster import studies

    if stage == "study":
        studies.run(recipe, reporter)
        return
    if preview:
        studies.of(recipe, reporter).preview(preview)
        return
    if retry_errors:
        studies.of(recipe, reporter).reopen_errors()
    with studies.connected(reporter, recipe, stage) as one:
        getattr(one, stage)()
        if stage in ("train", "evaluate"):
            one.require_all_trained(decoded=stage == "evaluate")


def repair(folder: str, findings: "Sequence[Finding]", trusted: bool = False) -> None:
    """Set damaged files of a study aside and run the stages again that made them.

    folder: the study's. trusted: run, read and contact what it names. Raises InputError, before anything is
    changed, if it is not trusted and names something that needs consent.
    """
    from tsd.study import consent, restoring, verify

    recipe = verify.recipe_of(folder, trusted)
    if not trusted:
        consent.require(recipe, folder)
    with locks.hold(recipe.folder, f"tsd verify {folder} --repair"):
        verify.set_aside(list(findings))
        restoring.delete_unfinished(recipe.folder)
        from tsd.cluster import studies
        from tsd.progress import Reporter

        with studies.connected(Reporter(), recipe) as one:
            for stage in verify.stages(folder):
                getattr(one, stage)()
