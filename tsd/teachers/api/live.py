"""Live client of an OpenAI-compatible API: many concurrent requests, robust against server failures.

Transient failures are retried. A requested wait does not count as a failure. A permanent failure stops the whole
stage with one message. Every reply is in the journal before it counts.
"""

import asyncio
import time
from collections.abc import Sequence

import pyarrow as pa
from tenacity import AsyncRetrying, retry_if_result, stop_never, wait_random_exponential

from tsd.errors import StorageError
from tsd.recipe import ApiTeacher
from tsd.teachers import Reply, annotations, outcome, repairable
from tsd.teachers.api.account import Cost
from tsd.teachers.api.batch_registry import BatchRegistry
from tsd.teachers.api.connection import FIRST_WAIT, LONGEST_WAIT
from tsd.teachers.api.journal import Journal
from tsd.teachers.api.live_outages import OutageDetector
from tsd.teachers.api.live_requests import FinalError, RequestSender
from tsd.teachers.api.messages import StoppedError
from tsd.teachers.api.responses import SHOWN, clean
from tsd.teachers.api.suspects import Suspect
from tsd.teachers.api.worker import RateLimiterClient, Ticket
from tsd.teachers.prompts import Question, Questions, repair, repair_tokens

DRAWN_AT_ONCE = 16  # plots rendered between two switches to other tasks


class OpenAIApi:
    """Annotates series part by part. Several parts can be in progress at once in its event loop."""

    def __init__(self, questions: Questions, limiter: RateLimiterClient, share: int) -> None:
        """questions: prompts of an `ApiTeacher`. share: maximum number of concurrent requests."""
        assert isinstance(questions.teacher, ApiTeacher)
        self._teacher: ApiTeacher = questions.teacher
        self._questions, self._limiter = questions, limiter
        self._sender = RequestSender(questions, limiter)
        self._outages = OutageDetector(self._sender, limiter)
        # A row that waits for a retry frees its slot for others. This bounds the rows with rendered plots in
        # memory.
        self._rows = asyncio.Semaphore(2 * share + DRAWN_AT_ONCE)
        # Take parts one after the other: interleaved parts would all end late and at the same time.
        self._taking = asyncio.Lock()

    async def close(self) -> None:
        """Close all connections."""
        await self._sender.close()

    async def annotate(self, part: int, series: pa.Table, journal: Journal) -> pa.Table | None:
        """series: the part's rows of the task's series table. Returns their annotations table.

        Returns None if the stage stopped and replies are missing. Rows in the journal are not requested again.
        """
        keys, history = self._questions.keys(series), await asyncio.to_thread(journal.read)
        registry = BatchRegistry(journal.folder)
        if registry.under_way(set(keys)):
            await self._limiter.stop(
                "open batches contain the same rows: set teacher.mode=batch to collect them, or delete "
                f"{registry.path} to request, and pay for, these rows again"
            )
            return None
        known = history.failed | history.replies
        replies = [known.get(key) for key in keys]
        await self._limiter.begin(part, [reply for reply in replies if reply and not self._repairable(reply)])
        async with self._taking:
            asking = await self._take(series, keys, replies, journal)
        await self._limiter.wait_for(list(asking.values()))
        for row, task in asking.items():
            replies[row] = None if task.cancelled() else task.result()
        await self._limiter.hand_in()
        whole = [reply for reply in replies if reply is not None]
        if len(whole) < len(replies):
            return None
        return annotations(self._questions.task, self._teacher.name, series, keys, whole)

    async def _take(
        self, series: pa.Table, keys: Sequence[str], replies: list[Reply | None], journal: Journal
    ) -> dict[int, asyncio.Task[Reply | None]]:
        """Start a task for every row without a usable reply; for fewer if the stage is stopped.

        replies: of all rows. A row whose prompt cannot be built gets an `error` there, and no task.
        """
        asking: dict[int, asyncio.Task[Reply | None]] = {}
        for first in range(0, len(series), DRAWN_AT_ONCE):
            rows = range(first, min(first + DRAWN_AT_ONCE, len(series)))
            missing = [row for row in rows if self._open(replies[row])]
            if not await self._limiter.unless_stopped(self._room(len(missing))):
                break
            asked = self._prompts(series.take(missing), [keys[row] for row in missing]) if missing else []
            for row, question in zip(missing, asked, strict=True):
                if isinstance(question, Reply):
                    reply = replies[row] = outcome(self._questions.task, replies[row], [question])
                    self._limiter.counts.settled(reply)
                    self._rows.release()
                    continue
                task = asyncio.create_task(self._describe(question, replies[row], journal))
                task.add_done_callback(lambda _: self._rows.release())
                asking[row] = task
            await asyncio.sleep(0)
        return asking

    def _prompts(self, series: pa.Table, keys: Sequence[str]) -> list[Question | Reply]:
        """Build the prompt of each row; for one that cannot be drawn, an `error`."""
        try:
            return [*self._questions.ask(series, keys)]
        except Exception as error:  # whatever a library raises about one row's values
            if len(keys) == 1:
                said = " ".join(str(error).split())
                return [Reply(None, "error", clean(f"{type(error).__name__}: {said}")[:SHOWN])]
        each = (self._prompts(series.slice(row, 1), keys[row : row + 1]) for row in range(len(keys)))
        return [one for (one,) in each]

    async def _room(self, rows: int) -> None:
        for _ in range(rows):
            await self._rows.acquire()

    def _open(self, reply: Reply | None) -> bool:
        return reply is None or self._repairable(reply)

    def _repairable(self, reply: Reply) -> bool:
        return repairable(reply, self._teacher.repairs)

    async def _describe(self, question: Question, reply: Reply | None, journal: Journal) -> Reply | None:
        """Return one row's reply, after repair requests if needed; None if the stage stopped before there
        was one.
        """
        try:
            while reply is None or self._repairable(reply):
                reply = await self._answer(question, reply, journal)
        except StorageError as error:  # do not pay for responses that cannot be stored
            await self._limiter.stop(str(error))
            return None
        except StoppedError:
            return None
        self._limiter.counts.settled(reply)
        return reply

    async def _answer(self, question: Question, before: Reply | None, journal: Journal) -> Reply:
        """Request the reply to a prompt, or to a repair request for the reply `before`.

        A failed try counts only if the server responds to other requests before and after it. Otherwise the server
        itself is at fault. If the server ended, `Suspects` judges the row.
        """
        messages = [*question.messages, *(repair(before) if before else [])]
        estimate = question.tokens + (repair_tokens(before) if before else 0)
        tried: list[Reply] = []
        counted, worked, ended = 0, False, 0.0
        row, doubts = Suspect(self._teacher.retries), 0  # doubts: ends of the server before the last try
        whole: Reply | None = None

        def keep(ticket: Ticket, reply: Reply, known: bool) -> None:
            nonlocal whole
            cost = Cost(reply.input_tokens, reply.output_tokens, reply.cost_usd)
            whole = None if reply.status == "error" else outcome(self._questions.task, before, [*tried, reply])
            ticket.billed(cost, question.key, whole, known)

        async def attempt() -> Reply | None:
            """Make one try; return None if the number of retries is used up."""
            nonlocal counted, worked, ended, doubts
            if tried and not tried[-1].input_tokens and row.doubts == doubts:
                works = await self._outages.works(ended, worked, journal)
                counted += works and worked and row.doubts == doubts
            if counted <= self._teacher.retries:
                await self._outages.wait_out(journal)
                doubts = row.doubts
                reply, worked = await self._sender.send(messages, estimate, journal, keep, row)
                ended = time.monotonic()
                if reply.status != "error" or reply.input_tokens:
                    self._limiter.suspects.answered(row)
                tried.append(reply)
                counted += reply.status == "error" and reply.input_tokens > 0
            return tried[-1] if counted <= self._teacher.retries else None

        retrying = AsyncRetrying(
            stop=stop_never,
            wait=wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
            retry=retry_if_result(lambda reply: reply is not None and reply.status == "error"),
            sleep=self._limiter.sleep,
        )
        try:
            await retrying(attempt)
        except FinalError as final:
            tried.append(final.reply)
        finally:
            self._limiter.suspects.clear(row)
        return whole or outcome(self._questions.task, before, tried)
