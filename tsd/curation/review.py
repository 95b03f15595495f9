"""Statistics of a teacher from the counts of curation: accuracies with intervals, cost per kept example."""

from collections.abc import Mapping

from tsd.curation.counts import NOT_STATED, Counts
from tsd.evaluation.intervals import Interval, proportion

Confusion = Mapping[str, Mapping[str, int]]  # true class -> stated class or NOT_STATED -> rows

MOST_TOLD = 5  # reasons shown in the terminal
MOST_NAMED = 3  # reasons in the line about a corpus without examples


def rows(confusion: Confusion) -> int:
    """The number of responses counted."""
    return sum(sum(said.values()) for said in confusion.values())


def accuracy(confusion: Confusion) -> Interval | None:
    """The accuracy of labels. A label that is not stated is wrong. None without any rows."""
    counted = rows(confusion)
    return proportion(sum(said[true] for true, said in confusion.items()), counted) if counted else None


def stated(confusion: Confusion) -> float | None:
    """The fraction of responses with a label, right or wrong. None without any rows."""
    counted = rows(confusion)
    silent = sum(said[NOT_STATED] for said in confusion.values())
    return 1 - silent / counted if counted else None


def per_kept(counts: Counts) -> dict[str, float]:
    """Tokens and dollars per kept example. The cost of rejected responses is included."""
    kept = max(1, counts["kept"])
    return {name: counts[name] / kept for name in ("input_tokens", "output_tokens", "cost_usd")}


def statuses(counts: Counts) -> str:
    """Counts of response statuses: "96 ok, 4 invalid"."""
    ranked = sorted(counts["statuses"].items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number:,} {status}" for status, number in ranked)


def lines(counts: Counts) -> list[str]:
    """A table of the teacher for the terminal: stated labels and accuracy per facet, and reasons for rejection."""
    said, taught = counts["said"], counts["taught"]
    wide = max(map(len, said))
    table = [f"{'':<{wide}}  stated    right, all replies      right, as trained on"]
    for facet in said:
        silent = stated(said[facet])
        share = "     –" if silent is None else f"{silent:6.1%}"
        right, learned = (_interval(accuracy(confusion[facet])) for confusion in (said, taught))
        table.append(f"{facet:<{wide}}  {share}  {right:<22}  {learned}")
    each = per_kept(counts)
    table.append(f"replies: {statuses(counts)}")
    table.append(
        f"a kept example cost {each['input_tokens']:,.0f} input tokens, {each['output_tokens']:,.0f} output "
        f"tokens and ${each['cost_usd']:.3g}"
        + (f"; {counts['corrected']:,} were corrected" if counts["corrected"] else "")
    )
    told = [f"{found['rows']:>9,}  {found['reason']}" for found in counts["rejects"][:MOST_TOLD]]
    others = counts["rejects"][MOST_TOLD:]
    if others:
        more = len(others) + counts["rare"]["reasons"]
        told.append(f"{sum(one['rows'] for one in others) + counts['rare']['rows']:>9,}  {more} further reasons")
    return [*table, *told]


def nothing_kept(counts: Counts) -> str | None:
    """One line for a corpus in which every response was rejected, with the most frequent reasons; else None."""
    if counts["kept"] or not counts["replies"]:
        return None
    reasons = [f"{found['reason']} ({found['rows']:,})" for found in counts["rejects"][:MOST_NAMED]]
    others = len(counts["rejects"]) + counts["rare"]["reasons"] - len(reasons)
    more = f", and {others} further reason{'s' * (others != 1)}" if others else ""
    return (
        f"all {counts['replies']:,} replies were rejected, mostly as {', '.join(reasons)}{more}: "
        "change the teacher, or `curation` in the recipe"
    )


def _interval(found: Interval | None) -> str:
    return f"{found.value:6.1%} [{found.low:.1%}–{found.high:.1%}]" if found else "     –"
