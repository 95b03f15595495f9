"""A dataset's copy on a machine: made once, shared by its processes, grown while in use, deleted by the last."""

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy.typing as npt
import pyarrow as pa
import pytest
from support.flat_tables import ROWS, copies, expected, flatten, same

from tsd.errors import DataError, StorageError
from tsd.storage import datasets, node_copy
from tsd.storage.datasets import Dataset


def test_the_arrays_hold_the_parts_one_after_the_other_and_cannot_be_written(
    dataset: Dataset, tmp_path: Path
) -> None:
    with node_copy.mapped(dataset, 4, flatten) as arrays:
        assert {name: array.tolist() for name, array in arrays.items()} == expected(dataset, 4)
        with pytest.raises(ValueError, match="read-only"):
            arrays["id"][0] = 1
        assert len(copies(tmp_path)) == 1
    assert copies(tmp_path) == []


def test_a_copy_is_shared_grows_while_it_is_in_use_and_is_deleted_by_the_last_user(
    dataset: Dataset, tmp_path: Path
) -> None:
    read: list[int] = []

    def noted(table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        read.append(table["id"][0].as_py() // ROWS)
        return flatten(table)

    with ExitStack() as first, ExitStack() as second:
        few = first.enter_context(node_copy.mapped(dataset, 1, noted))
        assert same(few, expected(dataset, 1))
        more = second.enter_context(node_copy.mapped(dataset, 3, noted))
        assert same(more, expected(dataset, 3))
        assert same(few, expected(dataset, 1))
        with node_copy.mapped(dataset, 2, noted) as third:
            assert same(third, expected(dataset, 2))
        assert read == [0, 1, 2], "a part was copied twice"
        first.close()
        assert len(copies(tmp_path)) == 1
        assert same(more, expected(dataset, 3))
    assert copies(tmp_path) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: (place / "values").write_bytes((place / "values").read_bytes() + b"cut off in mid-write"),
        lambda place: (place / "index.json").unlink(),
        lambda place: (place / "index.json").write_text("{"),
    ],
    ids=["killed while appending", "no index", "cut index"],
)
def test_what_a_killed_process_left_is_not_read(
    damage: Callable[[Path], object], dataset: Dataset, tmp_path: Path
) -> None:
    with node_copy.mapped(dataset, 2, flatten):
        (place,) = copies(tmp_path)
        kept = {path.name: path.read_bytes() for path in place.iterdir()}
    place.mkdir()
    for name, content in kept.items():
        (place / name).write_bytes(content)
    damage(place)
    with node_copy.mapped(dataset, 4, flatten) as arrays:
        assert {name: array.tolist() for name, array in arrays.items()} == expected(dataset, 4)


def left_behind(dataset: Dataset, parts: int) -> Path:
    """The folder of a copy of the first parts whose user was killed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    code = HELD.format(tests=str(Path(__file__).parents[1]), folder=dataset.folder, parts=parts)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout
        assert process.stdout.readline() == b"open\n"
        process.kill()
    (place,) = copies(Path(dataset.folder).parent)
    return place


def emptied(path: Path) -> None:
    """Zeros instead of the content, as after a crash of the machine."""
    path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize("parts", [2, 4], ids=["used", "grown"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda place: os.truncate(place / "values", 40),
        lambda place: (place / "values").unlink(),
        lambda place: emptied(place / "id"),
        lambda place: (place / "lock").unlink(),
        lambda place: (place / "used").unlink(),
        lambda place: [path.unlink() for path in place.iterdir()],
    ],
    ids=["cut", "deleted", "zeros", "no lock", "no mark of use", "emptied"],
)
def test_a_copy_that_was_left_behind_and_damaged_is_made_again(
    damage: Callable[[Path], object], parts: int, dataset: Dataset, tmp_path: Path
) -> None:
    damage(left_behind(dataset, 2))
    with node_copy.mapped(dataset, parts, flatten) as arrays:
        assert {name: array.tolist() for name, array in arrays.items()} == expected(dataset, parts)
    assert copies(tmp_path) == []


@pytest.mark.parametrize("names", [["lock"], ["used"], ["values", "index.json"], ["lock", "used", "id", "values"]])
def test_a_copy_whose_files_are_deleted_while_it_is_used_stays_readable_and_others_make_their_own(
    names: list[str], dataset: Dataset, tmp_path: Path
) -> None:
    with node_copy.in_use(dataset), node_copy.mapped(dataset, 2, flatten) as first:
        for name in names:
            (copies(tmp_path)[0] / name).unlink()
        with node_copy.mapped(dataset, 4, flatten) as second:
            assert same(second, expected(dataset, 4))
            with node_copy.mapped(dataset, 3, flatten) as third:
                assert same(third, expected(dataset, 3))
            assert len(copies(tmp_path)) == 1, "it was deleted under its user"
        assert same(first, expected(dataset, 2))
    assert copies(tmp_path) == []


def test_a_copy_that_is_deleted_while_it_grows_is_made_again(dataset: Dataset, tmp_path: Path) -> None:
    read: list[int] = []

    def deleting(table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        read.append(table["id"][0].as_py() // ROWS)
        if len(read) == 2:
            shutil.rmtree(copies(tmp_path)[0])
        return flatten(table)

    with node_copy.mapped(dataset, 3, deleting) as arrays:
        assert same(arrays, expected(dataset, 3))
    assert read == [0, 1, 2, 0, 1, 2]
    assert copies(tmp_path) == []


@pytest.mark.parametrize("name", ["values", "index.json"])
def test_a_file_that_is_deleted_while_a_used_copy_grows_is_not_filled_with_zeros(
    name: str, dataset: Dataset, tmp_path: Path
) -> None:
    read: list[int] = []

    def deleting(table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        read.append(table["id"][0].as_py() // ROWS)
        if read == [2]:
            (copies(tmp_path)[0] / name).unlink()
        return flatten(table)

    with node_copy.mapped(dataset, 2, flatten) as first:
        with node_copy.mapped(dataset, 4, deleting) as second:
            assert same(second, expected(dataset, 4))
        assert same(first, expected(dataset, 2))


def test_a_copy_that_is_always_deleted_is_one_line_with_a_way_out(dataset: Dataset, tmp_path: Path) -> None:
    def deleting(table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        shutil.rmtree(copies(tmp_path)[0])
        return flatten(table)

    with pytest.raises(StorageError) as raised, node_copy.mapped(dataset, 3, deleting):
        pass
    assert "are deleted by another program again and again: exclude that folder from it" in str(raised.value)


HELD = """
import sys, time
sys.path.insert(0, {tests!r})
from support.flat_tables import SCHEMA, flatten
from tsd.storage import datasets, node_copy
with node_copy.mapped(datasets.open_dataset({folder!r}, SCHEMA), {parts}, flatten):
    print("open", flush=True)
    time.sleep(600)
"""


def test_a_copy_whose_user_was_killed_is_used_on_and_deleted_by_the_next(dataset: Dataset, tmp_path: Path) -> None:
    tests = str(Path(__file__).parents[1])
    code = HELD.format(tests=tests, folder=dataset.folder, parts=2)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(tests).parent), *sys.path])}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout
    try:
        assert process.stdout.readline() == "open\n"
        with node_copy.mapped(dataset, 3, flatten) as arrays:
            assert same(arrays, expected(dataset, 3))
        assert len(copies(tmp_path)) == 1, "it was deleted under another process"
    finally:
        process.kill()
        process.communicate(timeout=30)
    with node_copy.mapped(dataset, 1, flatten) as arrays:
        assert same(arrays, expected(dataset, 3))
    assert copies(tmp_path) == []


def test_a_damaged_part_is_named_and_what_was_copied_before_it_stays_usable(
    dataset: Dataset, tmp_path: Path
) -> None:
    path = Path(dataset.folder) / datasets.part_name(2)
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with (
        pytest.raises(DataError, match=r"part-00000002\.parquet is damaged"),
        node_copy.mapped(dataset, 4, flatten),
    ):
        pass
    with node_copy.mapped(dataset, 2, flatten) as arrays:
        assert same(arrays, expected(dataset, 2))
    path.write_bytes(whole)
    with node_copy.mapped(dataset, 4, flatten) as arrays:
        assert same(arrays, expected(dataset, 4))


def test_many_processes_that_open_and_close_at_once_all_read_the_same(dataset: Dataset, tmp_path: Path) -> None:
    code = HELD.replace("time.sleep(600)", "print(sum(map(int, _['values'])))").replace(
        "flatten):", "flatten) as _:"
    )
    code = code.format(tests=str(Path(__file__).parents[1]), folder=dataset.folder, parts=2).replace(
        'print("open", flush=True)', "pass"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(6)
    ]
    until = time.monotonic() + 120
    said = {process.communicate(timeout=max(1.0, until - time.monotonic()))[0].strip() for process in started}
    assert said == {str(sum(expected(dataset, 2)["values"]))}
    assert copies(tmp_path) == []
    assert [path.name for path in (tmp_path / "tmp").glob("tsd-tokens-*/*")] == [node_copy.MOVING]


@pytest.mark.parametrize("emptied_before", [False, True], ids=["no copy", "a copy without locks"])
def test_a_copy_that_another_process_makes_meanwhile_is_shared_and_not_deleted(
    emptied_before: bool, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if emptied_before:
        place = left_behind(dataset, 1)
        for path in place.iterdir():
            path.unlink()
    opened, missed, made = os.open, threading.Event(), threading.Event()
    read: list[int] = []

    def noted(table: pa.Table) -> dict[str, npt.NDArray[Any]]:
        read.append(table["id"][0].as_py() // ROWS)
        return flatten(table)

    def slow_to_miss(*args: Any, **more: Any) -> int:
        """A thread that found no copy does not go on before another one has made it."""
        try:
            return opened(*args, **more)
        except FileNotFoundError:
            if threading.current_thread() is not threading.main_thread() and not missed.is_set():
                missed.set()
                assert made.wait(60)
            raise

    def late() -> bool:
        with node_copy.mapped(dataset, 2, noted) as arrays:
            return same(arrays, expected(dataset, 2))

    monkeypatch.setattr(os, "open", slow_to_miss)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(late)
        assert missed.wait(60)
        with node_copy.mapped(dataset, 2, noted) as arrays:
            made.set()
            assert other.result(60)
            assert len(copies(tmp_path)) == 1, "it was deleted under its user"
            assert same(arrays, expected(dataset, 2))
    assert read == [0, 1]
    assert copies(tmp_path) == []
