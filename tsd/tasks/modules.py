"""Import modules outside tsd that a recipe names: plugins, and modules that hold a task.

A name is that of an importable module, or the path of a .py file. A stored recipe adds the digest of the content,
as in `../../mine.py#sha256=0123456789abcdef`, so that a file that moved or changed is recognised.
"""

import hashlib
import importlib
import importlib.abc
import importlib.util
import os
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from types import ModuleType

from tsd.errors import HOW, InputError, PluginError, TsdError, place, raised, trace

SUFFIX, PIN = ".py", "#sha256="
_LOCK = RLock()  # a file is executed once, whichever thread comes first
_LOADED: dict[str, ModuleType] = {}  # by the names under which they were loaded
_FILES: dict[str, str] = {}  # digests of the modules of packages, as they were when they were first noted
_RECEIVED = set[str]()  # names of files that only the driver may have


def located(name: str, folder: str = "") -> str:
    """The absolute path of a .py file, or a dotted name as it is. A digest stays. folder: of relative paths."""
    path, pin, wanted = name.partition(PIN)
    if not path.endswith(SUFFIX):
        return name
    return f"{os.path.abspath(os.path.join(folder, os.path.expanduser(path)))}{pin}{wanted}"


def listed(names: object) -> list[str]:
    """The entries of `plugins`. Raises InputError unless they are a list of texts."""
    if isinstance(names, list | tuple) and all(isinstance(one, str) and one for one in names):
        return list(names)
    raise InputError(f"must be a list of modules and .py files, such as [./mine.py], not {names!r}")


def unpinned(name: str) -> str:
    """A name, or that of a task in a module, without a digest."""
    return re.sub(rf"{PIN}\w*", "", name)


def load(name: str) -> ModuleType:
    """Import a module by its dotted name, or a .py file by its path.

    A process executes a file once. Raises InputError with one line if there is no such module, PluginError if it
    raises.
    """
    if name in _LOADED:
        return _LOADED[name]
    if not all(name.split(".")):
        raise InputError(f"{name!r} is no module: name one such as package.module, or a file such as ./mine.py")
    if not name.endswith(SUFFIX):
        _LOADED[name] = _guarded(name, lambda: importlib.import_module(name))
        _note_files(_package_of(name))
        return _LOADED[name]
    return _load(name, _content(name))[0]


def has_run(path: str) -> bool:
    """Whether this process has run a module, so that loading it runs nothing. path: as `found` returns it."""
    if path in _LOADED or not path.endswith(SUFFIX):
        return path in _LOADED or path in sys.modules
    return _title(path, _content(path)) in sys.modules


def found(name: str, folder: str = "", *, changed: bool = False) -> str:
    """Where a named module is now: the path of a file, or a dotted name as it is. Both without a digest.

    A file with a digest that is not at its path is also looked for in `folder` and in the current folder, under
    the same name. folder: also of relative paths. changed: accept another content than that of the digest.
    Raises InputError if it is not there, or if its content is another one.
    """
    wanted = name.partition(PIN)[2]
    path = unpinned(located(name, folder))
    known = path in _RECEIVED or not path.endswith(SUFFIX)
    if not wanted or (known and version(path) == wanted):
        return path
    there = not path.endswith(SUFFIX)
    if not there:
        nearby = (os.path.abspath(os.path.join(one, os.path.basename(path))) for one in (folder, ""))
        for one in (path, *nearby):
            if os.path.isfile(one) and _digest(_content(one)) == wanted:
                return one
        there = os.path.isfile(path)
    if there and changed:
        return path
    if there:
        raise InputError(f"{path} has another content than {PIN}{wanted}: restore it, or leave {PIN}… out")
    copy = f", or copy it into {folder}" if folder and "://" not in folder else ""
    raise InputError(
        f"there is no file {path} with sha256 {wanted}: run this in the folder that holds "
        f"{os.path.basename(path)} now{copy}"
    )


def pinned(name: str, folder: str | None = None, digest: str | None = None) -> str:
    """A module's name with a digest, as it is stored.

    folder: from which a file's path starts. None, or a URI: the path stays absolute. digest: default: that of the
    content as it was loaded.
    """
    relative = name.endswith(SUFFIX) and folder is not None and "://" not in folder
    return f"{os.path.relpath(name, folder) if relative else name}{PIN}{digest or version(name)}"


def version(name: str) -> str:
    """The digest of a module's file as it was loaded, 16 digits. A package counts by its `__init__.py` alone."""
    return _digest(_content_of(load(name)))


def blamed(error: BaseException) -> PluginError | None:
    """One line for an exception that passed through a loaded module's code; None if it did not."""
    files = {getattr(module, "__file__", None) for module in _LOADED.values()}
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if (file := frame.f_code.co_filename) in files:
            return PluginError(f"{place(error, file)}, failed: {raised(error)}; {HOW}", trace(error))
    return None


@dataclass(frozen=True)
class Sent:
    """A module as a driver sends it to workers: by its name, and a file with its content, which nodes may lack."""

    name: str
    content: bytes | None = None
    files: tuple[tuple[str, str], ...] = ()
    """Of a dotted name: modules of its package that the driver has loaded, and the digests of their files."""

    def load(self) -> ModuleType:
        """Import the module. Raises InputError if it is not there or differs, PluginError if it raises."""
        if self.content is not None:
            module, new = _load(self.name, self.content)
            if new:
                _RECEIVED.add(self.name)
            return module
        module = load(self.name)
        for name, digest in self.files:
            if (here := _digest_here(name)) != digest:
                there = f"sha256 {here}" if here else "none"
                raise UnlikeError(
                    f"this node has another {name} than the driver ({there}, the driver's {digest}): install the "
                    "same there"
                )
        return module


class UnlikeError(InputError):
    """A module that each machine has by itself differs from the driver's."""


def sent(name: str) -> Sent:
    """A module for workers: with its content, as this process executed it, if it is a file."""
    module = load(name)
    if name.endswith(SUFFIX):
        return Sent(name, _content_of(module))
    package = _package_of(name)
    _note_files(package)
    return Sent(name, files=tuple(sorted((one, _FILES[one]) for one in _FILES if _is_in(one, package))))


def _package_of(name: str) -> str:
    """The outermost package of a loaded module that is not a namespace package; else the module itself.

    Distributions share a namespace package, so that each machine may have other modules of it.
    """
    parts = name.split(".")
    packages = (".".join(parts[: number + 1]) for number in range(len(parts)))
    return next((one for one in packages if getattr(sys.modules.get(one), "__file__", None)), name)


def _note_files(package: str) -> None:
    """Note the digest of each loaded module of a package, once: its file may change later."""
    for name, module in list(sys.modules.items()):
        if _is_in(name, package) and name not in _FILES and str(getattr(module, "__file__", "")).endswith(SUFFIX):
            _FILES[name] = _digest(_content_of(module))


def _digest_here(name: str) -> str | None:
    """The digest of a module that a driver has loaded, whether this process has or not; None if there is none."""
    _note_files(name)
    if name not in _FILES:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return None
        return _digest(_content(spec.origin)) if spec and spec.origin and os.path.isfile(spec.origin) else None
    return _FILES[name]


def _is_in(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


class _Text(importlib.abc.ExecutionLoader):
    """Executes the content of a file, which need not be on this machine."""

    def __init__(self, path: str, content: bytes) -> None:
        self.path, self.content = path, content

    def get_filename(self, fullname: str) -> str:
        """The path in tracebacks."""
        return self.path

    def get_source(self, fullname: str) -> str:
        """The text, also for tracebacks."""
        return importlib.util.decode_source(self.content)


def _load(name: str, content: bytes) -> tuple[ModuleType, bool]:
    """Execute a file unless this process has done so. Returns the module, and whether it is new."""
    title = _title(name, content)
    with _LOCK:
        new = title not in sys.modules
        if new:
            _guarded(name, lambda: _execute(title, name, content))
        _LOADED[name] = sys.modules[title]
        return _LOADED[name], new


def _title(path: str, content: bytes) -> str:
    """The name of a file as a module, the same in every process for what is pickled."""
    stem = os.path.basename(path).removesuffix(SUFFIX).replace(".", "_")
    return f"{stem}_{_digest(content)[:8]}"


def _execute(name: str, path: str, content: bytes) -> ModuleType:
    """Execute a file as a module of this name."""
    spec = importlib.util.spec_from_loader(name, _Text(path, content))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _guarded(name: str, work: Callable[[], ModuleType]) -> ModuleType:
    """Import a module, with one line for whatever it raises."""
    try:
        return work()
    except ModuleNotFoundError as error:
        if not name.endswith(SUFFIX) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise InputError(
                f"there is no module {name}: install it, add its folder to PYTHONPATH, or name its file, such as "
                "./facets.py"
            ) from None
        raise _cannot(name, error) from error
    except (Exception, SystemExit) as error:  # whatever code from outside raises
        raise _cannot(name, error) from error


def _cannot(name: str, error: BaseException) -> PluginError:
    """One line for an exception while a module was loaded."""
    said = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    plain = isinstance(error, ValueError | TsdError) or said == type(error).__name__
    kind = "" if plain else f"{type(error).__name__}: "
    where = "" if isinstance(error, SyntaxError) else f"{place(error, name)}; "
    return PluginError(f"{name} cannot be loaded: {kind}{said} ({where}{HOW})", trace(error))


def _content(path: str) -> bytes:
    """The content of a file. Raises InputError if it cannot be read."""
    if not os.path.isfile(path):
        raise InputError(f"there is no file {path}")
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None


def _content_of(module: ModuleType) -> bytes:
    """The content of a loaded module's file; empty if it has none."""
    loader = module.__loader__
    if isinstance(loader, _Text):
        return loader.content
    file = getattr(module, "__file__", None)
    return Path(file).read_bytes() if file and os.path.isfile(file) else b""


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
