"""When a worker considers its server overdue: never while responses come, nor before the first one."""

import time

from tsd.teachers.api.server_state import ServerState


def test_a_server_is_overdue_once_nothing_comes_for_far_longer_than_the_slowest_response() -> None:
    state = ServerState(8)
    assert not state.overdue(0.0)  # nobody waits
    began = time.monotonic()
    with state.request(began):
        time.sleep(0.1)
        assert not state.overdue(0.0)  # no response so far: it may be slow
        state.heard(began)
    took = time.monotonic() - began
    assert not state.overdue(0.0)  # nobody waits
    time.sleep(12 * took)
    with state.request(time.monotonic()):
        assert not state.overdue(0.0)  # it waits from now on
        time.sleep(5 * took)
        assert not state.overdue(0.0)
        time.sleep(10 * took)
        assert state.overdue(0.0)
        assert not state.overdue(60.0)
        state.heard(0.0)
        assert not state.overdue(0.0)
