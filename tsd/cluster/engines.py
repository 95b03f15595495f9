"""Annotation stage for a model that vLLM runs on the cluster's machines: each worker starts an engine of its own.

An engine is a server with the API that `tsd/cluster/api_teacher.py` asks, and the client is the same: journal,
repairs, retries and quality check. The driver sees counts alone.
"""

import os
import re
import threading
from collections.abc import Callable, Iterator
from queue import Empty, Queue
from typing import Any

import ray
from ray.exceptions import RayError

from tsd.cluster import parts
from tsd.cluster.api_teacher import WORKER_CPUS, Asker, Pool
from tsd.errors import InputError, TeacherError
from tsd.models import sources
from tsd.progress import Step, clock
from tsd.recipe import Recipe, VllmTeacher
from tsd.storage import datasets, folders
from tsd.teachers import vllm_engine
from tsd.teachers.api.history import Say, adopt_preview
from tsd.teachers.api.responses import SHOWN
from tsd.teachers.engine_log import log_folder

GPU_ENGINE_CPUS = 1.0  # logical CPUs of an engine on GPUs, and of the plots that its worker draws
QUEUED = 1024  # results that wait for the driver
NAMED = re.compile(r"[\w.]+(Error|Exception): ")


def ask(
    recipe: Recipe, series: datasets.Dataset, folder: str, key: str, step: Step, say: Say = print
) -> dict[int, datasets.Part]:
    """Annotate every part that is not finished. Returns all parts, existing and new.

    Raises InputError if the engine cannot run here or if the stage was stopped, TeacherError if no reply comes.
    """
    assert isinstance(recipe.teacher, VllmTeacher)
    teacher = recipe.teacher
    made = parts.find([parts.Target(((folder, key),), series.parts)])
    (found,) = made.parts[""]
    step.skip(sum(part.rows for part in found.values()))
    if not made.missing:
        return found
    require_engine(teacher)
    if 0 not in found:
        adopt_preview(folder)
    # An engine takes whole parts, so more engines than parts would have nothing to do.
    api = vllm_engine.as_api(teacher, engines=min(teacher.replicas, len(made.missing)))
    return EnginePool(recipe, api, series, folder, key, step, say, **needs(teacher)).annotate(made)


def require_engine(teacher: VllmTeacher) -> None:
    """Raise InputError if the engine certainly cannot start."""
    vllm_engine.require_python(teacher)
    looks_like_a_folder = teacher.model.startswith((".", "/", "~")) or sources.is_uri(teacher.model)
    if looks_like_a_folder and folders.read_json(teacher.model, "config.json") is None:
        raise InputError(f"teacher.model: {teacher.model} is not the folder of a model: it holds no config.json")
    wanted, there = teacher.replicas * teacher.gpus, ray.cluster_resources().get("GPU", 0)
    alone = not os.environ.get("RAY_ADDRESS")  # a cluster may start machines on demand
    if there < wanted and alone:
        raise InputError(
            f"teacher.replicas × teacher.tensor_parallel asks for {wanted} GPUs and this machine has {there:g}: "
            "join a cluster (RAY_ADDRESS), or set teacher.gpu=false to try a tiny model on CPUs"
        )


def needs(teacher: VllmTeacher) -> dict[str, Any]:
    """Return the resources of an engine and its worker, as for `map_batches`."""
    if not teacher.gpus:
        return {"num_cpus": WORKER_CPUS}
    kind = {"accelerator_type": teacher.accelerator} if teacher.accelerator else {}
    return {"num_cpus": GPU_ENGINE_CPUS, "num_gpus": teacher.gpus, **kind}


class EngineAsker(Asker):
    """Worker beside an engine of its own, which it starts, and starts again if it ends or hangs.

    Requests wait while the engine does not answer. Those that were under way when it ended are sent again, few at
    a time, so that a row that ends the engine is found.
    """

    def __init__(self, recipe: Recipe, teacher: vllm_engine.EngineApi, *others: Any) -> None:
        """teacher: how an engine is asked, except for its address. others: as for `Asker`."""
        keeper = vllm_engine.EngineKeeper(teacher.asked)
        os.environ[vllm_engine.TOKEN] = keeper.server.token  # where the client finds it
        super().__init__(recipe, teacher.model_copy(update={"base_url": keeper.server.base_url}), *others)
        keeper.attach(self.limiter, self.loop)
        keeper.start()


class EnginePool(Pool):
    """Workers with an engine each."""

    worker = EngineAsker

    def watch(self, rows: Iterator[parts.Row]) -> Iterator[parts.Row]:
        """Wrap the iterator of the workers' results. Raises TeacherError if no reply comes."""
        return patiently(rows, self.silent, self.teacher.idle_timeout)


def patiently(rows: Iterator[parts.Row], silent: Callable[[], float], seconds: float) -> Iterator[parts.Row]:
    """Yield rows as they arrive. silent: seconds since the latest reply.

    Raises TeacherError if there is none for `seconds`, or if a worker fails. Ray restarts a dead worker forever,
    and waits forever for machines that it does not get.
    """
    queue: Queue[parts.Row | BaseException | None] = Queue(QUEUED)

    def fill() -> None:
        try:
            for row in rows:
                queue.put(row)
            queue.put(None)
        except BaseException as error:
            queue.put(error)

    threading.Thread(target=fill, daemon=True).start()
    while True:
        try:
            item = queue.get(timeout=min(1.0, seconds))
        except Empty:
            if silent() < seconds:
                continue
            raise TeacherError(
                f"no engine gave a reply for {clock(seconds)} (teacher.idle_timeout): check whether the cluster "
                f"has the machines for it, and the engines' logs in {log_folder()} on them; the same command "
                "goes on from here"
            ) from None
        if item is None:
            return
        if isinstance(item, RayError):
            said = cause_of(str(item))
            raise TeacherError(f"the engine stopped: {said} (the logs of its Ray actor say more)") from item
        if isinstance(item, BaseException):
            raise item
        yield item


def cause_of(trace: str) -> str:
    """Return the original error at the end of a worker's traceback, in one line."""
    lines = [line.strip() for line in trace.splitlines() if line.strip()]
    first = max((i for i, line in enumerate(lines) if NAMED.match(line)), default=-1)
    return " ".join(lines[first:])[:SHOWN]
