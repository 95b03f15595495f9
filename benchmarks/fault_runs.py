"""One kind of misbehaviour is run: the stage in this process, or `tsd annotate` in processes that are killed."""

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import measured
import psutil
from fault_answers import MODEL, Kind
from rich.console import Console

from tsd.cluster import stages
from tsd.errors import TsdError
from tsd.progress import Reporter
from tsd.recipe import load
from tsd.storage import datasets, folders, manifests
from tsd.tasks import SINGLE
from tsd.teachers.api.account import Earlier
from tsd.teachers.api.journal import parts_with_journals, read_all
from tsd.teachers.api.messages import DOLLARS, UNCONFIRMED

ROWS, IN_FLIGHT, KILLED_IN_FLIGHT = 500, 32, 8
KEY_ENV = "TSD_FAULTS_KEY"
STAGE_SECONDS, COMMAND_SECONDS = 240.0, 240.0  # after which a stage, or a start, is given up
SERIES = (f"series.count={ROWS}", "series.blocks_per_part=1")
TEACHER = (
    "teacher={kind: openai}",
    f"teacher.model={MODEL}",
    f"teacher.key_env={KEY_ENV}",
    "teacher.modality=text",
    f"teacher.in_flight={IN_FLIGHT}",
    "teacher.workers=1",
    "teacher.timeout=5",
    "teacher.idle_timeout=60",
    "teacher.usd_per_million_input=1000",
    "teacher.usd_per_million_output=1000",
)
BATCHES = ("teacher.mode=batch", "teacher.batch.most_requests=100", "teacher.batch.poll_seconds=0.3")


@dataclass
class Outcome:
    """What came of one kind."""

    kind: Kind
    rows: list[dict[str, Any]] | None = None
    """Of the annotations, where the stage came to its end."""
    stop: str | None = None
    """The line with which it was stopped first."""
    first: dict[str, Any] = field(default_factory=dict)
    """The ledger at that moment."""
    said: str = ""
    """All that was printed."""
    counted: float = 0.0
    unconfirmed: float = 0.0
    """Dollars, at the end."""
    kills: int = 0
    seconds: float = 0.0
    crash: str | None = None
    over_budget: float = 0.0
    """By how many of its dearest replies the budget was exceeded."""
    ledger: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def statuses(self) -> Counter[str]:
        """How many rows ended how."""
        return Counter(row["status"] for row in self.rows or ())

    @property
    def uncounted(self) -> float:
        """Dollars that the server billed and the stage does not know of."""
        return max(0.0, float(self.ledger["dollars"]) - self.counted - self.unconfirmed - 0.01)


# ---- One kind


class Run:
    """How one kind is run, by whatever means."""

    def __init__(self, kind: Kind, url: str, folder: str, series: datasets.Dataset, outcome: Outcome) -> None:
        self.kind, self.url, self.folder, self.series, self.outcome = kind, url, folder, series, outcome
        self.asked_flight = KILLED_IN_FLIGHT if kind.by_command else IN_FLIGHT

    def overrides(self, *more: str) -> list[str]:
        """The recipe's."""
        kind, address = self.kind, f"{self.url}/k/{self.kind.name}/v1"
        if kind.address:
            address = address.replace("http:", "https:") if kind.address == "https" else kind.address
        sets = [*SERIES, *TEACHER, *(BATCHES if kind.batch else ()), f"teacher.base_url={address}"]
        sets += [f"name={kind.name}", f"tracking.uri=sqlite:///{self.folder}/{kind.name}.db"]
        return [*sets, *(f"teacher.{one}" for one in (*kind.settings, *more))]

    @property
    def annotations(self) -> str:
        """The folder of what the stage makes."""
        return f"{self.folder}/{self.kind.name}/annotations"

    def collect(self) -> None:
        """Read what came of it."""
        self.outcome.counted, self.outcome.unconfirmed = money(self.annotations)
        with suppress(TsdError):
            made = datasets.open_dataset(self.annotations, SINGLE.tables.annotations)
            self.outcome.rows = made.read().to_pylist()

    def check_budget(self, budget: float | None) -> None:
        """How far the budget was exceeded until now."""
        now = ledger(self.url, self.kind)
        if budget and now["dearest_dollars"]:
            over = (now["dollars"] - budget) / now["dearest_dollars"]
            self.outcome.over_budget = max(self.outcome.over_budget, over)


class Stage(Run):
    """The stage in this process."""

    def run(self) -> None:
        """Once, and once more where it was stopped and the server is well again."""
        stop = self.once()
        budget = [one for one in self.kind.settings if one.startswith("budget_usd=")]
        self.check_budget(float(budget[0].partition("=")[2]) if budget else None)
        if stop is not None:
            self.outcome.stop, self.outcome.first = stop, ledger(self.url, self.kind)
            if self.kind.expected.stop and self.kind.expected.goes_on:
                ledger(self.url, self.kind, "heal")
                if again := self.once("idle_timeout=60"):
                    self.outcome.problems.append(f"once the server behaved it stopped again: {again}")
        self.collect()

    def once(self, *more: str) -> str | None:
        """The line with which the stage was stopped, if it was."""
        shown = io.StringIO()
        reporter = Reporter(Console(file=shown, width=400, highlight=False))
        given_up = threading.Timer(STAGE_SECONDS, self.give_up)
        given_up.start()
        try:
            made = stages.annotate(
                load("laptop", [*self.overrides(*more), f"out={self.folder}"]), self.series, reporter
            )
            self.outcome.said += json.dumps(made.about, default=str)
        except Exception as error:
            known = error if isinstance(error, TsdError) else getattr(error, "cause", None)
            if not isinstance(known, TsdError):
                raise
            self.outcome.said += str(known)
            return str(known)
        finally:
            given_up.cancel()
            self.outcome.said += shown.getvalue()
        return None

    def give_up(self) -> None:
        """It takes too long: the server refuses the key from now on, which ends it."""
        self.outcome.problems.append(f"no end after {STAGE_SECONDS:.0f} s")
        ledger(self.url, self.kind, "abort")


class Commands(Run):
    """`tsd annotate`, as a person runs it, killed and started again."""

    def run(self) -> None:
        """Kill it as often as wanted, stop it by its budget as often, and let it come to its end."""
        kind, rng = self.kind, random.Random(self.kind.name)
        shutil.copytree(self.series.folder, f"{self.folder}/{kind.name}/series")
        starts, latest = 0, 1.0 if kind.batch else 2.5  # seconds after a start has asked first
        budget = [f"budget_usd={kind.budget}"] if kind.budget else []
        while self.outcome.kills < kind.kills and starts < 3 * kind.kills:
            ended = self.command(self.workers(starts), *budget, kill_after=rng.uniform(0.1, latest))
            starts += 1
            self.check_budget(kind.budget)
            if ended is not None:  # it came to an end of its own before
                break
        if self.outcome.kills < kind.kills:
            self.outcome.problems.append(f"killed {self.outcome.kills} times of {kind.kills}")
        for _ in kind.workers if kind.budget else ():
            self.command(self.workers(starts), *budget)
            starts += 1
            self.check_budget(kind.budget)
        self.command(self.workers(starts), *(["budget_usd=100000"] if budget else []))
        self.collect()

    def workers(self, start: int) -> int:
        """Of one start."""
        return self.kind.workers[start % len(self.kind.workers)]

    def command(self, workers: int, *more: str, kill_after: float | None = None) -> int | None:
        """Run it. Returns its exit code; None where it was killed, so many seconds after it asked first."""
        sets = self.overrides(f"workers={workers}", f"in_flight={KILLED_IN_FLIGHT}", *more)
        words = [sys.executable, "-m", "tsd.cli", "annotate", "laptop", "--out", self.folder]
        words += [word for one in sets for word in ("--set", one)]
        environment = {name: one for name, one in os.environ.items() if not name.startswith("RAY_")}
        before = activity(self.url, self.kind)
        with tempfile.TemporaryFile("w+") as printed:
            process = subprocess.Popen(
                words,
                cwd=measured.ROOT,
                env=environment | {"RAY_AUTH_MODE": "disabled", "TSD_CPUS": "2"},
                stdout=printed,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            code = self.watch(process, before, kill_after)
            printed.seek(0)
            text = printed.read()
        self.outcome.said += text
        lines = [line for line in text.splitlines() if line.startswith("tsd: ")]
        if code not in (0, None):
            self.outcome.stop = self.outcome.stop or "\n".join(lines) or f"exit code {code}: {text[-300:]}"
            if not more or len(lines) != 1 or code != 2:
                self.outcome.problems.append(f"exit code {code}: {text.strip()[-400:]}")
        return code

    def watch(self, process: subprocess.Popen[bytes], before: int, kill_after: float | None) -> int | None:
        """Until the command ends, is to be killed, or takes too long."""
        until, asked = time.monotonic() + COMMAND_SECONDS, None
        while process.poll() is None:
            now = time.monotonic()
            if asked is None and kill_after is not None and activity(self.url, self.kind) > before:
                asked = now
            kill = asked is not None and kill_after is not None and now - asked > kill_after
            if kill or now > until:
                kill_all(process.pid)
                process.wait(30)
                if not kill:
                    self.outcome.problems.append(f"no end after {COMMAND_SECONDS:.0f} s")
                    return None
                self.outcome.kills += 1
                return None
            time.sleep(0.1)
        return process.returncode


def kill_all(pid: int) -> None:
    """`kill -9` a command and everything that it started, at one moment, as a power cut does."""
    tree = psutil.Process(pid).children(recursive=True)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    for one in tree:
        with suppress(psutil.NoSuchProcess):
            one.kill()


def activity(url: str, kind: Kind) -> int:
    """How often anything was asked of a kind."""
    seen = ledger(url, kind)
    return int(seen["requests"] + sum(seen["calls"].values()))


def money(annotations: str) -> tuple[float, float]:
    """Dollars that the stage has counted, and that it holds for unconfirmed, by its manifest or its journals."""
    manifest = folders.read_json(annotations, manifests.MANIFEST)
    if manifest:
        about = manifest["about"]
        return about.get(DOLLARS, 0.0), about.get(UNCONFIRMED, 0.0)
    account = Earlier()
    for history in read_all(annotations, parts_with_journals(annotations)).values():
        account.add(history.account)
    return account.billed.usd, account.unconfirmed.usd


# ---- The server


def ledger(url: str, kind: Kind, what: str = "ledger") -> dict[str, Any]:
    """What the server has seen of a kind; what: heal or abort change how it behaves."""
    with urllib.request.urlopen(f"{url}/k/{kind.name}/{what}", timeout=60) as answer:
        seen: dict[str, Any] = json.loads(answer.read())
        return seen
