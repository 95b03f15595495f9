"""What the annotation stage makes of servers that misbehave, and of `kill -9`: rows, labels and money.

`fault_server.py` serves every kind of misbehaviour in `fault_live.py` and `fault_batches.py` and bills for its
answers at $1,000 per million tokens. Each kind is asked about 500 series. Kinds that are killed, and those whose
budget has to hold over several starts, are run as `tsd annotate` in processes of their own; the others share one
Ray session of this process, several at a time. What each kind is expected to come to stands beside it in the
tables of kinds; what holds for all is in `problems_of`:

- as many rows out as in, with the labels of the row's own answer, or a stop with one line that names the cause;
- nothing that was delivered is paid for again, but for what was in flight when a start was killed;
- what the stage has counted and what it holds for unconfirmed are at least what the server billed;
- a budget is exceeded by at most one reply.

Prints a line a kind as it ends, then the table. Writes annotation_faults.json beside itself, unless --kinds names
some. About an hour on two cores.

    python benchmarks/annotation_faults.py --check
    python benchmarks/annotation_faults.py --kinds timeout,batch-html-once
"""

import io
import os
import re
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import measured
from fault_answers import KEY, Kind, labels_of, row_id
from fault_books import KINDS
from fault_runs import KEY_ENV, KILLED_IN_FLIGHT, ROWS, SERIES, Commands, Outcome, Stage, ledger
from rich.console import Console

from tsd.cluster import stages
from tsd.cluster.session import session
from tsd.progress import Reporter
from tsd.recipe import load
from tsd.storage import datasets

AT_ONCE = 4  # kinds that share this process; those with commands of their own come after them, one by one
SLACK = 6  # answers that are paid for again because a busy machine let a request time out
STATUSES = ("ok", "invalid", "refused", "truncated", "error")
ADDRESS = re.compile(r"https?://\S+")  # it holds the kind's name
UNCERTAIN = ("usage-negative", "usage-strings", "usage-missing")  # kinds whose usage can only be estimated


def main() -> None:
    """Run all kinds, or some; print what came of each; hold it against what was expected."""
    parser = measured.parser(__doc__)
    parser.add_argument("--kinds", default="", help="some kinds by name, parted by commas")
    parser.add_argument("--at-once", type=int, default=AT_ONCE, help="kinds that share one Ray session")
    asked = parser.parse_args()
    chosen = [KINDS[name] for name in asked.kinds.split(",") if name] or list(KINDS.values())
    os.environ |= {KEY_ENV: KEY, "TSD_CPUS": "4", "RAY_AUTH_MODE": "disabled"}
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="tsd-faults-") as folder,
        measured.serving(Path(__file__).with_name("fault_server.py")) as url,
    ):
        outcomes = run_all(chosen, url, folder, asked.at_once)
    table(outcomes)
    for outcome in outcomes:
        for problem in outcome.problems:
            print(f"FAILED {outcome.kind.name}: {problem}")
    print(f"{len(outcomes)} kinds in {(time.monotonic() - began) / 60:.1f} min")
    if asked.kinds:
        sys.exit(any(outcome.problems for outcome in outcomes))
    measured.finish(__file__, {"kinds": [record(outcome) for outcome in outcomes]}, bounds(outcomes), asked.check)


def bounds(outcomes: Sequence[Outcome]) -> list[measured.Bound]:
    """What has to hold."""
    batches = sum(bool(one.kind.batch) for one in outcomes)
    again = sum(max(0, one.ledger["paid_twice"] - one.kills * KILLED_IN_FLIGHT) for one in outcomes)
    outages = sum(one.statuses["error"] for one in outcomes if one.kind.name.startswith("outage"))
    return [
        measured.Bound("kinds of misbehaviour, live", len(outcomes) - batches, least=40),
        measured.Bound("kinds of misbehaviour, in batches", batches, least=20),
        measured.Bound("kill -9", sum(one.kills for one in outcomes), least=30),
        measured.Bound("kinds that came to something else than expected", failed(outcomes), most=0),
        measured.Bound("tracebacks", sum(bool(one.crash) for one in outcomes), most=0),
        measured.Bound("delivered answers paid for again, beyond what was in flight at a kill", again, most=0),
        measured.Bound("dollars that were billed and not counted", sum(one.uncounted for one in outcomes), most=0),
        measured.Bound("budget exceeded, in replies", max(one.over_budget for one in outcomes), most=1),
        measured.Bound("rows that an outage left as `error`", outages, most=0),
    ]


def failed(outcomes: Sequence[Outcome]) -> int:
    """How many kinds came to something else than expected."""
    return sum(bool(outcome.problems) for outcome in outcomes)


def record(outcome: Outcome) -> dict[str, Any]:
    """What is kept of an outcome."""
    shown = {name: outcome.ledger[name] for name in ("requests", "paid", "dollars", "answered", "paid_twice")}
    return {
        "kind": outcome.kind.name,
        "about": outcome.kind.about,
        "statuses": dict(outcome.statuses),
        "stop": outcome.stop,
        **shown,
        "counted": outcome.counted,
        "unconfirmed": outcome.unconfirmed,
        "kills": outcome.kills,
        "seconds": round(outcome.seconds, 1),
        "problems": outcome.problems,
    }


def table(outcomes: Sequence[Outcome]) -> None:
    """Print what came of all kinds."""
    columns = [("asked", 7), ("paid", 6), ("answered", 9), ("paid $", 9), ("counted $", 10), ("unconf. $", 10)]
    columns = [*((name[:7], 8) for name in STATUSES), *columns, ("twice", 6), ("kills", 6)]
    print(f"{'kind':30}{'rows':>5}" + "".join(f"{name:>{width}}" for name, width in columns))
    for one in outcomes:
        ended = "".join(f"{one.statuses[name]:>8}" for name in STATUSES)
        line = (
            f"{one.kind.name:30}{len(one.rows or ()):>5}{ended}{one.ledger['requests']:>7}{one.ledger['paid']:>6}"
        )
        line += (
            f"{one.ledger['answered']:>9}{one.ledger['dollars']:>9.2f}{one.counted:>10.2f}{one.unconfirmed:>10.2f}"
        )
        print(f"{line}{one.ledger['paid_twice']:>6}{one.kills:>6}")
        if one.stop:
            print(f"    {one.stop}")


def run_all(kinds: Sequence[Kind], url: str, folder: str, at_once: int) -> list[Outcome]:
    """What came of each kind, in order."""
    found: dict[str, Outcome] = {}

    def one(kind: Kind) -> None:
        started = time.monotonic()
        outcome = Outcome(kind)
        try:
            (Commands if kind.by_command else Stage)(kind, url, folder, series, outcome).run()
        except Exception:
            outcome.crash = traceback.format_exc()
        outcome.seconds = time.monotonic() - started
        outcome.ledger = ledger(url, kind)
        outcome.problems = problems_of(outcome, names)
        found[kind.name] = outcome
        verdict = "; ".join(outcome.problems) or "as expected"
        print(f"{len(found):3}/{len(kinds)} {kind.name} ({outcome.seconds:.0f} s): {verdict}", flush=True)

    with session():
        made = load("laptop", [*SERIES, f"out={folder}"])
        series = stages.generate(made, Reporter(Console(file=io.StringIO())))
        names = {one: row_id(", ".join(map(str, values))) for one, values in each_series(series)}
        here = [kind for kind in kinds if not kind.by_command]
        with ThreadPoolExecutor(at_once) as pool:  # what waits by design begins first
            list(pool.map(one, sorted(here, key=lambda kind: -len(kind.settings))))
    for kind in kinds:
        if kind.by_command:
            one(kind)
    return [found[kind.name] for kind in kinds]


def each_series(series: datasets.Dataset) -> Iterator[tuple[int, list[int]]]:
    """Each series' id and values."""
    for part in series.each_part(["series_id", "values"]):
        yield from zip(part["series_id"].to_pylist(), part["values"].to_pylist(), strict=True)


def problems_of(outcome: Outcome, names: dict[int, str]) -> list[str]:
    """What is not as expected. names: of each series, as the server calls it."""
    if outcome.crash:
        return [f"traceback: {outcome.crash.strip().splitlines()[-1][:300]}"]
    found = list(outcome.problems)
    found += of_stop(outcome)
    found += of_rows(outcome, names) if outcome.rows is not None else []
    found += of_money(outcome)
    shown = {**outcome.ledger, "said": outcome.said, "counted": outcome.counted}
    if said := outcome.kind.expected.also(shown):
        found.append(said)
    if KEY in outcome.said:
        found.append("the key was printed")
    return found


def of_stop(outcome: Outcome) -> list[str]:
    """Whether it stopped as expected, with one line that names the cause."""
    expected, found = outcome.kind.expected, list[str]()
    if outcome.stop is not None:
        if not expected.stop and not outcome.kind.budget:
            found.append(f"stopped: {outcome.stop}")
        elif not re.search(expected.stop or "budget", ADDRESS.sub("", outcome.stop), re.IGNORECASE | re.DOTALL):
            found.append(f"the line does not name {expected.stop!r}: {outcome.stop}")
        if "\n" in outcome.stop.strip():
            found.append("the line is several")
    elif expected.stop and not expected.may_stop:
        found.append(f"came to its end, expected a stop that names {expected.stop!r}")
    elif outcome.rows is None:
        found.append("ended without annotations")
    if "Traceback" in outcome.said:
        found.append("a traceback was printed")
    return found


def of_rows(outcome: Outcome, names: dict[int, str]) -> list[str]:
    """Whether every row is there, ended as expected and holds its own answer."""
    assert outcome.rows is not None
    expected, marked = outcome.kind.expected, set(outcome.ledger["marked"])
    ended: Counter[str] = Counter()
    if [row["series_id"] for row in outcome.rows] != sorted(names):
        ended[f"{len(outcome.rows)} rows are not those that went in"] += 1
    healed = outcome.stop is not None
    for row in outcome.rows:
        name = names[row["series_id"]]
        if name in marked:
            allowed = [*expected.marked.split("|"), *(["ok"] if healed else [])]
            if row["status"] not in allowed:
                ended[f"{row['status']} in the place of {expected.marked} ({row['reason']})"] += 1
            elif row["status"] != "ok" and not re.search(expected.reason, row["reason"] or "", re.IGNORECASE):
                ended[f"a reason without {expected.reason!r}: {row['reason']}"] += 1
        elif row["status"] != "ok":
            ended[f"{row['status']} in the place of ok ({row['reason']})"] += 1
        elif row["labels"] != labels_of(name):
            ended["another answer's labels" if row["labels"] != labels_of(name, 1) else "the draft's labels"] += 1
    return [f"{count} × {what[:200]}" for what, count in ended.most_common(4)]


def of_money(outcome: Outcome) -> list[str]:
    """Whether nothing was paid twice and everything was counted."""
    expected, seen, found = outcome.kind.expected, outcome.ledger, list[str]()
    lost = outcome.kills * KILLED_IN_FLIGHT
    if seen["paid_twice"] > lost:
        found.append(f"{seen['paid_twice']} delivered answers paid for again, at most {lost} were in flight")
    stopped = outcome.first or seen
    most = expected.paid * ROWS + SLACK + lost
    if stopped["paid"] > most:
        found.append(f"{stopped['paid']} answers paid for, at most {most:.0f} expected")
    if seen["most_asked_marked"] > expected.asked and not outcome.kind.kills:
        found.append(f"a row with a fault of its own was asked {seen['most_asked_marked']} times")
    if outcome.uncounted:
        known = f"${outcome.counted:.2f} counted, ${outcome.unconfirmed:.2f} unconfirmed"
        found.append(f"${seen['dollars']:.2f} billed, {known}")
    plain = seen["paid"] == seen["delivered"] and not outcome.kills and outcome.kind.name not in UNCERTAIN
    if plain and outcome.rows and abs(outcome.counted - seen["dollars"]) > 0.005 * seen["dollars"]:
        found.append(f"${outcome.counted:.2f} counted, ${seen['dollars']:.2f} billed, all of it delivered")
    if outcome.over_budget > 1:
        found.append(f"the budget was exceeded by {outcome.over_budget:.1f} replies")
    return found


if __name__ == "__main__":
    main()
