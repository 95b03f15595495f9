"""Counter-based random generators: what is drawn depends on (seed, stream, counter) and on nothing else."""

import numpy as np

# One stream for each use, so that the same seed never gives two uses the same numbers.
SERIES, TEACHER, BATCHES, LOOKS = 0x5EED, 0x7EAC4E2, 0xBA7C4, 0x100C5


def generator(seed: int, stream: int, counter: int) -> np.random.Generator:
    """A generator of its own for one block, epoch or the like (Philox; Salmon et al. 2011)."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, counter]))
