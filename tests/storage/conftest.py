"""A dataset and a temporary directory of the test's own, for the tests of its copies."""

from pathlib import Path

import pytest
from support.flat_tables import filled

from tsd.storage.datasets import Dataset


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Dataset:
    """Four parts of rows of different lengths, some empty or null; temporary files lie in the test's folder."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    return filled(tmp_path / "table")
