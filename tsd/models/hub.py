"""Whether a model on a hub can be reached, asked once and quickly: transformers alone retries for a minute."""

import os
from functools import lru_cache
from pathlib import Path

SECONDS = 5.0  # until the hub must answer


def folder(source: str) -> tuple[str | None, str | None]:
    """Where a model can be loaded from: its name or folder, or its copy in the cache where no hub answers.

    The second is why there is none.
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
    """Why the hub cannot be reached; None where it answers. Its client follows proxies and HF_ENDPOINT."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception as error:  # of whichever client this version of the hub's library has
        return f"{constants.ENDPOINT} does not answer ({str(error).strip().splitlines()[0][:120]})"
    return None
