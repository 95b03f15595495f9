"""The registry of batches: one that cannot be read, and one of the first version."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.api_server import error
from support.batch_server import BatchServer

from tsd.errors import StorageError
from tsd.teachers.api.batch_registry import BatchRegistry

pytestmark = pytest.mark.usefixtures("quick")


LEDGERS = {
    "cut": b'{"batches": [{"digest": "ab',
    "empty": b"",
    "no ledger": b"[1, 2]",
    "null": b"null",
    "another's": b'{"batches": [{"name": 1}], "missed": {}}',
    "newer": b'{"version": 99, "batches": [], "missed": {}}',
    "a field more": b'{"batches": [{"digest": "a", "requests": {}, "form": [], "extra": 1}], "missed": {}}',
    "no text": b"\xff\xfe\x00\x9f",
}


@pytest.mark.parametrize("kind", LEDGERS)
def test_a_ledger_that_cannot_be_read_is_an_error_of_one_line_that_names_it(tmp_path: Path, kind: str) -> None:
    (tmp_path / "batches.json").write_bytes(LEDGERS[kind])
    with pytest.raises(StorageError) as caught:
        BatchRegistry(str(tmp_path))
    assert len(str(caught.value).splitlines()) == 1
    assert str(tmp_path / "batches.json") in str(caught.value)
    assert "version" in str(caught.value)


def test_a_ledger_of_the_first_version_is_read_and_its_batches_get_their_bounds(
    server: BatchServer, ask: Any, series: pa.Table, tmp_path: Path
) -> None:
    server.instead = lambda call, _: error(401) if call == "poll" else None
    ask(series.slice(0, 9), tmp_path / "one")
    (path,) = (tmp_path / "one").rglob("batches.json")
    kept = json.loads(path.read_bytes())
    (batch,) = kept["batches"]
    for name in ("asked_at", "bound_input_tokens", "bound_output_tokens", "name"):
        del batch[name]
    path.write_text(json.dumps({"batches": [batch], "missed": {}}))
    ask(series.slice(0, 9), tmp_path / "one")
    (batch,) = json.loads(path.read_bytes())["batches"]
    assert batch["bound_output_tokens"] == 9 * 256
    server.instead = lambda *_: None
    assert len(ask(series.slice(0, 9), tmp_path / "one").table) == 9
    assert server.paid_once(9)
