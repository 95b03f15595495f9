"""A dataset on disk: a folder of Parquet parts and a manifest that is written last. All dataset I/O is here.

No manifest, no dataset. A part appears whole or not at all, and carries the key of what made it, so that a
stage that was stopped finds its finished parts again and a stage of another recipe cannot mistake them.
A folder is a path or any URI that pyarrow reaches (`s3://`, `gs://`).
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
from tsd.schema import conform, fingerprint

MANIFEST = "manifest.json"
KEY, NOTE = b"tsd.key", b"tsd.note"
PART_NAME = re.compile(r"part-(\d{8})\.parquet")
READERS = 16  # files that are read at once: an object store answers each after a while


def digest(value: object) -> str:
    """A short digest of anything that JSON can hold: recipes, parents, lists of them."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Part:
    """One part that is there. What an earlier start wrote has no sha256 yet: it would have to be read for it."""

    rows: int
    sha256: str | None = None
    note: Any = None
    """What its writer knows of it, in JSON's types: counts, so that nobody has to read all rows for them."""


@dataclass(frozen=True)
class Dataset:
    """A finished dataset, opened: its folder, schema and manifest."""

    folder: str
    schema: pa.Schema
    manifest: Mapping[str, Any]

    @property
    def rows(self) -> int:
        """How many rows all parts hold together."""
        return int(self.manifest["rows"])

    @property
    def parts(self) -> int:
        """How many parts there are; they are numbered from 0."""
        return len(self.manifest["parts"])

    @property
    def about(self) -> Any:
        """What the stage that made it wrote of it."""
        return self.manifest["about"]

    @property
    def digest(self) -> str:
        """What a dataset made from this one names as its parent."""
        return digest(self.manifest)

    def read_part(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Read one part; the whole of it is checked against the schema when no columns are named."""
        return read_part(self.folder, index, self.schema, columns)

    def each_part(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Read part by part, in order: no more is held, or read, than the caller takes."""
        return (self.read_part(index, columns) for index in range(self.parts))

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Read every part, in order."""
        return pa.concat_tables(self.each_part(columns))


def open_dataset(folder: str, schema: pa.Schema) -> Dataset:
    """Open a finished dataset. Raises StorageError where there is none, DataError where it is another table."""
    manifest = read_json(folder, MANIFEST)
    if manifest is None:
        raise StorageError(f"{folder} holds no finished dataset: run the stage that makes it first")
    if manifest["schema"] != fingerprint(schema):
        raise DataError(f"{folder} was written with another schema, by tsd {manifest['versions']['tsd']}")
    return Dataset(folder, schema, manifest)


def find_finished(folder: str, schema: pa.Schema, key: str) -> Dataset | None:
    """The dataset that this key makes, if it is finished; None where it still has to be made.

    Raises StorageError where the folder holds a dataset, or parts of one, that another key makes.
    """
    manifest = read_json(folder, MANIFEST)
    if manifest is None:
        return None
    _require_key(folder, manifest["key"], key)
    return open_dataset(folder, schema)


def finished_parts(folder: str, key: str) -> dict[int, Part]:
    """Parts that are already there, by index; their footers are read, several at once."""
    files, root = filesystem(folder)
    listed = files.get_file_info(fs.FileSelector(root, allow_not_found=True))
    paths = {int(name[1]): info.path for info in listed if (name := PART_NAME.fullmatch(info.base_name))}
    with ThreadPoolExecutor(READERS) as pool:
        return dict(
            zip(paths, pool.map(lambda path: _look(files, folder, path, key), paths.values()), strict=True)
        )


def find_part(folder: str, index: int, key: str) -> Part | None:
    """A part that is already there; None where it still has to be made."""
    files, root = filesystem(folder)
    path = f"{root}/{part_name(index)}"
    return None if files.get_file_info(path).type == fs.FileType.NotFound else _look(files, folder, path, key)


def _look(files: fs.FileSystem, folder: str, path: str, key: str) -> Part:
    with files.open_input_file(path) as source:
        footer = pq.read_metadata(source)
    metadata = footer.metadata or {}
    _require_key(folder, metadata.get(KEY, b"").decode(), key)
    return Part(footer.num_rows, note=json.loads(metadata.get(NOTE, b"null")))


def write_part(folder: str, index: int, table: pa.Table, schema: pa.Schema, key: str, note: Any = None) -> Part:
    """Write one part, whole or not at all, with a note of its own in the footer."""
    metadata = {KEY: key.encode(), NOTE: json.dumps(note).encode()}
    sink = pa.BufferOutputStream()
    pq.write_table(conform(table, schema).replace_schema_metadata(metadata), sink, compression="zstd")
    content = sink.getvalue()
    write_bytes(folder, part_name(index), content)
    return Part(len(table), hashlib.sha256(content).hexdigest(), note)


def read_part(folder: str, index: int, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one part of a dataset, finished or not."""
    files, root = filesystem(folder)
    with files.open_input_file(f"{root}/{part_name(index)}") as source:
        table = pq.read_table(source, columns=list(columns) if columns else None)
    return table.replace_schema_metadata() if columns else conform(table.replace_schema_metadata(), schema)


def commit(
    folder: str,
    schema: pa.Schema,
    key: str,
    parts: int,
    parents: Mapping[str, str],
    known: Mapping[int, Part] | None = None,
    about: Any = None,
) -> Dataset:
    """Write the manifest over parts 0 to `parts` - 1, which makes them a dataset.

    parents: the digest of each dataset that this one was made from, by name. known: the parts, where the caller
    has them; else they are looked up. about: what goes with the dataset, in JSON's types.
    Raises DataError where a part is missing.
    """
    found = finished_parts(folder, key) if known is None else known
    missing = sorted(set(range(parts)) - set(found))
    if missing:
        raise DataError(f"{folder} cannot be finished: parts {missing[:5]} are missing")
    with ThreadPoolExecutor(READERS) as pool:
        digests = pool.map(lambda index: found[index].sha256 or _part_digest(folder, index), range(parts))
    manifest = {
        "schema": fingerprint(schema),
        "key": key,
        "parents": dict(parents),
        "about": about,
        "rows": sum(found[index].rows for index in range(parts)),
        "parts": [
            {"name": part_name(index), "rows": found[index].rows, "sha256": sha256}
            for index, sha256 in enumerate(digests)
        ],
        "versions": {"tsd": tsd.__version__, "pyarrow": pa.__version__},
    }
    _delete_unfinished(folder)
    write_json(folder, MANIFEST, manifest)
    return Dataset(folder, schema, manifest)


def _delete_unfinished(folder: str) -> None:
    """Delete what killed writers left behind under the names that a part has before it is whole."""
    files, root = filesystem(folder)
    if isinstance(files, fs.LocalFileSystem):
        for left in Path(root).glob(".part-*.parquet.*"):
            left.unlink(missing_ok=True)


def part_name(index: int) -> str:
    """The file name of a part."""
    return f"part-{index:08d}.parquet"


def read_json(folder: str, name: str) -> Any:
    """Read a JSON file of a folder; None where there is none."""
    files, root = filesystem(folder)
    path = f"{root}/{name}"
    if files.get_file_info(path).type == fs.FileType.NotFound:
        return None
    with files.open_input_file(path) as source:
        return json.loads(source.read())


def write_json(folder: str, name: str, value: object) -> None:
    """Write a JSON file, whole or not at all. The keys keep their order."""
    write_bytes(folder, name, json.dumps(value, indent=1).encode() + b"\n")


def write_bytes(folder: str, name: str, content: bytes | pa.Buffer) -> None:
    """Write one file, whole or not at all: a stream to an object store is invisible until it is closed, and
    on a disk the file gets its name last."""
    files, root = filesystem(folder)
    with storage_errors(folder):
        files.create_dir(root, recursive=True)
        if not isinstance(files, fs.LocalFileSystem):
            with files.open_output_stream(f"{root}/{name}") as sink:
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


def copy_folder(local: str, folder: str) -> None:
    """Put a finished local folder where `folder` says, whole or, on a disk, not at all."""
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
    """Copy a local folder's files into one that several write to. Where it takes no more, all of it goes: room is
    made for what else there is to say, and what several were to make together would lack a part.
    """
    files, root = filesystem(folder)
    with storage_errors(folder):
        files.create_dir(root, recursive=True)
        try:
            fs.copy_files(local, root, destination_filesystem=files)
        except OSError:
            delete_folder(folder)
            raise


@contextlib.contextmanager
def local_copy(folder: str) -> Iterator[str]:
    """A folder's path on this machine: itself, or a copy for as long as the context lasts."""
    files, root = filesystem(folder)
    if isinstance(files, fs.LocalFileSystem):
        yield root
        return
    with tempfile.TemporaryDirectory() as local:
        fs.copy_files(root, local, source_filesystem=files)
        yield local


def delete_folder(folder: str) -> None:
    """Delete a folder and all in it; nothing happens where there is none."""
    files, root = filesystem(folder)
    if files.get_file_info(root).type == fs.FileType.Directory:
        files.delete_dir(root)


def delete_file(folder: str, name: str) -> None:
    """Delete a file of a folder; nothing happens where there is none."""
    files, root = filesystem(folder)
    if files.get_file_info(f"{root}/{name}").type == fs.FileType.File:
        files.delete_file(f"{root}/{name}")


def filesystem(folder: str) -> tuple[fs.FileSystem, str]:
    """The file system of a folder, and the folder's path on it."""
    files, root = fs.FileSystem.from_uri(folder if "://" in folder else os.path.abspath(folder))
    return files, root.rstrip("/")


def require_writable(folder: str, needed: int) -> None:
    """Raise StorageError unless the folder can be written and, on a disk, `needed` bytes are free."""
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
    """Turn what the operating system says of a folder into one line that names it and the fix."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error).splitlines()[0]
        raise StorageError(f"cannot write to {folder}: {reason}; name another folder with --out") from error


def _require_key(folder: str, found: str, key: str) -> None:
    if found != key:
        raise StorageError(
            f"{folder} was made from another recipe ({found}, this one is {key}): "
            "name another folder with --out, or delete this one"
        )


def _part_digest(folder: str, index: int) -> str:
    files, root = filesystem(folder)
    with files.open_input_stream(f"{root}/{part_name(index)}", compression=None) as source:
        return hashlib.sha256(source.read()).hexdigest()
