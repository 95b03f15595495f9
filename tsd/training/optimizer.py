"""Muon (Jordan et al. 2024): a matrix moves by its momentum, equally far in all directions; all else by AdamW.

torch.optim.Muon takes the same steps, but knows neither AdamW for the rest nor shards, and works matrix by matrix
in bfloat16, which a CPU without such instructions is slow at. `benchmarks/optimisers.py` times both.
"""

from collections import defaultdict
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

MOMENTUM = 0.9
RATE = 0.6  # of AdamW's, by the root of a matrix's longer side; 0.2 moves as far as AdamW does (Liu et al. 2025)
ITERATIONS = 3
SLICE = 2**24  # numbers of matrices that are taken together
QUINTIC = (3.4445, -4.7750, 2.0315)  # of Jordan et al.: singular values of almost any size go to about one


class Muon(torch.optim.AdamW):
    """AdamW, but for the groups marked `matrices`: each parameter there is (rows, columns), whole or sharded."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step. Under FSDP every worker gathers each matrix's update and works it out whole."""
        assert closure is None
        every = self.param_groups
        for group in every:
            if group.get("matrices"):
                self._step_matrices(group)
        self.param_groups = [group for group in every if not group.get("matrices")]
        try:
            return super().step()
        finally:
            self.param_groups = every

    def _step_matrices(self, group: dict[str, Any]) -> None:
        alike = defaultdict(list)
        for matrix in group["params"]:
            if matrix.grad is not None:
                alike[min(matrix.shape), max(matrix.shape)].append(matrix)
        for (_, longer), matrices in alike.items():
            together = max(1, SLICE // matrices[0].numel())
            for first in range(0, len(matrices), together):
                some = matrices[first : first + together]
                directions = orthogonal(torch.stack([_lying(self._momentum(matrix)) for matrix in some]))
                for matrix, direction in zip(some, directions, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"])
                    matrix.sub_(_like(matrix, direction), alpha=RATE * longer**0.5 * group["lr"])

    def _momentum(self, matrix: Tensor) -> Tensor:
        """Where a matrix is to go: its gradient and those before, a step ahead (Nesterov), whole."""
        state, gradient = self.state[matrix], matrix.grad
        assert gradient is not None
        if not state:
            state.update(step=torch.tensor(0.0), momentum=torch.zeros_like(matrix))  # AdamW expects a step
        state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        ahead = torch.lerp(gradient, state["momentum"], MOMENTUM)
        return ahead.full_tensor() if isinstance(ahead, DTensor) else ahead


def orthogonal(matrices: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Each matrix with its singular values brought near one, by Newton and Schulz's iteration.

    matrices: (batch, rows, columns), rows ≤ columns. Zero stays zero.
    """
    linear, cubic, quintic = QUINTIC
    x: Tensor = matrices / torch.linalg.matrix_norm(matrices, keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic), x, beta=linear)
    return x


def _lying(matrix: Tensor) -> Tensor:
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix


def _like(matrix: Tensor, direction: Tensor) -> Tensor:
    """A whole matrix as another one stands, and as it is sharded; nothing is sent."""
    if matrix.shape[0] > matrix.shape[1]:
        direction = direction.mT
    if isinstance(matrix, DTensor):
        shared = distribute_tensor(direction, matrix.device_mesh, matrix.placements, src_data_rank=None)
        return cast(Tensor, shared)
    return direction
