"""Token, cost and status counts of annotations, from finished tables, and their text for progress messages."""

from collections import Counter
from collections.abc import Mapping

import pyarrow as pa

from tsd.progress import Step
from tsd.teachers.api.account import Earlier
from tsd.teachers.api.messages import (
    BATCHED,
    BATCHES,
    COMPLETED,
    DOLLARS,
    FAILED,
    FORM,
    INPUT,
    MODEL,
    OUTPUT,
    STATUS,
    THOUGHTS,
    UNCONFIRMED,
    UNCONFIRMED_TOKENS,
)


def tally(annotations: pa.Table, account: Earlier | None = None) -> dict[str, float]:
    """Count cost and status of annotations, under the rate limiter's names.

    account: billing from the journal, if available. Otherwise the cost is taken from the rows.
    """
    columns = {INPUT: "input_tokens", OUTPUT: "output_tokens", DOLLARS: "cost_usd"}
    ended = Counter(STATUS + status for status in annotations["status"].to_pylist())
    found = {**ended, **{name: sum(annotations[column].to_pylist()) for name, column in columns.items()}}
    thoughts = len(annotations) - annotations["thought"].null_count
    if thoughts:
        found[THOUGHTS] = thoughts
    for model, count in Counter(annotations["model"].to_pylist()).items():
        if model is not None:
            found[MODEL + model] = count
    if account:
        billed, lost = account.billed, account.unconfirmed
        found |= {INPUT: billed.input_tokens, OUTPUT: billed.output_tokens, DOLLARS: billed.usd}
        if lost.tokens:
            found |= {UNCONFIRMED: lost.usd, UNCONFIRMED_TOKENS: lost.tokens}
    return found


def tell(counts: Mapping[str, float], step: Step) -> str:
    """Format the counts so far, with the rate and the expected total."""
    return f"{step.rate:,.3g} a second, {describe(counts, step.share)}"


def describe(counts: Mapping[str, float], share: float = 1.0) -> str:
    """Format counts for a person: tokens, cost so far and expected, and failures by kind.

    share: fraction of rows that are finished, used to extrapolate the cost.
    """
    said = [f"{(counts[INPUT] + counts[OUTPUT]) / 1e6:,.2f} M tokens"]
    if dollars := counts[DOLLARS]:
        expected = f" of about ${dollars / share:,.2f}" if 0 < share < 1 else ""
        said.append(f"${dollars:,.2f}{expected}")
    if lost := counts.get(UNCONFIRMED_TOKENS):
        dollars = counts.get(UNCONFIRMED, 0)
        at_most = f"${dollars:,.2f}" if dollars else f"{lost / 1e6:,.2f} M tokens"
        said.append(f"at most {at_most} more unconfirmed (sent, never answered)")
    if counts.get(BATCHES):
        done = f"{counts[COMPLETED]:,} of their {counts[BATCHED]:,} requests done"
        said.append(f"{counts[BATCHES]:,} batches under way, {done}")
    if thoughts := counts.get(THOUGHTS):
        said.append(f"{thoughts:,} with a thought")
    said += [f"{count:,} {name.removeprefix(STATUS)}" for name, count in _named(counts, STATUS) if count]
    said += [f"{count:,} × {name.removeprefix(FAILED)}" for name, count in _named(counts, FAILED)]
    for prefix in (MODEL, FORM):  # several values only if something changed
        several = _named(counts, prefix)
        if len(several) > 1:
            said += [f"{count:,} {prefix}{name.removeprefix(prefix)}" for name, count in several]
    return ", ".join(said)


def _named(counts: Mapping[str, float], prefix: str) -> list[tuple[str, float]]:
    return sorted((name, count) for name, count in counts.items() if name.startswith(prefix))
