"""Counter-based random generators. Their numbers depend only on (seed, stream, counter)."""

import numpy as np

# One stream per use, so that one seed never gives two uses the same numbers.
SERIES, TEACHER, BATCHES, LOOKS = 0x5EED, 0x7EAC4E2, 0xBA7C4, 0x100C5
PARTNERS, PAIRS = 0x5EED2, 0x9A125


def generator(seed: int, stream: int, counter: int) -> np.random.Generator:
    """A Philox generator for one block, epoch or the like (Salmon et al. 2011)."""
    return np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, counter]))


def fast_generator(seeding: np.random.Generator) -> np.random.Generator:
    """A faster generator for large arrays, seeded with 256 bits of another one (SFC64; Doty-Humphrey 2014).

    Its numbers depend on `seeding` only.
    """
    return np.random.Generator(np.random.SFC64(seeding.integers(2**64, size=4, dtype=np.uint64).tolist()))
