"""Low-overhead trainer for CPU trials on a local Ray: fewer processes, and only the workers load torch."""

from datetime import timedelta
from typing import Any

import ray
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from tsd.cluster.imports import quick_imports

PATIENCE = timedelta(minutes=30)  # for a collective operation, as in Ray's own trainer
LEAVING = 5.0  # seconds
_waiting: list[Any] = []  # idle controller of this process's last run, for reuse


class LowOverheadTrainer(DataParallelTrainer):  # type: ignore[misc]
    """Same as Ray's TorchTrainer on CPUs, with fewer processes that take seconds to start.

    One omitted process distributes Ray datasets, which a run does not use. The other cleans up after a dead
    controller, as the end of a local Ray also does. If a Ray version renames them, they are started. The
    controller process is reused by the next run of this process, unless its run failed.
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
        except ray.exceptions.RayActorError:  # the idle controller died
            controller = _Controller.remote()
            ray.get(controller.begin.remote(**parts))
        ray.get(controller.run.remote())
        result = ray.get(controller.get_result.remote())
        _waiting.append(controller)
        return result


@ray.remote(num_cpus=0)
class _Controller(TrainController):  # type: ignore[misc]
    """Ray's controller of one run, which can be reset for the next one."""

    def __init__(self) -> None:
        """Do nothing: `begin` sets the state of a run."""

    def begin(self, **parts: Any) -> None:
        """Initialise the controller for a run. parts: arguments of Ray's controller."""
        super().__init__(**parts)


class _Config(BackendConfig):  # type: ignore[misc]
    """Backend config that does not import torch. Ray's own imports it wherever it is unpickled."""

    @property
    def backend_cls(self) -> type[Backend]:
        return _Gloo


class _Gloo(Backend):  # type: ignore[misc]
    """Initialises one torch process group for all workers."""

    def on_start(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Called in the controller once the workers have started."""
        address = worker_group.execute_single(0, _free_address)
        count = len(worker_group)
        ray.get([worker_group.execute_single_async(rank, _meet, address, rank, count) for rank in range(count)])

    def on_shutdown(self, worker_group: Any, backend_config: BackendConfig) -> None:
        """Called in the controller after the run. Bounded wait: if one worker is dead, the others would block."""
        ray.wait(worker_group.execute_async(_leave), num_returns=len(worker_group), timeout=LEAVING)


def _free_address() -> str:
    """Return the address for the process group, on the first worker."""
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
