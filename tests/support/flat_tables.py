"""A dataset of two columns as flat arrays, and what its copies on this machine hold."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tsd.storage import datasets, node_copy
from tsd.storage.datasets import Dataset

KEY = "0123456789abcdef"
SCHEMA = pa.schema([pa.field("id", pa.int64(), nullable=False), pa.field("values", pa.list_(pa.int32()))])
ROWS = 50


def filled(folder: Path, rows: int = ROWS) -> Dataset:
    """Such a dataset."""
    for part in range(4):
        ids = list(range(part * rows, (part + 1) * rows))
        values = [None if i % 7 == 0 else list(range(i, i + i % 5)) for i in ids]
        datasets.write_part(str(folder), part, pa.table({"id": ids, "values": values}, SCHEMA), SCHEMA, KEY)
    return datasets.commit(str(folder), SCHEMA, KEY, 4, {})


def flatten(table: pa.Table) -> dict[str, npt.NDArray[Any]]:
    """Its columns as flat arrays."""
    return {"id": table["id"].to_numpy(), "values": table["values"].combine_chunks().flatten().to_numpy()}


def expected(dataset: Dataset, parts: int) -> dict[str, list[int]]:
    """What the arrays of the first parts hold."""
    table = pa.concat_tables(dataset.read_part(part) for part in range(parts))
    return {name: array.tolist() for name, array in flatten(table).items()}


def copies(tmp_path: Path) -> list[Path]:
    """The folders of copies on this machine."""
    return [path for path in (tmp_path / "tmp").glob("tsd-tokens-*/*") if path.is_dir()]


def same(arrays: node_copy.Arrays, wanted: dict[str, list[int]]) -> bool:
    """Whether the arrays begin with these values, and have their types."""
    types = {name: array.dtype for name, array in arrays.items()}
    assert types == {"id": np.int64, "values": np.int32}
    return all(arrays[name][: len(values)].tolist() == values for name, values in wanted.items())
