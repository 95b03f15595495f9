"""Checks that a node runs on itself: packages, storage, models."""

import importlib.metadata
import importlib.util
import os
import platform
from dataclasses import dataclass
from functools import cache
from typing import Any

import ray
from pyarrow import fs

from tsd.errors import InputError, PluginError, UserError
from tsd.storage import folders
from tsd.tasks import modules

PROBES = ".nodes"  # in a study's folder, while a command runs
SAME = ("ray", "torch", "transformers", "pyarrow")  # packages whose versions must equal the driver's on every node


@dataclass(frozen=True)
class Need:
    """Requirements for every node that works for a study."""

    folder: str
    """The study's folder, which all nodes must see."""
    token: str
    """Name and content of the driver's probe file."""
    models: tuple[str, ...] = ()
    """Model folders that the recipe names by path."""
    packages: tuple[str, ...] = ()
    """Required modules, besides tsd's dependencies."""
    outside: tuple[modules.Sent, ...] = ()
    """Plugins, and the module of the task; files come with their content, others with digests."""
    versions: tuple[tuple[str, str], ...] = ()
    """Versions by package, and of Python, that must equal the driver's."""


@cache  # once per process
def fault_here(need: Need) -> str | None:
    """Return why the node of this process cannot work for a study; None if it can."""
    try:
        return _packages_fault(need) or _outside_fault(need) or _storage_fault(need) or _models_fault(need)
    except UserError as error:
        return str(error)
    except Exception as error:  # any error of a file system or object store
        return f"cannot use {need.folder}: {(str(error).strip() or type(error).__name__).splitlines()[0]}"


def _packages_fault(need: Need) -> str | None:
    missing = [name for name in need.packages if importlib.util.find_spec(name) is None]
    if missing:
        return f"lacks the package {' and '.join(missing)}, which the driver has: install the same there"
    mine = dict(package_versions())
    for name, version in need.versions:
        if mine.get(name) != version:
            there = f"{name} {mine[name]}" if name in mine else f"no {name}"
            return f"has {there} and the driver has {version}: install the same there"
    return None


def _outside_fault(need: Need) -> str | None:
    for module in need.outside:
        try:
            module.load()
        except PluginError as error:
            return f"cannot use a plugin: {error}: install what it imports there"
        except modules.UnlikeError as error:
            return str(error).removeprefix("this node ")
        except InputError as error:
            return (
                f"lacks the plugin {module.name} ({error}): put it into the submitted working directory, or "
                "install it there"
            )
    return None


def _storage_fault(need: Need) -> str | None:
    place, node = f"{need.folder.rstrip('/')}/{PROBES}", ray.get_runtime_context().get_node_id()
    files, root = folders.filesystem(place)
    try:
        with files.open_input_file(f"{root}/{need.token}") as probe:
            found = probe.read().decode()
    except FileNotFoundError:
        found = ""
    if found != need.token:
        return unseen(need.folder)
    folders.write_bytes(place, f"{need.token}-{node}", b"seen")
    return None


def _models_fault(need: Need) -> str | None:
    absent = [folder for folder in need.models if not os.path.isdir(folder)]
    if absent:
        return f"has no folder {absent[0]}, which the recipe names: put it there, or name an s3:// or gs:// URI"
    return None


def unseen(folder: str) -> str:
    relative = (
        "" if os.path.isabs(folder) or "://" in folder else ", which is relative to where each process works"
    )
    return (
        f"does not see the driver's {folder}{relative}: set out to a URI such as s3://bucket/tsd, or to a "
        "path that every node shares"
    )


def package_versions() -> tuple[tuple[str, str], ...]:
    """Return the versions that affect results, and Python's. tsd's version is that of the shipped code."""
    import tsd

    found = [("Python", ".".join(platform.python_version_tuple()[:2])), ("tsd", tsd.__version__)]
    for name in SAME:
        if importlib.util.find_spec(name):  # torch 2.13.0+cpu counts as the same version as a GPU build
            found.append((name, importlib.metadata.version(name).partition("+")[0]))
    return tuple(found)


def answered(need: Need) -> list[str]:
    """Return the ids of nodes whose probe files the driver sees."""
    place = f"{need.folder.rstrip('/')}/{PROBES}"
    files, root = folders.filesystem(place)
    names = [info.base_name for info in files.get_file_info(fs.FileSelector(root, allow_not_found=True))]
    return [name.partition("-")[2] for name in names if name.startswith(f"{need.token}-")]


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
def fault_there(need: Need) -> str | None:
    fault: str | None = fault_here.__wrapped__(need)  # uncached: check the current state
    return fault


def plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
