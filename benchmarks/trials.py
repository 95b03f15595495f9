"""What a trial costs beyond training: small students, each in a trial of its own or several in one.

Ray is started before. A trial is what Tune and Train start, the libraries that its processes load, the model and
the examples that they read, validation and export. One trial is under way at a time, so nothing hides its start.
Writes trials.json beside itself. Four minutes on two quiet cores.

    python benchmarks/trials.py --check
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from measured import Bound, finish, parser, show

from tsd.cluster import training
from tsd.cluster.session import session
from tsd.cluster.study import Study
from tsd.cluster.token_stage import tokenise
from tsd.cluster.train_stage import prepare_tokenizers
from tsd.progress import Reporter
from tsd.recipe import Recipe, load
from tsd.study import outcomes, placement, trials
from tsd.study.identity import plan_runs
from tsd.training.runs import RunSpec

EXAMPLES, RUNS, TURNS = 800, 4, 3
OWN, SHARED = "a trial each", "one trial for all"
MOST = 12.0  # seconds


def main() -> None:
    """Train the same number of students both ways, in turns."""
    options = parser(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recipe = small_study(folder, 2 * TURNS * RUNS)
        with session():
            beyond = measure(recipe)
    rows = [
        {"students": how, "seconds a student beyond training": median(each), "least": min(each), "most": max(each)}
        for how, each in beyond.items()
    ]
    show(f"{RUNS} students of 0.03M on {EXAMPLES} examples, one trial at a time", rows)
    bounds = [Bound("seconds of a trial beyond training", median(beyond[OWN]), most=MOST)]
    finish(__file__, {"runs": RUNS, "turns": TURNS, "every": beyond, "results": rows}, bounds, options.check)


def small_study(folder: str, seeds: int) -> Recipe:
    """A study of so many students of 0.03M, one trial at a time."""
    return load(
        "laptop",
        [
            "teacher={kind: rules}",
            f"out={folder}",
            "series.count=4096",
            "students.models=[0.03M]",
            f"students.train_sizes=[{EXAMPLES}]",
            f"students.seeds={list(range(seeds))}",
            "training.concurrent_trials=1",
            "evaluation.validation_examples=100",
            f"tracking.uri=sqlite:///{folder}/mlflow.db",
        ],
    )


def prepared(recipe: Recipe) -> tuple[Iterator[RunSpec], placement.Need]:
    """The runs of a study, with all that comes before training done, and what each needs."""
    study = Study(recipe, Reporter())
    study.generate()
    study.annotate()
    study.curate()
    examples = study.open("examples")
    prepare_tokenizers(study, examples)
    planned = plan_runs(recipe, examples.digest)
    tokenise(study, planned, planned)
    return iter(planned), placement.need(recipe.students.models[0], recipe.training)


def measure(recipe: Recipe) -> dict[str, list[float]]:
    """Seconds beyond training by way, one number a turn."""
    runs_left, need = prepared(recipe)
    beyond: dict[str, list[float]] = {OWN: [], SHARED: []}
    for _ in range(TURNS):
        for how, each in beyond.items():
            runs = [next(runs_left) for _ in range(RUNS)]
            packs = [runs] if how == SHARED else [[run] for run in runs]
            each.append(seconds_beyond(recipe, [trials.Trial(tuple(pack), need, 0) for pack in packs]))
    return beyond


def seconds_beyond(recipe: Recipe, planned: Sequence[trials.Trial]) -> float:
    """What training the trials' runs takes a run, beyond the steps themselves."""
    started = time.perf_counter()
    failed: Any = training.train_all(recipe, planned, lambda run_id, metrics: None)
    took = time.perf_counter() - started
    assert not failed, failed
    records = outcomes.finished(recipe, [run for trial in planned for run in trial.runs]).values()
    return (took - sum(record.train_seconds for record in records)) / len(records)


if __name__ == "__main__":
    main()
