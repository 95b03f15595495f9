"""Send one request of the live API and read its response, whatever the server does.

A request is sent again if the server asks to wait or refuses its format. A failed request is not retried here.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import openai

from tsd.recipe import ApiTeacher
from tsd.teachers import Reply
from tsd.teachers.api.connection import (
    cause_of,
    connect,
    first_line,
    never_sent,
    refusal,
    retry_after,
    said_in,
    timed_out,
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
from tsd.teachers.api.suspects import Suspect
from tsd.teachers.api.worker import HEAR_SECONDS, RateLimiterClient, Ticket
from tsd.teachers.prompts import Message, Questions

MOST_REFUSALS = 20  # refused rows of a worker without a response between them: above it, the cause is not the rows

# Store a response in the journal; the flag says whether its usage is known.
Keep = Callable[[Ticket, Reply, bool], None]


class FinalError(Exception):
    """A row's final reply after a failure that a retry cannot fix."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.reason)
        self.reply = reply


class RequestSender:
    """Sends a worker's requests and stores each response before it counts."""

    def __init__(self, questions: Questions, limiter: RateLimiterClient) -> None:
        """questions: prompts of an `ApiTeacher`."""
        assert isinstance(questions.teacher, ApiTeacher)
        self._teacher: ApiTeacher = questions.teacher
        self._questions, self._limiter = questions, limiter
        self._client = connect(self._teacher)
        self._request_format = RequestFormat(self._teacher, questions.task)
        self._negotiation = asyncio.Lock()
        self._refusals = 0  # since the last response
        self._undecided = 0  # refused requests that wait for the responses to others

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def send(
        self,
        messages: list[Message],
        estimate: int,
        journal: Journal,
        keep: Keep,
        row: Suspect | None = None,
    ) -> tuple[Reply, bool]:
        """Send one request, repeated as often as the server asks to wait. estimate: approximate tokens of the
        prompt. row: the row that it is about; None for a test request.

        Returns the reply, an `error` if the request failed, and whether the request before got a response.
        Raises FinalError if a retry cannot help, StoppedError if the stage was stopped, StorageError if a response
        cannot be stored.
        """
        while True:
            await self._turn(row)
            async with self._alone_at_first(), self._limiter.slot(estimate, journal, row) as ticket:
                if ticket is None:
                    continue
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
                        ticket.reached = False
                        ticket.free()
                        reply = Reply(None, "error", NOT_REACHED + cause_of(error), attempts=0)
                    elif timed_out(error):
                        reply = Reply(None, "error", "timed out")
                    else:
                        self._limiter.server.broke_off()
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
                    self._limiter.counts.failed(kind if kind.startswith(NOT_REACHED) else kind.partition(":")[0])
                return reply, ticket.worked

    async def _turn(self, row: Suspect | None) -> None:
        """Wait until no row that may have ended the server goes before this one, or the stage is stopped.

        Raises FinalError if this row has ended the server too often.
        """
        limiter = self._limiter
        while row and not (row.guilty or limiter.suspects.may_go(row) or limiter.stopped.is_set()):
            await asyncio.sleep(HEAR_SECONDS)
        if row and row.guilty:
            said = f"{self._teacher.place} ended {row.ends} times while it answered this row alone"
            raise FinalError(Reply(None, "error", said, attempts=0))

    async def _read(
        self, content: bytes, ticket: Ticket, estimate: int, started: float, journal: Journal, keep: Keep
    ) -> Reply | None:
        """Parse a response of status 200; None if it asks to wait. Raises as `send` does."""
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
        """Interpret a refusal. Returns the row's reply, or None to send the request again. Raises as `send` does.

        wait: seconds that the server asks to wait, None if unspecified.
        """
        code, words = said.code, first_line(self._teacher, said.message)
        meaning = outlook(code, said)
        if meaning == "filtered":
            raise FinalError(Reply(None, "refused", "the provider's filter"))
        if meaning == "busy" or (meaning == "passing" and wait is not None):
            self._limiter.counts.failed(BUSY if meaning == "busy" else f"{code}")
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
        if of_the_row and await self._answers_others():
            self._limiter.counts.failed(f"{code}")
            raise FinalError(Reply(None, "error", named))
        await self._limiter.stop(refusal(self._teacher, named))
        raise StoppedError

    async def _answers_others(self) -> bool:
        """Whether refusals are about single rows. After many in a row, requests under way decide: a refusal takes
        no time, and a response may take minutes.
        """
        self._undecided += 1
        try:
            while self._refusals >= MOST_REFUSALS and self._limiter.server.in_flight > self._undecided:
                await self._limiter.sleep(HEAR_SECONDS)
        finally:
            self._undecided -= 1
        return self._refusals < MOST_REFUSALS

    @asynccontextmanager
    async def _alone_at_first(self) -> AsyncIterator[None]:
        """Send one request at a time until one is accepted, so that a wrong key fails only once."""
        if not self._request_format.agreed:
            async with self._negotiation:
                if not self._request_format.agreed:
                    yield
                    return
        yield
