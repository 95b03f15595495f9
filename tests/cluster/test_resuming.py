"""What a trial does on one machine before Ray Train starts, without Ray."""

from pathlib import Path

import pytest

from tsd.cluster.training_worker import SNAPSHOT, forget_cut_off_snapshot


@pytest.mark.parametrize("content", [b"", b'{"checkpoint_results": [', b"\xff\xfe"])
def test_a_list_of_checkpoints_that_was_cut_off_is_deleted(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SNAPSHOT).write_bytes(content)
    forget_cut_off_snapshot(str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_whole_list_of_checkpoints_is_kept_and_a_missing_one_is_no_error(tmp_path: Path) -> None:
    forget_cut_off_snapshot(str(tmp_path))
    (tmp_path / SNAPSHOT).write_bytes(b"{}")
    forget_cut_off_snapshot(str(tmp_path))
    assert (tmp_path / SNAPSHOT).read_bytes() == b"{}"
