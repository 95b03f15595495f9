"""What all workers that ask one server share: its limits, its pauses, the budget, and what has come so far.

A `Gate` stands once for a whole stage, wherever it runs; a `Turnstile` is a worker's own side of it.
"""

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, Self

from aiolimiter import AsyncLimiter

from tsd.progress import clock
from tsd.recipe import ApiTeacher
from tsd.teachers import Reply

HEADROOM = 0.97  # of a limit that is used: what is sent evenly arrives less so
BURST_SECONDS = 1.0  # of a limit that may be used at once
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds, where the server does not say how long
MOST_SECONDS = 3600.0  # that a server may ask to wait
REPORT_SECONDS = 0.25
GRACE_SECONDS = 5.0  # for requests under way once the stage is to stop: their answers are paid for
SILENT_SECONDS = 30.0  # after which a worker that does not report is taken for dead

# What is counted. Rows also by status, as "row ok"; requests without an answer by kind, as "failed 429".
ROWS, EARLIER, SENT, ENDED, ANSWERED = "rows", "earlier rows", "sent", "ended", "answered"
INPUT, OUTPUT, DOLLARS = "input tokens", "output tokens", "dollars"
STATUS, FAILED = "row ", "failed "
BUSY = "429"  # the kind of a request that was told to wait
# What is under way now, of an offline Batch API: it goes up and down.
BATCHES, BATCHED, COMPLETED = "batches", "requests in batches", "of them completed"

Counts = Counter[str]


class StoppedError(Exception):
    """The stage is to end: no more is asked."""


@dataclass(frozen=True)
class News:
    """What every worker has to know at once."""

    version: int
    pause: float
    """Seconds from now on in which nothing is sent."""
    stopped: str | None
    """Why no more is asked, for a person."""


class Gate:
    """Lets requests pass, keeps the limits and the budget, stops the stage."""

    def __init__(self, teacher: ApiTeacher, spent: Mapping[str, float]) -> None:
        """spent: what finished parts have cost, by `INPUT`, `OUTPUT` and `DOLLARS`."""
        self._teacher = teacher
        self._counts: Counts = Counter()
        self._spent: Counts = Counter(spent)
        self._dearest: Counts = Counter()  # the most that one request has taken
        self._under_way: Counts = Counter()  # requests, by worker
        self._heard: dict[str, float] = {}  # when, by worker
        self._begun: set[int] = set()  # parts
        self._requests = _request_limiter(teacher.requests_per_minute)
        self._tokens = _token_limiter(teacher.tokens_per_minute, 1.0)
        self._paused_until = self._last_answer = time.monotonic()
        self._pause = 0.0
        self._told = 0.0  # the longest that the server has asked to wait, until it answers again
        self._failures: Counts = Counter()  # since then, by kind
        self._version = 0
        self._stopped: str | None = None
        self._changed = asyncio.Condition()
        self._turn = asyncio.Lock()

    async def begin(self, part: int) -> bool:
        """Whether a part is begun for the first time: from then on, all that it costs is reported."""
        first = part not in self._begun
        self._begun.add(part)
        return first

    async def enter(self, worker: str, tokens: int) -> bool:
        """Wait until a request of at most so many tokens may be sent; False if none may be any more."""
        async with self._turn:
            await self._afford(worker, tokens, 1)
            if self._requests:
                await self._requests.acquire()
            if self._tokens and self._teacher.tokens_per_minute:
                expected = self._dearest[INPUT] + self._dearest[OUTPUT] or tokens
                if expected > self._tokens.max_rate:
                    self._tokens = _token_limiter(self._teacher.tokens_per_minute, expected)
                    assert self._tokens
                await self._tokens.acquire(min(expected, self._tokens.max_rate))
            while (wait := self._paused_until - time.monotonic()) > 0 and not self._stopped:
                await asyncio.sleep(min(wait, 1.0))
            return self._stopped is None

    async def reserve(self, worker: str, tokens: int, requests: int, submitted: bool) -> bool:
        """Wait until a batch of requests of at most so many tokens each may be submitted; False if none may be.

        submitted: an earlier start has done so; it is under way whatever it costs.
        """
        if submitted:
            self._under_way[worker] += requests
            return True
        async with self._turn:
            await self._afford(worker, tokens, requests)
            return self._stopped is None

    async def pause(self, seconds: float | None) -> float:
        """The server is too busy: nobody sends anything for so long, None where it did not say.

        Returns the seconds that are left of it.
        """
        now = time.monotonic()
        if seconds is None:
            if now < self._paused_until:
                return self._paused_until - now  # the same burst: it is being waited for
            self._pause = min(LONGEST_PAUSE, max(FIRST_PAUSE, 2 * self._pause))
            seconds = self._pause
        else:
            self._told = max(self._told, min(seconds, MOST_SECONDS))
        self._paused_until = max(self._paused_until, now + min(seconds, MOST_SECONDS))
        await self._tell()
        return self._paused_until - now

    async def stop(self, reason: str) -> None:
        """No more is asked; the first reason counts."""
        self._stopped = self._stopped or reason
        await self._tell()

    async def silence(self, seconds: float) -> None:
        """The server has not answered for so long: no more is asked."""
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

    async def report(self, worker: str, counts: Counts, dearest: Counts) -> None:
        """Take what a worker has counted since its last report, and the most that one request has taken."""
        now = time.monotonic()
        self._heard[worker] = now
        self._under_way[worker] -= int(counts[ENDED])
        self._counts.update(counts)
        self._dearest |= dearest
        self._failures.update({name: count for name, count in counts.items() if name.startswith(FAILED)})
        if counts[ANSWERED]:
            self._last_answer = now
            self._failures.clear()
            if now > self._paused_until:
                self._pause = self._told = 0.0
        async with self._changed:
            self._changed.notify_all()

    async def news(self, seen: int) -> News:
        """Wait until there is news later than what was seen."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._version > seen)
        return News(self._version, max(0.0, self._paused_until - time.monotonic()), self._stopped)

    async def progress(self) -> tuple[Counts, str | None]:
        """What was counted since the start, and why the stage was stopped. Stops it where the server is silent."""
        silent = time.monotonic() - self._last_answer
        live = self._teacher.mode == "live"  # a batch is waited for: who looks after it knows what is silence
        # A wait that the server asked for is granted once: after it, being told to wait again is no answer.
        if live and silent > self._teacher.patience + self._told and not self._stopped:
            await self.silence(silent)
        return self._counts, self._stopped

    async def _afford(self, worker: str, tokens: int, requests: int) -> None:
        """Wait until so many more requests fit into the budget, whatever those under way may take; or stop."""
        teacher = self._teacher
        while (teacher.budget_usd or teacher.budget_tokens) and not self._stopped:
            self._write_off()
            each_usd = self._dearest[DOLLARS] or teacher.usd(tokens - teacher.max_tokens, teacher.max_tokens)
            each_tokens = self._dearest[INPUT] + self._dearest[OUTPUT] or tokens
            under_way = self._under_way.total()
            dollars = self._counts[DOLLARS] + self._spent[DOLLARS]
            taken = sum(counts[name] for counts in (self._counts, self._spent) for name in (INPUT, OUTPUT))
            usd, more = requests * each_usd, requests * each_tokens
            used = None
            if teacher.budget_usd and dollars + under_way * each_usd + usd > teacher.budget_usd:
                used = f"teacher.budget_usd is used up: ${dollars:,.4g} of ${teacher.budget_usd:,.4g}, and "
                used += f"what comes next may take ${usd:,.4g}"
            if teacher.budget_tokens and taken + under_way * each_tokens + more > teacher.budget_tokens:
                used = f"teacher.budget_tokens is used up: {taken:,.0f} of {teacher.budget_tokens:,}, and "
                used += f"what comes next may take {more:,.0f}"
            if not used:
                self._under_way[worker] += requests
                return
            if under_way <= 0:
                await self.stop(f"{used}; raise it, and the same command goes on from here")
                return
            with suppress(TimeoutError):  # those under way may turn out cheaper
                async with asyncio.timeout(1.0), self._changed:
                    await self._changed.wait()

    def _write_off(self) -> None:
        """What a dead worker had under way may have been paid for; its batches are found again, and count then."""
        now = time.monotonic()
        for worker in [one for one, heard in self._heard.items() if now - heard > SILENT_SECONDS]:
            lost = self._under_way.pop(worker, 0)
            if self._teacher.mode == "live":
                self._spent.update({name: lost * most for name, most in self._dearest.items()})
            del self._heard[worker]

    async def _tell(self) -> None:
        self._version += 1
        async with self._changed:
            self._changed.notify_all()


def _request_limiter(per_minute: int | None) -> AsyncLimiter | None:
    """At most so many requests in any minute; None without a limit."""
    if per_minute is None:
        return None
    limit = HEADROOM * per_minute
    at_once = max(1.0, limit * BURST_SECONDS / 60)
    # What is full at once is part of that minute; a part of a request is none.
    return AsyncLimiter(at_once, 60 * at_once / (limit + 1 - at_once))


def _token_limiter(per_minute: int | None, largest: float) -> AsyncLimiter | None:
    """At most so many tokens in any minute, asked for in pieces up to `largest`; None without a limit."""
    if per_minute is None:
        return None
    limit = HEADROOM * per_minute
    at_once = min(limit / 2, max(largest, limit * BURST_SECONDS / 60))
    return AsyncLimiter(at_once, 60 * at_once / (limit - at_once))


class GateLike(Protocol):
    """A gate, or the way to one in another process."""

    async def begin(self, part: int) -> bool: ...
    async def enter(self, worker: str, tokens: int) -> bool: ...
    async def reserve(self, worker: str, tokens: int, requests: int, submitted: bool) -> bool: ...
    async def pause(self, seconds: float | None) -> float: ...
    async def silence(self, seconds: float) -> None: ...
    async def stop(self, reason: str) -> None: ...
    async def report(self, worker: str, counts: Counts, dearest: Counts) -> None: ...
    async def news(self, seen: int) -> News: ...


class Turnstile:
    """A worker's side of the gate: its share of what may be under way, its counts, the news."""

    def __init__(self, gate: GateLike, teacher: ApiTeacher, share: int) -> None:
        """share: the requests that this worker may have under way."""
        self._gate = gate
        self._name = uuid.uuid4().hex
        self._limited = any(
            (teacher.requests_per_minute, teacher.tokens_per_minute, teacher.budget_usd, teacher.budget_tokens)
        )
        self._slots = asyncio.Semaphore(share)
        self._counts: Counts = Counter()
        self._dearest: Counts = Counter()
        self._paused_until = 0.0
        self.last_answer = 0.0
        """When this worker was last given an answer, by `time.monotonic`."""
        self.stopped = asyncio.Event()
        """Set when nothing may be sent any more."""
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
    async def slot(self, tokens: int) -> AsyncIterator[None]:
        """Send one request inside this context. tokens: the most that it may take, in and out.

        Raises StoppedError where nothing may be sent any more.
        """
        async with self._slots:
            await self.clear()
            if self.stopped.is_set() or (self._limited and not await self._gate.enter(self._name, tokens)):
                raise StoppedError
            self._counts[SENT] += 1
            try:
                yield
            finally:
                self._counts[ENDED] += 1

    async def clear(self) -> None:
        """Wait until no pause holds requests back, or the stage was stopped."""
        while (wait := self._paused_until - time.monotonic()) > 0 and not self.stopped.is_set():
            await asyncio.sleep(min(wait, 0.5))

    async def reserve(self, tokens: int, requests: int, submitted: bool) -> None:
        """Have a batch of so many requests under way, of at most so many tokens each, until `returned`.

        Raises StoppedError where none may be submitted any more; submitted: it was, by an earlier start.
        """
        if not await self._gate.reserve(self._name, tokens, requests, submitted):
            raise StoppedError

    def returned(self, requests: int) -> None:
        """Count a batch's requests as no longer under way."""
        self._counts[ENDED] += requests

    @contextmanager
    def batch(self, requests: int) -> Iterator[Callable[[int], None]]:
        """Show a batch as under way inside this context. Gives what is told how many of its requests are done."""
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

    def answered(self, reply: Reply) -> None:
        """Count an answer of the server."""
        taken = _taken(reply)
        if reply.status != "error":
            self._counts[ANSWERED] += 1
            self.last_answer = time.monotonic()
        self._counts.update(taken)
        self._dearest |= taken

    def failed(self, kind: str) -> None:
        """Count a request that got no answer."""
        self._counts[FAILED + kind] += 1

    def settled(self, reply: Reply) -> None:
        """Count a row that is done."""
        self._counts.update({ROWS: 1, STATUS + reply.status: 1})

    async def begin(self, part: int, replies: Iterable[Reply], settled: Iterable[Reply]) -> None:
        """Count what earlier starts have done of a part: the replies that were paid for, and the rows settled."""
        if await self._gate.begin(part):
            for reply in replies:
                self._counts.update(_taken(reply))
            for reply in settled:
                self.settled(reply)
                self._counts[EARLIER] += 1
            await self.hand_in()

    async def pause(self, seconds: float | None) -> float:
        """Tell everybody that the server is too busy. Returns for how many seconds."""
        wait = await self._gate.pause(seconds)
        self._paused_until = max(self._paused_until, time.monotonic() + wait)
        return wait

    async def stop(self, reason: str) -> None:
        """Tell everybody to end, and why."""
        self.stopped.set()
        await self._gate.stop(reason)

    async def silence(self, seconds: float) -> None:
        """Tell everybody to end: the server has not answered for so long."""
        await self.hand_in()  # what failed is said too
        self.stopped.set()
        await self._gate.silence(seconds)

    async def sleep(self, seconds: float) -> None:
        """Sleep so long. Raises StoppedError where the stage is stopped meanwhile."""
        try:
            await asyncio.wait_for(self.stopped.wait(), seconds)
        except TimeoutError:
            return
        raise StoppedError

    async def unless_stopped(self, work: Coroutine[Any, Any, None]) -> bool:
        """Wait for something, no longer than until the stage is stopped. Returns whether it came to its end."""
        working, stopped = asyncio.create_task(work), asyncio.create_task(self.stopped.wait())
        await asyncio.wait((working, stopped), return_when=asyncio.FIRST_COMPLETED)
        for task in (working, stopped):
            task.cancel()
        return not self.stopped.is_set()

    async def wait_for(self, tasks: Sequence[asyncio.Task[Any]]) -> None:
        """Until all are done; once the stage is stopped or one fails, no longer than answers may be on the way."""
        if not tasks:
            return
        stopped = asyncio.create_task(self.stopped.wait())
        every = asyncio.create_task(asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION))
        await asyncio.wait((every, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        every.cancel()
        if running := [task for task in tasks if not task.done()]:
            await asyncio.wait(running, timeout=GRACE_SECONDS)
            for task in running:
                task.cancel()
            await asyncio.wait(running)

    async def _listen(self) -> None:
        seen = 0
        while True:
            news = await self._gate.news(seen)
            seen = news.version
            self._paused_until = max(self._paused_until, time.monotonic() + news.pause)
            if news.stopped:
                self.stopped.set()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            await self.hand_in()

    async def hand_in(self) -> None:
        """Report what was counted since the last time."""
        counts, self._counts = self._counts, Counter()
        await self._gate.report(self._name, counts, self._dearest)


def _taken(reply: Reply) -> Counts:
    taken: Counts = Counter()
    taken.update({INPUT: reply.input_tokens, OUTPUT: reply.output_tokens, DOLLARS: reply.cost_usd})
    return taken
