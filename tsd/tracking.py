"""MLflow: one parent run per study, and a nested run per student. The only module that uses MLflow.

Runs are found by a tag, so a restarted study continues its runs. After the start, a study waits for MLflow only at
its end, and only briefly. Logged events go into a queue. One thread writes them to STUDY/tracking, a write-ahead
log of small files. Another thread delivers the files, retries as long as necessary, and deletes delivered ones.
The next start of the study delivers the files that a process leaves when it ends or is killed.
"""

import atexit
import contextlib
import json
import logging
import os
import queue
import re
import subprocess
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
# By default MLflow retries an unavailable server for minutes. Here a request times out within seconds and is
# repeated.
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunStatus
    from mlflow.exceptions import MlflowException

from pyarrow import fs

import tsd
from tsd.errors import InputError, StorageError
from tsd.storage import datasets

TAG = "tsd.run"
WHY = "tsd.failed"
FOLDER = "tracking"  # subfolder of the study for events that are not yet delivered
SERVER_SECONDS, DATABASE_SECONDS = 22.0, 90.0  # timeout of the first contact; a new database creates its tables
CLOSE_SECONDS, EXIT_SECONDS = 30.0, 10.0  # timeouts of a finished study and of an ending process
LOCAL_SECONDS, REMOTE_SECONDS = 0.2, 3.0  # between two files of the write-ahead log
FIRST_WAIT, LONGEST_WAIT = 0.5, 10.0  # seconds before a delivery is retried
HELD = 100  # files whose content is also kept in memory during an outage
BATCH = 500  # metrics per request; MLflow accepts 1,000
# Error codes that a retry cannot fix.
REFUSALS = (
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_STATE",
    "ENDPOINT_NOT_FOUND",
)
TORN = ".damaged"  # suffix of a file with lines that are not events
GONE = "RESOURCE_DOES_NOT_EXIST"

Event = dict[str, Any]
"""One entry for MLflow. `run` is a student's run id, None for the study; `kind` determines the other fields."""


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
        self.place = _without_credentials(uri)
        """The tracking URI without credentials."""
        self._runs = _Runs(uri, study)
        patience = SERVER_SECONDS if uri.startswith(("http:", "https:")) else DATABASE_SECONDS
        started = _Start(lambda: self._runs.open(experiment, _without_credentials(recipe_yaml)), patience)
        if started.problem is not None:
            raise InputError(f"tracking.uri {self.place} does not answer as an MLflow store: {started.problem}")
        self._outbox = _Outbox(self._runs.deliver, f"{study}/{FOLDER}", self.place, say)

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
        measured += ["flops", *(name for name in ("flops_6nd", "utilisation") if record.get(name) is not None)]
        if record.get("distilled_from"):
            named, measured = [*named, "distilled_from"], [*measured, "teacher_flops"]
        if record.get("stopped_early"):
            named = [*named, "stopped_early"]
        values = {name: float(record[name]) for name in measured} | dict(scores)
        self._put(run, "metrics", values, step=int(record["steps"]), time_ms=time_ms)
        self._put(run, "params", {name: str(record[name]) for name in named})
        self._put(run, "status", RunStatus.to_string(RunStatus.FINISHED), time_ms=time_ms)

    def fail(self, run_id: str, reason: str) -> None:
        """Mark a student's run as failed, with the reason. A later start may continue it."""
        self._put(run_id, "tags", {WHY: reason})
        self._put(run_id, "status", RunStatus.to_string(RunStatus.FAILED), time_ms=_now())

    def flush(self, seconds: float) -> int:
        """Wait up to `seconds` until everything is delivered. Returns the number of undelivered entries."""
        return self._outbox.flush(seconds)

    def close(self, report: str | None = None) -> None:
        """End the study's run and print what is undelivered. report: HTML of the report, if there is one."""
        if report is not None:
            self._put(None, "text", report, name="report.html")
        self._put(None, "status", RunStatus.to_string(RunStatus.FINISHED), time_ms=_now())
        self._outbox.settle(CLOSE_SECONDS)

    def leave(self) -> None:
        """Wait briefly for delivery, unless `close` did. The study's run keeps its status."""
        self._outbox.leave()

    def _put(self, run: str | None, kind: str, value: Any, **more: Any) -> None:
        if kind in ("tags", "params"):
            value = {name: _without_credentials(str(text)) for name, text in value.items()}
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
                reason = _reason(error)
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
        self.opened = _now()

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
                if _is_refusal(error) and isinstance(first["value"], dict) and len(first["value"]) > 1:
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
        batch = _leading_metrics(event for event in events if event["run"] == first["run"])
        while True:
            try:
                self.client.log_batch(self._id(first["run"]), metrics=_metrics(batch))
                return set(map(id, batch))
            except Exception as error:
                if len(batch) == 1 or not _is_refusal(error):
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


@dataclass
class _File:
    """One file of the write-ahead log. name: None if it could not be written. events: None if not kept in
    memory.
    """

    name: str | None
    events: list[Event] | None
    entries: int


class _Outbox:
    """Delivery queue to MLflow: events are written to a folder, delivered, deleted."""

    def __init__(
        self, deliver: Callable[[list[Event]], None], folder: str, place: str, say: Callable[[str], None]
    ) -> None:
        """Start the writer and sender threads, beginning with the files of earlier starts.

        deliver: sends events and removes delivered ones from the list. place: the tracking URI, for messages.
        """
        self._deliver, self._folder, self._place, self._say = deliver, folder, place, say
        self._new: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._files: queue.SimpleQueue[_File] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._undelivered = 0  # entries
        self._unwritten = 0  # of these, entries that are in no file
        self._taken = self._said = 0  # entries so far, and their number at the last message about undelivered ones
        self._refused: list[str] = []
        self._reason = ""
        self._hurry = threading.Event()
        self._names = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        for name in _listed(folder):
            self._undelivered += 1
            self._files.put(_File(name, None, 1))
        for work, name in ((self._write, "tsd-mlflow-log"), (self._send, "tsd-mlflow-send")):
            threading.Thread(target=work, daemon=True, name=name).start()
        # Deliver also if a tracker is neither closed nor left.
        atexit.register(self.leave)

    def put(self, event: Event) -> None:
        """Queue an event; never blocks."""
        with self._changed:
            self._taken += 1
            self._undelivered += 1
            self._unwritten += 1
        self._new.put(event)

    def flush(self, seconds: float) -> int:
        """Wait up to `seconds` until everything is delivered. Returns the number of undelivered entries."""
        self._hurry.set()
        with self._changed:
            self._changed.wait_for(lambda: not self._undelivered, seconds)
            self._hurry.clear()
            return self._undelivered

    def settle(self, seconds: float) -> None:
        """Wait as `flush` does, and print what is undelivered."""
        left = self.flush(seconds)
        self._said = self._taken
        if left:
            with self._changed:
                self._changed.wait_for(lambda: not self._unwritten, 5.0)
                lost = self._unwritten
            kept = f"they are in {self._folder}, and the next start of this study delivers them"
            if lost:
                kept = f"{lost:,} of them could not be kept in {self._folder}; the next start delivers the others"
            self._say(f"MLflow at {self._place} lacks {left:,} entries ({self._reason or 'it is slow'}): {kept}")
        if self._refused:
            self._say(f"MLflow at {self._place} refused {len(self._refused):,} entries: {self._refused[0]}")
            self._refused = []

    def leave(self) -> None:
        """Wait briefly, unless `settle` has run since the last event."""
        with self._changed:
            said = self._said == self._taken
        if not said:
            self.settle(EXIT_SECONDS)

    def _write(self) -> None:
        """Body of the writer thread: writes the events of a short interval into one file."""
        number = 0
        pause = REMOTE_SECONDS if "://" in self._folder else LOCAL_SECONDS
        while True:
            events = [self._new.get()]
            self._hurry.wait(pause)
            while not self._new.empty():
                events.append(self._new.get())
            number += 1
            name = f"{self._names}-{number:06d}.jsonl"
            lines = "".join(json.dumps(event) + "\n" for event in events)
            try:
                datasets.write_bytes(self._folder, name, lines.encode())
            except (OSError, StorageError):  # disk full: MLflow may still accept the events
                self._files.put(_File(None, events, len(events)))
                continue
            with self._changed:
                self._unwritten -= len(events)
                self._changed.notify_all()
            kept = events if self._files.qsize() < HELD else None
            self._files.put(_File(name, kept, len(events)))

    def _send(self) -> None:
        """Body of the sender thread: delivers one file after the other, with retries."""
        while True:
            file = self._files.get()
            if file.events is not None:
                self._send_all(file.events)
                if file.name is not None:
                    _delete(self._folder, file.name)
            else:
                self._send_left(str(file.name))
            with self._changed:
                self._undelivered -= file.entries
                self._unwritten -= 0 if file.name else file.entries
                self._changed.notify_all()

    def _send_left(self, name: str) -> None:
        """Deliver a file that is not in memory. A damaged one is kept under another name."""
        try:
            events, torn = _read(self._folder, name)
        except FileNotFoundError:
            return  # deleted by the user or by a start that delivered it
        except OSError as error:
            self._say(f"{self._folder}/{name} cannot be read ({_reason(error)}): the next start tries again")
            return
        self._send_all(events)
        if not torn:
            _delete(self._folder, name)
            return
        kept = _keep_apart(self._folder, name)
        lines = f"line {torn[0]} is" if len(torn) == 1 else f"{len(torn)} lines (the first is {torn[0]}) are"
        self._say(f"{self._folder}/{kept}: {lines} damaged and not in MLflow, all others are; delete it at will")

    def _send_all(self, events: list[Event]) -> None:
        """Deliver events with exponential backoff until none is left. Refused events are dropped and counted."""
        wait, away = FIRST_WAIT, False
        while events:
            try:
                self._deliver(events)
            except Exception as error:  # errors of MLflow, a database driver, a socket
                if _is_refusal(error):
                    self._refused.append(_reason(error))
                    del events[0]
                    continue
                self._reason = _reason(error)
                if not away:
                    self._say(f"MLflow at {self._place} does not answer; nothing waits for it: {self._reason}")
                away = True
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)
        if away:
            self._reason = ""
            self._say(f"MLflow at {self._place} answers again")


def _leading_metrics(events: Iterable[Event]) -> list[Event]:
    """Return the leading metrics events that fit into one request."""
    batch: list[Event] = []
    count = 0
    for event in events:
        count += len(event["value"])
        if event["kind"] != "metrics" or (batch and count > BATCH):
            break
        batch.append(event)
    return batch


def _metrics(events: Iterable[Event]) -> list[Metric]:
    return [
        Metric(name, value, event["time_ms"], event["step"])
        for event in events
        for name, value in event["value"].items()
    ]


def _is_refusal(error: Exception) -> bool:
    """Whether MLflow or its client would refuse the event again."""
    if isinstance(error, MlflowException):
        return error.error_code in REFUSALS
    return isinstance(error, (AttributeError, KeyError, TypeError))  # a line that was changed on disk


def _listed(folder: str) -> list[str]:
    """Return the files of earlier starts, oldest first."""
    try:
        files, root = datasets.filesystem(folder)
        found = files.get_file_info(fs.FileSelector(root, allow_not_found=True))
    except (OSError, ValueError):
        return []
    return sorted(
        info.base_name for info in found if info.base_name.endswith(".jsonl") and info.base_name[0] != "."
    )


def _read(folder: str, name: str) -> tuple[list[Event], list[int]]:
    """Return the events of a file, and the numbers of damaged lines."""
    files, root = datasets.filesystem(folder)
    with files.open_input_stream(f"{root}/{name}", compression=None) as source:
        lines = source.read().splitlines()
    events, torn = [], []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if (
            isinstance(event, dict)
            and {"run", "kind"} <= event.keys()
            and isinstance(event.get("value"), (dict, str))
        ):
            events.append(event)
        else:
            torn.append(number)
    return events, torn


def _keep_apart(folder: str, name: str) -> str:
    """Rename a file with a damaged line, so that no later start delivers it again. Returns the new name."""
    with contextlib.suppress(OSError):
        files, root = datasets.filesystem(folder)
        files.move(f"{root}/{name}", f"{root}/{name}{TORN}")
    return f"{name}{TORN}"


def _delete(folder: str, name: str) -> None:
    with contextlib.suppress(OSError):
        files, root = datasets.filesystem(folder)
        files.delete_file(f"{root}/{name}")


def _now() -> int:
    return int(time.time() * 1000)


def _reason(error: Exception) -> str:
    """Format an error as one line without credentials."""
    return _without_credentials((str(error).strip() or type(error).__name__).splitlines()[0])[:300]


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


def _without_credentials(text: str) -> str:
    """Remove user and password from all URIs in a text."""
    return re.sub(r"(?<=://)[^/\s]+@", "…@", text)
