"""Keys of artefacts: short hashes of everything that shapes one."""

import hashlib
import json


def digest(value: object) -> str:
    """Return a 16-digit hash of any JSON value: recipes, parents, lists of them."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
