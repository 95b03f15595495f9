"""A trial on CPUs of one's own starts sooner: fewer processes, of which the workers alone load torch."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

PATIENCE = timedelta(minutes=30)  # for a step of all workers together, as with Ray's own trainer
LEAVING = 5.0  # seconds
_waiting: list[Any] = []  # the controller of this process's last run, if it is there for the next one


class LeanTrainer(DataParallelTrainer):  # type: ignore[misc]
    """What Ray's TorchTrainer does on CPUs, with fewer processes that take seconds to start.

    Of those left out, one deals out Ray datasets, of which a run has none; the other cleans up after a controller
    that is gone, as the end of a Ray of one's own does. Where Ray names them otherwise they are started. The
    process of the controller is there for the next run of the same process, unless its run broke off.
    """

    UNUSED = ("DatasetsCallback", "PlacementGroupCleanerCallback")

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, backend_config=_Config(), **named)

    def _create_default_callbacks(self) -> list[Any]:
        return [one for one in super()._create_default_callbacks() if type(one).__name__ not in self.UNUSED]

    def _initialize_and_run_controller(self, **parts: Any) -> Any:
        controller = _waiting.pop() if _waiting else _Controller.remote()
        try:
            ray.get(controller.begin.remote(**parts))
        except ray.exceptions.RayActorError:  # it died while it waited
            controller = _Controller.remote()
            ray.get(controller.begin.remote(**parts))
        ray.get(controller.run.remote())
        result = ray.get(controller.get_result.remote())
        _waiting.append(controller)
        return result


@ray.remote(num_cpus=0)
class _Controller(TrainController):  # type: ignore[misc]
    """Ray's controller of one run, made anew for the next one."""

    def __init__(self) -> None:
        """Nothing is known of a run yet."""

    def begin(self, **parts: Any) -> None:
        """Become the controller of a run, that has these parts."""
        super().__init__(**parts)


class _Config(BackendConfig):  # type: ignore[misc]
    """Ray's own for torch is a module that loads torch wherever it is read: in Tune's actor and the controller."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _Gloo


class _Gloo(Backend):  # type: ignore[misc]
    """Has the workers meet in one process group of torch's."""

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Called in the controller once the workers are there."""
        address = worker_group.execute_single(0, _free_address)
        count = len(worker_group)
        ray.get([worker_group.execute_single_async(rank, _meet, address, rank, count) for rank in range(count)])

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Called in the controller when the workers are done; one may be gone, and the others wait for it."""
        ray.wait(worker_group.execute_async(_leave), num_returns=len(worker_group), timeout=LEAVING)


@contextmanager
def quick_imports() -> Iterator[None]:
    """Inside, modules load without the collector of garbage, which finds none and looks at all of them again and
    again. What stands at the end it leaves alone for good, so nothing but modules may have been made before."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _free_address() -> str:
    """Where the first worker can be met."""
    from ray._common.network_utils import build_address
    from ray.train._internal.utils import get_address_and_port

    return f"tcp://{build_address(*get_address_and_port())}"


def _meet(address: str, rank: int, count: int) -> None:
    with quick_imports():
        import torch.distributed as dist

    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=count, timeout=PATIENCE)


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.destroy_process_group()
