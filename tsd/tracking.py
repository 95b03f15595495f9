"""MLflow: one parent run for a study, a nested run for each student. The only module that knows it.

Runs are found again by a tag, so a study that was stopped and started again continues them.
"""

import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunStatus
    from mlflow.exceptions import MlflowException

from tsd.errors import InputError

TAG = "tsd.run"


class Tracker:
    """Writes a study's runs. Raises InputError where the tracking server cannot be reached at the start."""

    def __init__(self, uri: str, experiment: str, study: str, recipe_yaml: str) -> None:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        if uri.startswith("sqlite:///"):
            Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
        try:
            self.client = MlflowClient(uri)
            found = self.client.get_experiment_by_name(experiment)
            self.experiment = found.experiment_id if found else self.client.create_experiment(experiment)
        except MlflowException as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"tracking.uri {uri} does not answer as an MLflow store: {reason}") from None
        self.study = study
        self.parent = self._run(study, study, {})
        self.client.log_text(self.parent, recipe_yaml, "recipe.yaml")
        self.open: dict[str, str] = {}

    def log(self, run_id: str, step: int, metrics: Mapping[str, float], time_ms: int) -> None:
        """Log metrics of a student's run at a step."""
        batch = [Metric(name, value, time_ms, step) for name, value in metrics.items()]
        self.client.log_batch(self._student(run_id), metrics=batch)

    def finish(self, record: Mapping[str, Any], scores: Mapping[str, float], time_ms: int) -> None:
        """Log a finished student: what it is as parameters, what it reached as metrics."""
        run = self._student(str(record["run_id"]))
        named = ("student", "parameters", "parameters_without_embeddings", "examples", "seed", "steps")
        measured = ("validation_loss", "tokens", "flops", "train_seconds", "tokens_per_second", "utilisation")
        values = {name: float(record[name]) for name in measured} | dict(scores)
        self.client.log_batch(
            run,
            metrics=[Metric(name, value, time_ms, int(record["steps"])) for name, value in values.items()],
            params=[Param(name, str(record[name])) for name in named],
        )
        self.client.set_terminated(run, RunStatus.to_string(RunStatus.FINISHED))

    def close(self, report: str | None) -> None:
        """End the study's run, with the report's HTML where there is one."""
        if report is not None:
            self.client.log_text(self.parent, report, "report.html")
        self.client.set_terminated(self.parent, RunStatus.to_string(RunStatus.FINISHED))

    def _student(self, run_id: str) -> str:
        if run_id not in self.open:
            tag = f"{self.study}/{run_id}"
            self.open[run_id] = self._run(tag, run_id, {"mlflow.parentRunId": self.parent})
        return self.open[run_id]

    def _run(self, tag: str, name: str, tags: Mapping[str, str]) -> str:
        """The run with this tag, made where there is none."""
        quoted = tag.replace("'", "")
        found = self.client.search_runs([self.experiment], f"tags.`{TAG}` = '{quoted}'", max_results=1)
        if found:
            run: str = found[0].info.run_id
            self.client.update_run(run, status=RunStatus.to_string(RunStatus.RUNNING))
            return run
        made = self.client.create_run(self.experiment, tags={**tags, TAG: quoted}, run_name=name)
        made_id: str = made.info.run_id
        return made_id
