"""Datasets on disk: whole or not there at all, their own maker's, and honest about a disk that refuses."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.small_disk import mounted

import tsd
from tsd.errors import DataError, StorageError
from tsd.storage import datasets, folders, keys, manifests
from tsd.storage.schemas import REJECTS, conform, fingerprint
from tsd.tasks import SINGLE

KEY = "0123456789abcdef"


def rejects(*ids: int) -> pa.Table:
    """A small table of the `REJECTS` schema."""
    rows = [{"series_id": i, "teacher": "rules", "reason": "invalid", "text": None} for i in ids]
    return pa.Table.from_pylist(rows, REJECTS)


def fill(folder: Path, *parts: pa.Table, key: str = KEY) -> datasets.Dataset:
    """Write and commit a dataset of these parts."""
    for index, part in enumerate(parts):
        datasets.write_part(str(folder), index, part, REJECTS, key)
    return datasets.commit(str(folder), REJECTS, key, len(parts), {"series": "ab"})


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


# ---- Lost and damaged parts


def damage_each_byte_in_turn(path: Path) -> list[bytes]:
    """The file's bytes with one bit flipped, at many places."""
    whole = path.read_bytes()
    return [
        whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :] for place in range(4, len(whole) - 8, 37)
    ]


def test_a_bit_that_was_flipped_anywhere_in_a_part_is_found_by_who_reads_it(tmp_path: Path) -> None:
    rows = rejects(*range(300))
    fill(tmp_path / "rejects", rows)
    path, wrong = tmp_path / "rejects" / datasets.part_name(0), 0
    for content in damage_each_byte_in_turn(path):
        path.write_bytes(content)
        try:
            read = datasets.open_dataset(str(tmp_path / "rejects"), REJECTS).read()
        except (DataError, StorageError) as error:
            said = str(error)
            assert len(said.splitlines()) == 1
            assert str(path) in said
            assert f"tsd verify {tmp_path} --repair" in said
            continue
        wrong += not read.equals(rows)
    assert wrong == 0


@pytest.mark.parametrize("kind", ["deleted", "cut", "emptied", "longer", "no footer"])
def test_a_part_that_was_lost_is_found_at_the_next_start_and_made_again_under_its_manifest(
    tmp_path: Path, kind: str
) -> None:
    folder = str(tmp_path / "rejects")
    before = fill(tmp_path / "rejects", rejects(1, 2), rejects(3)).manifest
    manifest = (tmp_path / "rejects" / manifests.MANIFEST).read_bytes()
    path = tmp_path / "rejects" / datasets.part_name(1)
    whole = path.read_bytes()
    if kind == "deleted":
        path.unlink()
    else:
        wrong = {"cut": whole[:200], "emptied": b"", "longer": whole + b"x", "no footer": whole[:-9] + b"x" * 9}
        path.write_bytes(wrong[kind])
    assert datasets.find_finished(folder, REJECTS, KEY) is None
    assert list(datasets.lost_parts(folder, KEY)) == [1]
    assert list(datasets.finished_parts(folder, KEY)) == [0]
    if kind != "no footer":  # whose reader finds it
        with pytest.raises(DataError, match=r"part-00000001\.parquet is damaged") as caught:
            datasets.open_dataset(folder, REJECTS)
        assert len(str(caught.value).splitlines()) == 1
    datasets.set_aside(folder, 1)
    made = {**datasets.finished_parts(folder, KEY), 1: datasets.write_part(folder, 1, rejects(3), REJECTS, KEY)}
    again = datasets.commit(folder, REJECTS, KEY, 2, {"series": "ab"}, made)
    assert path.read_bytes() == whole
    assert (tmp_path / "rejects" / manifests.MANIFEST).read_bytes() == manifest
    assert again.manifest == before
    assert folders.names(folder) == [manifests.MANIFEST, datasets.part_name(0), datasets.part_name(1)]


def test_a_part_that_is_made_again_with_other_bytes_is_refused(tmp_path: Path) -> None:
    folder = str(tmp_path)
    fill(tmp_path, rejects(1), rejects(2))
    (tmp_path / datasets.part_name(0)).unlink()
    made = {**datasets.finished_parts(folder, KEY), 0: datasets.write_part(folder, 0, rejects(7), REJECTS, KEY)}
    with pytest.raises(DataError, match="other bytes than before"):
        datasets.commit(folder, REJECTS, KEY, 2, {}, made)
    assert list(datasets.lost_parts(folder, KEY)) == [0]  # and stays lost


def test_other_bytes_are_blamed_on_the_versions_if_they_differ_and_on_what_the_recipe_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said() -> str:
        (tmp_path / datasets.part_name(0)).unlink(missing_ok=True)
        made = datasets.write_part(str(tmp_path), 0, rejects(7), REJECTS, KEY)
        with pytest.raises(DataError, match="other bytes than before") as caught:
            datasets.commit(str(tmp_path), REJECTS, KEY, 1, {}, {0: made})
        return str(caught.value)

    fill(tmp_path, rejects(1))
    outside = "a task, process, teacher or policy outside tsd that the recipe names is not deterministic"
    same = said()
    assert f"by the same tsd and pyarrow: {outside}, or has changed without a new version" in same
    assert "install" not in same
    monkeypatch.setattr(tsd, "__version__", "99.0")
    other = said()
    assert "(now 99.0 and " in other
    assert "install those versions; or, if " + outside in other
    for line in (same, other):
        assert f"delete {tmp_path} and what was made from it" in line
        assert len(line.splitlines()) == 1


def test_a_manifest_that_was_cut_is_written_anew_from_the_parts(tmp_path: Path) -> None:
    fill(tmp_path, rejects(1, 2), rejects(3))
    manifest = (tmp_path / manifests.MANIFEST).read_bytes()
    for content in (manifest[:50], b"", b"\xff\xfe"):
        (tmp_path / manifests.MANIFEST).write_bytes(content)
        with pytest.raises(DataError, match=r"manifest\.json is damaged") as caught:
            datasets.open_dataset(str(tmp_path), REJECTS)
        assert len(str(caught.value).splitlines()) == 1
        assert datasets.find_finished(str(tmp_path), REJECTS, KEY) is None
        datasets.commit(str(tmp_path), REJECTS, KEY, 2, {"series": "ab"})
        assert (tmp_path / manifests.MANIFEST).read_bytes() == manifest


def test_a_footer_whose_key_was_damaged_is_no_other_recipes(tmp_path: Path) -> None:
    fill(tmp_path, rejects(1))
    path = tmp_path / datasets.part_name(0)
    table = rejects(1).replace_schema_metadata({datasets.KEY: b"1123456789abcdef", datasets.NOTE: b"null"})
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)
    assert list(datasets.lost_parts(str(tmp_path), KEY)) == [0]


def test_what_is_wrong_with_a_sealed_folder_is_named_file_by_file(tmp_path: Path) -> None:
    local, folder = tmp_path / "local", str(tmp_path / "student")
    local.mkdir()
    for name in ("config.json", "model.safetensors", "README.md", "tokenizer.json"):
        (local / name).write_text(name)
    folders.copy_folder(str(local), folder, sealed=True)
    assert folders.damage(folder, read=True) == {}
    (tmp_path / "student/README.md").write_text("a card is written anew with its scores")
    assert folders.damage(folder, read=True) == {}
    (tmp_path / "student/config.json").unlink()
    (tmp_path / "student/tokenizer.json").write_text("cut")
    (tmp_path / "student/model.safetensors").write_text("Model.safetensors")
    assert list(folders.damage(folder)) == ["config.json", "tokenizer.json"]
    assert list(folders.damage(folder, read=True)) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_a_store_that_does_not_answer_is_not_taken_for_a_damaged_file() -> None:
    assert folders.is_damage(pa.ArrowInvalid("Parquet magic bytes not found in footer"))
    assert folders.is_damage(OSError("could not verify page integrity, CRC checksum verification failed"))
    assert not folders.is_damage(PermissionError(13, "Permission denied"))
    assert not folders.is_damage(OSError("When reading information for key: AWS Error NETWORK_CONNECTION"))


def test_the_study_of_a_tables_folder_is_named_in_the_fix() -> None:
    inside = ("series", "predictions/0.03M-1", "teachers/a/examples", "records", "teachers/a/students/b", "")
    for folder in inside:
        assert folders.study_of(f"runs/x/{folder}") == "runs/x"
        assert folders.study_of(f"s3://bucket/runs/x/{folder}") == "s3://bucket/runs/x"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[]", "it holds no fields"),
        (b"null", "it holds no fields"),
        (b"{}", "it has no schema"),
        (b'{"parts": []}', "it has no schema"),
        (b'"key": |"kex": ', "it has no key"),
        (b'"parents"|"parent"', "it has no parents"),
        (b'"key": "0|"key": "1', "it does not hold what was written"),
        (b'"digest"|"digesu"', "it has no digest"),
        (b'"rows": 1|"rows": 2', "it does not hold what was written"),
    ],
)
def test_a_manifest_of_which_a_byte_was_changed_is_damaged_and_not_of_another_recipe(
    tmp_path: Path, content: bytes, said: str
) -> None:
    fill(tmp_path, rejects(1))
    path = tmp_path / manifests.MANIFEST
    before = path.read_bytes()
    was, _, now = content.partition(b"|")
    path.write_bytes(before.replace(was, now) if now else content)
    assert path.read_bytes() != before
    with pytest.raises(DataError) as caught:
        datasets.open_dataset(str(tmp_path), REJECTS)
    assert str(caught.value).startswith(f"{path} is damaged: {said}")
    assert len(str(caught.value).splitlines()) == 1
    assert manifests.has_damaged_manifest(str(tmp_path))
    datasets.require_made_by(str(tmp_path), KEY)
    assert datasets.find_finished(str(tmp_path), REJECTS, KEY) is None
    datasets.commit(str(tmp_path), REJECTS, KEY, 1, {"series": "ab"})
    assert path.read_bytes() == before


def test_a_manifest_without_its_digest_is_damaged(tmp_path: Path) -> None:
    made = fill(tmp_path, rejects(1))
    fields = {name: value for name, value in made.manifest.items() if name != manifests.DIGEST}
    assert made.digest == made.manifest[manifests.DIGEST] == keys.digest(fields)
    folders.write_json(str(tmp_path), manifests.MANIFEST, fields)
    with pytest.raises(DataError, match="has no digest"):
        datasets.open_dataset(str(tmp_path), REJECTS)


def test_another_recipes_folder_is_refused_without_the_advice_to_delete_it(tmp_path: Path) -> None:
    fill(tmp_path, rejects(1))
    with pytest.raises(StorageError, match="was made from another recipe") as caught:
        datasets.find_finished(str(tmp_path), REJECTS, "another")
    assert "delete" not in str(caught.value)


def test_a_column_whose_name_is_no_text_any_more_is_damage(tmp_path: Path) -> None:
    fill(tmp_path, rejects(1))
    path, whole = tmp_path / datasets.part_name(0), (tmp_path / datasets.part_name(0)).read_bytes()
    place = whole.index(b"reason", len(whole) - 8 - int.from_bytes(whole[-8:-4], "little"))  # in the footer
    path.write_bytes(whole[:place] + b"\xf2" + whole[place + 1 :])
    with pytest.raises(DataError, match="is damaged"):
        datasets.read_part(str(tmp_path), 0, REJECTS)


def test_digests_of_a_sealed_folder_that_are_no_digests_are_damage(tmp_path: Path) -> None:
    local, folder = tmp_path / "local", str(tmp_path / "student")
    local.mkdir()
    (local / "config.json").write_text("{}")
    folders.copy_folder(str(local), folder, sealed=True)
    for content in (b"[]", b"null", b'{"config.json": 3}', b'{"config.json": {"bytes": 2}}'):
        folders.write_bytes(folder, folders.FILES, content)
        assert list(folders.damage(folder)) == [folders.FILES]
        assert folders.seals(folder) == {}
