"""Lost and damaged parts and manifests: found by their readers, named, and made again."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.rejects_tables import KEY, fill, rejects

import tsd
from tsd.errors import DataError, StorageError
from tsd.storage import datasets, folders, keys, manifests
from tsd.storage.schemas import REJECTS


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
