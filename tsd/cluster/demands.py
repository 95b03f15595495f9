"""What a recipe's stages ask of machines, and what machines have."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import inf

from tsd.errors import TsdError
from tsd.recipe import Recipe, Student, VllmTeacher
from tsd.storage import datasets
from tsd.storage.schemas import EXAMPLES
from tsd.study import identity, outcomes, placement

GPU_FIX = "set training.gpu=false, or join a cluster that has GPUs (RAY_ADDRESS)"
Resources = dict[str, float]


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    what: str
    said: str
    ok: bool = True


@dataclass(frozen=True)
class Demand:
    """Resources that a stage requires: a number of concurrent workers with these resources on one node each."""

    what: str
    workers: int
    each: tuple[tuple[str, float], ...]
    fix: str


@dataclass(frozen=True)
class Machines:
    """Nodes of one kind: the resources of one, and how many exist or can be started."""

    name: str
    resources: Resources
    most: float = inf


def demands(recipe: Recipe, asked: set[str]) -> list[Demand]:
    """Return the resources that the stages require. Covers GPUs and groups of workers that start together."""
    found = []
    if asked & {"generate", "annotate", "curate", "evaluate"}:
        found.append(_demand("every stage", 1, {"CPU": 1.0}, "stage"))
    if "train" in asked:
        groups: dict[placement.Need, list[str]] = {}
        for student in unfinished(recipe):
            groups.setdefault(placement.need(student, recipe.training), []).append(student.name)
        for need, names in groups.items():
            each = {"GPU": float(need.gpus)} if recipe.training.gpu else {"CPU": float(need.cpus)}
            found.append(_demand(f"training {', '.join(names)}", need.workers, each, "training"))
    if "evaluate" in asked and recipe.training.gpu:
        found.append(_demand("decoding", 1, {"CPU": 1.0, "GPU": 1.0}, "training"))
    for teacher in recipe.teachers.values() or [recipe.teacher]:
        if "annotate" in asked and isinstance(teacher, VllmTeacher) and teacher.gpu:
            group = {"GPU": float(teacher.gpus)}
            found.append(_demand(f"the teacher {teacher.model}", teacher.replicas, group, "teacher"))
    return list(dict.fromkeys(found))


def _demand(what: str, workers: int, each: Resources, section: str) -> Demand:
    amount = " and ".join(f"{count:g} {name}{'s' if count > 1 else ''}" for name, count in each.items())
    group = f"{workers} workers of {amount} each" if workers > 1 else amount
    fix = {
        "training": GPU_FIX
        if "GPU" in each
        else "lower training.workers, training.threads or the student's workers",
        "stage": "start a node that has one",
        "teacher": "lower teacher.replicas or teacher.tensor_parallel, or set teacher.gpu=false for a tiny model",
    }[section]
    return Demand(f"{what} needs {group}", workers, tuple(each.items()), fix)


def room(asked: Iterable[Demand], machines: list[Machines]) -> Iterator[Finding]:
    """Yield one finding per demand: whether the machines can satisfy it."""
    for demand in asked:
        lack = shortage(demand, machines)
        if lack:
            yield Finding("machines", f"{demand.what}, but {lack}: {demand.fix}", ok=False)
        else:
            yield Finding("machines", demand.what)


def shortage(demand: Demand, machines: list[Machines]) -> str:
    """Describe which resources of a demand the machines lack; empty if none."""
    there = 0.0
    for machine in machines:
        fit = min((machine.resources.get(name, 0.0) + 1e-9) // count for name, count in demand.each if count)
        there += machine.most * fit if fit > 0 else 0
    if there >= demand.workers:
        return ""
    names = "s or ".join(name for name, _ in demand.each)
    if len(machines) == 1:
        (only,) = machines
        has = " and ".join(f"{only.resources.get(name, 0):g} {name}s" for name, _ in demand.each)
        return f"{only.name} has {has}"
    if there <= 0:
        return f"no node or node type of the cluster has enough {names}s"
    return f"all nodes and node types of the cluster together have {there:g} of them"


def this_machine(recipe: Recipe, asked: set[str]) -> Machines:
    """Return the resources of a local Ray. Imports torch to count GPUs only if some are required."""
    resources = {"CPU": float(os.environ.get("TSD_CPUS") or os.cpu_count() or 1)}
    if any(name == "GPU" for demand in demands(recipe, asked) for name, _ in demand.each):
        import torch

        resources["GPU"] = float(torch.cuda.device_count())
    return Machines("this machine", resources, 1)


def unfinished(recipe: Recipe) -> list[Student]:
    """Return the students with an unfinished run, over all teachers."""
    found: dict[str, Student] = {}
    for one in recipe.by_teacher.values() or [recipe]:
        missing = {student.name for student in one.students.models}
        try:
            runs = identity.plan_runs(one, datasets.open_dataset(f"{one.folder}/examples", EXAMPLES).digest)
            done = outcomes.finished(one, runs)
            missing = {run.student.name for run in runs if run.run_id not in done}
        except (TsdError, OSError, ValueError):
            pass  # no examples yet, or damaged ones, which the stage reports
        found |= {student.name: student for student in one.students.models if student.name in missing}
    return list(found.values())
