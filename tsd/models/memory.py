"""What a model takes to be trained over several GPUs or processes: memory of each, and seconds of moving it.

All of it is calculated from the model's dimensions; the rates of a machine are given. FSDP2 divides parameters,
gradients and AdamW's moments, all in float32, and gathers one layer after the other in the width that is computed
in. Nothing is loaded, and torch is not asked.
"""

from dataclasses import dataclass

MOMENTS = 2  # of AdamW, for each parameter
FULL = 4  # bytes of a float32: what is kept is kept in it


@dataclass(frozen=True)
class Shape:
    """The dimensions of a Qwen2.5."""

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
        """Parameters of one layer: attention with biases for q, k and v, the feed-forward part, two norms."""
        width, keys = self.heads * self.head, self.key_heads * self.head
        attention = self.hidden * (2 * width + 2 * keys) + width + 2 * keys
        return attention + 3 * self.hidden * self.mlp + 2 * self.hidden

    @property
    def root(self) -> int:
        """Parameters outside the layers: embeddings, a head where it is not tied to them, the last norm."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        """All parameters; tied ones count once."""
        return self.layers * self.layer + self.root

    @property
    def body(self) -> int:
        """Parameters without embeddings and head."""
        return self.layers * self.layer + self.hidden


QWEN = {
    "0.5B": Shape(24, 896, 4864, 14, 2, 64, 151_936, True),
    "1.5B": Shape(28, 1536, 8960, 12, 2, 128, 151_936, True),
    "3B": Shape(36, 2048, 11_008, 16, 2, 128, 151_936, True),
    "7B": Shape(28, 3584, 18_944, 28, 4, 128, 152_064, False),
}


@dataclass(frozen=True)
class Load:
    """What one worker has of a step: its tokens, how many of them bear a loss, and how long a row is."""

    tokens: int
    supervised: int
    length: int


@dataclass(frozen=True)
class Machine:
    """How many bytes a second a GPU sends within a node and between nodes."""

    within: float
    between: float
    node: int  # GPUs in one


# NVIDIA's datasheets of the H100 SXM and the H200: NVLink 900 GB/s both ways together. 400 Gb/s of InfiniBand for
# each GPU are an assumption.
HOPPER = Machine(within=450e9, between=50e9, node=8)


def states(parameters: int, workers: int) -> float:
    """Bytes that each worker keeps for as long as it trains: parameters, gradients, moments."""
    return (2 + MOMENTS) * FULL * parameters / workers


def memory(
    shape: Shape, workers: int, load: Load, *, width: int = 2, checkpointing: bool = False
) -> dict[str, float]:
    """Bytes at the peak of a step in each worker, by what takes them.

    width: bytes of a number that is computed with, 2 in bfloat16. checkpointing: whether a layer's activations are
    computed again in the backward pass rather than kept.
    """
    # Whole for a while: the root's parameters and gradient, the layer at work and the next one, and the copy in
    # float32 in which the largest gradient is summed over the workers.
    gathered = 0.0
    if workers > 1:
        gathered = 2 * width * shape.root + 3 * width * shape.layer + FULL * max(shape.root, shape.layer)
    # Kept for the backward pass, numbers a token and layer: inputs of both norms and what leaves them (which
    # transformers computes in float32), q, k, v and what attention gives, gate, up, the activated gate, the
    # product.
    q, k = shape.heads * shape.head, shape.key_heads * shape.head
    each = width * (4 * shape.hidden + 2 * (2 * q + 2 * k) + 4 * shape.mlp) + 2 * FULL * 2 * shape.hidden
    kept = width * shape.hidden * shape.layers + each if checkpointing else each * shape.layers
    # Logits, their float32 copy where that is another, log-probabilities and the gradients of both.
    logits = shape.vocabulary * load.supervised * (2 * width + 2 * FULL)
    return {
        "states": states(shape.parameters, workers),
        "gathered": gathered,
        "activations": float(kept * load.tokens),
        "logits": float(logits),
    }


def moving(shape: Shape, workers: int, machine: Machine) -> float:
    """Seconds of a step that each worker sends and receives.

    Every parameter in bfloat16 for the forward pass and again for the backward pass, and every gradient in
    float32, each but for a worker's own share.
    """
    moved = (2 * 2 + FULL) * shape.parameters * (workers - 1) / workers
    return moved / (machine.within if workers <= machine.node else machine.between)
