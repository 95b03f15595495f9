"""The Arrow schema of every table, and `conform`, which validates a table.

Tables with labels, measures or scores depend on the task; `make_tables` defines them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from tsd.errors import DataError

SPLITS = ("train", "validation", "test")
ALL_RIGHT, VALID = "all_right", "valid"
CLOSE, STATED = "numbers_close", "numbers_stated"  # of the stated numbers those that are nearly right; of all

EXAMPLES = pa.schema(
    [
        pa.field("series_id", pa.int64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("teacher", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("completion", pa.string(), nullable=False),
    ]
)

# An example as tokens: the prompt, then the response, which is supervised. The test split is left out.
TOKENS = pa.schema(
    [
        pa.field("series_id", pa.int64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("tokens", pa.list_(pa.int32()), nullable=False),
        pa.field("prompt_length", pa.int32(), nullable=False),
        pa.field("length", pa.int32(), nullable=False),  # tokens of prompt and response
        pa.field("curves", pa.list_(pa.uint8())),  # of a vision student: the values of all curves; else null
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
    """Schemas of the tables that hold a task's labels, measures or scores."""

    labels: pa.DataType
    series: pa.Schema
    annotations: pa.Schema
    verdicts: pa.Schema
    predictions: pa.Schema
    runs: pa.Schema


def labels_type(facets: Sequence[str]) -> pa.DataType:
    """Return a struct type with the class of each facet, null if it is not stated."""
    return pa.struct([(facet, pa.string()) for facet in facets])


def score_names(facets: Sequence[str], metrics: Sequence[str] = (), numbers: bool = False) -> tuple[str, ...]:
    """Return the names of a run's scores: accuracy per facet, exact match of all facets, the valid share, metrics.

    metrics: names of metrics from plugins. numbers: whether descriptions state numbers, which are scored as well.
    """
    return (*facets, ALL_RIGHT, VALID, *((CLOSE, STATED) if numbers else ()), *metrics)


def make_tables(
    facets: Sequence[str],
    measures: Mapping[str, pa.DataType],
    parameters: Sequence[str],
    curves: int,
    metrics: Sequence[str] = (),
    numbers: Sequence[str] = (),
) -> Tables:
    """Return the table schemas of a task.

    facets: their names. measures: type of each measured value, by name. parameters: parameters of the generating
    processes, null if a series' process lacks one. curves: series per item; if there are several, each has its own
    parameters. metrics: names of metrics from plugins, for the runs table. numbers: names of the numbers that
    descriptions state; without any, there are no columns for them.
    """
    labels = labels_type(facets)
    return Tables(
        labels=labels,
        series=_series(labels, facets, measures, parameters, curves),
        annotations=_annotations(labels),
        verdicts=_verdicts(labels),
        predictions=_predictions(labels, numbers),
        runs=pa.schema(
            [*RUN, *(pa.field(score, INTERVAL) for score in score_names(facets, metrics, bool(numbers)))]
        ),
    )


def _series(
    labels: pa.StructType,
    facets: Sequence[str],
    measures: Mapping[str, pa.DataType],
    parameters: Sequence[str],
    curves: int,
) -> pa.Schema:
    """What was drawn, and its truth."""
    drawn = _floats(parameters)
    if curves > 1:
        drawn = pa.list_(drawn)
    return pa.schema(
        [
            pa.field("series_id", pa.int64(), nullable=False),
            pa.field("split", pa.string(), nullable=False),
            pa.field("process", pa.string(), nullable=False),
            pa.field("parameters", drawn, nullable=False),
            pa.field("values", pa.list_(pa.uint8()), nullable=False),
            pa.field("truth", labels, nullable=False),
            pa.field("margins", _floats(facets), nullable=False),
            pa.field("measures", pa.struct(list(measures.items())), nullable=False),
        ]
    )


def _annotations(labels: pa.StructType) -> pa.Schema:
    """What a teacher replied, and what it took."""
    return pa.schema(
        [
            pa.field("series_id", pa.int64(), nullable=False),
            pa.field("teacher", pa.string(), nullable=False),
            pa.field("request_key", pa.string(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            pa.field("text", pa.string()),
            pa.field("thought", pa.string()),  # reasoning text; never used for training
            pa.field("labels", labels, nullable=False),
            pa.field("reason", pa.string()),
            pa.field("model", pa.string()),  # that responded, as its server names it
            pa.field("fingerprint", pa.string()),  # of the server's configuration, if reported
            pa.field("attempts", pa.int32(), nullable=False),
            pa.field("input_tokens", pa.int64(), nullable=False),
            pa.field("output_tokens", pa.int64(), nullable=False),  # including reasoning
            pa.field("thinking_tokens", pa.int64(), nullable=False),
            pa.field("cost_usd", pa.float64(), nullable=False),
            pa.field("latency_ms", pa.float64()),
        ]
    )


def _verdicts(labels: pa.StructType) -> pa.Schema:
    """What curation decided."""
    return pa.schema(
        [
            pa.field("series_id", pa.int64(), nullable=False),
            pa.field("split", pa.string(), nullable=False),
            pa.field("series_key", pa.uint64(), nullable=False),
            pa.field("reason", pa.string()),
            pa.field("corrected", pa.string()),
            pa.field("labels", labels, nullable=False),
        ]
    )


def _predictions(labels: pa.StructType, numbers: Sequence[str]) -> pa.Schema:
    """What a student said."""
    said = _floats(numbers)
    columns = [pa.field("numbers", said), pa.field("true_numbers", said)] if numbers else []
    return pa.schema(
        [
            pa.field("run_id", pa.string(), nullable=False),
            pa.field("series_id", pa.int64(), nullable=False),
            pa.field("text", pa.string(), nullable=False),
            pa.field("labels", labels, nullable=False),
            pa.field("truth", labels, nullable=False),
            *columns,  # null where a number is not stated; the measured ones
        ]
    )


def _floats(names: Sequence[str]) -> pa.StructType:
    return pa.struct([(name, pa.float32()) for name in names])


# Fields of a run that do not depend on the task.
RUN = (
    pa.field("run_id", pa.string(), nullable=False),
    pa.field("teacher", pa.string(), nullable=False),
    pa.field("student", pa.string(), nullable=False),
    pa.field("modality", pa.string(), nullable=False),  # text or image
    pa.field("precision", pa.string(), nullable=False),  # of training: float32 or bfloat16
    pa.field("parameters", pa.int64(), nullable=False),
    pa.field("parameters_without_embeddings", pa.int64(), nullable=False),
    pa.field("examples", pa.int64(), nullable=False),
    pa.field("tokens", pa.int64(), nullable=False),
    pa.field("supervised_tokens", pa.int64(), nullable=False),
    pa.field("flops", pa.float64(), nullable=False),  # with attention and head, see `students.training_flops`
    pa.field("flops_6nd", pa.float64(), nullable=False),  # 6·N·D, N without embeddings
    pa.field("distilled_from", pa.string()),  # null for SFT only, as is the next field
    pa.field("teacher_flops", pa.float64()),  # FLOPs of the teacher's forward passes
    pa.field("steps", pa.int64(), nullable=False),
    pa.field("stopped_early", pa.bool_(), nullable=False),
    pa.field("seed", pa.int64(), nullable=False),
    pa.field("validation_loss", pa.float64(), nullable=False),
    pa.field("label_loss", pa.float64()),  # of tokens that carry a label or number
    pa.field("wording_loss", pa.float64()),  # of the others
    pa.field("train_seconds", pa.float64(), nullable=False),
    pa.field("decode_seconds", pa.float64()),
    pa.field("tokens_per_second", pa.float64(), nullable=False),
    pa.field("utilisation", pa.float64(), nullable=False),
)


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table with exactly the schema's columns, types and order.

    Raises DataError if a column is missing, extra or of another type, or contains a forbidden null.
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
    """Return a 16-digit hash of names, types and nullability; metadata is ignored."""
    return hashlib.sha256(str(schema.remove_metadata()).encode()).hexdigest()[:16]
