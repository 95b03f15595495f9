"""MLflow: one parent run for a study, a nested run for each student. The only module that knows it.

Runs are found again by a tag, so a study that was stopped and started again continues them.
"""

import logging
import os
import re
import subprocess
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunStatus

import tsd
from tsd.errors import InputError

TAG = "tsd.run"
WHY = "tsd.failed"


class Tracker:
    """Writes a study's runs. Raises InputError where the tracking server cannot be reached at the start."""

    def __init__(self, uri: str, experiment: str, study: str, recipe_yaml: str) -> None:
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.study = study
        self.place = _without_credentials(uri)
        """Where the runs are, without a password."""
        self.open: dict[str, str] = {}
        try:
            with _impatient():
                self.client = MlflowClient(uri)
                self.experiment = self._experiment(experiment, _artifacts(uri))
                self.parent = self._run(study, study, {})
                self.client.log_text(self.parent, _without_credentials(recipe_yaml), "recipe.yaml")
                self.tag({"version": tsd.__version__, **_commit()})
        except Exception as error:  # MLflow's own, a database driver's, a missing driver, a folder's
            reason = _without_credentials((str(error).strip() or type(error).__name__).splitlines()[0])
            raise InputError(
                f"tracking.uri {self.place} does not answer as an MLflow store: {reason[:300]}"
            ) from None

    def tag(self, tags: Mapping[str, str]) -> None:
        """Have the study's run bear what it was made from, such as a table's digest."""
        for name, value in tags.items():
            self.client.set_tag(self.parent, f"tsd.{name}", value)

    def log(self, run_id: str, step: int, metrics: Mapping[str, float], time_ms: int) -> None:
        """Log metrics of a student's run at a step."""
        batch = [Metric(name, value, time_ms, step) for name, value in metrics.items()]
        self.client.log_batch(self._student(run_id), metrics=batch)

    def finish(self, record: Mapping[str, Any], scores: Mapping[str, float], time_ms: int) -> None:
        """Log a finished student: what it is as parameters, what it reached as metrics."""
        run = self._student(str(record["run_id"]))
        named = ["student", "parameters", "parameters_without_embeddings", "examples", "seed", "steps"]
        measured = ["validation_loss", "tokens", "supervised_tokens", "train_seconds", "tokens_per_second"]
        measured += ["flops", *(name for name in ("flops_6nd", "utilisation") if record.get(name) is not None)]
        if record.get("distilled_from"):
            named, measured = [*named, "distilled_from"], [*measured, "teacher_flops"]
        if record.get("stopped_early"):
            named = [*named, "stopped_early"]
        values = {name: float(record[name]) for name in measured} | dict(scores)
        self.client.log_batch(
            run,
            metrics=[Metric(name, value, time_ms, int(record["steps"])) for name, value in values.items()],
            params=[Param(name, str(record[name])) for name in named],
        )
        self.client.set_terminated(run, RunStatus.to_string(RunStatus.FINISHED))

    def fail(self, run_id: str, reason: str) -> None:
        """End a student's run that could not go on, and say why; a later start may take it up again."""
        run = self._student(run_id)
        self.client.set_tag(run, WHY, reason)
        self.client.set_terminated(run, RunStatus.to_string(RunStatus.FAILED))

    def close(self, report: str | None = None) -> None:
        """End the study's run, with the report's HTML where there is one."""
        if report is not None:
            self.client.log_text(self.parent, report, "report.html")
        self.client.set_terminated(self.parent, RunStatus.to_string(RunStatus.FINISHED))

    def _experiment(self, name: str, artifacts: str | None) -> str:
        """The experiment's id; made where there is none."""
        found = self.client.get_experiment_by_name(name)
        made: str = found.experiment_id if found else self.client.create_experiment(name, artifacts)
        return made

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


def _commit() -> dict[str, str]:
    """The commit of the code that runs, and whether it was changed since; nothing where it is no checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(tsd.__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # else it is installed somewhere below another checkout
        said = git("status", "--porcelain=v2", "--branch", "--", ".").splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    commit = next(line.split()[-1] for line in said if line.startswith("# branch.oid"))
    changed = any(not line.startswith("#") for line in said)
    return {"commit": f"{commit} and changes" if changed else commit}


def _artifacts(uri: str) -> str | None:
    """Where a database of this machine keeps its files: beside it, not in the folder one happens to be in.

    Makes the database's folder. None for a server, which knows for itself.
    """
    if not uri.startswith("sqlite:///"):
        return None
    folder = Path(uri.removeprefix("sqlite:///")).parent.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / "mlartifacts").as_uri()


@contextmanager
def _impatient() -> Iterator[None]:
    """MLflow asks a server that is not there for minutes; the first contact gives up in seconds."""
    limits = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
    ours = {name: value for name, value in limits.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)


def _without_credentials(text: str) -> str:
    """The text without the user and password of any URI in it."""
    return re.sub(r"(?<=://)[^/\s]+@", "…@", text)
