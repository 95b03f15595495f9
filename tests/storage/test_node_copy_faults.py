"""Faults while a dataset is copied to a machine: of its temporary directory, or of the study's storage."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from support.flat_tables import copies, expected, flatten, same
from support.small_disk import mounted

from tsd.errors import StorageError, TsdError
from tsd.storage import node_copy
from tsd.storage.datasets import Dataset


class Unreachable(Dataset):
    """A dataset whose storage does not answer for its third part."""

    def read_part(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        if index == 2:
            raise OSError("AWS Error NETWORK_CONNECTION: curlCode: 28, Timeout was reached")
        return super().read_part(index, columns)


def test_a_study_that_does_not_answer_is_not_taken_for_a_fault_of_the_machines_disk(
    dataset: Dataset, tmp_path: Path
) -> None:
    unreachable = Unreachable(dataset.folder, dataset.schema, dataset.manifest)
    with node_copy.mapped(dataset, 1, flatten) as arrays:
        with pytest.raises(OSError, match="Timeout was reached") as raised:
            node_copy.mapped(unreachable, 4, flatten).__enter__()
        assert not isinstance(raised.value, TsdError), "Ray would not try it again"
        assert same(arrays, expected(dataset, 1))
        with node_copy.mapped(dataset, 4, flatten) as later:
            assert same(later, expected(dataset, 4))
    assert copies(tmp_path) == []


def test_a_temporary_directory_that_was_deleted_is_one_line_with_a_way_out(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    for opened in (node_copy.mapped(dataset, 1, flatten), node_copy.in_use(dataset)):
        with pytest.raises(StorageError) as raised:
            opened.__enter__()
        assert str(raised.value) == (
            f"the tokens cannot be copied to {tmp_path / 'gone'}: no such file or directory; "
            "set TMPDIR to another folder"
        )


def test_a_machine_without_any_temporary_directory_is_one_line(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/proc/none"])
    with pytest.raises(StorageError, match="to a temporary directory: no such file or directory; set TMPDIR"):
        node_copy.in_use(dataset).__enter__()


FULL = """
import os, sys, tempfile
sys.path.insert(0, {tests!r})
from pathlib import Path
from support.flat_tables import filled, flatten
from tsd.errors import StorageError
from tsd.storage import node_copy
tempfile.tempdir = disk = sys.argv[1]


def with_a_third(table):
    return {{**flatten(table), "few": table["id"].to_numpy()[:3]}}


data = filled(Path({folder!r}), 5000)
with node_copy.mapped(data, 1, with_a_third) as first:
    before = os.statvfs(disk).f_bfree
    try:
        with node_copy.mapped(data, 4, with_a_third):
            print("fits")
    except StorageError as error:
        print(error)
    print(os.statvfs(disk).f_bfree - before, len(first["id"]), first["few"].tolist())
    with node_copy.mapped(data, 1, with_a_third) as again:
        print((again["id"] == first["id"]).all())
"""


def test_a_full_disk_is_named_with_the_variable_that_names_another_and_is_freed(tmp_path: Path) -> None:
    code = FULL.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path / "table"))
    done = mounted("size=256k", tmp_path / "small", code, imports=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    line, after, same_values = done.stdout.splitlines()
    assert "no space left on device; set TMPDIR to a folder with more space" in line
    assert after == "0 5000 [0, 1, 2]"  # blocks that are still taken, and the copy before
    assert same_values == "True"
