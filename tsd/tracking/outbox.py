"""A write-ahead log of what MLflow is to be told: kept in small files, delivered, tried again."""

import atexit
import contextlib
import json
import queue
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from pyarrow import fs

from tsd.errors import StorageError
from tsd.storage import folders
from tsd.tracking.mlflow_client import Metric, MlflowException

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


@dataclass
class _File:
    """One file of the write-ahead log. name: None if it could not be written. events: None if not kept in
    memory.
    """

    name: str | None
    events: list[Event] | None
    entries: int


class Outbox:
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
                folders.write_bytes(self._folder, name, lines.encode())
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
            events, torn = read_events(self._folder, name)
        except FileNotFoundError:
            return  # deleted by the user or by a start that delivered it
        except OSError as error:
            self._say(f"{self._folder}/{name} cannot be read ({reason_of(error)}): the next start tries again")
            return
        self._send_all(events)
        if not torn:
            _delete(self._folder, name)
            return
        kept = _keep_apart(self._folder, name)
        lines = f"line {torn[0]} is" if len(torn) == 1 else f"{len(torn)} lines (the first is {torn[0]}) are"
        self._say(f"{self._folder}/{kept}: {lines} damaged and not in MLflow; the file may be deleted")

    def _send_all(self, events: list[Event]) -> None:
        """Deliver events with exponential backoff until none is left. Refused events are dropped and counted."""
        wait, away = FIRST_WAIT, False
        while events:
            try:
                self._deliver(events)
            except Exception as error:  # errors of MLflow, a database driver, a socket
                if is_refusal(error):
                    self._refused.append(reason_of(error))
                    del events[0]
                    continue
                self._reason = reason_of(error)
                if not away:
                    self._say(
                        f"MLflow at {self._place} does not answer; the study continues without it: {self._reason}"
                    )
                away = True
                time.sleep(wait)
                wait = min(2 * wait, LONGEST_WAIT)
        if away:
            self._reason = ""
            self._say(f"MLflow at {self._place} answers again")


def leading_metrics(events: Iterable[Event]) -> list[Event]:
    """Return the leading metrics events that fit into one request."""
    batch: list[Event] = []
    count = 0
    for event in events:
        count += len(event["value"])
        if event["kind"] != "metrics" or (batch and count > BATCH):
            break
        batch.append(event)
    return batch


def as_metrics(events: Iterable[Event]) -> list[Metric]:
    return [
        Metric(name, value, event["time_ms"], event["step"])
        for event in events
        for name, value in event["value"].items()
    ]


def is_refusal(error: Exception) -> bool:
    """Whether MLflow or its client would refuse the event again."""
    if isinstance(error, MlflowException):
        return error.error_code in REFUSALS
    return isinstance(error, (AttributeError, KeyError, TypeError))  # a line that was changed on disk


def _listed(folder: str) -> list[str]:
    """Return the files of earlier starts, oldest first."""
    try:
        files, root = folders.filesystem(folder)
        found = files.get_file_info(fs.FileSelector(root, allow_not_found=True))
    except (OSError, ValueError):
        return []
    return sorted(
        info.base_name for info in found if info.base_name.endswith(".jsonl") and info.base_name[0] != "."
    )


def read_events(folder: str, name: str) -> tuple[list[Event], list[int]]:
    """Return the events of a file, and the numbers of damaged lines."""
    files, root = folders.filesystem(folder)
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
        files, root = folders.filesystem(folder)
        files.move(f"{root}/{name}", f"{root}/{name}{TORN}")
    return f"{name}{TORN}"


def _delete(folder: str, name: str) -> None:
    with contextlib.suppress(OSError):
        files, root = folders.filesystem(folder)
        files.delete_file(f"{root}/{name}")


def now_ms() -> int:
    return int(time.time() * 1000)


def reason_of(error: Exception) -> str:
    """Format an error as one line without credentials."""
    return without_credentials((str(error).strip() or type(error).__name__).splitlines()[0])[:300]


def without_credentials(text: str) -> str:
    """Remove user and password from all URIs in a text."""
    return re.sub(r"(?<=://)[^/\s]+@", "…@", text)
