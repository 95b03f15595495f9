"""A file for the tests of reading files."""

import pytest


@pytest.fixture
def write(tmp_path):
    def to(content, name="mine.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(path)

    return to
