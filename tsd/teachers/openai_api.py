"""A model behind an OpenAI-compatible API, asked live: many requests at once, whatever the server does.

What may pass is tried again; being told to wait is no failure; what no retry will mend stops the whole stage
with one line. Every reply is in the journal before it counts.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import openai
import pyarrow as pa
from tenacity import AsyncRetrying, RetryCallState, retry_if_result, wait_random_exponential

from tsd.errors import InputError
from tsd.recipe import ApiTeacher
from tsd.teachers import Reply, annotations, judge
from tsd.teachers.answers import SHOWN, clean, read_answer
from tsd.teachers.asking import Message, Question, Questions, repair
from tsd.teachers.dialect import Dialect
from tsd.teachers.gate import StoppedError, Turnstile
from tsd.teachers.journal import Journal

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before a failed request is tried again, drawn at random below
PATIENT = 4  # times as often a request is tried while nobody gets an answer
DRAWN_AT_ONCE = 16  # plots, between which replies are looked after
GRACE_SECONDS = 5.0  # for requests under way once the stage is to stop: their answers are paid for
MAY_PASS = (408, 409, 425)  # of the codes below 500, besides 429


def require_key(teacher: ApiTeacher) -> str:
    """The API's key. Raises InputError where the environment has none."""
    key = os.environ.get(teacher.key_env)
    if not key:
        raise InputError(f"the environment variable {teacher.key_env} (teacher.key_env) holds no key: set it")
    return key


class OpenAIApi:
    """Asks about series, a part at a time; several parts may be under way at once in its event loop."""

    def __init__(self, questions: Questions, turnstile: Turnstile, share: int) -> None:
        """questions: of an `ApiTeacher`. share: the requests that may be under way."""
        assert isinstance(questions.teacher, ApiTeacher)
        self._teacher: ApiTeacher = questions.teacher
        self._questions, self._turnstile = questions, turnstile
        self._key = require_key(self._teacher)
        self._client = openai.AsyncOpenAI(
            api_key=self._key,
            base_url=self._teacher.base_url,
            timeout=self._teacher.timeout,
            max_retries=0,  # the client would count being told to wait as one
            http_client=openai.DefaultAioHttpClient(),
        )
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
        await self._wait_for(list(asking.values()))
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
        return reply.status in ("invalid", "truncated") and reply.repairs < self._teacher.repairs

    async def _wait_for(self, tasks: list[asyncio.Task[Reply | None]]) -> None:
        """Until all are done; once the stage is stopped, no longer than answers on their way may take."""
        every = asyncio.gather(*tasks, return_exceptions=True)
        stopped = asyncio.create_task(self._turnstile.stopped.wait())
        await asyncio.wait((every, stopped), return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not every.done():
            await asyncio.wait((every,), timeout=GRACE_SECONDS)
            every.cancel()
            await asyncio.wait(tasks)

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
        tried = [before] if before else []
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
            retry_error_callback=_last,
            sleep=self._sleep,
        )
        last = judge(self._questions.task, await retrying(attempt))
        if last.status == "error" and before:  # what there was before is more than nothing
            last = before
        return replace(
            last,
            attempts=sum(reply.attempts for reply in tried),
            input_tokens=sum(reply.input_tokens for reply in tried),
            output_tokens=sum(reply.output_tokens for reply in tried),
            cost_usd=sum(reply.cost_usd for reply in tried),
            repairs=before.repairs + 1 if before else 0,
        )

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
        code, body = error.status_code, error.body if isinstance(error.body, dict) else {}
        if body.get("code") == "content_filter":  # Azure
            return Reply(None, "refused", "the provider's filter")
        if code == 429 and body.get("code") != "insufficient_quota":
            self._turnstile.failed("429")
            await self._turnstile.pause(retry_after(error.response.headers))
            return None
        if code >= 500 or code in MAY_PASS:
            return Reply(None, "error", f"{code}")
        if code in (400, 422) and self._dialect.adapt(error.message):
            return None
        said = clean(error.message.replace(self._key, "…").splitlines()[0])[:SHOWN]
        await self._turnstile.stop(
            f"{self._teacher.base_url} will not serve {self._teacher.model} ({said}): check teacher.base_url, "
            "teacher.model and the key; the same command goes on from here"
        )
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

    async def _sleep(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._turnstile.stopped.wait(), seconds)
        except TimeoutError:
            return
        raise StoppedError


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, by its headers; None where it does not say."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        try:
            if value is not None:
                return max(0.0, float(value) * unit)
        except ValueError:
            pass
    try:
        until = parsedate_to_datetime(headers.get("retry-after") or "")
    except (TypeError, ValueError):
        return None
    return max(0.0, (until - datetime.now(UTC)).total_seconds())


def _last(state: RetryCallState) -> Reply:
    assert state.outcome
    reply: Reply = state.outcome.result()
    return reply
