"""A dataset's columns as flat files on a machine's own disk, which its processes map into memory.

The first process of a machine that opens a dataset copies its parts, and the others wait for it. The last one that
closes it deletes the copy. A copy grows by further parts while others use it.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tsd.errors import StorageError
from tsd.storage.datasets import Dataset
from tsd.storage.node_folders import alone, shared_folder

INDEX = "index.json"  # written last: parts, and bytes and type of each file

Arrays = Mapping[str, npt.NDArray[Any]]


@contextmanager
def mapped(dataset: Dataset, parts: int, flatten: Callable[[pa.Table], Arrays]) -> Iterator[Arrays]:
    """Map the first parts of a dataset into memory. Yields at least their rows: read-only arrays, by name.

    flatten: maps the table of one part to arrays, (values,) each. The arrays of all parts follow one another.
    Raises DataError if a part is damaged, StorageError if the machine's temporary directory is full.
    """
    place = _place(dataset)
    with in_use(dataset):
        with _disk_errors(place), alone(place):
            _extend(place, dataset, parts, flatten)
            arrays = _map(place)
        yield arrays


@contextmanager
def in_use(dataset: Dataset) -> Iterator[None]:
    """Keep the copy of a dataset on this machine while this context lasts, if there is one."""
    place = _place(dataset)
    with ExitStack() as held:
        with _disk_errors(place), alone(place):
            _delete_unused(but=place)
            using = held.enter_context(open(place.with_suffix(".used"), "w"))
            fcntl.flock(using, fcntl.LOCK_SH)
        try:
            yield
        finally:
            with alone(place), suppress(BlockingIOError):  # raised while another process uses it
                fcntl.flock(using, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(place, ignore_errors=True)


def _place(dataset: Dataset) -> Path:
    return shared_folder("tokens") / dataset.digest


def _delete_unused(but: Path) -> None:
    """Delete the copies of other datasets whose users were killed."""
    for place in but.parent.iterdir():
        if place != but and place.is_dir():
            with suppress(BlockingIOError), ExitStack() as held:
                for suffix in (".lock", ".used"):
                    lock = held.enter_context(open(place.with_suffix(suffix), "a"))
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(place, ignore_errors=True)


def _extend(place: Path, dataset: Dataset, parts: int, flatten: Callable[[pa.Table], Arrays]) -> None:
    """Append the parts that a copy lacks. The lock must be held. After an error the copy is as before."""
    index = _read_index(place)
    if index is None:
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        index = {"parts": 0, "arrays": {}}
    try:
        with ExitStack() as files:
            opened: dict[str, BinaryIO] = {}
            for part in range(index["parts"], parts):
                for name, array in flatten(dataset.read_part(part)).items():
                    known = index["arrays"].setdefault(name, {"bytes": 0, "dtype": array.dtype.str})
                    if name not in opened:
                        opened[name] = files.enter_context(open(place / name, "ab", buffering=0))
                        opened[name].truncate(known["bytes"])  # an earlier process was killed while it appended
                    _write_all(opened[name], np.ascontiguousarray(array, known["dtype"]))
                    known["bytes"] += array.size * np.dtype(known["dtype"]).itemsize
        unfinished = place / f".{INDEX}"
        unfinished.write_text(json.dumps({**index, "parts": max(parts, index["parts"])}))
        os.replace(unfinished, place / INDEX)
    except BaseException:
        _shrink(place)
        raise


def _write_all(file: BinaryIO, array: npt.NDArray[Any]) -> None:
    """Write an array to an unbuffered file, which may take it in pieces."""
    left = array.data.cast("B") if array.size else memoryview(b"")
    while len(left):
        left = left[file.write(left) :]


def _shrink(place: Path) -> None:
    """Free the space of what was appended after the index was written."""
    index = _read_index(place)
    if index is None:
        shutil.rmtree(place, ignore_errors=True)
        return
    for name, known in index["arrays"].items():
        os.truncate(place / name, known["bytes"])


def _read_index(place: Path) -> dict[str, Any] | None:
    """The index of a copy; None if there is no complete one."""
    try:
        index: dict[str, Any] = json.loads((place / INDEX).read_text())
    except (FileNotFoundError, ValueError):
        return None
    return index


def _map(place: Path) -> dict[str, npt.NDArray[Any]]:
    index, arrays = _read_index(place), dict[str, npt.NDArray[Any]]()
    assert index is not None
    for name, known in index["arrays"].items():
        dtype = np.dtype(known["dtype"])
        count = known["bytes"] // dtype.itemsize
        # An empty file cannot be mapped. A plain array, since slices of np.memmap are slow.
        whole = np.memmap(place / name, dtype, mode="r", shape=(count,)) if count else np.empty(0, dtype)
        arrays[name] = whole.view(np.ndarray)
    return arrays


@contextmanager
def _disk_errors(place: Path) -> Iterator[None]:
    """Turn an error of the machine's disk into a StorageError of one line with the fix."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno).lower() if error.errno else str(error)
        raise StorageError(
            f"the tokens cannot be copied to {place}: {reason}; set TMPDIR to a folder with more space"
        ) from error
