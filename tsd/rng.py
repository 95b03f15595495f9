"""Counter-based random generators: what is drawn depends on (seed, stream, counter) and on nothing else."""

import numpy as np

# One stream for each use, so that the same seed never gives two uses the same numbers.
SERIES, TEACHER, BATCHES, LOOKS = 0x5EED, 0x7EAC4E2, 0xBA7C4, 0x100C5
PARTNERS, PAIRS = 0x5EED2, 0x9A125


def generator(seed: int, stream: int, counter: int) -> np.random.Generator:
    """A generator of its own for one block, epoch or the like (Philox; Salmon et al. 2011)."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, counter]))


def fast_generator(seeding: np.random.Generator) -> np.random.Generator:
    """A generator for millions of numbers, seeded with 256 bits of another one (SFC64; Doty-Humphrey 2014).

    It draws normals a third faster than Philox does; what it draws depends on what seeds it and nothing else.
    """
    return np.random.Generator(np.random.SFC64(seeding.integers(2**64, size=4, dtype=np.uint64).tolist()))
