"""Which nodes of a cluster may work: those that see the study's storage and have what the work needs.

The driver leaves a probe in the study's folder. A node is fit if it finds it there, can write beside it, and has
the same packages. Every worker process asks once, before its first work: its node may have joined a moment ago.
What an unfit node was handed goes to others, it is handed nothing more, and the driver says so in one line.
"""

import importlib.metadata
import importlib.util
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import yaml
from pyarrow import fs
from ray.exceptions import GetTimeoutError, RayError

from tsd.cluster.session import own_ray
from tsd.errors import InputError, UserError
from tsd.progress import Step
from tsd.storage import datasets

NODE_ID = "ray.io/node-id"  # the label that Ray gives every node
PROBES = ".nodes"  # in a study's folder, as long as a command works
SAME = ("ray", "torch", "transformers", "pyarrow")  # packages of which every node must have the driver's version
ANSWER_SECONDS = 120.0  # that a node may take to start a process and answer
SILENT_SECONDS = 10.0  # without a result, after which the driver says what it waits for
MOST_TASKS = 4096  # of one stage; with more items than that, a task does several


Items = Sequence[Mapping[str, Any]] | npt.NDArray[np.int64]


@dataclass(frozen=True)
class Need:
    """What every node that works for a study must have."""

    folder: str
    """The study's, which all nodes must see."""
    token: str
    """What the driver's probe in it is called, and holds."""
    models: tuple[str, ...] = ()
    """Folders of models that the recipe names by path."""
    packages: tuple[str, ...] = ()
    """Modules that must be there, beside those that tsd depends on."""
    versions: tuple[tuple[str, str], ...] = ()
    """Versions that must be the driver's, by package, and Python's."""


class UnfitNodeError(Exception):
    """Raised by a worker of a group, before its first work, on a node that is not fit."""

    def __init__(self, node: str, fault: str) -> None:
        super().__init__(node, fault)
        self.node, self.fault = node, fault


@dataclass
class Nodes:
    """The driver's knowledge of a cluster: what its nodes must have, and which of them have it not."""

    need: Need | None = None
    say: Callable[[str], None] = lambda _: None
    unfit: dict[str, str] = field(default_factory=dict)

    @property
    def selector(self) -> dict[str, str]:
        """Ray's label selector for work: any node that is not known to be unfit."""
        return selector(self.unfit)

    def exclude(self, node: str, fault: str) -> None:
        """Hand a node no more work, and say so once. Raises InputError where no node is left that could work."""
        if node in self.unfit:
            return
        self.unfit[node] = fault
        self.say(f"  [yellow]node {_name(node)} gets no work:[/] {fault}")
        ray.data.DataContext.get_current().execution_options.label_selector = self.selector
        able = [one for one in _alive() if one["Resources"].get("CPU", 0) >= 1]
        if able and all(one["NodeID"] in self.unfit for one in able):
            raise InputError(f"no node of the cluster can work for this study; {_name(node)}: {fault}")

    def review(self) -> bool:
        """Ask all nodes anew, after work failed. Returns whether some are unfit that were not known to be."""
        faults = ask_all(self.need) if self.need else {}
        new = {node: fault for node, fault in faults.items() if node not in self.unfit}
        for node, fault in new.items():
            self.exclude(node, fault)
        return bool(new)


current = Nodes()  # of this process, where it is a driver


def selector(unfit: Mapping[str, str]) -> dict[str, str]:
    """Ray's label selector for all nodes but these."""
    return {NODE_ID: f"!in({','.join(sorted(unfit))})"} if unfit else {}


@contextmanager
def watched(
    folder: str, models: Sequence[str], packages: Sequence[str], say: Callable[[str], None]
) -> Iterator[None]:
    """Check the nodes of the cluster that was joined, for as long as a command works; nothing on a Ray of its own.

    folder: the study's; models: folders that the recipe names by path. say: prints a line.
    Raises InputError, with a line for each node, where one that is up is not fit.
    """
    global current
    if own_ray():
        yield
        return
    before, token = current, os.urandom(8).hex()
    place = f"{folder.rstrip('/')}/{PROBES}"
    need = Need(folder, token, tuple(models), tuple(packages), _versions())
    current = Nodes(need, say)
    try:
        datasets.write_bytes(place, token, token.encode())
        faults = ask_all(need)
        if faults:
            raise InputError("\n".join(f"node {_name(node)} {fault}" for node, fault in faults.items()))
        yield
    finally:
        current = before
        ray.data.DataContext.get_current().execution_options.label_selector = None
        datasets.delete_folder(place)


def ask_all(need: Need) -> dict[str, str]:
    """Ask every node that is up, all at once. Returns what is wrong, by node id."""
    asked = {
        node["NodeID"]: _fault_there.options(label_selector={NODE_ID: node["NodeID"]}).remote(need)
        for node in _alive()
    }
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_SECONDS)
    seen = set(_answered(need))
    faults = {}
    for node, call in asked.items():
        try:
            found = ray.get(call, timeout=1)
        except GetTimeoutError:
            found = f"did not answer within {ANSWER_SECONDS:.0f} s"
        except RayError as error:
            found = f"cannot run tsd: {str(error).strip().splitlines()[-1]}"
        if found is None and node not in seen:
            found = _unseen(need.folder)  # it wrote where nobody else sees it
        if found is not None:
            faults[node] = found
    return faults


def done(
    work: Callable[[dict[str, Any]], dict[str, Any]] | type,
    items: Items,
    step: Step | None = None,
    arguments: Sequence[Any] = (),
    **options: Any,
) -> Iterator[dict[str, Any]]:
    """Have Ray Data's workers do each item, on nodes that are fit. Gives what was made of each, in any order.

    work: takes a batch of one item, as Ray Data does ({"part": [3]}), and gives one like it,
    or is a class that is made of `arguments` in each worker and then called so. items: columns by name, or the
    numbers of parts. step: is told what is waited for. options: of `Dataset.map_batches`.
    """
    left = items
    while len(left):
        again: list[Any] = []
        seen: set[int] = set()
        try:
            for row in noting_waits(_rows(work, arguments, left, options), step, options):
                seen.add(row["item"])
                if row["fault"]:
                    current.exclude(row["node"], row["fault"])
                    again.append(left[row["item"]])
                else:
                    yield json.loads(row["made"])
        except RayError:
            if not current.review():
                raise
            again += [left[number] for number in range(len(left)) if number not in seen]
        left = again


def _rows(
    work: Any, arguments: Sequence[Any], items: Items, options: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """One pass over the items: the number of each, its node, and what was made of it or why that node is unfit."""
    blocks, rows = min(len(items), MOST_TASKS), {"batch_size": 1, **options}
    if not isinstance(work, type):  # numbers are read by the tasks that use them
        numbers = ray.data.range(len(items), override_num_blocks=blocks)
        made = numbers.map_batches(_by_function(current.need, work, items), **rows)
    else:  # tasks that read numbers would wait for the CPUs that the workers hold
        numbers = ray.data.from_items([{"id": number} for number in range(len(items))], override_num_blocks=blocks)
        made = numbers.map_batches(_Kept, fn_constructor_args=(current.need, work, arguments, items), **rows)
    found: Iterator[dict[str, Any]] = made.iter_rows()
    return found


def noting_waits(
    rows: Iterator[Any], step: Step | None, options: Mapping[str, Any], result: str = "the workers' next result"
) -> Iterator[Any]:
    """Rows as they come. Where none comes for a while, the step says what is waited for and since when.

    options: what a worker takes of a node, as for `map_batches`. result: what it is that comes.
    """
    if step is None:
        yield from rows
        return
    since, over, before = [time.time()], threading.Event(), [step.note]

    def watch() -> None:
        while not over.wait(1.0):
            if time.time() - since[0] > SILENT_SECONDS:
                what = lacking(options) or result
                step.advance(0, f"waiting for {what} since {datetime.fromtimestamp(since[0]):%H:%M:%S}")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        for row in rows:
            since[0] = time.time()
            step.note = before[0]  # it is no longer waited for
            yield row
            since[0], before[0] = time.time(), step.note
    finally:
        over.set()
        watcher.join(10)
        step.note = before[0]


def lacking(options: Mapping[str, Any]) -> str:
    """The kind of node that work with these options asks for, where the cluster has none; else empty."""
    wanted = {"CPU": options.get("num_cpus", 1), "GPU": options.get("num_gpus", 0)}
    try:
        there = [node["Resources"] for node in _alive() if node["NodeID"] not in current.unfit]
    except Exception:  # Ray is about to end
        return ""
    if any(all(one.get(name, 0) >= count for name, count in wanted.items()) for one in there):
        return ""
    asked = " and ".join(f"{count:g} {name}" for name, count in wanted.items() if count)
    return f"a node with {asked}, of which the cluster has none"


def require_fit(need: Need | None) -> None:
    """Raise UnfitNodeError where this process' node is not fit; said by a worker before its first work."""
    fault = fault_here(need) if need else None
    if fault is not None:
        raise UnfitNodeError(ray.get_runtime_context().get_node_id(), fault)


@cache  # a process asks once
def fault_here(need: Need) -> str | None:
    """Why this process' node must not work for a study; None where it may."""
    try:
        return _packages_fault(need) or _storage_fault(need) or _models_fault(need)
    except UserError as error:
        return str(error)
    except Exception as error:  # whatever an object store or a file system says of a folder
        return f"cannot use {need.folder}: {(str(error).strip() or type(error).__name__).splitlines()[0]}"


def _packages_fault(need: Need) -> str | None:
    missing = [name for name in need.packages if importlib.util.find_spec(name) is None]
    if missing:
        return f"lacks the package {' and '.join(missing)}, which the driver has: install the same there"
    mine = dict(_versions())
    for name, version in need.versions:
        if mine.get(name) != version:
            there = f"{name} {mine[name]}" if name in mine else f"no {name}"
            return f"has {there} and the driver has {version}: install the same there"
    return None


def _storage_fault(need: Need) -> str | None:
    place, node = f"{need.folder.rstrip('/')}/{PROBES}", ray.get_runtime_context().get_node_id()
    files, root = datasets.filesystem(place)
    try:
        with files.open_input_file(f"{root}/{need.token}") as probe:
            found = probe.read().decode()
    except FileNotFoundError:
        found = ""
    if found != need.token:
        return _unseen(need.folder)
    datasets.write_bytes(place, f"{need.token}-{node}", b"seen")
    return None


def _models_fault(need: Need) -> str | None:
    absent = [folder for folder in need.models if not os.path.isdir(folder)]
    if absent:
        return f"has no folder {absent[0]}, which the recipe names: put it there, or name an s3:// or gs:// URI"
    return None


def _unseen(folder: str) -> str:
    relative = (
        "" if os.path.isabs(folder) or "://" in folder else ", which is relative to where each process works"
    )
    return (
        f"does not see the driver's {folder}{relative}: set out to a URI such as s3://bucket/tsd, or to a "
        "path that every node shares"
    )


def _versions() -> tuple[tuple[str, str], ...]:
    """Versions that shape what a node makes, and Python's; tsd's own is that of the code that is shipped."""
    import tsd

    found = [("Python", ".".join(platform.python_version_tuple()[:2])), ("tsd", tsd.__version__)]
    for name in SAME:
        if importlib.util.find_spec(name):  # a CPU's build of torch, 2.13.0+cpu, is the same version as a GPU's
            found.append((name, importlib.metadata.version(name).partition("+")[0]))
    return tuple(found)


def _answered(need: Need) -> list[str]:
    """The nodes whose probes the driver sees."""
    place = f"{need.folder.rstrip('/')}/{PROBES}"
    files, root = datasets.filesystem(place)
    names = [info.base_name for info in files.get_file_info(fs.FileSelector(root, allow_not_found=True))]
    return [name.partition("-")[2] for name in names if name.startswith(f"{need.token}-")]


@ray.remote(num_cpus=0, max_retries=0)  # type: ignore[untyped-decorator]
def _fault_there(need: Need) -> str | None:
    fault: str | None = fault_here.__wrapped__(need)  # as it is now, whatever this process found before
    return fault


def machines() -> list[tuple[str, dict[str, float]]]:
    """The name of each node that is up, and what it has."""
    return [(_name(node["NodeID"]), dict(node["Resources"])) for node in _alive()]


def node_types() -> dict[str, tuple[dict[str, float], float]] | None:
    """What the cluster's autoscaler may start: by node type, what a node has and how many there may be.

    Empty where there is no autoscaler. None where there is one that says nothing of it, as KubeRay's.
    """
    head = ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001})(_configured_types)
    try:
        found: dict[str, tuple[dict[str, float], float]] | None = ray.get(head.remote(), timeout=ANSWER_SECONDS)
    except (RayError, GetTimeoutError):
        return None
    return found


def _configured_types() -> dict[str, tuple[dict[str, float], float]] | None:
    """The node types in the file that the head's autoscaler was started with; runs on the head."""
    if os.environ.get("RAY_USAGE_STATS_KUBERAY_IN_USE") == "1" or "KUBERNETES_SERVICE_HOST" in os.environ:
        return None
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended
            continue
        for word in words:
            if word.startswith("--autoscaling-config=") and (path := Path(word.partition("=")[2])).is_file():
                config = yaml.safe_load(path.read_text())
                most = float(config.get("max_workers", inf))
                return {
                    name: (
                        {kind: float(count) for kind, count in each.get("resources", {}).items()},
                        min(most, float(each.get("max_workers", most))),
                    )
                    for name, each in config.get("available_node_types", {}).items()
                    if name != config.get("head_node_type")
                }
    return {}


def _alive() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def _name(node: str) -> str:
    """A node as people know it: its address and its host's name."""
    (found,) = [one for one in ray.nodes() if one["NodeID"] == node] or [{}]
    return f"{found.get('NodeManagerAddress', node[:8])} ({found.get('NodeManagerHostname', 'unknown')})"


def _by_function(need: Need | None, work: Any, items: Items) -> Any:
    """A function for `map_batches` that does an item where its node is fit."""

    def do(batch: dict[str, Any]) -> dict[str, Any]:
        return _row(int(batch["id"][0]), need, work, items)

    return do


class _Kept:
    """A worker of Ray Data that keeps what its work took long to set up, where its node is fit."""

    def __init__(self, need: Need | None, work: type, arguments: Sequence[Any], items: Items) -> None:
        self.need, self.items = need, items
        unfit = need is not None and fault_here(need) is not None
        self.work: Any = None if unfit else work(*arguments)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """One row: an item's number in; what was made of it out."""
        return _row(int(batch["id"][0]), self.need, self.work, self.items)


def _row(number: int, need: Need | None, work: Any, items: Items) -> dict[str, Any]:
    fault = fault_here(need) if need else None
    made = "null"
    if fault is None:
        item = items[number]
        columns = item if isinstance(item, Mapping) else {"part": int(item)}
        given = {name: [value] for name, value in columns.items()}
        made = json.dumps({name: _plain(values[0]) for name, values in work(given).items()})
    node = ray.get_runtime_context().get_node_id()
    return {"item": [number], "node": [node], "fault": [fault or ""], "made": [made]}


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
