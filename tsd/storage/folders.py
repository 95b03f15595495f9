"""Files in a study's folder, on a disk or in an object store: JSON, bytes, copies, and seals of whole folders."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
from pyarrow import fs

from tsd.errors import DataError, StorageError
from tsd.storage import locks

FILES = "files.json"  # in a sealed folder of plain files: size and digest of each file
INSIDE = (  # contents of a study's folder
    *("series", "plots", "annotations", "verdicts", "examples", "rejects", "runs"),
    *("predictions", "students", "records", "tokenizers", "tokens", "teacher", "teachers", "trials"),
)
UNFINISHED = re.compile(r"\.[0-9a-f]{32}$")  # ends the names of copies in the making
UNSEALED = ("README.md", FILES)  # a model card is rewritten by each evaluation
READERS = 16  # concurrent reads, to hide the latency of object stores
UNREADABLE = (pa.ArrowException, OSError, ValueError, IndexError)  # errors of pyarrow and json on damaged bytes


class Seal(TypedDict):
    """Size and digest of a file."""

    bytes: int
    sha256: str


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
        of_many = above.rpartition("/")[2] in ("predictions", "students", "teachers", "tokenizers", "tokens")
        if not above or (name not in INSIDE and not of_many):
            return path
        path = above


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
    """Copy a finished local folder to `folder`; on a disk atomically, by way of a hidden folder beside it.

    sealed: also write the size and digest of each file, for `damage`. Raises StorageError if it cannot be written.
    Copies to the same folder that killed processes left unfinished are deleted.
    """
    locks.require(folder)
    if sealed:
        _write_seals(Path(local))
    files, root = filesystem(folder)
    with storage_errors(folder):
        delete_folder(folder)
        if not isinstance(files, fs.LocalFileSystem):
            fs.copy_files(local, root, destination_filesystem=files)
            return
        above, _, name = root.rpartition("/")
        _delete_unfinished(above, re.compile(rf"\.?{re.escape(name)}{UNFINISHED.pattern}"))
        unfinished = f"{above}/.{name}.{uuid.uuid4().hex}"
        try:
            shutil.copytree(local, unfinished)
            os.replace(unfinished, root)
        except OSError:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise


def is_unfinished(name: str) -> bool:
    """Whether a folder has the name of a copy in the making. Earlier versions did not hide it."""
    return bool(UNFINISHED.search(name))


def delete_unfinished(folder: str) -> None:
    """Delete the hidden copies in `folder` that killed processes left unfinished. None may be in the making."""
    locks.require(folder)
    files, root = filesystem(folder)
    if isinstance(files, fs.LocalFileSystem):
        _delete_unfinished(root, re.compile(rf"\..+{UNFINISHED.pattern}"))


def _delete_unfinished(root: str, names: re.Pattern[str]) -> None:
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(root):
            if names.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)


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


def seals(folder: str) -> dict[str, Seal]:
    """Return size and digest of each file of a sealed folder, by name; empty if it is not sealed."""
    try:
        return _seals(folder)
    except DataError:
        return {}


def _seals(folder: str) -> dict[str, Seal]:
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
            wrong[name] = f"it has {info.size:,} bytes instead of {seal['bytes']:,}"
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
    """Return the sorted names in a folder; empty if the folder does not exist.

    Hidden names are left out: unfinished files, and those of systems, such as .DS_Store and .nfs*.
    """
    return [info.base_name for info in _listed(folder)]


def subfolders(folder: str) -> list[str]:
    """Return the sorted names of the folders in a folder, without hidden ones."""
    return [info.base_name for info in _listed(folder) if info.type == fs.FileType.Directory]


def _listed(folder: str) -> list[fs.FileInfo]:
    files, root = filesystem(folder)
    listed = files.get_file_info(fs.FileSelector(root, allow_not_found=True))
    return sorted((info for info in listed if not info.base_name.startswith(".")), key=lambda info: info.base_name)


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


@contextlib.contextmanager
def access_errors(folder: str) -> Iterator[None]:
    """Convert the errors of a place that cannot be read to a StorageError of one line with the fix."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        number = getattr(error, "errno", None)
        reason = os.strerror(number).lower() if number else str(error).splitlines()[0]
        raise StorageError(f"{folder} cannot be read: {reason}; name a folder that exists") from error


def file_digest(folder: str, name: str) -> str:
    """Return the sha256 of a file, read in chunks."""
    files, root = filesystem(folder)
    digest = hashlib.sha256()
    with files.open_input_stream(f"{root}/{name}", compression=None) as source:
        while piece := source.read(2**22):
            digest.update(piece)
    return digest.hexdigest()
