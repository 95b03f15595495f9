"""Check which nodes of a cluster can work: they must see the study's storage and have the required packages.

The driver writes a probe file into the study's folder. A node is fit if it can read it, can write beside it, and
has the same packages. Every worker process checks this once before its first work, since its node may have just
joined. Items of an unfit node are given to other nodes, the node is excluded, and the driver reports it in one
line.
"""

import base64
import json
import os
import pickle
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import yaml
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    NodeDiedError,
    OutOfMemoryError,
    RayError,
    WorkerCrashedError,
)
from ray.util.annotations import RayDeprecationWarning

from tsd.cluster.node_checks import (
    PROBES,
    Need,
    answered,
    fault_here,
    fault_there,
    package_versions,
    plain,
    unseen,
)
from tsd.cluster.session import own_ray
from tsd.errors import ClusterError, InputError, TsdError
from tsd.progress import Step
from tsd.storage import folders
from tsd.tasks import modules

NODE_ID = "ray.io/node-id"  # the label that Ray gives every node
ANSWER_SECONDS = 120.0  # timeout for a node to start a process and respond
SILENT_SECONDS = 10.0  # without a result, after which the driver reports what it waits for
MOST_TASKS = 4096  # per stage; with more items, a task processes several
DEATHS = 5  # of the worker processes that have an item; then the command ends
MOST_SAID = 200  # characters of Ray's own words
DIED = (ActorDiedError, ActorUnavailableError, NodeDiedError, OutOfMemoryError, WorkerCrashedError)


Items = Sequence[Mapping[str, Any]] | npt.NDArray[np.int64]


class UnfitNodeError(Exception):
    """Raised by a worker of a group, before its first work, on an unfit node."""

    def __init__(self, node: str, fault: str) -> None:
        super().__init__(node, fault)
        self.node, self.fault = node, fault


@dataclass
class Nodes:
    """The driver's state of a cluster: the requirements for nodes, and the unfit nodes."""

    need: Need | None = None
    say: Callable[[str], None] = lambda _: None
    unfit: dict[str, str] = field(default_factory=dict)

    @property
    def selector(self) -> dict[str, str]:
        """Ray's label selector for work: any node that is not known to be unfit."""
        return selector(self.unfit)

    def exclude(self, node: str, fault: str) -> None:
        """Exclude a node from further work and report it once. Raises InputError if no usable node is left."""
        if node in self.unfit:
            return
        self.unfit[node] = fault
        self.say(f"  [yellow]node {_name(node)} gets no work:[/] {fault}")
        ray.data.DataContext.get_current().execution_options.label_selector = self.selector
        able = [one for one in _alive() if one["Resources"].get("CPU", 0) >= 1]
        if able and all(one["NodeID"] in self.unfit for one in able):
            raise InputError(f"no node of the cluster can work for this study; {_name(node)}: {fault}")

    def review(self) -> bool:
        """Check all nodes again after a failure. Returns whether new unfit nodes were found."""
        faults = ask_all(self.need) if self.need else {}
        new = {node: fault for node, fault in faults.items() if node not in self.unfit}
        for node, fault in new.items():
            self.exclude(node, fault)
        return bool(new)


current = Nodes()  # of this process, if it is a driver


def selector(unfit: Mapping[str, str]) -> dict[str, str]:
    """Return Ray's label selector for all nodes except these."""
    return {NODE_ID: f"!in({','.join(sorted(unfit))})"} if unfit else {}


@contextmanager
def watched(
    folder: str,
    models: Sequence[str],
    packages: Sequence[str],
    say: Callable[[str], None],
    outside: Sequence[str] = (),
) -> Iterator[None]:
    """Check the nodes of the joined cluster inside this context. Does nothing on a local Ray.

    folder: the study's folder; models: model folders that the recipe names by path; packages: required modules;
    say: prints a line; outside: plugins, and the module of the task.
    Raises InputError, with one line per node, if a running node is unfit.
    """
    global current
    if own_ray():
        yield
        return
    before, token = current, os.urandom(8).hex()
    place = f"{folder.rstrip('/')}/{PROBES}"
    sent = tuple(modules.sent(one) for one in outside)
    need = Need(folder, token, tuple(models), tuple(packages), sent, package_versions())
    current = Nodes(need, say)
    try:
        folders.write_bytes(place, token, token.encode())
        faults = ask_all(need)
        if faults:
            raise InputError("\n".join(f"node {_name(node)} {fault}" for node, fault in faults.items()))
        yield
    finally:
        current = before
        ray.data.DataContext.get_current().execution_options.label_selector = None
        folders.delete_folder(place)


def ask_all(need: Need) -> dict[str, str]:
    """Check all running nodes concurrently. Returns the problem of each unfit node, by node id."""
    asked = {
        node["NodeID"]: fault_there.options(label_selector={NODE_ID: node["NodeID"]}).remote(need)
        for node in _alive()
    }
    ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_SECONDS)
    seen = set(answered(need))
    faults = {}
    for node, call in asked.items():
        try:
            found = ray.get(call, timeout=1)
        except GetTimeoutError:
            found = f"did not answer within {ANSWER_SECONDS:.0f} s"
        except RayError as error:
            found = f"cannot run tsd: {str(error).strip().splitlines()[-1]}"
        if found is None and node not in seen:
            found = unseen(need.folder)  # it wrote to a folder that no other node sees
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
    """Process each item with Ray Data workers on fit nodes. Yields the results in any order.

    work: maps a batch of one item ({"part": [3]}) to another, or a class that is constructed from `arguments` in
    each worker and then called in this way.
    items: columns by name, or part numbers. step: shows what is waited for. options: of `Dataset.map_batches`.
    Raises the TsdError that a worker raised, ClusterError if the workers that have an item die again and again,
    RayError if a worker fails for another reason than an unfit node.
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
                elif row["failed"]:
                    raise pickle.loads(base64.b64decode(row["failed"]))
                else:
                    yield json.loads(row["made"])
        except RayError as error:
            if not current.review():
                if isinstance(error, DIED):
                    raise ClusterError(_deaths(error)) from error
                raise
            again += [left[number] for number in range(len(left)) if number not in seen]
        left = again


def _rows(
    work: Any, arguments: Sequence[Any], items: Items, options: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Process the items once. Yields item number, node, and the result or the problem of the node."""
    blocks, kept = min(len(items), MOST_TASKS), isinstance(work, type)
    rows = {"batch_size": 1, "max_task_retries" if kept else "max_retries": DEATHS - 1, **options}
    with warnings.catch_warnings():  # Ray 2.60 deprecates these options of its own and has no others
        warnings.simplefilter("ignore", RayDeprecationWarning)
        if not kept:  # tasks that use the item numbers also generate them
            numbers = ray.data.range(len(items), override_num_blocks=blocks)
            made = numbers.map_batches(_by_function(current.need, work, items), **rows)
        else:  # separate generator tasks would wait for the CPUs that the actors hold
            each = [{"id": number} for number in range(len(items))]
            numbers = ray.data.from_items(each, override_num_blocks=blocks)
            made = numbers.map_batches(_Kept, fn_constructor_args=(current.need, work, arguments, items), **rows)
    found: Iterator[dict[str, Any]] = made.iter_rows()
    return found


def noting_waits(
    rows: Iterator[Any], step: Step | None, options: Mapping[str, Any], result: str = "the workers' next result"
) -> Iterator[Any]:
    """Yield rows as they arrive. If none arrives for a while, the step shows what is waited for and since when.

    options: resources of a worker, as for `map_batches`. result: description of a row, for the message.
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
            step.note = before[0]  # no longer waiting
            yield row
            since[0], before[0] = time.time(), step.note
    finally:
        over.set()
        watcher.join(10)
        step.note = before[0]


def lacking(options: Mapping[str, Any]) -> str:
    """Describe the node that work with these options requires if the cluster has none; else return ""."""
    wanted = {"CPU": options.get("num_cpus", 1), "GPU": options.get("num_gpus", 0)}
    try:
        there = [node["Resources"] for node in _alive() if node["NodeID"] not in current.unfit]
    except Exception:  # Ray is shutting down
        return ""
    if any(all(one.get(name, 0) >= count for name, count in wanted.items()) for one in there):
        return ""
    asked = " and ".join(f"{count:g} {name}" for name, count in wanted.items() if count)
    return f"a node with {asked}, of which the cluster has none"


def require_fit(need: Need | None) -> None:
    """Raise UnfitNodeError if the node of this process is unfit. Workers call it before their first work."""
    fault = fault_here(need) if need else None
    if fault is not None:
        raise UnfitNodeError(ray.get_runtime_context().get_node_id(), fault)


def machines() -> list[tuple[str, dict[str, float]]]:
    """Return name and resources of each running node."""
    return [(_name(node["NodeID"]), dict(node["Resources"])) for node in _alive()]


def node_types() -> dict[str, tuple[dict[str, float], float]] | None:
    """Return the node types that the cluster's autoscaler may start: resources and maximum count, by name.

    Empty without an autoscaler. None if the autoscaler does not expose its node types, such as KubeRay's.
    """
    head = ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001})(_configured_types)
    try:
        found: dict[str, tuple[dict[str, float], float]] | None = ray.get(head.remote(), timeout=ANSWER_SECONDS)
    except (RayError, GetTimeoutError):
        return None
    return found


def _configured_types() -> dict[str, tuple[dict[str, float], float]] | None:
    """Read the node types from the config file of the head node's autoscaler. Runs on the head node."""
    if os.environ.get("RAY_USAGE_STATS_KUBERAY_IN_USE") == "1" or "KUBERNETES_SERVICE_HOST" in os.environ:
        return None
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = process.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # the process has ended
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
    """Return a node's address and host name."""
    (found,) = [one for one in ray.nodes() if one["NodeID"] == node] or [{}]
    return f"{found.get('NodeManagerAddress', node[:8])} ({found.get('NodeManagerHostname', 'unknown')})"


def _deaths(error: RayError) -> str:
    said = " ".join(str(error).split())[:MOST_SAID]
    return (
        f"{DEATHS} worker processes died one after the other at the same part: they may lack memory, or a library "
        f"crashes. Ray says: {said}. Its logs are usually in /tmp/ray/session_latest/logs; the same command goes "
        "on from here"
    )


def _by_function(need: Need | None, work: Any, items: Items) -> Any:
    """Return a function for `map_batches` that processes an item if its node is fit."""

    def do(batch: dict[str, Any]) -> dict[str, Any]:
        return _row(int(batch["id"][0]), need, work, items)

    return do


class _Kept:
    """Ray Data actor that keeps the state of its work.

    The work is constructed for the first item, so that its errors and its deaths are those of an item. Ray would
    restart an actor that dies in its own constructor forever.
    """

    def __init__(self, need: Need | None, work: type, arguments: Sequence[Any], items: Items) -> None:
        self.need, self.items, self.work, self.arguments = need, items, work, arguments
        self.constructed: Any = None
        self.turn = threading.Lock()  # an actor may be called for several items at once

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Map one row with an item number to the item's result."""
        return _row(int(batch["id"][0]), self.need, self._work, self.items)

    def _work(self, item: dict[str, Any]) -> dict[str, Any]:
        with self.turn:
            if self.constructed is None:
                self.constructed = self.work(*self.arguments)
        result: dict[str, Any] = self.constructed(item)
        return result


def _row(number: int, need: Need | None, work: Any, items: Items) -> dict[str, Any]:
    """Return an item's result, the error that tsd raised, or the problem of the node."""
    fault = fault_here(need) if need else None
    made, failed = "null", ""
    if fault is None:
        item = items[number]
        columns = item if isinstance(item, Mapping) else {"part": int(item)}
        given = {name: [value] for name, value in columns.items()}
        try:
            made = json.dumps({name: plain(values[0]) for name, values in work(given).items()})
        except TsdError as error:  # a result: Ray would wrap it, and report a failed task in many lines
            failed = base64.b64encode(pickle.dumps(error)).decode()
    node = ray.get_runtime_context().get_node_id()
    return {"item": [number], "node": [node], "fault": [fault or ""], "failed": [failed], "made": [made]}
