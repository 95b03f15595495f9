"""A model behind an OpenAI-compatible API, asked live: many requests at once, whatever the server does.

What may pass is tried again; being told to wait is no failure; what no retry will mend stops the whole stage
with one line. Every reply is in the journal before it counts.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import openai
import pyarrow as pa
from tenacity import AsyncRetrying, RetryCallState, retry_if_result, wait_random_exponential

from tsd.errors import StorageError
from tsd.recipe import ApiTeacher
from tsd.teachers import Reply, annotations, outcome, repairable
from tsd.teachers.answers import OF_THE_ROW, outlook, read_answer
from tsd.teachers.asking import Message, Question, Questions, repair
from tsd.teachers.dialect import Dialect
from tsd.teachers.gate import BUSY, StoppedError, Turnstile
from tsd.teachers.journal import Journal
from tsd.teachers.ledger import Ledger
from tsd.teachers.server import FIRST_WAIT, LONGEST_WAIT, body_of, connect, first_line, refusal, retry_after

PATIENT = 4  # times as often a request is tried while nobody gets an answer
DRAWN_AT_ONCE = 16  # plots, between which replies are looked after
MOST_REFUSALS = 20  # of a worker's rows without an answer between them: from then on it is not about the rows


class FinalError(Exception):
    """What came of a row's request, and asking again would not mend it."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.reason)
        self.reply = reply


class OpenAIApi:
    """Asks about series, a part at a time; several parts may be under way at once in its event loop."""

    def __init__(self, questions: Questions, turnstile: Turnstile, share: int) -> None:
        """questions: of an `ApiTeacher`. share: the requests that may be under way."""
        assert isinstance(questions.teacher, ApiTeacher)
        self._teacher: ApiTeacher = questions.teacher
        self._questions, self._turnstile = questions, turnstile
        self._client = connect(self._teacher)
        self._dialect = Dialect(self._teacher, questions.task)
        self._negotiation = asyncio.Lock()
        self._refusals = 0  # since the last answer
        # A row that waits to be tried again leaves its slot to others; so many rows are drawn and kept at once.
        self._rows = asyncio.Semaphore(2 * share + DRAWN_AT_ONCE)
        # Parts one after the other: taken in turns all would end late, and at once, with nothing left to begin.
        self._taking = asyncio.Lock()

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def annotate(self, part: int, series: pa.Table, journal: Journal) -> pa.Table | None:
        """series: the part's rows of the task's series table. Returns their annotations table.

        None where the stage was stopped and replies are missing. What the journal holds is not asked again.
        """
        keys, known = self._questions.keys(series), journal.replies()
        ledger = Ledger(journal.folder)
        if ledger.under_way(set(keys)):
            await self._turnstile.stop(
                "batches are under way that ask the same: teacher.mode=batch collects them; or delete "
                f"{ledger.path} to ask, and pay for, their rows again"
            )
            return None
        replies = [known.get(key) for key in keys]
        there = [reply for reply in replies if reply]
        await self._turnstile.begin(part, there, [reply for reply in there if not self._repairable(reply)])
        async with self._taking:
            asking = await self._take(series, keys, replies, journal)
        await self._turnstile.wait_for(list(asking.values()))
        for row, task in asking.items():
            replies[row] = None if task.cancelled() else task.result()
        await self._turnstile.hand_in()
        whole = [reply for reply in replies if reply is not None]
        if len(whole) < len(replies):
            return None
        return annotations(self._questions.task, self._teacher.name, series, keys, whole)

    async def _take(
        self, series: pa.Table, keys: Sequence[str], replies: Sequence[Reply | None], journal: Journal
    ) -> dict[int, asyncio.Task[Reply | None]]:
        """Begin to ask about every row without a reply that will do; fewer where the stage is stopped."""
        asking: dict[int, asyncio.Task[Reply | None]] = {}
        for first in range(0, len(series), DRAWN_AT_ONCE):
            rows = range(first, min(first + DRAWN_AT_ONCE, len(series)))
            missing = [row for row in rows if self._open(replies[row])]
            if not await self._turnstile.unless_stopped(self._room(len(missing))):
                break
            asked = self._questions.ask(series.take(missing), [keys[row] for row in missing]) if missing else []
            for row, question in zip(missing, asked, strict=True):
                task = asyncio.create_task(self._describe(question, replies[row], journal))
                task.add_done_callback(lambda _: self._rows.release())
                asking[row] = task
            await asyncio.sleep(0)
        return asking

    async def _room(self, rows: int) -> None:
        for _ in range(rows):
            await self._rows.acquire()

    def _open(self, reply: Reply | None) -> bool:
        return reply is None or self._repairable(reply)

    def _repairable(self, reply: Reply) -> bool:
        return repairable(reply, self._teacher.repairs)

    async def _describe(self, question: Question, reply: Reply | None, journal: Journal) -> Reply | None:
        """One row's reply, mended if need be; None where the stage was stopped before there was one."""
        try:
            while reply is None or self._repairable(reply):
                reply = await self._answer(question, reply)
                if reply.status != "error":
                    journal.add(question.key, reply)
        except StorageError as error:  # what cannot be kept must not be paid for
            await self._turnstile.stop(str(error))
            return None
        except StoppedError:
            return None
        self._turnstile.settled(reply)
        return reply

    async def _answer(self, question: Question, before: Reply | None) -> Reply:
        """The reply to a question, or to being told what is wrong with the one before."""
        messages = [*question.messages, *(repair(before) if before else [])]
        tried: list[Reply] = []
        started = time.monotonic()

        async def attempt() -> Reply:
            tried.append(await self._send(messages, question.tokens))
            return tried[-1]

        def enough(state: RetryCallState) -> bool:
            tries = self._teacher.retries + 1
            alive = self._turnstile.last_answer > started  # else it is the server's trouble, not this row's
            return state.attempt_number >= (tries if alive else PATIENT * tries)

        retrying = AsyncRetrying(
            stop=enough,
            wait=wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
            retry=retry_if_result(lambda reply: reply.status == "error"),
            retry_error_callback=lambda _: None,  # the last try stands in `tried`
            sleep=self._turnstile.sleep,
        )
        try:
            await retrying(attempt)
        except FinalError as final:
            tried.append(final.reply)
        return outcome(self._questions.task, before, tried)

    async def _send(self, messages: list[Message], tokens: int) -> Reply:
        """One request, however often the server says to wait. tokens: of the question, roughly.

        Returns what came, an `error` where the request failed. Raises FinalError where nothing is to be sent
        again, StoppedError where the stage was stopped.
        """
        while True:
            async with self._alone_at_first(), self._turnstile.slot(tokens + self._teacher.max_tokens):
                started = time.perf_counter()
                try:
                    body = self._dialect.body(messages)
                    async with asyncio.timeout(self._teacher.timeout):  # the client's is between two reads
                        # The client walks through the body that it knows, looking for names to change, of which
                        # a chat request has none: a third of a request's time. An extra body it leaves alone.
                        answer = await self._client.chat.completions.with_raw_response.create(
                            model=self._teacher.model, messages=(), extra_body=body
                        )
                except openai.APIStatusError as error:
                    meant = await self._refused(error)
                    if meant is None:
                        continue
                    reply = meant
                except (openai.APITimeoutError, TimeoutError):
                    reply = Reply(None, "error", "timed out")
                except openai.OpenAIError as error:
                    reply = Reply(None, "error", type(error).__name__)
                else:
                    reply = read_answer(answer.http_response.content, self._teacher.usd, tokens)
                    reply = replace(reply, latency_ms=1000 * (time.perf_counter() - started))
                    self._turnstile.answered(reply)
                    if reply.status != "error":
                        self._refusals = 0
                        await self._agree()
                if reply.status == "error":
                    self._turnstile.failed((reply.reason or "").partition(":")[0])
                return reply

    async def _agree(self) -> None:
        """The server has taken a request: what one takes is known before others are sent."""
        if not self._dialect.agreed:
            await self._turnstile.hand_in()
            self._dialect.agreed = True

    async def _refused(self, error: openai.APIStatusError) -> Reply | None:
        """What a server's refusal means for the row; None: send the request again. Raises as `_send` does."""
        code, body = error.status_code, body_of(error)
        meaning = outlook(code, body)
        if meaning == "filtered":
            raise FinalError(Reply(None, "refused", "the provider's filter"))
        if meaning == "busy":
            self._turnstile.failed(BUSY)
            await self._turnstile.pause(retry_after(error.response.headers))
            return None
        if meaning == "passing":
            return Reply(None, "error", f"{code}")
        if code in (400, 422) and self._dialect.adapt(error.message):
            return None
        self._refusals += 1
        if code in OF_THE_ROW and self._dialect.agreed and self._refusals < MOST_REFUSALS:
            self._turnstile.failed(f"{code}")
            said = first_line(self._teacher, str(body.get("message")))
            raise FinalError(Reply(None, "error", f"{code}: {said}"))
        await self._turnstile.stop(refusal(self._teacher, error.message))
        raise StoppedError

    @asynccontextmanager
    async def _alone_at_first(self) -> AsyncIterator[None]:
        """Until the server has taken a request, one at a time: a wrong key is not tried by all at once."""
        if not self._dialect.agreed:
            async with self._negotiation:
                if not self._dialect.agreed:
                    yield
                    return
        yield
