"""How worker processes import torch and transformers, which takes longer than most of their work."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import modules with garbage collection disabled: it would find nothing and scan all objects repeatedly.

    Objects that exist at the end are frozen, so only modules may have been loaded before.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
