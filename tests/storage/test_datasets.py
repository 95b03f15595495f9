"""Datasets on disk: whole or not there at all, their own maker's, and a disk that refuses."""

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from support.rejects_tables import KEY, fill, rejects
from support.small_disk import mounted

from tsd.errors import DataError, StorageError
from tsd.storage import datasets, folders
from tsd.storage.schemas import REJECTS, conform, fingerprint
from tsd.tasks import SINGLE

# ---- Schemas


def test_a_table_with_columns_in_another_order_is_put_in_order() -> None:
    table = rejects(1, 2)
    assert conform(table.select(list(reversed(table.column_names))), REJECTS).equals(table)


@pytest.mark.parametrize(
    ("table", "named"),
    [
        (rejects(1).drop_columns(["reason"]), ["missing ['reason']"]),
        (rejects(1).append_column("extra", pa.array([1])), ["unknown ['extra']"]),
        (rejects(1).set_column(0, "series_id", pa.array([1], pa.int32())), ["series_id", "int32", "int64"]),
        (rejects(1).set_column(2, "reason", pa.array([None], pa.string())), ["reason", "1 empty"]),
    ],
    ids=["missing", "unknown", "another type", "empty"],
)
def test_a_table_that_breaks_its_schema_is_told_which_column_and_how(table: pa.Table, named: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        conform(table, REJECTS)
    assert all(part in str(caught.value) for part in named)


def test_a_schemas_fingerprint_changes_with_a_name_a_type_and_nullability() -> None:
    field = REJECTS.field(0)
    changed = [field.with_name("id"), field.with_type(pa.int32()), field.with_nullable(True)]
    prints = {fingerprint(REJECTS.set(0, one)) for one in changed} | {fingerprint(REJECTS)}
    assert len(prints) == 4
    assert fingerprint(REJECTS.with_metadata({"a": "b"})) == fingerprint(REJECTS)


def test_labels_have_one_string_a_facet() -> None:
    assert [field.name for field in SINGLE.tables.labels] == list(SINGLE.classes)
    assert SINGLE.tables.series.field("truth").type == SINGLE.tables.labels


# ---- A dataset


def test_what_was_written_is_what_is_read(tmp_path: Path) -> None:
    fill(tmp_path / "d", rejects(1, 2), rejects(3))
    found = datasets.open_dataset(str(tmp_path / "d"), REJECTS)
    assert found.read().equals(rejects(1, 2, 3))
    assert (found.rows, found.parts) == (3, 2)
    assert found.read(["series_id"])["series_id"].to_pylist() == [1, 2, 3]


def test_no_manifest_no_dataset(tmp_path: Path) -> None:
    datasets.write_part(str(tmp_path), 0, rejects(1), REJECTS, KEY)
    assert datasets.find_finished(str(tmp_path), REJECTS, KEY) is None
    with pytest.raises(StorageError, match="no finished dataset"):
        datasets.open_dataset(str(tmp_path), REJECTS)
    datasets.commit(str(tmp_path), REJECTS, KEY, 1, {})
    assert datasets.open_dataset(str(tmp_path), REJECTS).rows == 1


def test_the_manifest_counts_rows_and_names_parents_versions_and_each_parts_bytes(tmp_path: Path) -> None:
    fill(tmp_path, rejects(1, 2), rejects(3))
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["rows"] == 3
    assert manifest["schema"] == fingerprint(REJECTS)
    assert manifest["parents"] == {"series": "ab"}
    assert set(manifest["versions"]) >= {"tsd", "pyarrow"}
    for part in manifest["parts"]:
        assert hashlib.sha256((tmp_path / part["name"]).read_bytes()).hexdigest() == part["sha256"]


def test_a_note_is_found_in_the_footer_and_what_goes_with_a_dataset_in_its_manifest(tmp_path: Path) -> None:
    written = datasets.write_part(str(tmp_path), 0, rejects(1, 2), REJECTS, KEY, note={"counted": 2})
    assert datasets.finished_parts(str(tmp_path), KEY) == {0: datasets.Part(2, note={"counted": 2})}
    told = datasets.commit(str(tmp_path), REJECTS, KEY, 1, {}, known={0: written}, about={"all": 2})
    assert datasets.open_dataset(str(tmp_path), REJECTS).about == {"all": 2}
    assert told.manifest == datasets.commit(str(tmp_path), REJECTS, KEY, 1, {}, about={"all": 2}).manifest


def test_a_dataset_written_twice_has_the_same_bytes_in_every_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        fill(tmp_path / name, rejects(*range(500)), rejects(7))
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_dataset_cannot_be_finished_while_a_part_is_missing(tmp_path: Path) -> None:
    datasets.write_part(str(tmp_path), 0, rejects(1), REJECTS, KEY)
    datasets.write_part(str(tmp_path), 2, rejects(3), REJECTS, KEY)
    with pytest.raises(DataError, match=r"parts \[1\] are missing"):
        datasets.commit(str(tmp_path), REJECTS, KEY, 3, {})
    assert not (tmp_path / "manifest.json").exists()


def test_a_table_that_breaks_the_schema_leaves_no_part_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        datasets.write_part(str(tmp_path), 0, rejects(1).drop_columns(["text"]), REJECTS, KEY)
    assert list(tmp_path.iterdir()) == []


def test_another_recipes_parts_and_dataset_are_refused_and_both_keys_named(tmp_path: Path) -> None:
    datasets.write_part(str(tmp_path), 0, rejects(1), REJECTS, KEY)
    with pytest.raises(StorageError, match="another recipe") as caught:
        datasets.finished_parts(str(tmp_path), "fedcba9876543210")
    assert KEY in str(caught.value)
    assert "fedcba9876543210" in str(caught.value)
    datasets.commit(str(tmp_path), REJECTS, KEY, 1, {})
    with pytest.raises(StorageError, match="another recipe"):
        datasets.find_finished(str(tmp_path), REJECTS, "fedcba9876543210")


def test_a_dataset_of_another_schema_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, rejects(1))
    with pytest.raises(DataError, match="another schema"):
        datasets.open_dataset(str(tmp_path), SINGLE.tables.series)


def test_a_file_that_a_killed_writer_left_half_written_is_never_taken_for_a_part(tmp_path: Path) -> None:
    # A child is killed while it holds the file open under its unfinished name, as kill -9 would.
    code = (
        "import os, signal, sys, pyarrow as pa\n"
        "from tsd.storage import datasets, folders\n"
        "def die(fd): os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.fsync = die\n"
        "folders.write_bytes(sys.argv[1], datasets.part_name(0), b'PAR1 half of a part')\n"
    )
    child = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60)
    assert child.returncode == -9
    assert len(list(tmp_path.iterdir())) == 1  # it did leave something
    assert datasets.finished_parts(str(tmp_path), KEY) == {}
    datasets.write_part(str(tmp_path), 0, rejects(1), REJECTS, KEY)
    assert datasets.finished_parts(str(tmp_path), KEY) == {0: datasets.Part(1)}
    assert datasets.commit(str(tmp_path), REJECTS, KEY, 1, {}).read().equals(rejects(1))


def test_a_part_that_is_written_again_is_replaced_whole(tmp_path: Path) -> None:
    datasets.write_part(str(tmp_path), 0, rejects(1, 2, 3), REJECTS, KEY)
    datasets.write_part(str(tmp_path), 0, rejects(9), REJECTS, KEY)
    assert datasets.read_part(str(tmp_path), 0, REJECTS).equals(rejects(9))
    assert [path.name for path in tmp_path.iterdir()] == [datasets.part_name(0)]


def test_a_folder_may_be_named_as_a_uri(tmp_path: Path) -> None:
    uri = (tmp_path / "d").as_uri()
    datasets.write_part(uri, 0, rejects(1), REJECTS, KEY)
    datasets.commit(uri, REJECTS, KEY, 1, {})
    assert datasets.open_dataset(str(tmp_path / "d"), REJECTS).read().equals(rejects(1))


def test_a_copied_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "weights").write_text("new")
    (tmp_path / "students" / "a").mkdir(parents=True)
    (tmp_path / "students" / "a" / "stale").write_text("old")
    folders.copy_folder(str(tmp_path / "new"), str(tmp_path / "students" / "a"))
    assert [p.name for p in (tmp_path / "students").rglob("*")] == ["a", "weights"]


KILLED = """
import os, signal, sys
from tsd.storage import folders


def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


os.replace = kill  # after the files were copied
folders.copy_folder(sys.argv[1], sys.argv[2])
"""


def test_what_a_killed_process_left_of_a_copy_is_hidden_and_deleted_by_the_next_copy(tmp_path: Path) -> None:
    new, students = tmp_path / "new", tmp_path / "students"
    new.mkdir()
    (new / "weights").write_text("new")
    ended = [
        subprocess.run([sys.executable, "-c", KILLED, str(new), str(students / name)]) for name in ("a", "b.2")
    ]
    assert [process.returncode for process in ended] == [-signal.SIGKILL] * 2
    assert len(list(students.glob("*/weights"))) == 2
    assert folders.subfolders(str(students)) == []
    visible = students / f"a.{'0' * 32}"  # as earlier versions left it
    others = students / f"ab.{'0' * 32}", students / "a.notes"
    for folder in (visible, *others):
        folder.mkdir()
    folders.copy_folder(str(new), str(students / "a"))
    kept = [path.name for path in students.iterdir() if not path.name.startswith(".b.2.")]
    assert sorted(kept) == sorted(["a", *(path.name for path in others)])
    folders.delete_unfinished(str(students))
    assert sorted(kept) == sorted(path.name for path in students.iterdir())


def test_a_copy_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "dangling").symlink_to(tmp_path / "missing")
    with pytest.raises(StorageError):
        folders.copy_folder(str(tmp_path / "new"), str(tmp_path / "students" / "a"))
    assert list((tmp_path / "students").iterdir()) == []


# ---- A disk that refuses


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        folders.require_writable(str(tmp_path), 2**60)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "needed" in message
    assert "--out" in message
    folders.require_writable(str(tmp_path), 1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_named_with_the_fix() -> None:
    for write in (
        lambda: folders.require_writable("/proc/tsd-study", 1),
        lambda: datasets.write_part("/proc/tsd-study/series", 0, rejects(1), REJECTS, KEY),
    ):
        with pytest.raises(StorageError) as caught:
            write()
        message = str(caught.value)
        assert "/proc/tsd-study" in message
        assert "--out" in message
        assert len(message.splitlines()) == 1


def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("I am a file")
    with pytest.raises(StorageError) as caught:
        datasets.write_part(str(tmp_path / "runs"), 0, rejects(1), REJECTS, KEY)
    assert str(tmp_path / "runs") in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


FILL = """
import os, sys
import pyarrow as pa
import pyarrow.parquet as pq
from tsd.storage import datasets
from tsd.errors import StorageError
from tsd.storage.schemas import REJECTS
folder = sys.argv[1] + "/rejects"
def table(i):
    text = os.urandom(100_000).hex()  # does not compress below 100 kB
    return pa.Table.from_pylist([{"series_id": i, "teacher": "rules", "reason": "r", "text": text}], REJECTS)
written = 0
try:
    for written in range(100):
        datasets.write_part(folder, written, table(written), REJECTS, "k")
except StorageError as error:
    print(error)
    assert error.__cause__.errno == 28, error.__cause__
print("parts", datasets.finished_parts(folder, "k") == {i: datasets.Part(1) for i in range(written)}, written)
print("whole", all(len(datasets.read_part(folder, i, REJECTS)) == 1 for i in range(written)))
print("left", sorted(name for name in os.listdir(folder) if not name.startswith("part-")))
"""


def test_a_full_disk_is_one_line_and_leaves_only_whole_parts(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    done = mounted("size=1m", disk, FILL)
    assert done.returncode == 0, done.stderr
    message, parts, whole, left = done.stdout.splitlines()
    assert str(disk) in message
    assert "no space left" in message
    assert "--out" in message
    assert parts.startswith("parts True")
    assert int(parts.split()[-1]) > 0
    assert (whole, left) == ("whole True", "left []")


def test_a_read_only_disk_is_one_line_with_the_fix(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    code = (
        "import sys\nfrom tsd.storage import folders\nfrom tsd.errors import StorageError\n"
        "try:\n    folders.require_writable(sys.argv[1] + '/study', 1)\n"
        "except StorageError as error:\n    print(error)\n"
    )
    done = mounted("size=1m,ro", disk, code)
    assert done.returncode == 0, done.stderr
    (message,) = done.stdout.splitlines()
    assert f"{disk}/study" in message
    assert "read-only" in message
    assert "--out" in message
