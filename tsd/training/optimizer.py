"""Muon (Jordan et al. 2024): orthogonalised momentum for matrices, AdamW for all other parameters.

torch.optim.Muon takes the same steps for matrices, but covers neither the other parameters nor sharded ones. It
also works in bfloat16 and on one matrix at a time, which is slow on CPUs without bfloat16 instructions.
`benchmarks/optimizers.py` times both.
"""

from collections import defaultdict
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

MOMENTUM = 0.9
RATE = 0.6  # RMS of an update, in learning rates; 0.2 would match AdamW's (Liu et al. 2025)
ITERATIONS = 3
SLICE = 2**24  # elements of the matrices that are orthogonalised together
QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan et al.: most singular values converge to about one


class Muon(torch.optim.AdamW):
    """AdamW, except for groups marked `matrices`: (rows, columns) parameters, sharded or not."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step. Under FSDP every worker gathers each matrix's momentum and computes the full update."""
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
        """Muon's update for a group. Matrices of equal shape are orthogonalised together."""
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
        """Update the running mean of a matrix's gradients. Returns its Nesterov momentum, unsharded."""
        state, gradient = self.state[matrix], matrix.grad
        assert gradient is not None
        if not state:
            state.update(step=torch.tensor(0.0), momentum=torch.zeros_like(matrix))  # AdamW's state has `step`
        state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        ahead = torch.lerp(gradient, state["momentum"], MOMENTUM)
        return ahead.full_tensor() if isinstance(ahead, DTensor) else ahead


def orthogonal(matrices: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Orthogonalise matrices approximately by a Newton-Schulz iteration: singular values move towards one.

    matrices: (batch, rows, columns), rows ≤ columns; the shape of the result. A zero matrix stays zero.
    """
    linear, cubic, quintic = QUINTIC
    x: Tensor = matrices / torch.linalg.matrix_norm(matrices, keepdim=True).clamp(min=1e-7)
    for _ in range(iterations):
        gram = x @ x.mT  # (batch, rows, rows)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic), x, beta=linear)
    return x


def _lying(matrix: Tensor) -> Tensor:
    """The matrix, transposed if it has more rows than columns."""
    return matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix


def _like(matrix: Tensor, direction: Tensor) -> Tensor:
    """Undo `_lying` for an update and shard it like the matrix. Workers hold all of it, so nothing is sent."""
    if matrix.shape[0] > matrix.shape[1]:
        direction = direction.mT
    if isinstance(matrix, DTensor):
        shared = distribute_tensor(direction, matrix.device_mesh, matrix.placements, src_data_rank=None)
        return cast(Tensor, shared)
    return direction
