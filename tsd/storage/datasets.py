"""Datasets on disk: a folder of Parquet parts and a manifest that is written last. All dataset I/O is here.

A folder without manifest is not a dataset. A part is written atomically. It carries the key of its inputs, so a
stopped stage finds its finished parts, and a stage of another recipe cannot use them by mistake.
A folder is a path or any URI that pyarrow supports (`s3://`, `gs://`).

Opening a dataset detects deleted or truncated parts by name, size and footer. A flipped bit is detected when its
page is read, by the page checksum. A stage rebuilds lost parts, and `commit` compares them with the existing
manifest: the bytes must be equal.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

import tsd
from tsd.errors import DataError, StorageError
from tsd.storage import locks
from tsd.storage.folders import (
    READERS,
    UNREADABLE,
    damaged,
    file_digest,
    filesystem,
    is_damage,
    names,
    write_bytes,
    write_json,
)
from tsd.storage.manifests import DIGEST, MANIFEST, Manifest, digest_of, read_manifest, whole_manifest
from tsd.storage.schemas import conform, fingerprint

KEY, NOTE = b"tsd.key", b"tsd.note"
PART_NAME = re.compile(r"part-(\d{8})\.parquet")
ASIDE = "damaged-"  # prefix of a damaged part's name until it is rebuilt


@dataclass(frozen=True)
class Part:
    """An existing part. sha256 is None if an earlier start wrote it, since computing it requires reading
    the part.
    """

    rows: int
    sha256: str | None = None
    note: Any = None
    """Metadata from its writer, as JSON types: counts that need no reading of all rows."""
    bytes: int | None = None
    """File size; None as for sha256."""


@dataclass(frozen=True)
class Dataset:
    """A finished, opened dataset: its folder, schema and manifest."""

    folder: str
    schema: pa.Schema
    manifest: Manifest

    @property
    def rows(self) -> int:
        """Number of rows of all parts."""
        return int(self.manifest["rows"])

    @property
    def parts(self) -> int:
        """Number of parts; they are numbered from 0."""
        return len(self.manifest["parts"])

    @property
    def about(self) -> Any:
        """Metadata from the stage that made it."""
        return self.manifest["about"]

    @property
    def digest(self) -> str:
        """Hash that datasets made from this one record as their parent."""
        return digest_of(self.manifest)

    def read_part(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one part. Without `columns`, it is validated against the schema."""
        return read_part(self.folder, index, self.schema, columns)

    def each_part(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Read part by part, in order and lazily: only one part is in memory."""
        return (self.read_part(index, columns) for index in range(self.parts))

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read all parts in order, as one table."""
        return pa.concat_tables(self.each_part(columns))


def open_dataset(folder: str, schema: pa.Schema) -> Dataset:
    """Open a finished dataset.

    Raises StorageError if there is none, DataError if it has another schema or if parts are missing or truncated.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise StorageError(f"{folder} holds no finished dataset: run the stage that makes it first")
    if manifest["schema"] != fingerprint(schema):
        raise DataError(f"{folder} was written with another schema, by tsd {manifest['versions']['tsd']}")
    if lost := wrong_size(folder, manifest):
        index, what = next(iter(lost.items()))
        raise DataError(damaged(f"{folder}/{part_name(index)}", what, folder, len(lost) - 1))
    return Dataset(folder, schema, manifest)


def peek(folder: str, schema: pa.Schema) -> Dataset | None:
    """Return a finished dataset without checking its parts; None if there is none."""
    manifest = whole_manifest(folder)
    return None if manifest is None else Dataset(folder, schema, manifest)


def require_made_by(folder: str, key: str) -> None:
    """Raise StorageError if a folder holds a dataset, or parts of one, with another key."""
    manifest = whole_manifest(folder)
    if manifest is not None:
        _require_key(folder, manifest["key"], key)
        return
    for name in names(folder):
        if found := PART_NAME.fullmatch(name):
            find_part(folder, int(found[1]), key)
            return


def find_finished(folder: str, schema: pa.Schema, key: str) -> Dataset | None:
    """Return the dataset with this key if it is finished and complete; None if any part must be computed.

    Raises StorageError if the folder holds a dataset, or parts of one, with another key.
    """
    manifest = whole_manifest(folder)
    if manifest is None:
        return None
    _require_key(folder, manifest["key"], key)
    return None if lost_parts(folder, key) else open_dataset(folder, schema)


def finished_parts(folder: str, key: str) -> dict[int, Part]:
    """Return the existing complete parts, by index. Their footers are read concurrently."""
    lost = wrong_size(folder, whole_manifest(folder))
    return {index: part for index, part in _look_at_all(folder, key).items() if part and index not in lost}


def lost_parts(folder: str, key: str) -> dict[int, str]:
    """Return the problem of each lost part: parts of the manifest that are missing, and truncated files."""
    manifest = whole_manifest(folder)
    found = _look_at_all(folder, key)
    lost = {index: "its footer cannot be read" for index, part in found.items() if part is None}
    lost |= wrong_size(folder, manifest)
    for index, part in enumerate(manifest["parts"] if manifest else ()):
        there = found.get(index)
        if there is not None and there.rows != part["rows"]:
            lost.setdefault(index, f"it has {there.rows:,} rows instead of {part['rows']:,}")
    return dict(sorted(lost.items()))


def unreadable_parts(folder: str) -> dict[int, str]:
    """Return the problem of each part according to its own checksums.

    Reads all parts; needed if the manifest cannot tell.
    """
    numbers = [int(found[1]) for name in names(folder) if (found := PART_NAME.fullmatch(name))]
    wrong = {}
    for index in numbers:
        try:
            _read(folder, index, None)
        except DataError as error:
            wrong[index] = str(error.__cause__ or "it is missing").strip().splitlines()[0]
    return wrong


def set_aside(folder: str, index: int) -> None:
    """Rename a damaged part so that it is rebuilt; `commit` deletes it afterwards."""
    locks.require(folder)
    files, root = filesystem(folder)
    path = f"{root}/{part_name(index)}"
    if files.get_file_info(path).type != fs.FileType.NotFound:
        files.move(path, f"{root}/{ASIDE}{part_name(index)}")


def find_part(folder: str, index: int, key: str) -> Part | None:
    """Return an existing part; None if it must still be computed. Raises StorageError if its key differs."""
    files, root = filesystem(folder)
    path = f"{root}/{part_name(index)}"
    if files.get_file_info(path).type == fs.FileType.NotFound:
        return None
    return _look(files, folder, path, key, whole_manifest(folder))


def _look_at_all(folder: str, key: str) -> dict[int, Part | None]:
    """Return the footer data of all existing parts; None for an unreadable one."""
    files, root = filesystem(folder)
    listed = files.get_file_info(fs.FileSelector(root, allow_not_found=True))
    paths = {int(name[1]): info.path for info in listed if (name := PART_NAME.fullmatch(info.base_name))}
    manifest = whole_manifest(folder)
    with ThreadPoolExecutor(READERS) as pool:
        looks = pool.map(lambda path: _look(files, folder, path, key, manifest), paths.values())
        return dict(sorted(zip(paths, looks, strict=True)))


def _look(files: fs.FileSystem, folder: str, path: str, key: str, manifest: Manifest | None) -> Part | None:
    """Return the footer data of a part; None if it cannot be read."""
    try:
        with files.open_input_file(path) as source:
            footer = pq.read_metadata(source)
        metadata = footer.metadata or {}
        part = Part(footer.num_rows, note=json.loads(metadata.get(NOTE, b"null")))
        found = metadata.get(KEY, b"").decode()
    except FileNotFoundError:
        return None
    except UNREADABLE as error:
        if is_damage(error):
            return None
        raise
    if found != key and manifest is not None and manifest["key"] == key:
        return None  # the footer is damaged: by the manifest, the part has this key
    _require_key(folder, found, key)
    return part


def wrong_size(folder: str, manifest: Manifest | None) -> dict[int, str]:
    """Return the problem of each part of a manifest that is missing or has another size. Lists the folder once."""
    if manifest is None:
        return {}
    files, root = filesystem(folder)
    listed = files.get_file_info(fs.FileSelector(root, allow_not_found=True))
    sizes = {info.base_name: info.size for info in listed}
    lost = {}
    for index, part in enumerate(manifest["parts"]):
        size, whole = sizes.get(part["name"]), part["bytes"]
        if size is None:
            lost[index] = "it is missing"
        elif size != whole:
            lost[index] = f"it has {size:,} bytes instead of {whole:,}"
    return lost


def write_part(folder: str, index: int, table: pa.Table, schema: pa.Schema, key: str, note: Any = None) -> Part:
    """Write one part atomically. note: metadata for the footer, as JSON types."""
    metadata = {KEY: key.encode(), NOTE: json.dumps(note).encode()}
    sink = pa.BufferOutputStream()
    table = conform(table, schema).replace_schema_metadata(metadata)
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    content = sink.getvalue()
    write_bytes(folder, part_name(index), content)
    return Part(len(table), hashlib.sha256(content).hexdigest(), note, len(content))


def read_part(folder: str, index: int, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one part of a dataset, finished or not. Raises DataError if it is missing or damaged."""
    table = _read(folder, index, columns)
    return table if columns else conform(table, schema)


def _read(folder: str, index: int, columns: Sequence[str] | None) -> pa.Table:
    """Read one part with page checksums verified. Raises DataError if it is missing or damaged."""
    files, root = filesystem(folder)
    name = part_name(index)
    try:
        with files.open_input_file(f"{root}/{name}") as source:
            table = pq.read_table(
                source, columns=list(columns) if columns else None, page_checksum_verification=True
            )
        _ = table.column_names  # pyarrow detects a damaged name only on access
    except FileNotFoundError:
        raise DataError(damaged(f"{folder}/{name}", "it is missing", folder)) from None
    except UNREADABLE as error:
        if not is_damage(error):
            raise
        what = str(error).strip().splitlines()[0]
        raise DataError(damaged(f"{folder}/{name}", what, folder)) from error
    return table.replace_schema_metadata()


def commit(
    folder: str,
    schema: pa.Schema,
    key: str,
    parts: int,
    parents: Mapping[str, str],
    known: Mapping[int, Part] | None = None,
    about: Any = None,
) -> Dataset:
    """Write the manifest over parts 0 to `parts` - 1, which completes the dataset.

    parents: digest of each dataset that this one was made from, by name. known: the parts, if the caller has them;
    else they are looked up. about: metadata of the dataset, as JSON types.
    An existing manifest is kept if only parts were lost: rebuilt parts must have its bytes.
    Raises DataError if a part is missing or was rebuilt with other bytes.
    """
    found = finished_parts(folder, key) if known is None else known
    missing = sorted(set(range(parts)) - set(found))
    if missing:
        raise DataError(f"{folder} cannot be finished: parts {missing[:5]} are missing")
    before = whole_manifest(folder)
    if before is not None and before["key"] == key and len(before["parts"]) == parts:
        _require_same_bytes(folder, before, {} if known is None else known)
        _delete_unfinished(folder)
        return Dataset(folder, schema, before)
    with ThreadPoolExecutor(READERS) as pool:
        seals = pool.map(lambda index: _seal(folder, index, found[index]), range(parts))
    fields = {
        "schema": fingerprint(schema),
        "key": key,
        "parents": dict(parents),
        "about": about,
        "rows": sum(found[index].rows for index in range(parts)),
        "parts": [
            {"name": part_name(index), "rows": found[index].rows, **seal} for index, seal in enumerate(seals)
        ],
        "versions": {"tsd": tsd.__version__, "pyarrow": pa.__version__},
    }
    manifest = json.loads(json.dumps(fields))  # as a reader will parse it
    manifest[DIGEST] = digest_of(manifest)
    _delete_unfinished(folder)
    write_json(folder, MANIFEST, manifest)
    return Dataset(folder, schema, manifest)


def _require_same_bytes(folder: str, manifest: Manifest, made: Mapping[int, Part]) -> None:
    """Raise DataError if a part differs from the manifest.

    made: parts with digests if they were just written. Parts that it lacks are read.
    """
    asked = [
        index for index in range(len(manifest["parts"])) if index not in made or made[index].sha256 is not None
    ]
    with ThreadPoolExecutor(READERS) as pool:
        seals = dict(zip(asked, pool.map(lambda i: _seal(folder, i, made.get(i, Part(0))), asked), strict=True))
    for index, seal in seals.items():
        part = manifest["parts"][index]
        if seal["sha256"] == part["sha256"]:
            continue
        set_aside(folder, index)
        raise DataError(
            f"{folder}/{part['name']} came out with other bytes than before, {_why_not_the_same(manifest)}, or "
            f"delete {folder} and what was made from it"
        )


def _why_not_the_same(manifest: Manifest) -> str:
    """Say what can make other bytes from the same recipe, and what to do about it."""
    then, now = manifest["versions"], {"tsd": tsd.__version__, "pyarrow": pa.__version__}
    code = "a task, process, teacher or policy outside tsd that the recipe names"
    fix = "let it depend on its arguments alone"
    if all(then.get(name) == version for name, version in now.items()):
        why = f"{code} is not deterministic, or has changed without a new version"
        return f"by the same tsd and pyarrow: {why}: {fix}"
    return (
        f"when tsd {then.get('tsd')} and pyarrow {then.get('pyarrow')} wrote it (now {now['tsd']} and "
        f"{now['pyarrow']}): install those versions; or, if {code} is not deterministic, {fix}"
    )


def _delete_unfinished(folder: str) -> None:
    """Delete temporary files of killed writers, and damaged parts that have been rebuilt."""
    files, root = filesystem(folder)
    for info in files.get_file_info(fs.FileSelector(root, allow_not_found=True)):
        if info.base_name.startswith(ASIDE):
            files.delete_file(info.path)
    if isinstance(files, fs.LocalFileSystem):
        for left in Path(root).glob(".part-*.parquet.*"):
            left.unlink(missing_ok=True)


def part_name(index: int) -> str:
    """Return the file name of a part."""
    return f"part-{index:08d}.parquet"


def _require_key(folder: str, found: str, key: str) -> None:
    if found != key:
        raise StorageError(
            f"{folder} was made from another recipe, or by another version of tsd, of the task or of a plugin "
            f"({found}, this one is {key}): name another folder with --out"
        )


def _seal(folder: str, index: int, part: Part) -> dict[str, Any]:
    """Return a part's size and digest; reads the file if they are unknown."""
    if part.sha256 is not None and part.bytes is not None:
        return {"bytes": part.bytes, "sha256": part.sha256}
    files, root = filesystem(folder)
    size = files.get_file_info(f"{root}/{part_name(index)}").size
    return {"bytes": size, "sha256": file_digest(folder, part_name(index))}
