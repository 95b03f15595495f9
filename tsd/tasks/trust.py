"""Consent to run code that a folder names: a student's `tsd.json`, or the `recipe.yaml` in a study's folder.

Whoever made the folder chose the module and its digest, so the digest protects nobody. A module that this process
has run already, such as one that the user's own recipe names, needs no consent.
"""

from collections.abc import Iterable

from tsd.errors import InputError
from tsd.tasks import modules

OPTION = "--trust-code"


def require(names: Iterable[str], folder: str, shown: str | None = None) -> None:
    """Raise InputError with one line for the first of these modules that would be run. Runs nothing.

    names: as the folder names them. folder: also where files are looked for, see `modules.found`. shown: the
    user's name for the folder, if it is a copy. Also raises InputError if a file is not there.
    """
    for name in names:
        where = modules.unpinned(name)
        if where.endswith(modules.SUFFIX):
            where = modules.found(name, folder, changed=True)
        if not modules.has_run(where):
            place = where.replace(folder, shown) if shown else where
            raise InputError(
                f"{shown or folder} names code that would be run, {place}: read it, and add {OPTION} if you "
                "trust it"
            )
