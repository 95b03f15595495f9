"""The lock of a study's folder, on a disk and on a real S3 server: one writer, and nobody waits for a dead one."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.s3_server import S3, WITHOUT_CONDITIONS, WITHOUT_IF_MATCH, serving_s3

from tsd.errors import StorageError
from tsd.storage import folders, lock_files, locks

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from tsd.storage import datasets, locks
from tsd.errors import StorageError
folder, locks.BEAT, locks.STALE = sys.argv[1], float(sys.argv[2]), float(sys.argv[3])
try:
    with locks.hold(folder, "tsd study held"):
        print("held", flush=True)
        sys.stdin.readline()
        datasets.write_bytes(folder + "/series", "late", b"written by the first")
        print("written", flush=True)
        time.sleep(20)
except StorageError as error:
    print(error, flush=True)
"""


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder of a study, on a disk and in an object store."""
    if request.param == "disk":
        (tmp_path / "study").mkdir()
        return str(tmp_path / "study")
    s3: S3 = request.getfixturevalue("s3")
    return s3.uri(tmp_path.name)


@pytest.fixture
def holders() -> Iterator[ExitStack]:
    """What ends the processes that a test started."""
    with ExitStack() as stack:
        yield stack


def hold_elsewhere(
    holders: ExitStack, folder: str, beat: float = locks.BEAT, stale: float = locks.STALE
) -> subprocess.Popen[str]:
    """A process that holds the lock by now; a line on its stdin makes it write."""
    process = start(holders, HOLDER, folder, str(beat), str(stale))
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def start(holders: ExitStack, *arguments: str) -> subprocess.Popen[str]:
    """Run Python code in a process that ends with the test."""
    command = [sys.executable, "-c", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    holders.enter_context(process)
    holders.callback(process.kill)
    return process


def files(folder: str) -> list[str]:
    """The names of what lies in a folder."""
    from pyarrow import fs

    found, root = folders.filesystem(folder)
    return sorted(info.base_name for info in found.get_file_info(fs.FileSelector(root, allow_not_found=True)))


def test_a_second_command_is_told_in_one_line_who_holds_the_folder_and_since_when(
    folder: str, holders: ExitStack
) -> None:
    process = hold_elsewhere(holders, folder)
    started = time.monotonic()
    with pytest.raises(StorageError) as caught, locks.hold(folder, "tsd report held"):
        pass
    assert time.monotonic() - started < 10
    said = str(caught.value)
    assert len(said.splitlines()) == 1
    for part in (folder, "`tsd study held`", f"pid {process.pid}", os.uname().nodename, " UTC", "--out"):
        assert part in said


def test_a_lock_that_was_given_back_leaves_nothing_and_is_free(folder: str) -> None:
    for _ in range(2):
        with locks.hold(folder, "tsd study mine"):
            assert files(folder) == [lock_files.NAME]
        assert files(folder) == []


def test_of_many_that_come_at_once_one_gets_the_lock(folder: str, holders: ExitStack) -> None:
    code = (
        "import sys\nfrom tsd.storage import locks\nfrom tsd.errors import StorageError\n"
        "sys.stdin.readline()\n"
        "try:\n    with locks.hold(sys.argv[1], 'tsd study mine'):\n"
        "        print('held', flush=True)\n        sys.stdin.readline()\n"
        "except StorageError:\n    print('refused', flush=True)\n"
    )
    processes = [start(holders, code, folder) for _ in range(4)]
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.stdout.readline().strip() for process in processes if process.stdout]
    assert sorted(said) == ["held", "refused", "refused", "refused"]


@pytest.mark.parametrize(
    ("program", "header"), [(WITHOUT_CONDITIONS, "If-None-Match"), (WITHOUT_IF_MATCH, "If-Match")]
)
def test_a_store_that_ignores_a_condition_of_writes_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, header: str
) -> None:
    with serving_s3(program) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        for _ in range(2):
            with pytest.raises(StorageError) as caught, locks.hold(server.uri(tmp_path.name), "tsd study mine"):
                pass
            said = str(caught.value)
            assert said.startswith(f"{server.uri(tmp_path.name)} cannot be locked: its store ignores")
            assert f"({header})" in said
            assert len(said.splitlines()) == 1
            assert files(server.uri(tmp_path.name)) == []


def test_an_expired_lock_is_not_taken_over_in_a_store_that_replaces_it_whatever_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locks, "STALE", -1.0)  # seconds: any lock has expired
    with serving_s3(WITHOUT_IF_MATCH) as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        folder = server.uri(tmp_path.name)
        left = lock_files.encode(lock_files.Owner("tsd study far", host="far", boot="another", pid=1))
        assert lock_files.ObjectLockFile(folder).create(left)
        with pytest.raises(StorageError, match=r"\(If-Match\)"), locks.hold(folder, "tsd study mine"):
            pass
        assert files(folder) == []


def test_kill_9_frees_a_folder_on_a_disk_at_once(tmp_path: Path, holders: ExitStack) -> None:
    process = hold_elsewhere(holders, str(tmp_path))
    process.kill()
    process.wait(30)
    assert files(str(tmp_path)) == [lock_files.NAME]
    with locks.hold(str(tmp_path), "tsd study mine"):
        pass
    assert files(str(tmp_path)) == []


def test_another_machines_lock_on_a_shared_disk_is_free_once_it_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / lock_files.NAME
    owner = lock_files.Owner("tsd study far", host="far", boot="another", pid=1)
    path.write_bytes(lock_files.encode(owner))
    with pytest.raises(StorageError, match="on far"), locks.hold(str(tmp_path), "tsd study mine"):
        pass
    assert json.loads(path.read_bytes())["host"] == "far"
    old = time.time() - locks.STALE - 5
    os.utime(path, (old, old))
    with locks.hold(str(tmp_path), "tsd study mine"):
        assert json.loads(path.read_bytes())["host"] == os.uname().nodename


def test_a_lock_in_an_object_store_is_taken_over_once_its_owner_is_silent(
    s3: S3, tmp_path: Path, holders: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = s3.uri(tmp_path.name)
    monkeypatch.setattr(locks, "STALE", 3.0)
    process = hold_elsewhere(holders, folder, beat=0.5, stale=3.0)
    time.sleep(4)  # longer than that: it is renewed
    with pytest.raises(StorageError, match="in use"), locks.hold(folder, "tsd study mine"):
        pass
    process.kill()
    process.wait(30)
    until = time.monotonic() + 20
    while True:
        try:
            with locks.hold(folder, "tsd study mine"):
                break
        except StorageError:
            assert time.monotonic() < until
            time.sleep(0.2)


def test_who_was_frozen_and_lost_the_lock_writes_nothing_more(
    s3: S3, tmp_path: Path, holders: ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = s3.uri(tmp_path.name)
    monkeypatch.setattr(locks, "STALE", 2.0)
    process = hold_elsewhere(holders, folder, beat=0.5, stale=2.0)
    assert process.stdin
    assert process.stdout
    process.send_signal(signal.SIGSTOP)
    time.sleep(4)
    with locks.hold(folder, "tsd study mine"):
        process.stdin.write("write\n")
        process.stdin.flush()
        process.send_signal(signal.SIGCONT)
        said = process.stdout.readline()
    assert "taken over by `tsd study mine`" in said
    assert process.wait(30) == 0
    assert files(folder) == []


def test_a_lock_that_is_lost_interrupts_whoever_holds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.1)
    other = lock_files.encode(lock_files.Owner("tsd study far", host="far", boot="another"))
    threading.Timer(0.3, lambda: (tmp_path / lock_files.NAME).write_bytes(other)).start()
    with pytest.raises(StorageError, match="taken over by `tsd study far`"), locks.hold(str(tmp_path), "mine"):
        time.sleep(20)
    assert (tmp_path / lock_files.NAME).read_bytes() == other  # it is not ours to delete


def test_a_worker_can_tell_whether_its_drivers_lock_still_holds(folder: str) -> None:
    assert locks.claim(folder) is None
    with locks.hold(folder, "tsd study mine"):
        claim = locks.claim(f"{folder}/annotations")
        assert claim is not None
        claim.require()
    with pytest.raises(StorageError, match="taken over"):
        claim.require()


def test_a_folder_that_cannot_be_locked_is_named_with_the_fix(s3: S3) -> None:
    for folder in ("s3://no-such-bucket/study", "hdfs://name/study"):
        with pytest.raises(StorageError) as caught, locks.hold(folder, "tsd study mine"):
            pass
        assert folder in str(caught.value)
        assert "--out" in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_the_keys_that_aws_configure_wrote_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "credentials"
    path.write_text("[default]\naws_access_key_id = a\n[work]\naws_access_key_id=b\naws_secret_access_key=c%d\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert lock_files._keys_of_profile() == {"access_key_id": "b", "secret_access_key": "c%d"}
    monkeypatch.setenv("AWS_PROFILE", "none")
    assert lock_files._keys_of_profile() == {}
