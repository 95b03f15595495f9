"""A dataset's manifest: which parts it has, what made them, and a digest of itself."""

from collections.abc import Mapping
from typing import Any, TypedDict, cast, get_origin, get_type_hints

from tsd.errors import DataError
from tsd.storage.folders import damaged, read_bytes, read_fields
from tsd.storage.keys import digest

MANIFEST = "manifest.json"
DIGEST = "digest"  # in a manifest: hash of its other fields


class PartEntry(TypedDict):
    """A part in a manifest."""

    name: str
    rows: int
    bytes: int
    sha256: str


class Manifest(TypedDict):
    """A dataset's manifest, as its file holds it."""

    schema: str
    key: str
    parents: dict[str, str]
    """Digest of the manifest of each parent table, by name."""
    rows: int
    parts: list[PartEntry]
    about: Any
    """What the stage says of the table, such as class frequencies."""
    versions: dict[str, str]
    digest: str
    """Of the other fields."""


# Those that every manifest has, and the types of their values in JSON.
FIELDS = {name: get_origin(kind) or kind for name, kind in get_type_hints(Manifest).items() if name != "about"}


def has_damaged_manifest(folder: str) -> bool:
    """Whether there is a manifest that cannot be read. The dataset is then committed again from its parts."""
    return read_bytes(folder, MANIFEST) is not None and whole_manifest(folder) is None


def read_manifest(folder: str) -> Manifest | None:
    """Return a dataset's manifest; None if there is none. Raises DataError if it is damaged."""
    manifest = read_fields(folder, MANIFEST)
    if manifest is None:
        return None
    lacks = [name for name, kind in FIELDS.items() if not isinstance(manifest.get(name), kind)]
    whole = PartEntry.__required_keys__
    if not lacks and not all(isinstance(part, dict) and part.keys() >= whole for part in manifest["parts"]):
        lacks = ["name, rows, bytes or digest of a part"]
    if lacks:
        raise DataError(damaged(f"{folder}/{MANIFEST}", f"it has no {lacks[0]}", folder))
    if manifest[DIGEST] != digest_of(manifest):
        raise DataError(damaged(f"{folder}/{MANIFEST}", "it does not hold what was written", folder))
    return cast(Manifest, manifest)


def digest_of(manifest: Mapping[str, object]) -> str:
    """Return the digest of a manifest, which is also stored in it."""
    return digest({name: value for name, value in manifest.items() if name != DIGEST})


def whole_manifest(folder: str) -> Manifest | None:
    """Return the manifest; None if there is none or it is damaged. The parts then determine the state."""
    try:
        return read_manifest(folder)
    except DataError:
        return None


def made_by(folder: str) -> str | None:
    """Return the key of a finished dataset; None if there is none or its manifest cannot be read."""
    manifest = whole_manifest(folder)
    return None if manifest is None else str(manifest["key"])
