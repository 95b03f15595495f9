"""Import modules outside tsd that a recipe names: plugins, and modules that hold a task."""

import importlib
import importlib.util
import os
import sys
from threading import RLock
from types import ModuleType

from tsd.errors import InputError
from tsd.storage.keys import digest

SUFFIX = ".py"
_LOCK = RLock()  # a file is executed once, whichever thread comes first


def located(name: str, folder: str = "") -> str:
    """The absolute path of a .py file, or a dotted name as it is. folder: of relative paths; "": the current."""
    return os.path.abspath(os.path.join(folder, os.path.expanduser(name))) if name.endswith(SUFFIX) else name


def load(name: str) -> ModuleType:
    """Import a module by its dotted name, or a .py file by its path.

    A process executes a file once. Raises InputError with one line if there is no such module, or if it raises.
    """
    path = os.path.realpath(name) if name.endswith(SUFFIX) else None
    if path is not None and not os.path.isfile(path):
        raise InputError(f"there is no file {name}")
    try:
        return importlib.import_module(name) if path is None else _execute(path)
    except ModuleNotFoundError as error:
        if path is None and error.name and f"{name}.".startswith(f"{error.name}."):
            raise InputError(
                f"there is no module {name}: install it, add its folder to PYTHONPATH, or name its file, such as "
                "./facets.py"
            ) from None
        raise InputError(f"{name} cannot be loaded: {error}") from None
    except Exception as error:  # whatever code from outside raises
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise InputError(f"{name} cannot be loaded: {kind}{said}") from None


def _execute(path: str) -> ModuleType:
    """Execute a file as a module, under a name that no other file has."""
    stem = os.path.basename(path).removesuffix(SUFFIX).replace(".", "_")
    name = f"{stem}_{digest(path)[:8]}"
    with _LOCK:
        if name in sys.modules:
            return sys.modules[name]
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
        return module
