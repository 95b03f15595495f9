"""The log of an engine: few are kept, and none is written where another user may have led it."""

import os
from pathlib import Path

import pytest

from tsd.teachers import engine_log
from tsd.teachers.engine_log import EngineLog, log_folder, read_since


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's folder of temporary files."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_few_logs_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_log, "LOGS", 3)
    paths = []
    for port in range(5):
        log = EngineLog(port)
        log.open().close()
        paths.append(log.path)
        os.utime(log.path, (port + 1, port + 1))
    assert [path.exists() for path in paths] == [False, False, True, True, True]


@pytest.mark.parametrize("kind", ["link to a folder", "link to nothing", "file"])
def test_a_log_is_not_written_where_another_user_may_have_led_it(kind: str, folder: Path) -> None:
    theirs = folder / "theirs"
    if kind == "file":
        log_folder().touch()
    else:
        log_folder().symlink_to(theirs)
    if kind == "link to a folder":
        theirs.mkdir()
    log = EngineLog(1)
    with log.open() as file:
        file.write(b"mine")
    assert log.path.read_bytes() == b"mine"
    assert log.path.parent.parent == folder
    assert not log.path.parent.is_symlink()
    assert log.path.parent.stat().st_mode & 0o777 == 0o700
    assert not theirs.exists() or not list(theirs.iterdir())


def test_a_link_in_place_of_a_log_is_not_followed_and_an_open_folder_is_closed(folder: Path) -> None:
    log_folder().mkdir(mode=0o777)
    log_folder().chmod(0o777)
    log = EngineLog(1)
    (log_folder() / log.path.name).symlink_to(folder / "theirs")
    log.open().close()
    assert not (folder / "theirs").exists()
    assert log.path.is_file()
    assert log_folder().stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_used() -> None:
    log_folder().mkdir()
    os.chown(log_folder(), 1234, 1234)
    log = EngineLog(1)
    log.open().close()
    assert log.path.parent != log_folder()
    assert not list(log_folder().iterdir())


def test_what_a_deleted_log_holds_is_read_from_a_position_and_no_more_than_its_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log = EngineLog(1)
    with log.open() as file:
        file.write(b"before, ")
        since = os.fstat(file.fileno()).st_size
        file.write(b"after")
        log.path.unlink()
        assert read_since(file, since) == "after"
        monkeypatch.setattr(engine_log, "MOST_READ", 3)
        assert read_since(file, since) == "ter"
    with open(os.devnull, "ab", buffering=0) as nothing:
        assert read_since(nothing, 0) == ""
