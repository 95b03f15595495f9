"""Counter-based random generators: what is drawn depends on (seed, stream, counter) and on nothing else."""

import numpy as np

# One stream for each use, so that the same seed never gives two uses the same numbers.
SERIES, TEACHER, BATCHES = 0x5EED, 0x7EAC4E2, 0xBA7C4
PARTNERS, PAIRS = 0x5EED2, 0x9A125


def generator(seed: int, stream: int, counter: int) -> np.random.Generator:
    """A generator of its own for one block, epoch or the like (Philox; Salmon et al. 2011)."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, counter]))
