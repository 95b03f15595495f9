"""The Arrow schema of every table, the facets a series is read by, and `conform`, which checks a table."""

import hashlib

import pyarrow as pa

from tsd.errors import DataError
from tsd.series.processes import own_ranges

SPLITS = ("train", "validation", "test")

# A facet is one question about a series; its classes are the possible answers.
FACETS: dict[str, tuple[str, ...]] = {
    "trend": ("increasing", "decreasing", "flat"),
    "noise": ("low", "medium", "high"),
    "maximum": ("beginning", "middle", "end"),
    "minimum": ("beginning", "middle", "end"),
}

# What a run is scored by: one accuracy a facet, all four at once, and how often the reply could be read.
SCORES = (*FACETS, "all_four", "valid")

# What every series is drawn with, and what only some processes have (null in the others' rows).
PARAMETERS = ("level", "drift", "swing", "sigma", "tau", *own_ranges())

LABELS = pa.struct([(facet, pa.string()) for facet in FACETS])

SERIES = pa.schema(
    [
        pa.field("series_id", pa.int64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("process", pa.string(), nullable=False),
        pa.field(
            "parameters",
            pa.struct([(name, pa.float32()) for name in PARAMETERS]),
            nullable=False,
        ),
        pa.field("values", pa.list_(pa.uint8()), nullable=False),
        pa.field("truth", LABELS, nullable=False),
        pa.field(
            "measures",
            pa.struct(
                [
                    ("trend_delta", pa.float32()),
                    ("noise_rms", pa.float32()),
                    ("argmax", pa.int32()),
                    ("argmin", pa.int32()),
                    ("maximum_lead", pa.float32()),
                    ("minimum_lead", pa.float32()),
                ]
            ),
            nullable=False,
        ),
    ]
)

ANNOTATIONS = pa.schema(
    [
        pa.field("series_id", pa.int64(), nullable=False),
        pa.field("teacher", pa.string(), nullable=False),
        pa.field("request_key", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("text", pa.string()),
        pa.field("labels", LABELS, nullable=False),
        pa.field("reason", pa.string()),
        pa.field("attempts", pa.int32(), nullable=False),
        pa.field("input_tokens", pa.int64(), nullable=False),
        pa.field("output_tokens", pa.int64(), nullable=False),
        pa.field("cost_usd", pa.float64(), nullable=False),
        pa.field("latency_ms", pa.float64()),
    ]
)

EXAMPLES = pa.schema(
    [
        pa.field("series_id", pa.int64(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("teacher", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("completion", pa.string(), nullable=False),
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

PREDICTIONS = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("series_id", pa.int64(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("labels", LABELS, nullable=False),
        pa.field("truth", LABELS, nullable=False),
    ]
)

INTERVAL = pa.struct([("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64())])

RUNS = pa.schema(
    [
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("student", pa.string(), nullable=False),
        pa.field("parameters", pa.int64(), nullable=False),
        pa.field("parameters_without_embeddings", pa.int64(), nullable=False),
        pa.field("examples", pa.int64(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("supervised_tokens", pa.int64(), nullable=False),
        pa.field("flops", pa.float64(), nullable=False),
        pa.field("steps", pa.int64(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("validation_loss", pa.float64(), nullable=False),
        *(pa.field(score, INTERVAL) for score in SCORES),
        pa.field("train_seconds", pa.float64(), nullable=False),
        pa.field("decode_seconds", pa.float64()),
        pa.field("tokens_per_second", pa.float64(), nullable=False),
        pa.field("utilisation", pa.float64()),
    ]
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
