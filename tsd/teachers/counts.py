"""What asking a teacher has taken and how it ended, as a gate counts it: of finished tables, and for a person."""

from collections import Counter
from collections.abc import Mapping

import pyarrow as pa

from tsd.progress import Step
from tsd.teachers.gate import BATCHED, BATCHES, COMPLETED, DOLLARS, FAILED, INPUT, OUTPUT, ROWS, STATUS


def tally(annotations: pa.Table) -> dict[str, float]:
    """What annotations have cost and how they ended, by the gate's names."""
    columns = {INPUT: "input_tokens", OUTPUT: "output_tokens", DOLLARS: "cost_usd"}
    ended = Counter(STATUS + status for status in annotations["status"].to_pylist())
    return {**ended, **{name: sum(annotations[column].to_pylist()) for name, column in columns.items()}}


def tell(counts: Mapping[str, float], step: Step) -> str:
    """What was counted so far, with the rate and what is still to be expected."""
    return f"{step.rate:,.3g} a second, {describe(counts, step.total if counts[ROWS] else None)}"


def describe(counts: Mapping[str, float], expected_rows: float | None = None) -> str:
    """What was counted, for a person: tokens, dollars and those expected, what went wrong by kind."""
    said = [f"{(counts[INPUT] + counts[OUTPUT]) / 1e6:,.2f} M tokens"]
    if dollars := counts[DOLLARS]:
        expected = f" of about ${dollars / counts[ROWS] * expected_rows:,.2f}" if expected_rows else ""
        said.append(f"${dollars:,.2f}{expected}")
    if counts.get(BATCHES):
        done = f"{counts[COMPLETED]:,} of their {counts[BATCHED]:,} requests done"
        said.append(f"{counts[BATCHES]:,} batches under way, {done}")
    said += [f"{count:,} {name.removeprefix(STATUS)}" for name, count in _named(counts, STATUS) if count]
    said += [f"{count:,} × {name.removeprefix(FAILED)}" for name, count in _named(counts, FAILED)]
    return ", ".join(said)


def _named(counts: Mapping[str, float], prefix: str) -> list[tuple[str, float]]:
    return sorted((name, count) for name, count in counts.items() if name.startswith(prefix))
