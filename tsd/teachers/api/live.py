"""Live client of an OpenAI-compatible API: many concurrent requests, robust against server failures.

Transient failures are retried. A requested wait does not count as a failure. A permanent failure stops the whole
stage with one message. Every reply is in the journal before it counts.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import openai
import pyarrow as pa
from tenacity import AsyncRetrying, retry_if_result, stop_never, wait_random_exponential

from tsd.errors import StorageError
from tsd.recipe import ApiTeacher
from tsd.teachers import Reply, annotations, outcome, repairable
from tsd.teachers.api.account import Cost
from tsd.teachers.api.batch_registry import BatchRegistry
from tsd.teachers.api.connection import (
    FIRST_WAIT,
    LONGEST_WAIT,
    cause_of,
    connect,
    first_line,
    never_sent,
    refusal,
    retry_after,
    said_in,
)
from tsd.teachers.api.journal import Journal
from tsd.teachers.api.limits import NOT_REACHED
from tsd.teachers.api.messages import BUSY, StoppedError
from tsd.teachers.api.request_format import RequestFormat
from tsd.teachers.api.responses import (
    OF_THE_ROW,
    SHOWN,
    UNSURE,
    ServerError,
    error_within,
    outlook,
    read_completion,
    read_json,
    states_usage,
)
from tsd.teachers.api.worker import RateLimiterClient, Ticket
from tsd.teachers.prompts import Message, Question, Questions, repair, repair_tokens

PING_SECONDS = 20.0  # without any response, after which a test request is sent
DRAWN_AT_ONCE = 16  # plots rendered between two switches to other tasks
MOST_REFUSALS = 20  # refused rows of a worker without a response between them: above it, the cause is not the rows

# Store a response in the journal; the flag says whether its usage is known.
Keep = Callable[[Ticket, Reply, bool], None]


class FinalError(Exception):
    """A row's final reply after a failure that a retry cannot fix."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.reason)
        self.reply = reply


class OpenAIApi:
    """Annotates series part by part. Several parts can be in progress at once in its event loop."""

    def __init__(self, questions: Questions, limiter: RateLimiterClient, share: int) -> None:
        """questions: prompts of an `ApiTeacher`. share: maximum number of concurrent requests."""
        assert isinstance(questions.teacher, ApiTeacher)
        self._teacher: ApiTeacher = questions.teacher
        self._questions, self._limiter = questions, limiter
        self._client = connect(self._teacher)
        self._request_format = RequestFormat(self._teacher, questions.task)
        self._negotiation = asyncio.Lock()
        self._refusals = 0  # since the last response
        self._pinging = asyncio.Lock()
        # Time of the last test request, and of the last row's request in an outage.
        self._pinged = self._probed = time.monotonic()
        self._ping_worked = 0.0  # when the last test request got a response; 0 if it got none
        # A row that waits for a retry frees its slot for others. This bounds the rows with rendered plots in
        # memory.
        self._rows = asyncio.Semaphore(2 * share + DRAWN_AT_ONCE)
        # Take parts one after the other: interleaved parts would all end late and at the same time.
        self._taking = asyncio.Lock()

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def annotate(self, part: int, series: pa.Table, journal: Journal) -> pa.Table | None:
        """series: the part's rows of the task's series table. Returns their annotations table.

        Returns None if the stage stopped and replies are missing. Rows in the journal are not requested again.
        """
        keys, history = self._questions.keys(series), await asyncio.to_thread(journal.read)
        registry = BatchRegistry(journal.folder)
        if registry.under_way(set(keys)):
            await self._limiter.stop(
                "batches are under way that ask the same: teacher.mode=batch collects them; or delete "
                f"{registry.path} to ask, and pay for, their rows again"
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
        self, series: pa.Table, keys: Sequence[str], replies: Sequence[Reply | None], journal: Journal
    ) -> dict[int, asyncio.Task[Reply | None]]:
        """Start a task for every row without a usable reply; for fewer if the stage is stopped."""
        asking: dict[int, asyncio.Task[Reply | None]] = {}
        for first in range(0, len(series), DRAWN_AT_ONCE):
            rows = range(first, min(first + DRAWN_AT_ONCE, len(series)))
            missing = [row for row in rows if self._open(replies[row])]
            if not await self._limiter.unless_stopped(self._room(len(missing))):
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
        self._limiter.settled(reply)
        return reply

    async def _answer(self, question: Question, before: Reply | None, journal: Journal) -> Reply:
        """Request the reply to a prompt, or to a repair request for the reply `before`.

        A failed try counts only if the server responds to other requests before and after it. Otherwise the server
        itself is at fault.
        """
        messages = [*question.messages, *(repair(before) if before else [])]
        estimate = question.tokens + (repair_tokens(before) if before else 0)
        tried: list[Reply] = []
        counted, worked, ended = 0, False, 0.0
        whole: Reply | None = None

        def keep(ticket: Ticket, reply: Reply, known: bool) -> None:
            nonlocal whole
            cost = Cost(reply.input_tokens, reply.output_tokens, reply.cost_usd)
            whole = None if reply.status == "error" else outcome(self._questions.task, before, [*tried, reply])
            ticket.billed(cost, question.key, whole, known)

        async def attempt() -> Reply | None:
            """Make one try; return None if the number of retries is used up."""
            nonlocal counted, worked, ended
            if tried and not tried[-1].input_tokens:
                counted += await self._works(ended, worked, journal) and worked
            if counted <= self._teacher.retries:
                await self._outage(journal)
                reply, worked = await self._send(messages, estimate, journal, keep)
                ended = time.monotonic()
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
        return whole or outcome(self._questions.task, before, tried)

    async def _outage(self, journal: Journal) -> None:
        """Wait for the end of an outage, if there is one.

        Test requests without plot or numbers detect it, since each row's request may be billed. From time to time
        one row's request is sent too, since a server may respond to nothing else.
        """
        while self._limiter.down and not await self._works(time.monotonic(), False, journal):
            if time.monotonic() - self._probed >= PING_SECONDS:
                self._probed = time.monotonic()
                break
            await self._limiter.sleep(FIRST_WAIT)

    async def _works(self, since: float, worked: bool, journal: Journal) -> bool:
        """Whether the server responds to requests sent after a failure. worked: whether it did before the failure.

        If no request got a response for a while, a short test request is sent. It distinguishes rows that the
        server fails on from an outage of the server, and costs only a few tokens.
        """
        if await self._limiter.hear(since, PING_SECONDS):
            return True
        async with self._pinging:
            now, last = time.monotonic(), self._limiter.last_answer
            quiet = now - max(last, self._pinged) >= PING_SECONDS
            only_pings = 0 < self._ping_worked >= last  # responses to rows give no information
            if self._limiter.last_heard > since or not (quiet or (worked and only_pings)):
                return self._limiter.last_heard > since
            self._pinged = now
            messages: list[Message] = [{"role": "user", "content": "Reply with the word yes."}]

            def keep(ticket: Ticket, reply: Reply, _: bool) -> None:  # its usage says nothing about rows
                ticket.billed(Cost(reply.input_tokens, reply.output_tokens, reply.cost_usd), known=False)

            try:
                works = (await self._send(messages, 10, journal, keep))[0].status != "error"
            except FinalError:
                works = True  # a refusal is a response
            self._ping_worked = time.monotonic() if works else 0.0
            return works

    async def _send(
        self, messages: list[Message], estimate: int, journal: Journal, keep: Keep
    ) -> tuple[Reply, bool]:
        """Send one request, repeated as often as the server asks to wait. estimate: approximate tokens of the
        prompt.

        Returns the reply, an `error` if the request failed, and whether the request before got a response.
        Raises FinalError if a retry cannot help, StoppedError if the stage was stopped, StorageError if a response
        cannot be stored.
        """
        while True:
            async with self._alone_at_first(), self._limiter.slot(estimate, journal) as ticket:
                started = time.perf_counter()
                try:
                    body = self._request_format.body(messages)
                    async with asyncio.timeout(self._teacher.timeout):  # the client's is per read
                        # `chat.completions.create` would search the body for names to transform, which a chat
                        # request does not have, and validate the response, which `_read` does.
                        answer = await self._client.post(
                            "/chat/completions", cast_to=openai.HttpxBinaryResponseContent, body=body
                        )
                    content = answer.content
                except openai.APIStatusError as error:
                    if error.status_code not in UNSURE:
                        ticket.free()
                    meant = await self._refused(said_in(error), retry_after(error.response.headers))
                    if meant is None:
                        continue
                    reply = meant
                except openai.OpenAIError as error:
                    if never_sent(error):
                        ticket.free()
                        reply = Reply(None, "error", NOT_REACHED + cause_of(error))
                    elif isinstance(error, openai.APITimeoutError):
                        reply = Reply(None, "error", "timed out")
                    else:
                        reply = Reply(None, "error", f"the connection broke off: {cause_of(error)}")
                except TimeoutError:
                    reply = Reply(None, "error", "timed out")
                else:
                    taken = await self._read(content, ticket, estimate, started, journal, keep)
                    if taken is None:
                        continue
                    reply = taken
                if reply.status == "error":
                    kind = reply.reason or ""
                    self._limiter.failed(kind if kind.startswith(NOT_REACHED) else kind.partition(":")[0])
                return reply, ticket.worked

    async def _read(
        self, content: bytes, ticket: Ticket, estimate: int, started: float, journal: Journal, keep: Keep
    ) -> Reply | None:
        """Parse a response of status 200; None if it asks to wait. Raises as `_send` does."""
        try:
            answer = read_json(content)
        except ValueError as error:
            why = "the answer is not JSON" if "nested" not in str(error) else f"the answer is {error}"
            return Reply(None, "error", why)  # it may have been billed and keeps its bound
        if found := error_within(answer):
            ticket.free()
            return await self._refused(found, None)
        reply = read_completion(answer, self._teacher.usd, estimate, self._questions.task.topics)
        reply = replace(reply, latency_ms=1000 * (time.perf_counter() - started))
        known = states_usage(answer)
        if known or reply.status != "error":
            keep(ticket, reply, True)
            await journal.stored()
        self._limiter.answered(reply, self._request_format.name, ticket.sent)
        if reply.status != "error":
            self._refusals = 0
            await self._agree()
        return reply

    async def _agree(self) -> None:
        """Record that the server accepts the request format, and report the first usage before others are sent."""
        if not self._request_format.agreed:
            await self._limiter.hand_in()
            self._request_format.agreed = True

    async def _refused(self, said: ServerError, wait: float | None) -> Reply | None:
        """Interpret a refusal. Returns the row's reply, or None to send the request again. Raises as `_send` does.

        wait: seconds that the server asks to wait, None if unspecified.
        """
        code, words = said.code, first_line(self._teacher, said.message)
        meaning = outlook(code, said)
        if meaning == "filtered":
            raise FinalError(Reply(None, "refused", "the provider's filter"))
        if meaning == "busy" or (meaning == "passing" and wait is not None):
            self._limiter.failed(BUSY if meaning == "busy" else f"{code}")
            await self._limiter.pause(wait)
            return None
        named = f"{code}: {words}"[:SHOWN] if code else words
        if meaning == "passing":
            return Reply(None, "error", named)
        moderated = said.moderated and code in OF_THE_ROW
        if code in (400, 422) and not moderated and self._request_format.adapt(f"{said.message} {said.kind}"):
            return None
        self._refusals += 1
        of_the_row = (
            moderated or said.too_large or (code in OF_THE_ROW and code != 403 and self._request_format.agreed)
        )
        if of_the_row and self._refusals < MOST_REFUSALS:
            self._limiter.failed(f"{code}")
            raise FinalError(Reply(None, "error", named))
        await self._limiter.stop(refusal(self._teacher, named))
        raise StoppedError

    @asynccontextmanager
    async def _alone_at_first(self) -> AsyncIterator[None]:
        """Send one request at a time until one is accepted, so that a wrong key fails only once."""
        if not self._request_format.agreed:
            async with self._negotiation:
                if not self._request_format.agreed:
                    yield
                    return
        yield
