"""Small datasets of the `REJECTS` schema."""

from pathlib import Path

import pyarrow as pa

from tsd.storage import datasets
from tsd.storage.schemas import REJECTS

KEY = "0123456789abcdef"


def rejects(*ids: int) -> pa.Table:
    """A small table of the `REJECTS` schema."""
    rows = [{"series_id": i, "teacher": "rules", "reason": "invalid", "text": None} for i in ids]
    return pa.Table.from_pylist(rows, REJECTS)


def fill(folder: Path, *parts: pa.Table, key: str = KEY) -> datasets.Dataset:
    """Write and commit a dataset of these parts."""
    for index, part in enumerate(parts):
        datasets.write_part(str(folder), index, part, REJECTS, key)
    return datasets.commit(str(folder), REJECTS, key, len(parts), {"series": "ab"})
