"""A worker's side of the rate limiter: its share of the requests under way, its reports, the news."""

import asyncio
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

from tsd.recipe import ApiTeacher
from tsd.teachers import Reply
from tsd.teachers.api.account import Cost
from tsd.teachers.api.journal import Journal
from tsd.teachers.api.messages import Bill, Pass, RateLimiterLike, StoppedError
from tsd.teachers.api.server_state import ServerState
from tsd.teachers.api.suspects import Suspect, Suspects
from tsd.teachers.api.worker_counts import WorkerCounts

# While others wait for settled requests, reports are sent this many times as often.
REPORT_SECONDS, REPORTS_IN_ONE = 0.25, 5
HEAR_SECONDS = 0.05  # between two polls for a response


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
        self.reached = True
        """Whether it may have reached the server."""

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


class RateLimiterClient:
    """A worker's client of the rate limiter: its concurrency limit, its reports, and the shared state."""

    def __init__(self, rate_limiter: RateLimiterLike, teacher: ApiTeacher, share: int) -> None:
        """share: maximum number of requests in flight of this worker."""
        self._rate_limiter, self._teacher = rate_limiter, teacher
        self._name = uuid.uuid4().hex[:16]
        self._numbers = itertools.count()
        self._pass: Pass | None = None  # that covers all further requests
        self._slots = asyncio.Semaphore(share)
        self.counts = WorkerCounts()
        self.server = ServerState(share)
        self.suspects = Suspects()
        self._paused_until = 0.0
        self._held = False
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
    async def slot(
        self, estimate: int, journal: Journal, row: Suspect | None = None
    ) -> AsyncIterator[Ticket | None]:
        """Send one request inside this context. estimate: approximate tokens of its prompt. row: None for a test.

        Yields None, and nothing may be sent, if the row has to wait for its `turn` again.

        Its bound is in the journal before it is sent, and stays there if the ticket has no bill at the end.
        Raises StoppedError if the stage was stopped, StorageError if the journal cannot be written.
        """
        name = f"{self._name}-{next(self._numbers)}"
        async with self._slots:
            await self.clear()
            if self.stopped.is_set():
                raise StoppedError
            if row and (row.guilty or not self.suspects.may_go(row)):  # the server has ended meanwhile
                yield None
                return
            with self.suspects.going(row):
                leave = self._pass or await self._rate_limiter.enter(self._name, name, estimate)
                if leave is None:
                    raise StoppedError
                bound = leave.bound
                if leave.free:
                    self._pass, bound = leave, leave.estimator.bound(self._teacher, estimate)
                ticket = Ticket(name, estimate, bound, self.server.works, journal, self.counts.billed)
                try:
                    journal.sent(name, bound, estimate)
                    await journal.stored()
                except BaseException:
                    self.counts.billed(Bill(name, Cost()))
                    raise
                self.counts.sent()
                first = self.suspects.sent(row)
                try:
                    with self.server.request(ticket.sent):
                        yield ticket
                finally:
                    self.counts.ended()
                    if first and not ticket.reached:
                        self.suspects.unsent(row)
                    if not ticket.settled:
                        self.counts.billed(Bill(name, None, bound=bound))

    async def clear(self) -> None:
        """Wait until neither a pause, a hold nor a doubt delays requests, or the stage was stopped."""
        while not self.stopped.is_set():
            wait = self._paused_until - time.monotonic()
            held = self._held or self.server.doubted
            if wait <= 0 and not held:
                return
            await asyncio.sleep(HEAR_SECONDS if held else min(wait, 0.5))

    def hold(self, held: bool) -> None:
        """Delay all requests of this worker, as long as the server that it alone asks is being started.

        Rows that were under way when it ended are suspected. Whatever the keeper says ends a doubt. Called in the
        event loop of the requests.
        """
        if held and not self._held:
            self.suspects.ended()
        self._held, self.server.kept, self.server.doubted = held, True, False

    async def reserve(self, batch: str, bound: Cost, submitted: bool) -> None:
        """Reserve a batch's bound until `settle`. batch: its name, the same at every start.

        submitted: whether an earlier start has submitted it. Raises StoppedError if no batch may be submitted.
        """
        if not await self._rate_limiter.reserve(self._name, batch, bound, submitted):
            raise StoppedError

    def settle(self, batch: str, billed: Cost, replies: int) -> None:
        """Replace the bound of a batch with its bill. replies: number of responses with usage."""
        self.counts.billed(Bill(batch, billed, 0, replies))

    def answered(self, reply: Reply, form: str | None = None, sent: float = 0.0) -> None:
        """Record a response. form: request format of the reply; sent: time of the request (`Ticket.sent`)."""
        if reply.status != "error":
            self.server.heard(sent)
        self.counts.answered(reply, form)

    async def begin(self, part: int, settled: Iterable[Reply]) -> None:
        """Count the finished rows of a part from earlier starts."""
        if await self._rate_limiter.begin(part):
            for reply in settled:
                self.counts.settled(reply, earlier=True)
            await self.hand_in()

    async def pause(self, seconds: float | None) -> float:
        """Pause all workers because the server is busy. Returns the seconds of the pause."""
        wait = await self._rate_limiter.pause(seconds)
        self._paused_until = max(self._paused_until, time.monotonic() + wait)
        return wait

    async def stop(self, reason: str) -> None:
        """Stop all workers, with a reason."""
        self._reason = self._reason or reason
        self.stopped.set()
        await self._rate_limiter.stop(reason)

    async def silence(self, seconds: float) -> None:
        """Stop all workers because the server has not responded for this many seconds."""
        await self.hand_in()  # include the failures so far
        self.stopped.set()
        await self._rate_limiter.silence(seconds)

    async def sleep(self, seconds: float) -> None:
        """Sleep for some seconds. Raises StoppedError if the stage is stopped meanwhile."""
        try:
            await asyncio.wait_for(self.stopped.wait(), seconds)
        except TimeoutError:
            return
        raise StoppedError

    async def hear(self, since: float, most: float) -> bool:
        """Whether the server responds to a request sent after `since`.

        Waits at most `most` seconds for requests in flight.
        """
        until = time.monotonic() + most
        while self.server.last_heard <= since and self.server.in_flight and time.monotonic() < until:
            await self.sleep(HEAR_SECONDS)
        return self.server.last_heard > since

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
            await asyncio.wait(running, timeout=self.server.grace)
            for task in running:
                task.cancel()
            await asyncio.wait(running)

    async def _listen(self) -> None:
        epoch, seen = "", 0
        while True:
            news = await self._rate_limiter.news(epoch, seen)
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
                if self._pass is None and self.counts.has_bills:
                    break
            await self.hand_in()

    async def hand_in(self) -> None:
        """Send the counts and all events since the last report to the rate limiter."""
        await self._rate_limiter.report(self._name, self.counts.take(self._reason))
