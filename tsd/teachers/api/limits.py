"""Rate limits, budget, pauses and counts shared by all workers that send requests to one server.

One `RateLimiter` per stage enforces rate limits and budget. Each worker has a `RateLimiterClient`.
A restarted limiter reads the billing from the journals, and the workers report all other counts again.
"""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from aiolimiter import AsyncLimiter

from tsd.progress import clock
from tsd.recipe import ApiTeacher
from tsd.teachers.api.account import FEW_USAGES, Account, Cost, Earlier, TokenWindow
from tsd.teachers.api.messages import (
    BUSY,
    DOLLARS,
    ENDED,
    FAILED,
    INPUT,
    OUTPUT,
    SENT,
    UNCONFIRMED,
    UNCONFIRMED_TOKENS,
    Bill,
    Counts,
    News,
    Pass,
    Report,
)
from tsd.teachers.api.quality import QualityCheck

HEADROOM = 0.97  # fraction of a request limit that is used: evenly sent requests arrive less evenly
BURST_SECONDS = 1.0  # seconds' worth of a limit that may be used at once
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds, if the server does not specify a wait
MOST_SECONDS = 3600.0  # maximum wait that a server may request; above it, the stage stops
SILENT_SECONDS = 30.0  # after which a worker that does not report is considered dead
UNREACHED_SECONDS = 10.0  # without a connection, before the first response: then the stage stops


class RateLimiter:
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
        self._pauses = Pauses()
        self._server = ServerWatch(teacher)
        self._quality = QualityCheck(teacher.quality)
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
            known = self._account.replies >= FEW_USAGES and self._server.answers > 0
            return Pass(bound, self._account.estimator, free=known and not _limited(self._teacher))

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
        left = self._pauses.left()
        if seconds is None and left:
            return left  # same burst: a pause is already in effect
        if seconds is not None and seconds > MOST_SECONDS:
            await self.stop(
                f"{self._teacher.place} asks to wait for {clock(seconds)}: check its limits; the same command "
                "goes on from here"
            )
        left = self._pauses.extend(seconds)
        await self._tell()
        return left

    async def stop(self, reason: str) -> None:
        """Stop the stage. The first reason is kept."""
        self._stopped = self._stopped or reason
        await self._tell()

    async def silence(self, seconds: float) -> None:
        """Stop the stage because the server has not responded for this many seconds."""
        await self.stop(self._server.silence(seconds))

    async def report(self, worker: str, report: Report) -> None:
        """Process a worker's report."""
        self._heard[worker] = time.monotonic()
        self._counts[worker] = report.counts
        for bill in report.bills:
            self._settle(worker, bill)
        if report.answers:
            self._pauses.answered()
        self._server.saw(report.answers, report.failures)
        if report.stopped:
            await self.stop(report.stopped)
        reason = self._quality.add(report.rows)
        if reason and not self._stopped:
            await self.stop(reason)
        async with self._changed:
            self._changed.notify_all()

    async def news(self, epoch: str, seen: int) -> News:
        """Wait until there is a version later than `seen`, and return it."""
        async with self._changed:
            await self._changed.wait_for(lambda: epoch != self._epoch or self._version > seen)
        return News(self._epoch, self._version, self._pauses.left(), self._stopped)

    async def progress(self) -> tuple[Counts, str | None]:
        """Return the counts since the start and why the stage was stopped. Stops it if the server is silent.

        Tokens and cost include earlier starts.
        """
        counted = self._whole()
        reason = self._server.outage(counted[SENT] > counted[ENDED], self._pauses.requested)
        if reason and not self._stopped:
            await self.stop(reason)
        self._write_off()
        return self._whole(), self._stopped

    def paused(self) -> float:
        """Seconds left of a pause."""
        return self._pauses.left()

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
        return max(self._pauses.left(), self._tokens.wait(tokens) if self._tokens else 0.0)

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

    async def _tell(self) -> None:
        self._version += 1
        async with self._changed:
            self._changed.notify_all()


class Pauses:
    """Pause of all requests while the server is busy. Without a requested wait, each pause doubles the last."""

    def __init__(self) -> None:
        self._until = time.monotonic()
        self._backoff = 0.0
        self.requested = 0.0
        """Longest wait in seconds that the server has requested since its last response."""

    def left(self) -> float:
        """Seconds left of the pause."""
        return max(0.0, self._until - time.monotonic())

    def extend(self, seconds: float | None) -> float:
        """Pause, and return the seconds left. seconds: requested wait, None if unspecified."""
        now = time.monotonic()
        if seconds is None:
            seconds = self._backoff = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * self._backoff))
        elif seconds <= MOST_SECONDS:
            self.requested = max(self.requested, seconds)
        self._until = max(self._until, now + min(seconds, MOST_SECONDS))
        return self._until - now

    def answered(self) -> None:
        """Start from the shortest pause again, unless the response came during a pause."""
        if not self.left():
            self._backoff = self.requested = 0.0


NOT_REACHED = "not reached: "  # prefix of a failure's kind if no connection was established


class ServerWatch:
    """Responses and failures of all workers. Says when the server is silent or cannot be reached."""

    def __init__(self, teacher: ApiTeacher) -> None:
        self._teacher = teacher
        self.answers = 0
        """Responses since the start."""
        self._failures: Counts = Counter()  # since the last response, by kind
        self._started = self._last_answer = time.monotonic()

    def saw(self, answers: int, failures: Counts) -> None:
        """Record the responses and, by kind, the failures that a worker reports."""
        if answers:
            self.answers += answers
            self._last_answer = time.monotonic()
            self._failures.clear()
        self._failures.update(failures)

    def outage(self, waiting: bool, granted: float) -> str | None:
        """Return why the stage must stop, or None while the server responds.

        waiting: whether a worker waits for a response. granted: longest wait in seconds that the server has
        requested. It is granted once: a further request to wait counts as silence.
        """
        now = time.monotonic()
        if not waiting and not self._failures:
            self._last_answer = now
        silent = now - self._last_answer
        live = self._teacher.mode == "live"  # in batch mode, the polling code detects silence
        if live and silent > self._teacher.idle_timeout + granted:
            return self.silence(silent)
        unreached = bool(self._failures) and all(NOT_REACHED in kind for kind in self._failures)
        if unreached and not self.answers and now - self._started > UNREACHED_SECONDS:
            (kind, _), *_ = self._failures.most_common(1)
            said = kind.removeprefix(FAILED).removeprefix(NOT_REACHED)
            return (
                f"{self._teacher.place} cannot be reached: {said}: check {self._teacher.checks} and whether the "
                "server runs; the same command goes on from here"
            )
        return None

    def silence(self, seconds: float) -> str:
        """Format why the stage stops after this many seconds without a response."""
        if set(self._failures) == {FAILED + BUSY}:
            said = (
                f"refused every request for {clock(seconds)} ({BUSY}: too many): check its limits and lower "
                "teacher.in_flight"
            )
        else:
            kinds = self._failures.most_common(1)
            seen = f" ({kinds[0][0]})" if kinds else ""
            said = f"given no answer for {clock(seconds)}{seen}: check whether it works"
        return f"{self._teacher.place} has {said}, or raise teacher.idle_timeout; the same command goes on"


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
