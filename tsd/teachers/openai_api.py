"""A model behind an OpenAI-compatible API, asked live: many requests at once, whatever the server does.

What may pass is tried again; being told to wait is no failure; what no retry will mend stops the whole stage
with one line. Every reply is in the journal before it counts.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import openai
import pyarrow as pa
from tenacity import AsyncRetrying, RetryCallState, retry_if_result, wait_random_exponential

from tsd.recipe import ApiTeacher
from tsd.teachers import Reply, annotations, outcome, repairable
from tsd.teachers.answers import outlook, read_answer
from tsd.teachers.asking import Message, Question, Questions, repair
from tsd.teachers.dialect import Dialect
from tsd.teachers.gate import StoppedError, Turnstile
from tsd.teachers.journal import Journal
from tsd.teachers.server import FIRST_WAIT, LONGEST_WAIT, body_of, connect, refusal, retry_after

PATIENT = 4  # times as often a request is tried while nobody gets an answer
DRAWN_AT_ONCE = 16  # plots, between which replies are looked after


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
        # A row that waits to be tried again leaves its slot to others; so many rows are drawn and kept at once.
        self._rows = asyncio.Semaphore(2 * share + DRAWN_AT_ONCE)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def annotate(self, part: int, series: pa.Table, journal: Journal) -> pa.Table | None:
        """series: the part's rows of the task's series table. Returns their annotations table.

        None where the stage was stopped and replies are missing. What the journal holds is not asked again.
        Raises StorageError where it cannot be written.
        """
        keys, known = self._questions.keys(series), journal.replies()
        replies = [known.get(key) for key in keys]
        there = [reply for reply in replies if reply]
        await self._turnstile.begin(part, there, [reply for reply in there if not self._repairable(reply)])
        asking: dict[int, asyncio.Task[Reply | None]] = {}
        for first in range(0, len(series), DRAWN_AT_ONCE):
            rows = range(first, min(first + DRAWN_AT_ONCE, len(series)))
            missing = [row for row in rows if self._open(replies[row])]
            for _ in missing:
                await self._rows.acquire()
            asked = self._questions.ask(series.take(missing), [keys[row] for row in missing]) if missing else []
            for row, question in zip(missing, asked, strict=True):
                task = asyncio.create_task(self._describe(question, replies[row], journal))
                task.add_done_callback(lambda _: self._rows.release())
                asking[row] = task
            await asyncio.sleep(0)
        await self._turnstile.wait_for(list(asking.values()))
        for row, task in asking.items():
            replies[row] = None if task.cancelled() else task.result()
        await self._turnstile.hand_in()
        whole = [reply for reply in replies if reply is not None]
        if len(whole) < len(replies):
            return None
        return annotations(self._questions.task, self._teacher.name, series, keys, whole)

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
        await retrying(attempt)
        return outcome(self._questions.task, before, tried)

    async def _send(self, messages: list[Message], tokens: int) -> Reply:
        """One request, however often the server says to wait. tokens: of the question, roughly.

        A request that failed and may pass is an `error`. Raises StoppedError where the stage was stopped.
        """
        while True:
            async with self._alone_at_first(), self._turnstile.slot(tokens + self._teacher.max_tokens):
                started = time.perf_counter()
                try:
                    body = self._dialect.body(messages)
                    answer = await self._client.chat.completions.with_raw_response.create(**body)
                except openai.APIStatusError as error:
                    reply = await self._refused(error)
                    if reply is None:
                        continue
                except openai.OpenAIError as error:
                    reply = Reply(None, "error", type(error).__name__)
                else:
                    reply = read_answer(answer.http_response.content, self._teacher.usd, tokens)
                    reply = replace(reply, latency_ms=1000 * (time.perf_counter() - started))
                    self._turnstile.answered(reply)
                    if not self._dialect.agreed:  # what one request takes is known before others are sent
                        await self._turnstile.hand_in()
                        self._dialect.agreed = True
                if reply.status == "error":
                    self._turnstile.failed(reply.reason or "")
                return reply

    async def _refused(self, error: openai.APIStatusError) -> Reply | None:
        """What a server's refusal means for the row; None: the same request is to be sent again."""
        code, body = error.status_code, body_of(error)
        meaning = outlook(code, body)
        if meaning == "filtered":
            return Reply(None, "refused", "the provider's filter")
        if meaning == "busy":
            self._turnstile.failed("429")
            await self._turnstile.pause(retry_after(error.response.headers))
            return None
        if meaning == "passing":
            return Reply(None, "error", f"{code}")
        if code in (400, 422) and self._dialect.adapt(error.message):
            return None
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
