"""How frequent the classes of the task `pair` are, and how they are tied.

Of the default corpus, by either truth:

    python benchmarks/pairs.py [--pairs 8192] [--check]

`--check` fails if a class of crossings or position has less than 20 % or more than 45 % of the pairs in any third.
"""

import argparse
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from tsd.evaluation.scoring import class_table
from tsd.generation.generator import draw_table
from tsd.recipe import load
from tsd.tasks import Task, Truth
from tsd.tasks.pair import THIRDS

LEAST, MOST = 0.20, 0.45
RELATIONS = [f"{facet} {third}" for facet in ("intersections", "position") for third in THIRDS]


def shares(task: Task, pairs: pa.Table, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """The share of each class of some facets."""
    found = class_table(task, pairs)
    return {name: found[name] for name in names}


def near_ties(task: Task, pairs: pa.Table) -> dict[str, float]:
    """The share of near ties of each position."""
    margins = pairs["margins"].combine_chunks()
    return {
        facet.name: float(np.mean(margins.field(facet.name).to_numpy() < facet.tie))
        for facet in task.facets
        if facet.name.startswith("position")
    }


def tied(pairs: pa.Table) -> dict[tuple[str, str], float]:
    """The share of each combination of crossings and position, over all thirds."""
    truth = pairs["truth"].to_pylist()
    counts = Counter(
        (row[f"intersections {third}"], row[f"position {third}"]) for row in truth for third in THIRDS
    )
    return {both: count / (len(truth) * len(THIRDS)) for both, count in sorted(counts.items())}


def report(truth: Truth, count: int) -> bool:
    """Print the shares by one truth. Returns whether all of them are in bounds."""
    recipe = load("laptop", ["task=pair", f"truth={truth}"])
    task = recipe.asks
    pairs = draw_table(task, recipe.series, recipe.seed, 0, count)
    print(f"{count:,} pairs, truth {truth}")
    for name, row in shares(task, pairs, [*RELATIONS, "first noise", "second noise"]).items():
        print(f"  {name}: {', '.join(f'{label} {share:.3f}' for label, share in row.items())}")
    print(f"  near ties: {', '.join(f'{name} {share:.3f}' for name, share in near_ties(task, pairs).items())}")
    together = (f"{crossings} and {position} {share:.3f}" for (crossings, position), share in tied(pairs).items())
    print(f"  in a third: {', '.join(together)}")
    found = [share for row in shares(task, pairs, RELATIONS).values() for share in row.values()]
    return min(found) >= LEAST and max(found) <= MOST


def main() -> None:
    """Print the shares by both definitions."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=8192)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    truths: tuple[Truth, ...] = ("robust", "paper")
    balanced = [report(truth, arguments.pairs) for truth in truths]
    if arguments.check and not all(balanced):
        raise SystemExit(f"a class has less than {LEAST:.0%} or more than {MOST:.0%} of the pairs")


if __name__ == "__main__":
    main()
