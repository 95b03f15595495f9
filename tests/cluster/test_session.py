"""A local Ray that is not up in time, which a real one does on a busy machine alone, is started again."""

import subprocess

import pytest

from tsd.cluster import session
from tsd.errors import ClusterError

LATE = "The current node timed out during startup. This could happen because of this.\nAnd of that."


class Slow:
    """Ray's `init`, as it is where a machine is too busy: it starts a process and gives up waiting for it."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.addresses: list[str] = []
        self.started: list[subprocess.Popen[bytes]] = []

    def init(self, address: str, **options: object) -> None:
        self.addresses.append(address)
        self.started.append(subprocess.Popen(["sleep", "600"]))
        if len(self.addresses) <= self.failures:
            raise Exception(LATE)

    def running(self) -> int:
        """How many of its processes are left; it ends them."""
        left = sum(one.poll() is None for one in self.started)
        for one in self.started:
            one.kill()
            one.wait(10)
        return left


@pytest.fixture
def local(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.usefixtures("local")
@pytest.mark.parametrize("failures", [1, 2])
def test_ray_is_started_again_and_nothing_of_a_start_that_failed_is_left(
    monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    slow = Slow(failures)
    monkeypatch.setattr(session.ray, "init", slow.init)
    session.start()
    assert slow.addresses == ["local"] * (failures + 1)
    assert slow.running() == 1


@pytest.mark.usefixtures("local")
def test_ray_that_never_starts_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(failures=99)
    monkeypatch.setattr(session.ray, "init", slow.init)
    with pytest.raises(ClusterError) as raised, session.session():
        pass
    assert "3 attempts failed: The current node timed out during startup." in str(raised.value)
    assert "\n" not in str(raised.value)
    assert slow.running() == 0


@pytest.mark.usefixtures("local")
def test_a_number_of_cpus_that_is_none_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(failures=99)
    monkeypatch.setattr(session.ray, "init", slow.init)
    monkeypatch.setenv("TSD_CPUS", "two")
    with pytest.raises(ValueError, match="two"):
        session.start()
    assert not slow.started


def test_a_cluster_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(failures=99)
    monkeypatch.setattr(session.ray, "init", slow.init)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(Exception, match="timed out"), session.session():
        pass
    assert slow.addresses == ["127.0.0.1:1"]
    assert slow.running() == 1
