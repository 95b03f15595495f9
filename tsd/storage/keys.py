"""Keys of artefacts: short hashes of everything that shapes one."""

import hashlib
import json
import re


def digest(value: object) -> str:
    """Return a 16-digit hash of any JSON value: recipes, parents, lists of them."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def is_key(name: str) -> bool:
    """Whether a name has the form of a `digest`."""
    return re.fullmatch("[0-9a-f]{16}", name) is not None
