"""Check once, with a short timeout, whether the model hub can be reached.

transformers by itself retries for much longer.
"""

import os
from functools import lru_cache
from pathlib import Path

SECONDS = 5.0  # timeout of the request to the hub


def folder(source: str) -> tuple[str | None, str | None]:
    """Where a model can be loaded from. Returns (source, None), or (None, reason) if it is unavailable.

    The source is the name or folder as given or, if the hub cannot be reached, the folder of the cached copy.
    """
    if "://" in source or os.path.isdir(source) or source.startswith(("/", ".", "~")):
        return source, None
    why = _unreachable()
    if why is None:
        return source, None
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source, "config.json")
    if isinstance(cached, str):
        return str(Path(cached).parent), None
    return None, why


@lru_cache(maxsize=1)
def _unreachable() -> str | None:
    """Why the hub cannot be reached; None if it answers. The client honours proxies and HF_ENDPOINT."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:  # the exception class depends on the version of huggingface_hub
        return f"{constants.ENDPOINT} does not answer ({str(error).strip().splitlines()[0][:120]})"
    return None
