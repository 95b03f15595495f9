"""Ray Tune on a real Ray: it receives the metrics of every trial, and what it stops ends."""

import json
import shutil
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from support.commands import SHARED, command, ended, run

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1500)]

STOPPED = """
import json, sys
from unittest.mock import patch
from rich.console import Console
from ray import tune
from tsd.cluster import training
from tsd.cluster.session import session
from tsd.cluster.study import Study
from tsd.cluster import train_stage, token_stage
from tsd.progress import Reporter
from tsd.recipe import load
from tsd.study import outcomes, trials
from tsd.study.identity import plan_runs

recipe = load("laptop", json.loads(sys.argv[1]))
tables, tuner = [], tune.Tuner


class Watched(tuner):
    def __init__(self, *arguments, run_config, **named):
        # A stopper of Tune's own: the trial of the long run ends before its last step.
        run_config.stop = lambda _, result: "-3200-" in result.get("run_id", "") and result["share"] > 0.03
        super().__init__(*arguments, run_config=run_config, **named)

    def fit(self):
        found = super().fit()
        tables.append(found.get_dataframe())
        return found


with session():
    study = Study(recipe, Reporter(Console(file=sys.stderr)))
    runs = plan_runs(recipe, study.open("examples").digest)
    train_stage.prepare_tokenizers(study, study.open("examples"))
    token_stage.tokenise(study, runs, runs)
    with patch("ray.tune.Tuner", Watched):
        failed = training.train_all(recipe, trials.plan_trials(recipe, runs), lambda *_: None)
    columns = ["run_id", "step", "share", "loss", "training_iteration"]
    rows = json.loads(tables[0][columns].to_json(orient="records"))
    done = sorted(outcomes.finished(recipe, runs))
print(json.dumps({"rows": rows, "failed": failed, "done": done}))
"""


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study up to its examples."""
    out = tmp_path_factory.mktemp("tuned")
    for stage in ("generate", "annotate", "curate"):
        run(command(out, stage=stage), cpus=2)
    return out


TWO = pytest.param(2, marks=pytest.mark.long("a trial of one worker reports in the same way"))


@pytest.mark.parametrize("workers", [1, TWO])
def test_tune_receives_each_trials_metrics_and_a_trial_that_it_stops_ends(
    workers: int, examples: Path, tmp_path: Path
) -> None:
    shutil.copytree(examples / "tiny", tmp_path / "tiny")  # runs do not depend on the number of workers
    settings = (
        *("students.train_sizes=[16,24,3200]", f"training.workers={workers}"),
        *(f"out={tmp_path}", "training.epochs=8", "training.checkpoint_every=1000"),
    )
    words = command(tmp_path, *settings)
    overrides = [value for flag, value in pairwise(words) if flag == "--set"]
    result = ended([sys.executable, "-c", STOPPED, json.dumps(overrides)], SHARED, 900)
    assert result.returncode == 0, result.stderr[-3000:]
    found = json.loads(result.stdout.splitlines()[-1])
    assert {name.rpartition("-")[0]: said for name, said in found["failed"].items()} == {
        "0.03M-3200-s0": "Ray Tune stopped its trial"
    }
    last = {row["run_id"].rpartition("-")[0]: row for row in found["rows"]}  # by the last run of each trial
    assert all(row["loss"] > 0 and row["step"] > 0 for row in last.values())
    assert 0.03 < last.pop("0.03M-3200-s0")["share"] < 1.0
    assert {name: row["share"] for name, row in last.items()} == {"0.03M-16-s0": 1.0}
    assert [name.rpartition("-")[0] for name in found["done"]] == ["0.03M-16-s0", "0.03M-24-s0"]
