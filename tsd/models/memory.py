"""Estimate of the memory and communication time of a training step sharded with FSDP2.

Everything is calculated from the model's dimensions and given bandwidths; no model is loaded and torch is not
imported. FSDP2 shards parameters, gradients and AdamW's moments in float32, and all-gathers one layer at a time in
the compute dtype.
"""

from dataclasses import dataclass

MOMENTS = 2  # AdamW's moments per parameter
FULL = 4  # bytes of a float32, the dtype of the stored state


@dataclass(frozen=True)
class Shape:
    """The dimensions of a Qwen2.5 model."""

    layers: int
    hidden: int
    mlp: int
    heads: int
    key_heads: int
    head: int
    vocabulary: int
    tied: bool

    @property
    def layer(self) -> int:
        """Parameters of one layer: attention with biases for q, k and v, the MLP, two norms."""
        width, keys = self.heads * self.head, self.key_heads * self.head
        attention = self.hidden * (2 * width + 2 * keys) + width + 2 * keys
        return attention + 3 * self.hidden * self.mlp + 2 * self.hidden

    @property
    def root(self) -> int:
        """Parameters outside the layers: embeddings, output head unless it is tied to them, final norm."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        """All parameters. Tied weights count once."""
        return self.layers * self.layer + self.root

    @property
    def body(self) -> int:
        """Parameters without embeddings and output head."""
        return self.layers * self.layer + self.hidden


QWEN = {
    "0.5B": Shape(24, 896, 4864, 14, 2, 64, 151_936, True),
    "1.5B": Shape(28, 1536, 8960, 12, 2, 128, 151_936, True),
    "3B": Shape(36, 2048, 11_008, 16, 2, 128, 151_936, True),
    "7B": Shape(28, 3584, 18_944, 28, 4, 128, 152_064, False),
}


@dataclass(frozen=True)
class Load:
    """One worker's part of a step: tokens, supervised tokens, and tokens per row."""

    tokens: int
    supervised: int
    length: int


@dataclass(frozen=True)
class Machine:
    """GPU bandwidth in bytes per second, within a node and between nodes, one direction."""

    within: float
    between: float
    node: int  # GPUs per node


# NVIDIA data sheets of the H100 SXM and H200: NVLink 900 GB/s, both directions together. 400 Gb/s InfiniBand per
# GPU is an assumption.
HOPPER = Machine(within=450e9, between=50e9, node=8)


def states(parameters: int, workers: int) -> float:
    """Bytes per worker of the persistent state: parameters, gradients, moments."""
    return (2 + MOMENTS) * FULL * parameters / workers


def memory(
    shape: Shape, workers: int, load: Load, *, width: int = 2, checkpointing: bool = False
) -> dict[str, float]:
    """Peak memory of a step in bytes per worker, by component.

    width: bytes per number of the compute dtype, 2 for bfloat16. checkpointing: activation checkpointing, which
    recomputes a layer's activations in the backward pass instead of storing them.
    """
    # All-gathered at the same time: the root's parameters and gradient, the current layer, the prefetched one and
    # a layer's gradient, and the float32 copy in which the largest gradient is reduced.
    gathered = 0.0
    if workers > 1:
        gathered = 2 * width * shape.root + 3 * width * shape.layer + FULL * max(shape.root, shape.layer)
    # Stored for the backward pass, per token and layer: inputs and outputs of both norms and their float32
    # intermediates, q, k, v and the attention output, gate, up, activated gate and their product.
    q, k = shape.heads * shape.head, shape.key_heads * shape.head
    each = width * (4 * shape.hidden + 2 * (2 * q + 2 * k) + 4 * shape.mlp) + 2 * FULL * 2 * shape.hidden
    kept = width * shape.hidden * shape.layers + each if checkpointing else each * shape.layers
    # Logits, their float32 copy, log-probabilities and the gradients of both.
    logits = shape.vocabulary * load.supervised * (2 * width + 2 * FULL)
    return {
        "states": states(shape.parameters, workers),
        "gathered": gathered,
        "activations": float(kept * load.tokens),
        "logits": float(logits),
    }


def moving(shape: Shape, workers: int, machine: Machine) -> float:
    """Seconds of communication per step for each worker.

    All-gather of every parameter in bfloat16 for the forward and again for the backward pass, and reduce-scatter
    of every gradient in float32, except for the worker's own shard.
    """
    moved = (2 * 2 + FULL) * shape.parameters * (workers - 1) / workers
    return moved / (machine.within if workers <= machine.node else machine.between)
