"""MLflow: one parent run for a study, a nested run for each student. The only module that knows it.

Runs are found again by a tag, so a study that was stopped and started again continues them. After its start a
study waits for MLflow only at its end, and not for long. What is logged goes into a queue; one thread writes it to
STUDY/tracking, a write-ahead log in small files; another delivers it, tries again for as long as that takes, and
deletes what was delivered. What is left there when a process ends, or is killed, the next start of the study
delivers.
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
# By itself MLflow asks a server that is gone for minutes. Here a request is given up in seconds, and made again.
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
FOLDER = "tracking"  # of the study, for what MLflow does not have yet
SERVER_SECONDS, DATABASE_SECONDS = 22.0, 90.0  # that the first contact may take; a new database makes its tables
CLOSE_SECONDS, EXIT_SECONDS = 30.0, 10.0  # that a finished study, and a process that ends, waits for MLflow
LOCAL_SECONDS, REMOTE_SECONDS = 0.2, 3.0  # between two files of the write-ahead log
FIRST_WAIT, LONGEST_WAIT = 0.5, 10.0  # seconds before a delivery is tried again
HELD = 100  # files whose content is kept in memory, too, while MLflow is away
BATCH = 500  # metrics in one request; MLflow takes 1,000
# What MLflow will never take, however often it is asked.
REFUSALS = (
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_STATE",
    "ENDPOINT_NOT_FOUND",
)
TORN = ".damaged"  # after the name of a file that has lines which are no events
GONE = "RESOURCE_DOES_NOT_EXIST"

Event = dict[str, Any]
"""One thing to tell MLflow: `run` is a student's run id, None for the study; `kind` says what else there is."""


def _to_stderr(line: str) -> None:
    print(f"tsd: {line}", file=sys.stderr)


class Tracker:
    """Writes a study's runs. Raises InputError where the tracking server cannot be reached at the start.

    Later nothing is raised and nobody waits: see the module. `say` gets a line where MLflow does not answer.
    """

    def __init__(
        self, uri: str, experiment: str, study: str, recipe_yaml: str, say: Callable[[str], None] = _to_stderr
    ) -> None:
        """study: its folder, a path or a URI; the write-ahead log lies in it."""
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self.place = _without_credentials(uri)
        """Where the runs are, without a password."""
        self._runs = _Runs(uri, study)
        patience = SERVER_SECONDS if uri.startswith(("http:", "https:")) else DATABASE_SECONDS
        started = _Start(lambda: self._runs.open(experiment, _without_credentials(recipe_yaml)), patience)
        if started.problem is not None:
            raise InputError(f"tracking.uri {self.place} does not answer as an MLflow store: {started.problem}")
        self._outbox = _Outbox(self._runs.deliver, f"{study}/{FOLDER}", self.place, say)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Have the study's run bear what it was made from, such as a table's digest."""
        self._put(None, "tags", {f"tsd.{name}": value for name, value in tags.items()})

    def log(self, run_id: str, step: int, metrics: Mapping[str, float], time_ms: int) -> None:
        """Log metrics of a student's run at a step."""
        self._put(run_id, "metrics", dict(metrics), step=step, time_ms=time_ms)

    def finish(self, record: Mapping[str, Any], scores: Mapping[str, float], time_ms: int) -> None:
        """Log a finished student: what it is as parameters, what it reached as metrics."""
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
        """End a student's run that could not go on, and say why; a later start may take it up again."""
        self._put(run_id, "tags", {WHY: reason})
        self._put(run_id, "status", RunStatus.to_string(RunStatus.FAILED), time_ms=_now())

    def flush(self, seconds: float) -> int:
        """Wait until MLflow has everything, at most so long; return how many entries it still lacks."""
        return self._outbox.flush(seconds)

    def close(self, report: str | None = None) -> None:
        """End the study's run, with the report's HTML where there is one; say what MLflow does not have yet."""
        if report is not None:
            self._put(None, "text", report, name="report.html")
        self._put(None, "status", RunStatus.to_string(RunStatus.FINISHED), time_ms=_now())
        self._outbox.settle(CLOSE_SECONDS)

    def leave(self) -> None:
        """Give what was logged a last moment to arrive, unless `close` did; the study's run stays as it is."""
        self._outbox.leave()

    def _put(self, run: str | None, kind: str, value: Any, **more: Any) -> None:
        if kind in ("tags", "params"):
            value = {name: _without_credentials(str(text)) for name, text in value.items()}
        self._outbox.put({"run": run, "kind": kind, "value": value, **more})


class _Start:
    """The first contact, in a thread of its own: a library that waits for minutes is left to itself."""

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
            except Exception as error:  # MLflow's own, a database driver's, a missing driver, a folder's
                reason = _reason(error)
                # Someone else writes to the database just now.
                if "locked" not in reason or time.monotonic() + FIRST_WAIT > self._until:
                    self.problem = reason
                    return
                time.sleep(FIRST_WAIT)


class _Runs:
    """The study's runs in MLflow: found by their tag, made where there are none."""

    def __init__(self, uri: str, study: str) -> None:
        self.uri, self.study = uri, study
        self.opened = 0
        self.known: dict[str | None, str] = {}
        """The MLflow ids of the runs that are open; the study's under None."""

    def open(self, experiment: str, recipe_yaml: str) -> None:
        """Make or find the study's run."""
        self.client = MlflowClient(self.uri)
        self.experiment = self._experiment(experiment, _artifacts(self.uri))
        parent = self._id(None)
        self.client.log_text(parent, recipe_yaml, "recipe.yaml")
        for name, value in {"version": tsd.__version__, **_commit()}.items():
            self.client.set_tag(parent, f"tsd.{name}", value)
        self.opened = _now()

    def deliver(self, events: list[Event]) -> None:
        """Tell MLflow of events, in order of each run; what was told is taken off the list.

        Raises whatever the client does; the event that it is about, and all later ones, are left on the list then.
        A refusal is about a single value: an event of several is first told value by value.
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
                self.known = {}  # somebody deleted a run: it is made anew
                told = self._tell_next(events)
            events[:] = [other for other in events if id(other) not in told]

    def _tell_next(self, events: list[Event]) -> set[int]:
        """Tell the first event, or the metrics of its run up to what else there is of it; return what was told."""
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
                batch = batch[: len(batch) // 2]  # MLflow refuses all of a request for one of them

    def _tell(self, event: Event) -> None:
        kind, value = event["kind"], event["value"]
        if kind == "status":
            # A study that was started again runs, whatever an earlier start did not get to say.
            if event["run"] is not None or event["time_ms"] >= self.opened:
                self.client.set_terminated(self._id(event["run"]), value, event["time_ms"])
                # Whatever comes after it opens the run again.
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
        """The experiment's id; made where there is none."""
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
        """The study's run as it is: a student that is heard of late does not open it again."""
        if None not in self.known:
            found = self._search(self.study)
            return str(found[0].info.run_id) if found else self._id(None)
        return self.known[None]

    def _search(self, tag: str) -> list[Any]:
        quoted = tag.replace("'", "")
        return list(self.client.search_runs([self.experiment], f"tags.`{TAG}` = '{quoted}'", max_results=1))

    def _run(self, tag: str, name: str, tags: Mapping[str, str]) -> str:
        """The run with this tag, made where there is none."""
        if found := self._search(tag):
            run: str = found[0].info.run_id
            self.client.update_run(run, status=RunStatus.to_string(RunStatus.RUNNING))
            return run
        made = self.client.create_run(self.experiment, tags={**tags, TAG: tag.replace("'", "")}, run_name=name)
        made_id: str = made.info.run_id
        return made_id


@dataclass
class _File:
    """One file of the write-ahead log. What could not be written has no name, and what is many is not kept."""

    name: str | None
    events: list[Event] | None
    entries: int


class _Outbox:
    """Events on their way to MLflow: written to a folder, delivered, deleted."""

    def __init__(
        self, deliver: Callable[[list[Event]], None], folder: str, place: str, say: Callable[[str], None]
    ) -> None:
        self._deliver, self._folder, self._place, self._say = deliver, folder, place, say
        self._new: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._files: queue.SimpleQueue[_File] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._undelivered = 0  # entries
        self._unwritten = 0  # of these, what is in no file
        self._taken = self._said = 0  # entries so far, and how many there were when it was said what is missing
        self._refused: list[str] = []
        self._reason = ""
        self._hurry = threading.Event()
        self._names = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        for name in _listed(folder):
            self._undelivered += 1
            self._files.put(_File(name, None, 1))
        for work, name in ((self._write, "tsd-mlflow-log"), (self._send, "tsd-mlflow-send")):
            threading.Thread(target=work, daemon=True, name=name).start()
        # Whoever makes a tracker and neither closes nor leaves it still gets what was logged delivered.
        atexit.register(self.leave)

    def put(self, event: Event) -> None:
        """Take an event; never waits."""
        with self._changed:
            self._taken += 1
            self._undelivered += 1
            self._unwritten += 1
        self._new.put(event)

    def flush(self, seconds: float) -> int:
        """Wait until everything is delivered, at most so long; return how many entries are not."""
        self._hurry.set()
        with self._changed:
            self._changed.wait_for(lambda: not self._undelivered, seconds)
            self._hurry.clear()
            return self._undelivered

    def settle(self, seconds: float) -> None:
        """Wait like `flush`, and say what is not delivered."""
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
        """Wait a moment, unless it was waited since the last event."""
        with self._changed:
            said = self._said == self._taken
        if not said:
            self.settle(EXIT_SECONDS)

    def _write(self) -> None:
        """Put what is new into files, a few moments' worth in each."""
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
            except (OSError, StorageError):  # a full disk: MLflow may take it all the same
                self._files.put(_File(None, events, len(events)))
                continue
            with self._changed:
                self._unwritten -= len(events)
                self._changed.notify_all()
            kept = events if self._files.qsize() < HELD else None
            self._files.put(_File(name, kept, len(events)))

    def _send(self) -> None:
        """Deliver file after file, each until MLflow has taken it."""
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
        """Deliver a file that is not in memory. One that is not whole is kept under another name."""
        try:
            events, torn = _read(self._folder, name)
        except FileNotFoundError:
            return  # deleted by somebody, or by a start that delivered it
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
        wait, away = FIRST_WAIT, False
        while events:
            try:
                self._deliver(events)
            except Exception as error:  # MLflow's own, a database driver's, a socket's
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
    """The first events that are metrics, as many as go into one request."""
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
    """Whether MLflow, or its client, will say the same again."""
    if isinstance(error, MlflowException):
        return error.error_code in REFUSALS
    return isinstance(error, (AttributeError, KeyError, TypeError))  # a line that was changed on disk


def _listed(folder: str) -> list[str]:
    """The files that earlier starts left, oldest first."""
    try:
        files, root = datasets.filesystem(folder)
        found = files.get_file_info(fs.FileSelector(root, allow_not_found=True))
    except (OSError, ValueError):
        return []
    return sorted(
        info.base_name for info in found if info.base_name.endswith(".jsonl") and info.base_name[0] != "."
    )


def _read(folder: str, name: str) -> tuple[list[Event], list[int]]:
    """The events of a file, and the numbers of lines that are none."""
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
    """Rename a file of which a line is damaged, so that no later start delivers it again. Returns the new name."""
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
    """What an error says, in one line without a password."""
    return _without_credentials((str(error).strip() or type(error).__name__).splitlines()[0])[:300]


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


def _without_credentials(text: str) -> str:
    """The text without the user and password of any URI in it."""
    return re.sub(r"(?<=://)[^/\s]+@", "…@", text)
