"""Datasets on disk: a folder of Parquet parts and a manifest that is written last. All dataset I/O is here.

A folder without manifest is not a dataset. A part is written atomically. It carries the key of its inputs, so a
stopped stage finds its finished parts, and a stage of another recipe cannot use them by mistake.
A folder is a path or any URI that pyarrow supports (`s3://`, `gs://`).

Opening a dataset detects deleted or truncated parts by name, size and footer. A flipped bit is detected when its
page is read, by the page checksum. A stage rebuilds lost parts, and `commit` compares them with the existing
manifest: the bytes must be equal.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
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
from tsd.storage.schemas import conform, fingerprint

MANIFEST = "manifest.json"
DIGEST = "digest"  # in a manifest: hash of its other fields
FIELDS = {
    "schema": str,
    "key": str,
    "parents": dict,
    "rows": int,
    "parts": list,
    "versions": dict,
}  # of a manifest
OF_A_PART = {"name", "rows", "sha256"}
KEY, NOTE = b"tsd.key", b"tsd.note"
PART_NAME = re.compile(r"part-(\d{8})\.parquet")
ASIDE = "damaged-"  # prefix of a damaged part's name until it is rebuilt
FILES = "files.json"  # in a sealed folder of plain files: size and digest of each file
INSIDE = (  # contents of a study's folder
    *("series", "plots", "annotations", "verdicts", "examples", "rejects", "runs"),
    *("predictions", "students", "records", "tokenizer", "teacher", "teachers", "trials"),
)
UNSEALED = ("README.md", FILES)  # a model card is rewritten by each evaluation
READERS = 16  # concurrent reads, to hide the latency of object stores


def digest(value: object) -> str:
    """Return a 16-digit hash of any JSON value: recipes, parents, lists of them."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
    manifest: Mapping[str, Any]

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


def made_by(folder: str) -> str | None:
    """Return the key of a finished dataset; None if there is none or its manifest cannot be read."""
    manifest = _manifest(folder)
    return None if manifest is None else str(manifest["key"])


def peek(folder: str, schema: pa.Schema) -> Dataset | None:
    """Return a finished dataset without checking its parts; None if there is none."""
    manifest = _manifest(folder)
    return None if manifest is None else Dataset(folder, schema, manifest)


def require_made_by(folder: str, key: str) -> None:
    """Raise StorageError if a folder holds a dataset, or parts of one, with another key."""
    manifest = _manifest(folder)
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
    manifest = _manifest(folder)
    if manifest is None:
        return None
    _require_key(folder, manifest["key"], key)
    return None if lost_parts(folder, key) else open_dataset(folder, schema)


def finished_parts(folder: str, key: str) -> dict[int, Part]:
    """Return the existing complete parts, by index. Their footers are read concurrently."""
    lost = wrong_size(folder, _manifest(folder))
    return {index: part for index, part in _look_at_all(folder, key).items() if part and index not in lost}


def lost_parts(folder: str, key: str) -> dict[int, str]:
    """Return the problem of each lost part: parts of the manifest that are missing, and truncated files."""
    manifest = _manifest(folder)
    found = _look_at_all(folder, key)
    lost = {index: "its footer cannot be read" for index, part in found.items() if part is None}
    lost |= wrong_size(folder, manifest)
    for index, part in enumerate(manifest["parts"] if manifest else ()):
        there = found.get(index)
        if there is not None and there.rows != part["rows"]:
            lost.setdefault(index, f"it has {there.rows:,} rows and not {part['rows']:,}")
    return dict(sorted(lost.items()))


def has_damaged_manifest(folder: str) -> bool:
    """Whether there is a manifest that cannot be read. The dataset is then committed again from its parts."""
    return read_bytes(folder, MANIFEST) is not None and _manifest(folder) is None


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
    return _look(files, folder, path, key, _manifest(folder))


def _look_at_all(folder: str, key: str) -> dict[int, Part | None]:
    """Return the footer data of all existing parts; None for an unreadable one."""
    files, root = filesystem(folder)
    listed = files.get_file_info(fs.FileSelector(root, allow_not_found=True))
    paths = {int(name[1]): info.path for info in listed if (name := PART_NAME.fullmatch(info.base_name))}
    manifest = _manifest(folder)
    with ThreadPoolExecutor(READERS) as pool:
        looks = pool.map(lambda path: _look(files, folder, path, key, manifest), paths.values())
        return dict(sorted(zip(paths, looks, strict=True)))


def _look(
    files: fs.FileSystem, folder: str, path: str, key: str, manifest: Mapping[str, Any] | None
) -> Part | None:
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


def wrong_size(folder: str, manifest: Mapping[str, Any] | None) -> dict[int, str]:
    """Return the problem of each part of a manifest that is missing or has another size. Lists the folder once."""
    if manifest is None:
        return {}
    files, root = filesystem(folder)
    listed = files.get_file_info(fs.FileSelector(root, allow_not_found=True))
    sizes = {info.base_name: info.size for info in listed}
    lost = {}
    for index, part in enumerate(manifest["parts"]):
        size, whole = sizes.get(part["name"]), part.get("bytes")  # older manifests lack sizes
        if size is None:
            lost[index] = "it is missing"
        elif whole is not None and size != whole:
            lost[index] = f"it has {size:,} bytes and not {whole:,}"
    return lost


def read_manifest(folder: str) -> dict[str, Any] | None:
    """Return a dataset's manifest; None if there is none. Raises DataError if it is damaged.

    A manifest without digest is of an earlier version. It may contain only the known fields, so that a damaged
    digest field is detected.
    """
    manifest = read_fields(folder, MANIFEST)
    if manifest is None:
        return None
    lacks = [name for name, kind in FIELDS.items() if not isinstance(manifest.get(name), kind)]
    if not lacks and not all(isinstance(part, dict) and part.keys() >= OF_A_PART for part in manifest["parts"]):
        lacks = ["name, rows or digest of a part"]
    if lacks:
        raise DataError(damaged(f"{folder}/{MANIFEST}", f"it has no {lacks[0]}", folder))
    known = {*FIELDS, "about", DIGEST}
    if set(manifest) - known or manifest.get(DIGEST, digest_of(manifest)) != digest_of(manifest):
        raise DataError(damaged(f"{folder}/{MANIFEST}", "it does not hold what was written", folder))
    return manifest


def digest_of(manifest: Mapping[str, Any]) -> str:
    """Return the digest of a manifest, which is also stored in it."""
    return digest({name: value for name, value in manifest.items() if name != DIGEST})


def _manifest(folder: str) -> dict[str, Any] | None:
    """Return the manifest; None if there is none or it is damaged. The parts then determine the state."""
    try:
        return read_manifest(folder)
    except DataError:
        return None


UNREADABLE = (pa.ArrowException, OSError, ValueError, IndexError)  # errors of pyarrow and json on damaged bytes


def is_damage(error: BaseException) -> bool:
    """Whether a read error concerns the content rather than access to it."""
    return not isinstance(error, OSError) or (error.errno is None and not _NETWORK.search(str(error)))


_NETWORK = re.compile(r"AWS Error|curlCode|HTTP status|timed? ?out|connection", re.IGNORECASE)


def damaged(path: str, what: str, folder: str, more: int = 0) -> str:
    """Format the message for a damaged file, with the fix."""
    others = f" (and {more} more)" if more else ""
    return (
        f"{path} is damaged: {what}{others}; `tsd study` on the same recipe makes what is missing again, "
        f"`tsd verify {study_of(folder)} --repair` whatever is wrong"
    )


def study_of(folder: str) -> str:
    """Return the study's folder that contains a table or student folder, judged by names."""
    path = folder.rstrip("/")
    while True:
        above, _, name = path.rpartition("/")
        of_many = above.rpartition("/")[2] in ("predictions", "students", "teachers")
        if not above or (name not in INSIDE and not of_many):
            return path
        path = above


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
    before = _manifest(folder)
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


def _require_same_bytes(folder: str, manifest: Mapping[str, Any], made: Mapping[int, Part]) -> None:
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
        if "bytes" not in part and _plain_digest(folder, index) == part["sha256"]:
            continue
        set_aside(folder, index)
        versions = manifest["versions"]
        raise DataError(
            f"{folder}/{part['name']} came out with other bytes than before, when tsd {versions['tsd']} and "
            f"pyarrow {versions['pyarrow']} wrote it (now {tsd.__version__} and {pa.__version__}): install those "
            f"versions, or delete {folder} and what was made from it"
        )


def _plain_digest(folder: str, index: int) -> str:
    """Rewrite a part as earlier versions did, without page checksums. Returns the digest of its bytes."""
    files, root = filesystem(folder)
    with files.open_input_file(f"{root}/{part_name(index)}") as source:
        table = pq.read_table(source)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content = sink.getvalue()
    write_bytes(folder, part_name(index), content)
    return hashlib.sha256(content).hexdigest()


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


def read_json(folder: str, name: str) -> Any:
    """Read a JSON file of a folder; None if there is none. Raises DataError if it is damaged."""
    content = read_bytes(folder, name)
    if content is None:
        return None
    try:
        return json.loads(content)
    except ValueError as error:
        raise DataError(damaged(f"{folder}/{name}", f"it is not JSON ({error})", folder)) from None


def read_fields(folder: str, name: str) -> dict[str, Any] | None:
    """Read a JSON object from a file; None if there is none. Raises DataError if it is damaged."""
    found = read_json(folder, name)
    if found is None and read_bytes(folder, name) is None:
        return None
    if not isinstance(found, dict):
        raise DataError(damaged(f"{folder}/{name}", "it holds no fields", folder))
    return found


def read_bytes(folder: str, name: str) -> bytes | None:
    """Read a small file of a folder; None if there is none."""
    files, root = filesystem(folder)
    path = f"{root}/{name}"
    if files.get_file_info(path).type == fs.FileType.NotFound:
        return None
    with files.open_input_file(path) as source:
        content: bytes = source.read()
    return content


def write_json(folder: str, name: str, value: object) -> None:
    """Write a JSON file atomically. Key order is preserved."""
    write_bytes(folder, name, json.dumps(value, indent=1).encode() + b"\n")


def write_bytes(folder: str, name: str, content: bytes | pa.Buffer) -> None:
    """Write one file atomically.

    On an object store, a stream is invisible until it is closed; on a disk, the file is renamed last. Raises
    StorageError if it cannot be written.
    """
    locks.require(folder)
    files, root = filesystem(folder)
    with storage_errors(folder):
        files.create_dir(root, recursive=True)
        if not isinstance(files, fs.LocalFileSystem):
            with files.open_output_stream(f"{root}/{name}", compression=None) as sink:
                sink.write(content)
            return
        unfinished = f"{root}/.{name}.{uuid.uuid4().hex}"
        try:
            with open(unfinished, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, f"{root}/{name}")
        except OSError:
            Path(unfinished).unlink(missing_ok=True)
            raise


def copy_folder(local: str, folder: str, sealed: bool = False) -> None:
    """Copy a finished local folder to `folder`; on a disk atomically.

    sealed: also write the size and digest of each file, for `damage`. Raises StorageError if it cannot be written.
    """
    locks.require(folder)
    if sealed:
        _write_seals(Path(local))
    files, root = filesystem(folder)
    with storage_errors(folder):
        delete_folder(folder)
        if isinstance(files, fs.LocalFileSystem):
            unfinished = f"{root}.{uuid.uuid4().hex}"
            shutil.copytree(local, unfinished)
            os.replace(unfinished, root)
        else:
            fs.copy_files(local, root, destination_filesystem=files)


def add_files(local: str, folder: str) -> None:
    """Copy a local folder's files into a folder that several processes write to.

    If the storage is full, the whole folder is deleted: this frees space, and a joint result would be incomplete
    anyway.
    """
    files, root = filesystem(folder)
    with storage_errors(folder):
        files.create_dir(root, recursive=True)
        try:
            fs.copy_files(local, root, destination_filesystem=files)
        except OSError:
            delete_folder(folder)
            raise


def _write_seals(local: Path) -> None:
    paths = sorted(path for path in local.rglob("*") if path.is_file() and path.name not in UNSEALED)
    seals = {}
    for path in paths:
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        seals[path.relative_to(local).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256}
    (local / FILES).write_text(json.dumps(seals, indent=1) + "\n")


def seals(folder: str) -> dict[str, dict[str, Any]]:
    """Return size and digest of each file of a sealed folder, by name; empty if it is not sealed."""
    try:
        return _seals(folder)
    except DataError:
        return {}


def _seals(folder: str) -> dict[str, dict[str, Any]]:
    seals = read_fields(folder, FILES) or {}
    if not all(isinstance(seal, dict) and seal.keys() >= {"bytes", "sha256"} for seal in seals.values()):
        raise DataError(damaged(f"{folder}/{FILES}", "it lacks sizes or digests", folder))
    return seals


def damage(folder: str, read: bool = False) -> dict[str, str]:
    """Return the problem of each file of a sealed folder, by name; empty if it is not sealed.

    read: compare the digests too, not only the sizes.
    """
    try:
        seals = _seals(folder)
    except DataError:
        return {FILES: "it cannot be read"}
    if not seals and not names(folder):
        return {"its files": "they are missing"}
    files, root = filesystem(folder)
    wrong = {}
    for name, seal in seals.items():
        info = files.get_file_info(f"{root}/{name}")
        if info.type == fs.FileType.NotFound:
            wrong[name] = "it is missing"
        elif info.size != seal["bytes"]:
            wrong[name] = f"it has {info.size:,} bytes and not {seal['bytes']:,}"
        elif read and file_digest(folder, name) != seal["sha256"]:
            wrong[name] = "its bytes are not those that were written"
    return wrong


@contextlib.contextmanager
def local_copy(folder: str) -> Iterator[str]:
    """Yield a folder's local path: the folder itself, or a temporary copy during the context."""
    files, root = filesystem(folder)
    if isinstance(files, fs.LocalFileSystem):
        yield root
        return
    with tempfile.TemporaryDirectory() as local:
        fs.copy_files(root, local, source_filesystem=files)
        yield local


def delete_file(folder: str, name: str) -> None:
    """Delete a file of a folder, if it exists."""
    locks.require(folder)
    files, root = filesystem(folder)
    if files.get_file_info(f"{root}/{name}").type != fs.FileType.NotFound:
        files.delete_file(f"{root}/{name}")


def names(folder: str) -> list[str]:
    """Return the sorted names in a folder; empty if the folder does not exist."""
    files, root = filesystem(folder)
    listed = files.get_file_info(fs.FileSelector(root, allow_not_found=True))
    return sorted(info.base_name for info in listed)


def exists(folder: str) -> bool:
    """Whether a file or folder exists."""
    files, root = filesystem(folder)
    return bool(files.get_file_info(root).type != fs.FileType.NotFound)


def delete_folder(folder: str) -> None:
    """Delete a folder and its content, if it exists."""
    locks.require(folder)
    files, root = filesystem(folder)
    if files.get_file_info(root).type == fs.FileType.Directory:
        files.delete_dir(root)


def filesystem(folder: str) -> tuple[fs.FileSystem, str]:
    """Return the file system of a folder, and the folder's path on it."""
    files, root = fs.FileSystem.from_uri(folder if "://" in folder else os.path.abspath(folder))
    return files, root.rstrip("/")


def require_writable(folder: str, needed: int) -> None:
    """Raise StorageError unless the folder is writable and, on a disk, `needed` bytes are free."""
    probe = f".probe-{uuid.uuid4().hex}"
    write_bytes(folder, probe, b"")
    files, root = filesystem(folder)
    files.delete_file(f"{root}/{probe}")
    if isinstance(files, fs.LocalFileSystem):
        free = shutil.disk_usage(root).free
        if free < needed:
            raise StorageError(
                f"{folder} has {free / 2**20:,.0f} MiB free and about {needed / 2**20:,.0f} MiB are needed: "
                "free some, or name another folder with --out"
            )


@contextlib.contextmanager
def storage_errors(folder: str) -> Iterator[None]:
    """Convert OSError to a StorageError of one line with the folder and the fix."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error).splitlines()[0]
        raise StorageError(f"cannot write to {folder}: {reason}; name another folder with --out") from error


def _require_key(folder: str, found: str, key: str) -> None:
    if found != key:
        raise StorageError(
            f"{folder} was made from another recipe ({found}, this one is {key}): name another folder with --out"
        )


def _seal(folder: str, index: int, part: Part) -> dict[str, Any]:
    """Return a part's size and digest; reads the file if they are unknown."""
    if part.sha256 is not None and part.bytes is not None:
        return {"bytes": part.bytes, "sha256": part.sha256}
    files, root = filesystem(folder)
    size = files.get_file_info(f"{root}/{part_name(index)}").size
    return {"bytes": size, "sha256": file_digest(folder, part_name(index))}


def file_digest(folder: str, name: str) -> str:
    """Return the sha256 of a file, read in chunks."""
    files, root = filesystem(folder)
    digest = hashlib.sha256()
    with files.open_input_stream(f"{root}/{name}", compression=None) as source:
        while piece := source.read(2**22):
            digest.update(piece)
    return digest.hexdigest()
