"""Counts of curation -> what is known of a teacher: accuracies with intervals, what a kept example took."""

from collections.abc import Mapping

from tsd.curation.counts import NOT_STATED, Counts
from tsd.evaluation.intervals import Interval, proportion

Confusion = Mapping[str, Mapping[str, int]]  # true class -> stated class, or NOT_STATED -> rows

MOST_TOLD = 5  # reasons in the terminal


def rows(confusion: Confusion) -> int:
    """How many replies were counted."""
    return sum(sum(said.values()) for said in confusion.values())


def accuracy(confusion: Confusion) -> Interval | None:
    """The share that states the true class; what is not stated counts as wrong. None where nothing was counted."""
    counted = rows(confusion)
    return proportion(sum(said[true] for true, said in confusion.items()), counted) if counted else None


def stated(confusion: Confusion) -> float | None:
    """The share that states a class, right or wrong. None where nothing was counted."""
    counted = rows(confusion)
    silent = sum(said[NOT_STATED] for said in confusion.values())
    return 1 - silent / counted if counted else None


def per_kept(counts: Counts) -> dict[str, float]:
    """Tokens and dollars of all replies, the rejected ones too, over the examples that were kept."""
    kept = max(1, counts["kept"])
    return {name: counts[name] / kept for name in ("input_tokens", "output_tokens", "cost_usd")}


def statuses(counts: Counts) -> str:
    """How the replies ended: "96 ok, 4 invalid"."""
    ranked = sorted(counts["statuses"].items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{number:,} {status}" for status, number in ranked)


def lines(counts: Counts) -> list[str]:
    """The table of a teacher for a terminal: how often each facet was stated and right, what was rejected why."""
    said, taught = counts["said"], counts["taught"]
    wide = max(map(len, said))
    table = [f"{'':<{wide}}  stated    right, of all replies   right, of what is trained on"]
    for facet in said:
        silent = stated(said[facet])
        share = "     –" if silent is None else f"{silent:6.1%}"
        right, learned = (_interval(accuracy(confusion[facet])) for confusion in (said, taught))
        table.append(f"{facet:<{wide}}  {share}  {right:<22}  {learned}")
    each = per_kept(counts)
    table.append(f"replies: {statuses(counts)}")
    table.append(
        f"a kept example took {each['input_tokens']:,.0f} tokens in, {each['output_tokens']:,.0f} out "
        f"and ${each['cost_usd']:.3g}"
        + (f"; {counts['corrected']:,} were corrected" if counts["corrected"] else "")
    )
    told = [f"{found['rows']:>9,}  {found['reason']}" for found in counts["rejects"][:MOST_TOLD]]
    others = counts["rejects"][MOST_TOLD:]
    if others:
        more = len(others) + counts["rare"]["reasons"]
        told.append(f"{sum(one['rows'] for one in others) + counts['rare']['rows']:>9,}  {more} further reasons")
    return [*table, *told]


def _interval(found: Interval | None) -> str:
    return f"{found.value:6.1%} [{found.low:.1%}–{found.high:.1%}]" if found else "     –"
