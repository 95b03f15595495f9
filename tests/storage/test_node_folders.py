"""A machine's folders for this user: private, and none that another user may have made or led elsewhere."""

import os
from pathlib import Path

import pytest

from tsd.errors import InputError
from tsd.storage.node_folders import shared_folder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the folder for tests is."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path / f"tsd-tests-{os.getuid()}"


def test_a_folder_is_made_once_and_closed_to_others(place: Path) -> None:
    assert shared_folder("tests") == place
    place.chmod(0o755)
    assert shared_folder("tests") == place
    assert place.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["link to a folder", "link to nothing", "file"])
def test_a_link_or_a_file_is_no_folder(kind: str, place: Path) -> None:
    theirs = place.parent / "theirs"
    if kind == "link to a folder":
        theirs.mkdir()
    if kind == "file":
        place.touch()
    else:
        place.symlink_to(theirs)
    with pytest.raises(InputError, match="belongs to another user, or is no folder: set TMPDIR to a folder"):
        shared_folder("tests")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_refused(place: Path) -> None:
    place.mkdir()
    os.chown(place, 1234, 1234)
    with pytest.raises(InputError, match="belongs to another user"):
        shared_folder("tests")
