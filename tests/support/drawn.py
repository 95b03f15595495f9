"""What tests read from tables of generated series."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def points(table: pa.Table) -> npt.NDArray[np.uint8]:
    """The values of a table whose series are all of one length, (rows, length)."""
    lists = table["values"].combine_chunks()
    return np.asarray(lists.flatten().to_numpy()).reshape(len(table), -1)
