"""Rate limits, budget, pauses and counts shared by all workers that send requests to one server.

One `Gate` per stage enforces rate limits and budget, wherever it runs. A `Turnstile` is its client in a worker. A
restarted gate reads the billing from the journals, and the workers report all other counts again.
"""

import asyncio
import itertools
import time
import uuid
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from aiolimiter import AsyncLimiter

from tsd.progress import clock
from tsd.recipe import ApiTeacher
from tsd.teachers import Reply
from tsd.teachers.api.account import FEW_USAGES, Account, Cost, Earlier, Estimator, TokenWindow
from tsd.teachers.api.journal import Journal

HEADROOM = 0.97  # fraction of a request limit that is used: evenly sent requests arrive less evenly
BURST_SECONDS = 1.0  # seconds' worth of a limit that may be used at once
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds, if the server does not specify a wait
MOST_SECONDS = 3600.0  # maximum wait that a server may request; above it, the stage stops
# While others wait for settled requests, reports are sent this many times as often.
REPORT_SECONDS, REPORTS_IN_ONE = 0.25, 5
# When the stage stops, responses in flight are awaited, since they are paid for. The timeout is twice the slowest
# response so far, within these bounds in seconds.
LEAST_GRACE, MOST_GRACE, TIMES_SLOWEST = 5.0, 60.0, 2.0
SILENT_SECONDS = 30.0  # after which a worker that does not report is considered dead
UNREACHED_SECONDS = 10.0  # without a connection, before the first response: then the stage stops
LEAST_FAILURES = 20  # failures in a row that mean an outage; at least twice a worker's requests in flight
HEAR_SECONDS = 0.05  # between two polls for a response
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
    """Id of the gate's process. A restarted gate counts its versions from zero."""
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
    """Report of a worker to its gate. The counts are cumulative, so that a repeated report counts once."""

    counts: Counts
    bills: list[Bill] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    failures: Counts = field(default_factory=Counter)
    """Requests without response since the last report, by kind."""
    answers: int = 0
    """Responses since the last report."""
    stopped: str | None = None
    """Why the worker stopped, if it did."""


class Gate:
    """Grants requests within rate limits and budget, and stops the stage."""

    def __init__(self, teacher: ApiTeacher, earlier: Earlier) -> None:
        """earlier: records of earlier starts in the journals of all parts."""
        self._teacher = teacher
        self._epoch = uuid.uuid4().hex
        self._account = Account(teacher, earlier)
        self._counts: dict[str, Counts] = {}  # by worker
        self._open: dict[str, set[str]] = {}  # requests, by worker
        self._heard: dict[str, float] = {}  # time of the last report, by worker
        self._begun: set[int] = set()  # parts
        self._requests = request_limiter(teacher.requests_per_minute)
        self._tokens = _window(teacher, earlier)
        self._paused_until = self._started = self._last_answer = time.monotonic()
        self._answers = 0  # of this start
        self._pause = 0.0
        self._told = 0.0  # longest wait that the server has requested since its last response
        self._failures: Counts = Counter()  # since the last response, by kind
        self._quality: deque[Row] = deque(maxlen=teacher.quality.last)
        self._version = 0
        self._stopped: str | None = None
        self._changed = asyncio.Condition()
        self._turn = asyncio.Lock()

    async def begin(self, part: int) -> bool:
        """Whether a part starts for the first time. Its rows of earlier starts are counted then."""
        first = part not in self._begun
        self._begun.add(part)
        return first

    async def enter(self, worker: str, request: str, estimate: int) -> Pass | None:
        """Wait until a request may be sent, and reserve its bound. Returns None if the stage was stopped.

        request: its name. estimate: approximate tokens of its prompt.
        """
        self._heard.setdefault(worker, time.monotonic())
        async with self._turn:
            bound = await self._afford(worker, request, lambda: self._account.bound(estimate))
            if bound is None:
                return None
            if self._requests:
                await self._requests.acquire()
            tokens = self._account.expected(estimate)
            while (wait := self._wait(tokens)) > 0 and not self._stopped:
                with suppress(TimeoutError):  # requests in flight may cost less than their bounds
                    async with asyncio.timeout(min(wait, 1.0)), self._changed:
                        await self._changed.wait()
            if self._stopped or worker not in self._heard:  # the worker died while waiting
                self._account.settle(request, Cost())
                return None
            if self._tokens:
                self._tokens.take(request, tokens)
            free = not _limited(self._teacher) and self._account.replies >= FEW_USAGES and self._answers > 0
            return Pass(bound, self._account.estimator, free)

    async def reserve(self, worker: str, request: str, bound: Cost, submitted: bool) -> bool:
        """Wait until a batch may be submitted, and reserve its bound. Returns False if none may be.

        request: the batch's name, the same at every start. submitted: an earlier start has submitted the batch; it
        is in progress whatever it costs.
        """
        self._heard.setdefault(worker, time.monotonic())
        if submitted:
            self._account.reserve(request, bound)
            self._open.setdefault(worker, set()).add(request)
            return True
        async with self._turn:
            return await self._afford(worker, request, lambda: bound, batch=True) is not None

    async def pause(self, seconds: float | None) -> float:
        """Pause all requests because the server is busy. seconds: requested wait, None if unspecified.

        Returns the seconds left of the pause.
        """
        now = time.monotonic()
        if seconds is None:
            if now < self._paused_until:
                return self._paused_until - now  # same burst: a pause is already in effect
            self._pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * self._pause))
            seconds = self._pause
        elif seconds > MOST_SECONDS:
            await self.stop(
                f"{self._teacher.base_url} asks to wait for {clock(seconds)}: see what its limits are; the same "
                "command goes on from here"
            )
        else:
            self._told = max(self._told, seconds)
        self._paused_until = max(self._paused_until, now + min(seconds, MOST_SECONDS))
        await self._tell()
        return self._paused_until - now

    async def stop(self, reason: str) -> None:
        """Stop the stage. The first reason is kept."""
        self._stopped = self._stopped or reason
        await self._tell()

    async def silence(self, seconds: float) -> None:
        """Stop the stage because the server has not responded for this many seconds."""
        kinds = self._failures.most_common(1)
        if set(self._failures) == {FAILED + BUSY}:
            said = (
                f"refused every request for {clock(seconds)} ({BUSY}: too many): ask for less at once, see what "
            )
            said += "its limits are"
        else:
            seen = f" ({kinds[0][0]})" if kinds else ""
            said = f"given no answer for {clock(seconds)}{seen}: see whether it works"
        await self.stop(
            f"{self._teacher.base_url} has {said}, or raise teacher.patience; the same command goes on from here"
        )

    async def report(self, worker: str, report: Report) -> None:
        """Process a worker's report."""
        now = time.monotonic()
        self._heard[worker] = now
        self._counts[worker] = report.counts
        for bill in report.bills:
            self._settle(worker, bill)
        if report.answers:
            self._answers += report.answers
            self._last_answer = now
            self._failures.clear()
            if now > self._paused_until:
                self._pause = self._told = 0.0
        self._failures.update(report.failures)
        if report.stopped:
            await self.stop(report.stopped)
        await self._judge(report.rows)
        async with self._changed:
            self._changed.notify_all()

    async def news(self, epoch: str, seen: int) -> News:
        """Wait until there is a version later than `seen`, and return it."""
        async with self._changed:
            await self._changed.wait_for(lambda: epoch != self._epoch or self._version > seen)
        wait = max(0.0, self._paused_until - time.monotonic())
        return News(self._epoch, self._version, wait, self._stopped)

    async def progress(self) -> tuple[Counts, str | None]:
        """Return the counts since the start and why the stage was stopped. Stops it if the server is silent.

        Tokens and cost include earlier starts.
        """
        now = time.monotonic()
        counted = self._whole()
        if counted[SENT] <= counted[ENDED] and not self._failures:  # no worker waits for the server
            self._last_answer = now
        silent = now - self._last_answer
        live = self._teacher.mode == "live"  # in batch mode, the polling code detects silence
        # A wait requested by the server is granted once. A further request to wait counts as silence.
        if live and silent > self._teacher.patience + self._told and not self._stopped:
            await self.silence(silent)
        unreached = bool(self._failures) and all(NOT_REACHED in kind for kind in self._failures)
        if unreached and not self._answers and now - self._started > UNREACHED_SECONDS and not self._stopped:
            (kind, _), *_ = self._failures.most_common(1)
            said = kind.removeprefix(FAILED).removeprefix(NOT_REACHED)
            await self.stop(
                f"{self._teacher.base_url} cannot be reached: {said}: check teacher.base_url and whether the "
                "server runs; the same command goes on from here"
            )
        self._write_off()
        return self._whole(), self._stopped

    def paused(self) -> float:
        """Seconds left of a pause."""
        return max(0.0, self._paused_until - time.monotonic())

    # ---- Internals

    def _whole(self) -> Counts:
        together: Counts = Counter()
        for counts in self._counts.values():
            together.update(counts)
        billed, lost = self._account.billed, self._account.unconfirmed
        money: dict[str, Any] = {INPUT: billed.input_tokens, OUTPUT: billed.output_tokens, DOLLARS: billed.usd}
        together.update(money | {UNCONFIRMED: lost.usd, UNCONFIRMED_TOKENS: lost.tokens})
        return together

    def _settle(self, worker: str, bill: Bill) -> None:
        self._open.get(worker, set()).discard(bill.request)
        if bill.billed is None:
            self._account.lose(bill.request, bill.bound)
        else:
            self._account.settle(bill.request, bill.billed, bill.estimate, bill.replies)
        if self._tokens:
            self._tokens.settle(bill.request, None if bill.billed is None else bill.billed.tokens)

    async def _afford(
        self, worker: str, request: str, bound_of: Callable[[], Cost], batch: bool = False
    ) -> Cost | None:
        """Reserve a bound once it fits into the budget. Returns None if the stage was stopped.

        bound_of: called before each check, since requests in flight may change the estimator.
        """
        while not self._stopped:
            self._write_off()
            bound = bound_of()
            excess = self._account.excess(bound, "batch" if batch else "request")
            if not excess and (batch or not self._account.few_only()):
                self._account.reserve(request, bound)
                self._open.setdefault(worker, set()).add(request)
                return bound
            if excess and not self._account.in_flight:
                smaller = ", or lower teacher.batch.most_requests" if batch else ""
                await self.stop(f"{excess}; raise it{smaller}, and the same command goes on from here")
                return None
            with suppress(TimeoutError):  # requests in flight may cost less than their bounds
                async with asyncio.timeout(1.0), self._changed:
                    await self._changed.wait()
        return None

    def _wait(self, tokens: int) -> float:
        paused = self._paused_until - time.monotonic()
        return max(paused, self._tokens.wait(tokens) if self._tokens else 0.0)

    def _write_off(self) -> None:
        """Settle the requests of dead workers as unconfirmed.

        Their batches stay open, since they can be found again.
        """
        now = time.monotonic()
        for worker in [one for one, heard in self._heard.items() if now - heard > SILENT_SECONDS]:
            del self._heard[worker]
            if self._teacher.mode == "live":
                for request in list(self._open.pop(worker, ())):
                    self._settle(worker, Bill(request, None))

    async def _judge(self, rows: Iterable[Row]) -> None:
        """Stop the stage if too few of the last rows are usable."""
        for row in rows:
            self._quality.append(row)
        quality = self._teacher.quality
        if len(self._quality) < quality.last or self._stopped:
            return
        usable = sum(row.status == "ok" for row in self._quality)
        if usable >= quality.least_usable * quality.last:
            return
        bad = [row for row in self._quality if row.status != "ok"]
        reasons = Counter(f"{row.status}: {row.reason}" for row in bad).most_common(2)
        said = " and ".join(f"{count} × {reason}" for reason, count in reasons)
        example = next((row.example for row in reversed(bad) if row.example), "no text")
        await self.stop(
            f"only {usable} of the last {quality.last} rows can be used ({said}; one reply: {example!r}): see "
            "what it is asked and says with --preview 10, raise teacher.max_tokens or change the model, or lower "
            "teacher.quality.least_usable; the same command goes on from here"
        )

    async def _tell(self) -> None:
        self._version += 1
        async with self._changed:
            self._changed.notify_all()


NOT_REACHED = "not reached: "  # prefix of a failure's kind if no connection was established


def _limited(teacher: ApiTeacher) -> bool:
    return any((teacher.requests_per_minute, teacher.tokens_per_minute, teacher.budget_usd, teacher.budget_tokens))


def _window(teacher: ApiTeacher, earlier: Earlier) -> TokenWindow | None:
    """Return the limiter of tokens per minute, preloaded with what an earlier start sent within the last
    minute.
    """
    if teacher.tokens_per_minute is None:
        return None
    window, now = TokenWindow(teacher.tokens_per_minute, time.monotonic), time.time()
    for at, tokens in sorted(earlier.recent):
        window.remember(now - at, tokens)
    return window


def request_limiter(per_minute: int | None) -> AsyncLimiter | None:
    """Return a limiter of requests per minute; None without a limit."""
    if per_minute is None:
        return None
    limit = HEADROOM * per_minute
    at_once = max(1.0, limit * BURST_SECONDS / 60)
    # Burst capacity counts towards the minute, and a fraction of a request cannot be sent.
    return AsyncLimiter(at_once, 60 * at_once / (limit + 1 - at_once))


class GateLike(Protocol):
    """A gate, or a proxy to one in another process."""

    async def begin(self, part: int) -> bool: ...
    async def enter(self, worker: str, request: str, estimate: int) -> Pass | None: ...
    async def reserve(self, worker: str, request: str, bound: Cost, submitted: bool) -> bool: ...
    async def pause(self, seconds: float | None) -> float: ...
    async def silence(self, seconds: float) -> None: ...
    async def stop(self, reason: str) -> None: ...
    async def report(self, worker: str, report: Report) -> None: ...
    async def news(self, epoch: str, seen: int) -> News: ...


class Ticket:
    """A request in flight. Its result is reported once; without a result it may have been billed."""

    def __init__(
        self,
        name: str,
        estimate: int,
        bound: Cost,
        worked: bool,
        journal: Journal,
        tell: Callable[[Bill], None],
    ) -> None:
        """worked: whether the latest request before it that has ended got a response."""
        self.name, self.bound, self.worked, self.sent = name, bound, worked, time.monotonic()
        self._estimate, self._journal, self._tell = estimate, journal, tell
        self.settled = False

    def billed(self, cost: Cost, key: str | None = None, reply: Reply | None = None, known: bool = True) -> None:
        """Record that the request got a response. key, reply: its row's request key and reply. Raises
        StorageError.

        known: whether the server reported the usage.
        """
        self._journal.ended(self.name, cost, key, reply, known)
        self.settled = True
        self._tell(Bill(self.name, cost, self._estimate, int(known)))

    def free(self) -> None:
        """Record that the request was refused or never reached the server: it costs nothing."""
        self.billed(Cost(), known=False)


class Turnstile:
    """A worker's client of the gate: its concurrency limit, its counts, and the shared state."""

    def __init__(self, gate: GateLike, teacher: ApiTeacher, share: int) -> None:
        """share: maximum number of requests in flight of this worker."""
        self._gate, self._teacher = gate, teacher
        self._name = uuid.uuid4().hex[:16]
        self._numbers = itertools.count()
        self._pass: Pass | None = None  # that covers all further requests
        self._slots = asyncio.Semaphore(share)
        self._counts: Counts = Counter()
        self._news = Report(Counter())
        self._paused_until = 0.0
        self._in_flight, self._last_failed = 0, 0.0
        self._failed_in_row, self._many = 0, max(LEAST_FAILURES, 2 * share)
        self.last_answer = 0.0
        """When this worker last received a response, by `time.monotonic`."""
        self.last_heard = 0.0
        """When the latest of its requests with a response was sent."""
        self._slowest = 0.0  # longest response time in seconds
        self.stopped = asyncio.Event()
        """Set when no more requests may be sent."""
        self._reason: str | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._report())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.hand_in()

    @asynccontextmanager
    async def slot(self, estimate: int, journal: Journal) -> AsyncIterator[Ticket]:
        """Send one request inside this context. estimate: approximate tokens of its prompt.

        Its bound is in the journal before it is sent, and stays there if the ticket has no bill at the end.
        Raises StoppedError if the stage was stopped, StorageError if the journal cannot be written.
        """
        name = f"{self._name}-{next(self._numbers)}"
        async with self._slots:
            await self.clear()
            if self.stopped.is_set():
                raise StoppedError
            leave = self._pass or await self._gate.enter(self._name, name, estimate)
            if leave is None:
                raise StoppedError
            bound = leave.bound
            if leave.free:
                self._pass, bound = leave, leave.estimator.bound(self._teacher, estimate)
            worked = self.last_heard > self._last_failed
            ticket = Ticket(name, estimate, bound, worked, journal, lambda bill: self._news.bills.append(bill))
            try:
                journal.sent(name, bound, estimate)
                await journal.stored()
            except BaseException:
                self._news.bills.append(Bill(name, Cost()))
                raise
            self._counts[SENT] += 1
            self._in_flight += 1
            try:
                yield ticket
            finally:
                self._in_flight -= 1
                if self.last_heard < ticket.sent:
                    self._last_failed = max(self._last_failed, ticket.sent)
                    self._failed_in_row += 1
                self._counts[ENDED] += 1
                if not ticket.settled:
                    self._news.bills.append(Bill(name, None, bound=bound))

    async def clear(self) -> None:
        """Wait until no pause delays requests or the stage was stopped."""
        while (wait := self._paused_until - time.monotonic()) > 0 and not self.stopped.is_set():
            await asyncio.sleep(min(wait, 0.5))

    async def reserve(self, batch: str, bound: Cost, submitted: bool) -> None:
        """Reserve a batch's bound until `settle`. batch: its name, the same at every start.

        submitted: whether an earlier start has submitted it. Raises StoppedError if no batch may be submitted.
        """
        if not await self._gate.reserve(self._name, batch, bound, submitted):
            raise StoppedError

    def settle(self, batch: str, billed: Cost, replies: int) -> None:
        """Replace the bound of a batch with its bill. replies: number of responses with usage."""
        self._news.bills.append(Bill(batch, billed, 0, replies))

    @contextmanager
    def batch(self, requests: int) -> Iterator[Callable[[int], None]]:
        """Count a batch as in progress inside this context.

        Yields a callback for the number of completed requests.
        """
        shown = 0

        def completed(count: int) -> None:
            nonlocal shown
            self._counts[COMPLETED] += count - shown
            shown = count

        self._counts.update({BATCHES: 1, BATCHED: requests})
        try:
            yield completed
        finally:
            completed(0)
            self._counts.update({BATCHES: -1, BATCHED: -requests})

    def answered(self, reply: Reply, form: str | None = None, sent: float = 0.0) -> None:
        """Count a response. form: request format of the reply; sent: when the request was sent (`Ticket.sent`)."""
        if reply.status != "error":
            self.last_heard, self._failed_in_row = max(self.last_heard, sent), 0
            self._counts[ANSWERED] += 1
            self._news.answers += 1
            self.last_answer = time.monotonic()
            if sent:
                self._slowest = max(self._slowest, self.last_answer - sent)
            if form:
                self._counts[FORM + form] += 1
        if reply.thought:
            self._counts[THOUGHTS] += 1
        if reply.model:
            mark = f" ({reply.fingerprint})" if reply.fingerprint else ""
            self._counts[f"{MODEL}{reply.model}{mark}"] += 1

    def failed(self, kind: str) -> None:
        """Count a request without response."""
        self._counts[FAILED + kind] += 1
        self._news.failures[FAILED + kind] += 1

    def settled(self, reply: Reply, earlier: bool = False) -> None:
        """Count a finished row. earlier: whether an earlier start has finished it."""
        self._counts.update({ROWS: 1, STATUS + reply.status: 1, EARLIER: int(earlier)})
        if not earlier:
            text = " ".join((reply.text or reply.thought or "")[: 4 * EXAMPLE].split())[:EXAMPLE]
            self._news.rows.append(Row(reply.status, reply.reason, text))

    async def begin(self, part: int, settled: Iterable[Reply]) -> None:
        """Count the finished rows of a part from earlier starts."""
        if await self._gate.begin(part):
            for reply in settled:
                self.settled(reply, earlier=True)
            await self.hand_in()

    async def pause(self, seconds: float | None) -> float:
        """Pause all workers because the server is busy. Returns the seconds of the pause."""
        wait = await self._gate.pause(seconds)
        self._paused_until = max(self._paused_until, time.monotonic() + wait)
        return wait

    async def stop(self, reason: str) -> None:
        """Stop all workers, with a reason."""
        self._reason = self._reason or reason
        self.stopped.set()
        await self._gate.stop(reason)

    async def silence(self, seconds: float) -> None:
        """Stop all workers because the server has not responded for this many seconds."""
        await self.hand_in()  # include the failures so far
        self.stopped.set()
        await self._gate.silence(seconds)

    async def sleep(self, seconds: float) -> None:
        """Sleep for some seconds. Raises StoppedError if the stage is stopped meanwhile."""
        try:
            await asyncio.wait_for(self.stopped.wait(), seconds)
        except TimeoutError:
            return
        raise StoppedError

    @property
    def down(self) -> bool:
        """Whether enough requests in a row have failed to mean an outage of the server."""
        return self._failed_in_row >= self._many

    async def hear(self, since: float, most: float) -> bool:
        """Whether the server responds to a request sent after `since`.

        Waits at most `most` seconds for requests in flight.
        """
        until = time.monotonic() + most
        while self.last_heard <= since and self._in_flight and time.monotonic() < until:
            await self.sleep(HEAR_SECONDS)
        return self.last_heard > since

    async def unless_stopped(self, work: Coroutine[Any, Any, object]) -> bool:
        """Await `work` until it is done or the stage is stopped. Returns whether it was not stopped."""
        working, stopped = asyncio.create_task(work), asyncio.create_task(self.stopped.wait())
        await asyncio.wait((working, stopped), return_when=asyncio.FIRST_COMPLETED)
        for task in (working, stopped):
            task.cancel()
        return not self.stopped.is_set()

    async def wait_for(self, tasks: Sequence[asyncio.Task[Any]]) -> None:
        """Wait for all tasks. After a stop or a failure, wait only for a grace period and cancel the rest."""
        if not tasks:
            return
        await self.unless_stopped(asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION))
        if running := [task for task in tasks if not task.done()]:
            grace = min(max(TIMES_SLOWEST * self._slowest, LEAST_GRACE), MOST_GRACE)
            await asyncio.wait(running, timeout=grace)
            for task in running:
                task.cancel()
            await asyncio.wait(running)

    async def _listen(self) -> None:
        epoch, seen = "", 0
        while True:
            news = await self._gate.news(epoch, seen)
            epoch, seen = news.epoch, news.version
            self._paused_until = max(self._paused_until, time.monotonic() + news.pause)
            if news.stopped:
                self._reason = self._reason or news.stopped
                self.stopped.set()

    async def _report(self) -> None:
        while True:
            # While others wait for settled requests, report sooner so that they can proceed.
            for _ in range(REPORTS_IN_ONE):
                await asyncio.sleep(REPORT_SECONDS / REPORTS_IN_ONE)
                if self._pass is None and self._news.bills:
                    break
            await self.hand_in()

    async def hand_in(self) -> None:
        """Send the counts and all events since the last report to the gate."""
        report, self._news = self._news, Report(Counter())
        report.counts, report.stopped = self._counts.copy(), self._reason
        await self._gate.report(self._name, report)
