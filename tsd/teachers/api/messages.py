"""What workers and the rate limiter tell each other: names of counts, permissions, bills, reports."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Protocol

from tsd.teachers.api.account import Cost, Estimator

EXAMPLE = 160  # characters of a reply that is shown as an example
# Names of counters. Rows are also counted by status ("row ok"), failed requests by kind ("failed 429").
ROWS, EARLIER, SENT, ENDED, ANSWERED = "rows", "earlier rows", "sent", "ended", "answered"
INPUT, OUTPUT, DOLLARS = "input tokens", "output tokens", "dollars"
UNCONFIRMED, UNCONFIRMED_TOKENS = "unconfirmed dollars", "unconfirmed tokens"
THOUGHTS = "with a thought"
STATUS, FAILED, MODEL, FORM = "row ", "failed ", "answered by ", "asked as "
BUSY = "429"  # kind of a request that was told to wait
# Gauges of an offline Batch API: they rise and fall.
BATCHES, BATCHED, COMPLETED = "batches", "requests in batches", "of them completed"
Counts = Counter[str]


class StoppedError(Exception):
    """The stage is stopping: no more requests are sent."""


@dataclass(frozen=True)
class News:
    """State that every worker must know at once."""

    epoch: str
    """Id of the rate limiter's process. A restarted one counts its versions from zero."""
    version: int
    pause: float
    """Seconds from now in which no request is sent."""
    stopped: str | None
    """Why the stage was stopped, for a person; None while it runs."""


@dataclass(frozen=True)
class Pass:
    """Permission to send one request."""

    bound: Cost
    """The reserved cost."""
    estimator: Estimator
    """Estimator of cost bounds."""
    free: bool
    """Whether no limit applies and enough usages are known: the worker needs no further permission."""


@dataclass(frozen=True)
class Bill:
    """Result of a request, for accounting."""

    request: str
    billed: Cost | None
    """None if it got no response and may have been billed."""
    estimate: int = 0
    """Approximate tokens of its prompt."""
    replies: int = 0
    """Number of responses with usage that it covers."""
    bound: Cost = field(default_factory=Cost)
    """Its cost bound, if it got no response."""


@dataclass(frozen=True)
class Row:
    """Result of a row, for the quality check."""

    status: str
    reason: str | None
    example: str


@dataclass
class Report:
    """Report of a worker to its rate limiter. The counts are cumulative, so that a repeated report counts once."""

    counts: Counts
    bills: list[Bill] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    failures: Counts = field(default_factory=Counter)
    """Requests without response since the last report, by kind."""
    answers: int = 0
    """Responses since the last report."""
    stopped: str | None = None
    """Why the worker stopped, if it did."""


class RateLimiterLike(Protocol):
    """A rate limiter, or a proxy to one in another process."""

    async def begin(self, part: int) -> bool: ...
    async def enter(self, worker: str, request: str, estimate: int) -> Pass | None: ...
    async def reserve(self, worker: str, request: str, bound: Cost, submitted: bool) -> bool: ...
    async def pause(self, seconds: float | None) -> float: ...
    async def silence(self, seconds: float) -> None: ...
    async def stop(self, reason: str) -> None: ...
    async def report(self, worker: str, report: Report) -> None: ...
    async def news(self, epoch: str, seen: int) -> News: ...
