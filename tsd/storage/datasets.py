"""A dataset on disk: a folder of Parquet parts and a manifest that is written last. All dataset I/O is here.

No manifest, no dataset. A part appears whole or not at all, and carries the key of what made it, so that a
stage that was stopped finds its finished parts again and a stage of another recipe cannot mistake them.
A folder is a path or any URI that pyarrow reaches (`s3://`, `gs://`).

Parts that were deleted or cut are found whenever a dataset is opened, by name, size and footer; a flipped bit is
found by whatever reads its page, whose checksum it breaks. A stage makes lost parts again, and `commit` holds them
against the manifest that was there: the same bytes, or an error.
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
DIGEST = "digest"  # in a manifest: of its other fields
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
ASIDE = "damaged-"  # before the name of a part that was found damaged, until it is made again
FILES = "files.json"  # in a sealed folder of plain files: the size and digest of each
INSIDE = (  # what a study's folder holds
    *("series", "plots", "annotations", "verdicts", "examples", "rejects", "runs"),
    *("predictions", "students", "records", "tokenizer", "teacher", "teachers", "trials"),
)
UNSEALED = ("README.md", FILES)  # a model card is written anew with each evaluation
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
    bytes: int | None = None
    """Its size; None as for sha256."""


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
        return digest_of(self.manifest)

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
    """Open a finished dataset. Raises StorageError where there is none, DataError where it is another table or
    where parts of it are missing or cut."""
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
    """The key of what made a finished dataset; None where there is none, or no readable manifest."""
    manifest = _manifest(folder)
    return None if manifest is None else str(manifest["key"])


def peek(folder: str, schema: pa.Schema) -> Dataset | None:
    """A finished dataset as its manifest tells of it, without a look at its parts; None where there is none."""
    manifest = _manifest(folder)
    return None if manifest is None else Dataset(folder, schema, manifest)


def require_made_by(folder: str, key: str) -> None:
    """Raise StorageError where a folder holds a dataset, or parts of one, that another key makes."""
    manifest = _manifest(folder)
    if manifest is not None:
        _require_key(folder, manifest["key"], key)
        return
    for name in names(folder):
        if found := PART_NAME.fullmatch(name):
            find_part(folder, int(found[1]), key)
            return


def find_finished(folder: str, schema: pa.Schema, key: str) -> Dataset | None:
    """The dataset that this key makes, if it is finished and whole; None where it, or a part, has to be made.

    Raises StorageError where the folder holds a dataset, or parts of one, that another key makes.
    """
    manifest = _manifest(folder)
    if manifest is None:
        return None
    _require_key(folder, manifest["key"], key)
    return None if lost_parts(folder, key) else open_dataset(folder, schema)


def finished_parts(folder: str, key: str) -> dict[int, Part]:
    """Parts that are already there and whole, by index; their footers are read, several at once."""
    lost = wrong_size(folder, _manifest(folder))
    return {index: part for index, part in _look_at_all(folder, key).items() if part and index not in lost}


def lost_parts(folder: str, key: str) -> dict[int, str]:
    """What is wrong with each part that was there once: those that a manifest lists, and files that were cut."""
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
    """Whether there is a manifest that cannot be read; the dataset is then committed anew from its parts."""
    return read_bytes(folder, MANIFEST) is not None and _manifest(folder) is None


def unreadable_parts(folder: str) -> dict[int, str]:
    """What is wrong with each part of a folder by its own checksums: all of them are read, as is needed where the
    manifest cannot tell."""
    numbers = [int(found[1]) for name in names(folder) if (found := PART_NAME.fullmatch(name))]
    wrong = {}
    for index in numbers:
        try:
            _read(folder, index, None)
        except DataError as error:
            wrong[index] = str(error.__cause__ or "it is missing").strip().splitlines()[0]
    return wrong


def set_aside(folder: str, index: int) -> None:
    """Give a damaged part another name, so that it is made again; `commit` deletes it then."""
    locks.require(folder)
    files, root = filesystem(folder)
    path = f"{root}/{part_name(index)}"
    if files.get_file_info(path).type != fs.FileType.NotFound:
        files.move(path, f"{root}/{ASIDE}{part_name(index)}")


def find_part(folder: str, index: int, key: str) -> Part | None:
    """A part that is already there; None where it still has to be made."""
    files, root = filesystem(folder)
    path = f"{root}/{part_name(index)}"
    if files.get_file_info(path).type == fs.FileType.NotFound:
        return None
    return _look(files, folder, path, key, _manifest(folder))


def _look_at_all(folder: str, key: str) -> dict[int, Part | None]:
    """What the footers say of all parts that are there; None where one cannot be read."""
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
    """What a part's footer says; None where it cannot be read."""
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
        return None  # the manifest says whose part it is: the footer was damaged
    _require_key(folder, found, key)
    return part


def wrong_size(folder: str, manifest: Mapping[str, Any] | None) -> dict[int, str]:
    """Parts of a manifest that are missing, or of another size than it says; by one look at the folder."""
    if manifest is None:
        return {}
    files, root = filesystem(folder)
    listed = files.get_file_info(fs.FileSelector(root, allow_not_found=True))
    sizes = {info.base_name: info.size for info in listed}
    lost = {}
    for index, part in enumerate(manifest["parts"]):
        size, whole = sizes.get(part["name"]), part.get("bytes")  # older manifests say no bytes
        if size is None:
            lost[index] = "it is missing"
        elif whole is not None and size != whole:
            lost[index] = f"it has {size:,} bytes and not {whole:,}"
    return lost


def read_manifest(folder: str) -> dict[str, Any] | None:
    """A dataset's manifest; None where there is none. Raises DataError where it was damaged.

    One without a digest is of an earlier version: it may have its own fields and no others, so that a digest
    whose name was damaged is not taken for none.
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
    """The digest of a manifest, which it holds itself."""
    return digest({name: value for name, value in manifest.items() if name != DIGEST})


def _manifest(folder: str) -> dict[str, Any] | None:
    """The manifest; None where there is none, or where it was damaged: the parts then tell what is there."""
    try:
        return read_manifest(folder)
    except DataError:
        return None


UNREADABLE = (pa.ArrowException, OSError, ValueError, IndexError)  # what pyarrow and json raise over damaged bytes


def is_damage(error: BaseException) -> bool:
    """Whether an error of a read is about the bytes, and not about reaching them."""
    return not isinstance(error, OSError) or (error.errno is None and not _NETWORK.search(str(error)))


_NETWORK = re.compile(r"AWS Error|curlCode|HTTP status|timed? ?out|connection", re.IGNORECASE)


def damaged(path: str, what: str, folder: str, more: int = 0) -> str:
    """A line on a file that was damaged, and the fix."""
    others = f" (and {more} more)" if more else ""
    return (
        f"{path} is damaged: {what}{others}; `tsd study` on the same recipe makes what is missing again, "
        f"`tsd verify {study_of(folder)} --repair` whatever is wrong"
    )


def study_of(folder: str) -> str:
    """The folder of the study that a table's or a student's folder belongs to, as far as names tell."""
    path = folder.rstrip("/")
    while True:
        above, _, name = path.rpartition("/")
        of_many = above.rpartition("/")[2] in ("predictions", "students", "teachers")
        if not above or (name not in INSIDE and not of_many):
            return path
        path = above


def write_part(folder: str, index: int, table: pa.Table, schema: pa.Schema, key: str, note: Any = None) -> Part:
    """Write one part, whole or not at all, with a note of its own in the footer."""
    metadata = {KEY: key.encode(), NOTE: json.dumps(note).encode()}
    sink = pa.BufferOutputStream()
    table = conform(table, schema).replace_schema_metadata(metadata)
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    content = sink.getvalue()
    write_bytes(folder, part_name(index), content)
    return Part(len(table), hashlib.sha256(content).hexdigest(), note, len(content))


def read_part(folder: str, index: int, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Read one part of a dataset, finished or not. Raises DataError where it is missing or damaged."""
    table = _read(folder, index, columns)
    return table if columns else conform(table, schema)


def _read(folder: str, index: int, columns: Sequence[str] | None) -> pa.Table:
    files, root = filesystem(folder)
    name = part_name(index)
    try:
        with files.open_input_file(f"{root}/{name}") as source:
            table = pq.read_table(
                source, columns=list(columns) if columns else None, page_checksum_verification=True
            )
        _ = table.column_names  # a damaged name is no text, which pyarrow finds when it is asked for it
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
    """Write the manifest over parts 0 to `parts` - 1, which makes them a dataset.

    parents: the digest of each dataset that this one was made from, by name. known: the parts, where the caller
    has them; else they are looked up. about: what goes with the dataset, in JSON's types.
    Where there was a manifest already, of which parts were lost, it stays: the parts must have its bytes.
    Raises DataError where a part is missing, or was made again with other bytes.
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
    manifest = json.loads(json.dumps(fields))  # as who reads it will find it
    manifest[DIGEST] = digest_of(manifest)
    _delete_unfinished(folder)
    write_json(folder, MANIFEST, manifest)
    return Dataset(folder, schema, manifest)


def _require_same_bytes(folder: str, manifest: Mapping[str, Any], made: Mapping[int, Part]) -> None:
    """Raise DataError where a part is not the one of the manifest. made: with the digests of those made just now;
    where it says nothing at all of a part, that is read."""
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
    """Write a part as versions did whose pages had no checksums, and give the digest of its bytes."""
    files, root = filesystem(folder)
    with files.open_input_file(f"{root}/{part_name(index)}") as source:
        table = pq.read_table(source)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content = sink.getvalue()
    write_bytes(folder, part_name(index), content)
    return hashlib.sha256(content).hexdigest()


def _delete_unfinished(folder: str) -> None:
    """Delete what killed writers left behind under the names that a part has before it is whole, and parts that
    were damaged and are there again."""
    files, root = filesystem(folder)
    for info in files.get_file_info(fs.FileSelector(root, allow_not_found=True)):
        if info.base_name.startswith(ASIDE):
            files.delete_file(info.path)
    if isinstance(files, fs.LocalFileSystem):
        for left in Path(root).glob(".part-*.parquet.*"):
            left.unlink(missing_ok=True)


def part_name(index: int) -> str:
    """The file name of a part."""
    return f"part-{index:08d}.parquet"


def read_json(folder: str, name: str) -> Any:
    """Read a JSON file of a folder; None where there is none. Raises DataError where it was damaged."""
    content = read_bytes(folder, name)
    if content is None:
        return None
    try:
        return json.loads(content)
    except ValueError as error:
        raise DataError(damaged(f"{folder}/{name}", f"it is not JSON ({error})", folder)) from None


def read_fields(folder: str, name: str) -> dict[str, Any] | None:
    """A JSON file that holds fields by name; None where there is none. Raises DataError where it was damaged."""
    found = read_json(folder, name)
    if found is None and read_bytes(folder, name) is None:
        return None
    if not isinstance(found, dict):
        raise DataError(damaged(f"{folder}/{name}", "it holds no fields", folder))
    return found


def read_bytes(folder: str, name: str) -> bytes | None:
    """Read a small file of a folder; None where there is none."""
    files, root = filesystem(folder)
    path = f"{root}/{name}"
    if files.get_file_info(path).type == fs.FileType.NotFound:
        return None
    with files.open_input_file(path) as source:
        content: bytes = source.read()
    return content


def write_json(folder: str, name: str, value: object) -> None:
    """Write a JSON file, whole or not at all. The keys keep their order."""
    write_bytes(folder, name, json.dumps(value, indent=1).encode() + b"\n")


def write_bytes(folder: str, name: str, content: bytes | pa.Buffer) -> None:
    """Write one file, whole or not at all: a stream to an object store is invisible until it is closed, and
    on a disk the file gets its name last."""
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
    """Put a finished local folder where `folder` says, whole or, on a disk, not at all.

    sealed: with a file that holds the size and digest of each of its files, for `damage`.
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


def _write_seals(local: Path) -> None:
    paths = sorted(path for path in local.rglob("*") if path.is_file() and path.name not in UNSEALED)
    seals = {}
    for path in paths:
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        seals[path.relative_to(local).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256}
    (local / FILES).write_text(json.dumps(seals, indent=1) + "\n")


def seals(folder: str) -> dict[str, dict[str, Any]]:
    """Size and digest of each file of a sealed folder, by name; empty where they are not there."""
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
    """What is wrong with each file of a sealed folder, by name; nothing where it was not sealed.

    read: read all of them, and not only their sizes.
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
    """A folder's path on this machine: itself, or a copy for as long as the context lasts."""
    files, root = filesystem(folder)
    if isinstance(files, fs.LocalFileSystem):
        yield root
        return
    with tempfile.TemporaryDirectory() as local:
        fs.copy_files(root, local, source_filesystem=files)
        yield local


def delete_file(folder: str, name: str) -> None:
    """Delete a file of a folder; nothing happens where there is none."""
    locks.require(folder)
    files, root = filesystem(folder)
    if files.get_file_info(f"{root}/{name}").type != fs.FileType.NotFound:
        files.delete_file(f"{root}/{name}")


def names(folder: str) -> list[str]:
    """The names of what lies in a folder, in order; none where there is no such folder."""
    files, root = filesystem(folder)
    listed = files.get_file_info(fs.FileSelector(root, allow_not_found=True))
    return sorted(info.base_name for info in listed)


def exists(folder: str) -> bool:
    """Whether there is anything under this name."""
    files, root = filesystem(folder)
    return bool(files.get_file_info(root).type != fs.FileType.NotFound)


def delete_folder(folder: str) -> None:
    """Delete a folder and all in it; nothing happens where there is none."""
    locks.require(folder)
    files, root = filesystem(folder)
    if files.get_file_info(root).type == fs.FileType.Directory:
        files.delete_dir(root)


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
            f"{folder} was made from another recipe ({found}, this one is {key}): name another folder with --out"
        )


def _seal(folder: str, index: int, part: Part) -> dict[str, Any]:
    """A part's size and digest; it is read where its writer did not say them."""
    if part.sha256 is not None and part.bytes is not None:
        return {"bytes": part.bytes, "sha256": part.sha256}
    files, root = filesystem(folder)
    size = files.get_file_info(f"{root}/{part_name(index)}").size
    return {"bytes": size, "sha256": file_digest(folder, part_name(index))}


def file_digest(folder: str, name: str) -> str:
    """The sha256 of a file's bytes, read piece by piece."""
    files, root = filesystem(folder)
    digest = hashlib.sha256()
    with files.open_input_stream(f"{root}/{name}", compression=None) as source:
        while piece := source.read(2**22):
            digest.update(piece)
    return digest.hexdigest()
