"""Generate series, or pairs of series, with their ground truth, for a range of ids.

A series depends only on (seed, series_id); see `tsd.generation.blocks`. Any number of workers and any restart give
the same bytes.
"""

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tsd.generation.blocks import BLOCK, Block, draw_block
from tsd.generation.pairs import draw_pairs
from tsd.recipe import SeriesConfig
from tsd.series.processes import processes_of
from tsd.storage.schemas import SPLITS, conform
from tsd.tasks import DEFAULT, Measures, Task

__all__ = ["BLOCK", "draw_table", "split_of"]


def draw_table(task: Task, config: SeriesConfig, seed: int, first: int, count: int) -> pa.Table:
    """Generate the rows with ids `first` to `first + count - 1`, in the schema of the task's series table."""
    schema = task.tables.series
    ids = np.arange(first, first + count, dtype=np.int64)
    rows = _single_rows if task.curves == 1 else _pair_rows
    blocks = range(first // BLOCK, -(-(first + count) // BLOCK))
    drawn = pa.concat_tables(rows(task, config, seed, block) for block in blocks).slice(first % BLOCK, count)
    split = pa.array(SPLITS).take(pa.array(split_of(ids, config.split)))
    table = drawn.append_column("series_id", pa.array(ids)).append_column("split", split)
    return conform(table.select(schema.names), schema)


def split_of(ids: npt.NDArray[np.int64], shares: tuple[float, float, float]) -> npt.NDArray[np.intp]:
    """The split of each id, as an index into `SPLITS`: a hash of the id, the same in every study.

    The hash is the finaliser of SplitMix64 (Steele, Lea and Flood 2014). ids: (batch,). Returns (batch,).
    """
    with np.errstate(over="ignore"):
        z = ids.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    uniform = (z >> np.uint64(11)).astype(np.float64) / 2.0**53
    return np.searchsorted(np.cumsum(shares)[:2], uniform, side="right")


def _single_rows(task: Task, config: SeriesConfig, seed: int, number: int) -> pa.Table:
    """One block as an Arrow table, without the columns that depend on ids."""
    block = draw_block(task, config, seed, number)
    process, parameters = _process(config, block), _parameters(task, block)
    return _laid_out(task, block.lengths, block.values, block.measures, block.lengths, process, parameters)


def _pair_rows(task: Task, config: SeriesConfig, seed: int, number: int) -> pa.Table:
    """One block of pairs as an Arrow table. `process` and `parameters` hold both series' entries."""
    drawn = draw_pairs(config, seed, number, task.defined or DEFAULT)
    first, second = (_process(config, block) for block in drawn.series)
    both = pa.concat_arrays([_parameters(task, block) for block in drawn.series])
    in_turn = np.arange(2 * BLOCK).reshape(2, BLOCK).T.reshape(-1)  # first, second, first, second …
    parameters = pa.ListArray.from_arrays(np.arange(0, 2 * BLOCK + 1, 2, dtype=np.int32), both.take(in_turn))
    process = pc.binary_join_element_wise(first, second, ", ")
    lengths = np.full(BLOCK, drawn.values.shape[1], np.int32)
    measures = task.measure(drawn.values)
    return _laid_out(task, lengths, drawn.values.reshape(-1), measures, lengths // 2, process, parameters)


def _laid_out(
    task: Task,
    counts: npt.NDArray[np.int32],
    values: npt.NDArray[np.uint8],
    measures: Measures,
    lengths: npt.NDArray[np.int32],
    process: pa.Array,
    parameters: pa.Array,
) -> pa.Table:
    """The columns of a block as an Arrow table.

    counts: (batch,) values per row. values: concatenated. lengths: (batch,) points per series.
    """
    schema = task.tables.series
    measured = [pa.array(measures[field.name], field.type) for field in schema.field("measures").type]
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.table(
        {
            "process": process,
            "parameters": parameters,
            "values": pa.ListArray.from_arrays(offsets, pa.array(values)),
            "truth": task.truth(measures, lengths),
            "margins": task.margins(measures),
            "measures": pa.StructArray.from_arrays(measured, fields=list(schema.field("measures").type)),
        }
    )


def _process(config: SeriesConfig, block: Block) -> pa.Array:
    """The name of each series' process."""
    return pa.array(list(processes_of(config.mix))).take(pa.array(block.process))


def _parameters(task: Task, block: Block) -> pa.StructArray:
    """The parameters of each series, null if its process does not have the parameter."""
    columns = [pa.array(block.parameters[name], pa.float32(), from_pandas=True) for name in task.parameters]
    return pa.StructArray.from_arrays(columns, names=list(task.parameters))
