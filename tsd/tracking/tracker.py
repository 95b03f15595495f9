"""MLflow: one parent run per study, and a nested run per student. The only module that uses MLflow.

Runs are found by a tag, so a restarted study continues its runs. After the start, a study waits for MLflow only at
its end, and only briefly. Logged events go into a queue. One thread writes them to STUDY/tracking, a write-ahead
log of small files. Another thread delivers the files, retries as long as necessary, and deletes delivered ones.
The next start of the study delivers the files that a process leaves when it ends or is killed.
"""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tsd
from tsd.errors import InputError
from tsd.tracking.mlflow_client import MlflowClient, Param, RunStatus
from tsd.tracking.outbox import (
    CLOSE_SECONDS,
    FIRST_WAIT,
    GONE,
    Event,
    Outbox,
    as_metrics,
    is_refusal,
    leading_metrics,
    now_ms,
    reason_of,
    without_credentials,
)

TAG = "tsd.run"
WHY = "tsd.failed"
FOLDER = "tracking"  # subfolder of the study for events that are not yet delivered
SERVER_SECONDS, DATABASE_SECONDS = 22.0, 90.0  # timeout of the first contact; a new database creates its tables


def _to_stderr(line: str) -> None:
    print(f"tsd: {line}", file=sys.stderr)


class Tracker:
    """Logs a study's runs. Raises InputError if the tracking server is unavailable at the start.

    Later it never raises and never blocks: see the module. `say` prints a line if MLflow does not respond.
    """

    def __init__(
        self, uri: str, experiment: str, study: str, recipe_yaml: str, say: Callable[[str], None] = _to_stderr
    ) -> None:
        """study: its folder, a path or a URI, which also holds the write-ahead log."""
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.place = without_credentials(uri)
        """The tracking URI without credentials."""
        self._runs = _Runs(uri, study)
        patience = SERVER_SECONDS if uri.startswith(("http:", "https:")) else DATABASE_SECONDS
        started = _Start(lambda: self._runs.open(experiment, without_credentials(recipe_yaml)), patience)
        if started.problem is not None:
            raise InputError(f"tracking.uri {self.place} does not answer as an MLflow store: {started.problem}")
        self._outbox = Outbox(self._runs.deliver, f"{study}/{FOLDER}", self.place, say)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Tag the study's run with its inputs, such as a table's digest."""
        self._put(None, "tags", {f"tsd.{name}": value for name, value in tags.items()})

    def log(self, run_id: str, step: int, metrics: Mapping[str, float], time_ms: int) -> None:
        """Log metrics of a student's run at a step. time_ms: milliseconds since 1970."""
        self._put(run_id, "metrics", dict(metrics), step=step, time_ms=time_ms)

    def finish(self, record: Mapping[str, Any], scores: Mapping[str, float], time_ms: int) -> None:
        """Log a finished student: its properties as parameters, its results as metrics.

        record: the run's record. scores: by name. time_ms: milliseconds since 1970.
        """
        run = str(record["run_id"])
        named = ["student", "parameters", "parameters_without_embeddings", "examples", "seed", "steps"]
        measured = ["validation_loss", "tokens", "supervised_tokens", "train_seconds", "tokens_per_second"]
        maybe = ("label_loss", "wording_loss", "flops_6nd", "utilisation")
        measured += ["flops", *(name for name in maybe if record.get(name) is not None)]
        if record.get("distilled_from"):
            named, measured = [*named, "distilled_from"], [*measured, "teacher_flops"]
        named = [*named, *(name for name in ("precision", "stopped_early") if record.get(name))]
        values = {name: float(record[name]) for name in measured} | dict(scores)
        self._put(run, "metrics", values, step=int(record["steps"]), time_ms=time_ms)
        self._put(run, "params", {name: str(record[name]) for name in named})
        self._put(run, "status", RunStatus.to_string(RunStatus.FINISHED), time_ms=time_ms)

    def fail(self, run_id: str, reason: str) -> None:
        """Mark a student's run as failed, with the reason. A later start may continue it."""
        self._put(run_id, "tags", {WHY: reason})
        self._put(run_id, "status", RunStatus.to_string(RunStatus.FAILED), time_ms=now_ms())

    def flush(self, seconds: float) -> int:
        """Wait up to `seconds` until everything is delivered. Returns the number of undelivered entries."""
        return self._outbox.flush(seconds)

    def close(self, report: str | None = None) -> None:
        """End the study's run and print what is undelivered. report: HTML of the report, if there is one."""
        if report is not None:
            self._put(None, "text", report, name="report.html")
        self._put(None, "status", RunStatus.to_string(RunStatus.FINISHED), time_ms=now_ms())
        self._outbox.settle(CLOSE_SECONDS)

    def leave(self) -> None:
        """Wait briefly for delivery, unless `close` did. The study's run keeps its status."""
        self._outbox.leave()

    def _put(self, run: str | None, kind: str, value: Any, **more: Any) -> None:
        if kind in ("tags", "params"):
            value = {name: without_credentials(str(text)) for name, text in value.items()}
        self._outbox.put({"run": run, "kind": kind, "value": value, **more})


class _Start:
    """The first contact with MLflow, in a separate thread: it is abandoned if the library blocks for too long."""

    def __init__(self, contact: Callable[[], None], seconds: float) -> None:
        self.problem: str | None = f"no answer within {seconds:.0f} s"
        self._contact, self._until = contact, time.monotonic() + seconds
        thread = threading.Thread(target=self._work, daemon=True, name="tsd-mlflow-start")
        thread.start()
        thread.join(seconds)

    def _work(self) -> None:
        while True:
            try:
                self._contact()
                self.problem = None
                return
            except Exception as error:  # errors of MLflow, a database driver, a missing driver, a folder
                reason = reason_of(error)
                # Another process is writing to the database.
                if "locked" not in reason or time.monotonic() + FIRST_WAIT > self._until:
                    self.problem = reason
                    return
                time.sleep(FIRST_WAIT)


class _Runs:
    """The study's runs in MLflow: found by their tag, else created."""

    def __init__(self, uri: str, study: str) -> None:
        self.uri, self.study = uri, study
        self.opened = 0
        self.known: dict[str | None, str] = {}
        """MLflow ids of open runs; the study's under None."""

    def open(self, experiment: str, recipe_yaml: str) -> None:
        """Find or create the study's run, and log its recipe and version."""
        self.client = MlflowClient(self.uri)
        self.experiment = self._experiment(experiment, _artifacts(self.uri))
        parent = self._id(None)
        self.client.log_text(parent, recipe_yaml, "recipe.yaml")
        for name, value in {"version": tsd.__version__, **_commit()}.items():
            self.client.set_tag(parent, f"tsd.{name}", value)
        self.opened = now_ms()

    def deliver(self, events: list[Event]) -> None:
        """Deliver events, in order within each run; delivered events are removed from the list.

        Raises the client's errors; the failed event and all later ones remain on the list.
        A refusal concerns a single value: an event with several values is split and retried.
        """
        while events:
            try:
                told = self._tell_next(events)
            except Exception as error:
                first = events[0]
                if is_refusal(error) and isinstance(first["value"], dict) and len(first["value"]) > 1:
                    events[:1] = [{**first, "value": {name: value}} for name, value in first["value"].items()]
                    continue
                if getattr(error, "error_code", None) != GONE or not self.known:
                    raise
                self.known = {}  # a run was deleted: create it again
                told = self._tell_next(events)
            events[:] = [other for other in events if id(other) not in told]

    def _tell_next(self, events: list[Event]) -> set[int]:
        """Deliver the first event, or a batch of its run's leading metrics.

        Returns the ids of delivered events.
        """
        first = events[0]
        if first["kind"] != "metrics":
            self._tell(first)
            return {id(first)}
        batch = leading_metrics(event for event in events if event["run"] == first["run"])
        while True:
            try:
                self.client.log_batch(self._id(first["run"]), metrics=as_metrics(batch))
                return set(map(id, batch))
            except Exception as error:
                if len(batch) == 1 or not is_refusal(error):
                    raise
                batch = batch[: len(batch) // 2]  # MLflow refuses a whole request because of one value

    def _tell(self, event: Event) -> None:
        """Deliver one event that is not a metric."""
        kind, value = event["kind"], event["value"]
        if kind == "status":
            # A restarted study keeps running, whatever status an earlier start still had to deliver.
            if event["run"] is not None or event["time_ms"] >= self.opened:
                self.client.set_terminated(self._id(event["run"]), value, event["time_ms"])
                # Any later event opens the run again.
                self.known = {run: key for run, key in self.known.items() if run != event["run"]}
            return
        run = self._id(event["run"])
        if kind == "tags":
            for name, text in value.items():
                self.client.set_tag(run, name, text)
        elif kind == "params":
            self.client.log_batch(run, params=[Param(name, text) for name, text in value.items()])
        else:
            self.client.log_text(run, value, event["name"])

    def _experiment(self, name: str, artifacts: str | None) -> str:
        """Return the experiment's id; creates it if necessary."""
        found = self.client.get_experiment_by_name(name)
        made: str = found.experiment_id if found else self.client.create_experiment(name, artifacts)
        return made

    def _id(self, run: str | None) -> str:
        if run not in self.known:
            if run is None:
                self.known[run] = self._run(self.study, self.study, {})
            else:
                parent = {"mlflow.parentRunId": self._parent()}
                self.known[run] = self._run(f"{self.study}/{run}", run, parent)
        return self.known[run]

    def _parent(self) -> str:
        """Return the study's run without changing its status: late events of a student must not open it again."""
        if None not in self.known:
            found = self._search(self.study)
            return str(found[0].info.run_id) if found else self._id(None)
        return self.known[None]

    def _search(self, tag: str) -> list[Any]:
        quoted = tag.replace("'", "")
        return list(self.client.search_runs([self.experiment], f"tags.`{TAG}` = '{quoted}'", max_results=1))

    def _run(self, tag: str, name: str, tags: Mapping[str, str]) -> str:
        """Return the run with this tag; creates it if necessary."""
        if found := self._search(tag):
            run: str = found[0].info.run_id
            self.client.update_run(run, status=RunStatus.to_string(RunStatus.RUNNING))
            return run
        made = self.client.create_run(self.experiment, tags={**tags, TAG: tag.replace("'", "")}, run_name=name)
        made_id: str = made.info.run_id
        return made_id


def _commit() -> dict[str, str]:
    """Return the commit of the running code and whether it was changed; empty outside a git checkout."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(Path(tsd.__file__).parent), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # fails if installed below another checkout
        said = git("status", "--porcelain=v2", "--branch", "--", ".").splitlines()
    except (OSError, subprocess.SubprocessError):
        return {}
    commit = next(line.split()[-1] for line in said if line.startswith("# branch.oid"))
    changed = any(not line.startswith("#") for line in said)
    return {"commit": f"{commit} and changes" if changed else commit}


def _artifacts(uri: str) -> str | None:
    """Return the artifact location of a local database: beside it, independent of the working directory.

    Creates the database's folder. None for a server, which has its own location.
    """
    if not uri.startswith("sqlite:///"):
        return None
    folder = Path(uri.removeprefix("sqlite:///")).parent.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    return (folder / "mlartifacts").as_uri()
