"""The Arrow schema of every table, and `conform`, which checks a table.

Tables that hold labels, measures or scores depend on the task; `make_tables` lays them out.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from tsd.errors import DataError

SPLITS = ("train", "validation", "test")
ALL_RIGHT, VALID = "all_right", "valid"

EXAMPLES = pa.schema(
    [
        pa.field("series_id", pa.int64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("teacher", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("completion", pa.string(), nullable=False),
    ]
)

PLOTS = pa.schema(
    [
        pa.field("series_id", pa.int64(), nullable=False),
        pa.field("png", pa.binary(), nullable=False),
    ]
)

REJECTS = pa.schema(
    [
        pa.field("series_id", pa.int64(), nullable=False),
        pa.field("teacher", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("text", pa.string()),
    ]
)

INTERVAL = pa.struct([("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64())])


@dataclass(frozen=True)
class Tables:
    """The schemas of the tables that hold a task's labels, measures or scores."""

    labels: pa.DataType
    series: pa.Schema
    annotations: pa.Schema
    verdicts: pa.Schema
    predictions: pa.Schema
    runs: pa.Schema


def labels_type(facets: Sequence[str]) -> pa.DataType:
    """A struct with the class of each facet, null where it is not stated."""
    return pa.struct([(facet, pa.string()) for facet in facets])


def score_names(facets: Sequence[str]) -> tuple[str, ...]:
    """What a run is scored by: one accuracy a facet, all of them at once, and how often a reply could be read."""
    return (*facets, ALL_RIGHT, VALID)


def make_tables(
    facets: Sequence[str], measures: Mapping[str, pa.DataType], parameters: Sequence[str], curves: int
) -> Tables:
    """The tables of a task.

    facets: their names. measures: name -> type of what is measured. parameters: what a series is drawn from, null
    where its process has no such parameter. curves: series in an item; of several, each has its own parameters.
    """
    labels = labels_type(facets)
    drawn = pa.struct([(name, pa.float32()) for name in parameters])
    if curves > 1:
        drawn = pa.list_(drawn)
    return Tables(
        labels=labels,
        series=pa.schema(
            [
                pa.field("series_id", pa.int64(), nullable=False),
                pa.field("split", pa.string(), nullable=False),
                pa.field("process", pa.string(), nullable=False),
                pa.field("parameters", drawn, nullable=False),
                pa.field("values", pa.list_(pa.uint8()), nullable=False),
                pa.field("truth", labels, nullable=False),
                pa.field("margins", pa.struct([(facet, pa.float32()) for facet in facets]), nullable=False),
                pa.field("measures", pa.struct(list(measures.items())), nullable=False),
            ]
        ),
        annotations=pa.schema(
            [
                pa.field("series_id", pa.int64(), nullable=False),
                pa.field("teacher", pa.string(), nullable=False),
                pa.field("request_key", pa.string(), nullable=False),
                pa.field("status", pa.string(), nullable=False),
                pa.field("text", pa.string()),
                pa.field("thought", pa.string()),  # what a model thought first; never trained on
                pa.field("labels", labels, nullable=False),
                pa.field("reason", pa.string()),
                pa.field("model", pa.string()),  # that answered, as its server names it
                pa.field("fingerprint", pa.string()),  # of the server's configuration, where it gives one
                pa.field("attempts", pa.int32(), nullable=False),
                pa.field("input_tokens", pa.int64(), nullable=False),
                pa.field("output_tokens", pa.int64(), nullable=False),  # thinking included
                pa.field("thinking_tokens", pa.int64(), nullable=False),
                pa.field("cost_usd", pa.float64(), nullable=False),
                pa.field("latency_ms", pa.float64()),
            ]
        ),
        verdicts=pa.schema(
            [
                pa.field("series_id", pa.int64(), nullable=False),
                pa.field("split", pa.string(), nullable=False),
                pa.field("series_key", pa.uint64(), nullable=False),
                pa.field("reason", pa.string()),
                pa.field("corrected", pa.string()),
                pa.field("labels", labels, nullable=False),
            ]
        ),
        predictions=pa.schema(
            [
                pa.field("run_id", pa.string(), nullable=False),
                pa.field("series_id", pa.int64(), nullable=False),
                pa.field("text", pa.string(), nullable=False),
                pa.field("labels", labels, nullable=False),
                pa.field("truth", labels, nullable=False),
            ]
        ),
        runs=pa.schema([*RUN, *(pa.field(score, INTERVAL) for score in score_names(facets))]),
    )


# The fields of a run that do not depend on what it was asked.
RUN = (
    pa.field("run_id", pa.string(), nullable=False),
    pa.field("teacher", pa.string(), nullable=False),
    pa.field("student", pa.string(), nullable=False),
    pa.field("view", pa.string()),  # numbers or plot; null in records of versions in which none could look
    pa.field("parameters", pa.int64(), nullable=False),
    pa.field("parameters_without_embeddings", pa.int64(), nullable=False),
    pa.field("examples", pa.int64(), nullable=False),
    pa.field("tokens", pa.int64(), nullable=False),
    pa.field("supervised_tokens", pa.int64(), nullable=False),
    pa.field("flops", pa.float64(), nullable=False),  # with attention and head, as `students.training_flops` says
    pa.field("flops_6nd", pa.float64()),  # 6·N·D alone, N without embeddings
    pa.field("distilled_from", pa.string()),  # null where it learned from words alone, as are
    pa.field("teacher_flops", pa.float64()),  # the FLOPs of the teacher's own forward passes
    pa.field("steps", pa.int64(), nullable=False),
    pa.field("stopped_early", pa.bool_()),  # null in records of versions in which none could
    pa.field("seed", pa.int64(), nullable=False),
    pa.field("validation_loss", pa.float64(), nullable=False),
    pa.field("train_seconds", pa.float64(), nullable=False),
    pa.field("decode_seconds", pa.float64()),
    pa.field("tokens_per_second", pa.float64(), nullable=False),
    pa.field("utilisation", pa.float64()),
)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table with exactly the schema's columns, types and order.

    Raises DataError where a column is missing, extra or of another type, or null where it may not be.
    """
    missing = [name for name in schema.names if name not in table.column_names]
    extra = [name for name in table.column_names if name not in schema.names]
    if missing or extra:
        raise DataError(f"the table's columns do not fit: missing {missing}, unknown {extra}")
    table = table.select(schema.names)
    for field in schema:
        column = table.column(field.name)
        if not column.type.equals(field.type):
            raise DataError(f"column {field.name} is {column.type}, expected {field.type}")
        if not field.nullable and column.null_count:
            raise DataError(f"column {field.name} has {column.null_count} empty rows and may have none")
    return table.cast(schema)


def fingerprint(schema: pa.Schema) -> str:
    """A short digest of names, types and nullability: it changes when, and only when, the schema does."""
    return hashlib.sha256(str(schema.remove_metadata()).encode()).hexdigest()[:16]
