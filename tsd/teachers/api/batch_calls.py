"""Calls to a provider's batch endpoints: how long each is retried, and which errors stop the stage instead."""

import random
import time
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import NoReturn, TypeVar

import openai
from tenacity import AsyncRetrying, RetryCallState, RetryError, retry_if_exception_type, wait_random_exponential

from tsd.recipe import ApiTeacher
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
from tsd.teachers.api.limits import NOT_REACHED
from tsd.teachers.api.messages import BUSY, StoppedError
from tsd.teachers.api.responses import outlook
from tsd.teachers.api.worker import RateLimiterClient

SETTLE_SECONDS = 600.0  # until a server's responses reflect what it accepted; at most idle_timeout

T = TypeVar("T")


class Waiting:
    """Exponential backoff between tries, until the state has not changed for a number of seconds."""

    def __init__(
        self, seconds: float, sleep: Callable[[float], Awaitable[None]], longest: float | None = None
    ) -> None:
        """sleep: coroutine that sleeps for some seconds. longest: maximum seconds between two tries."""
        self._seconds, self._sleep, self._longest = seconds, sleep, longest
        self._since, self._tries, self._state = time.monotonic(), 0, object()

    def saw(self, state: object) -> None:
        """Record the observed state. The timeout restarts at each change."""
        if state != self._state:
            self._since, self._tries, self._state = time.monotonic(), 0, state

    @property
    def silent(self) -> float:
        """Seconds since the last change."""
        return time.monotonic() - self._since

    @property
    def over(self) -> bool:
        """Whether the timeout has passed, so that another try is of no use."""
        return self.silent >= self._seconds

    async def wait(self) -> bool:
        """Wait before the next try. Returns False at once if the timeout has passed."""
        if self.over:
            return False
        self._tries += 1
        longest = LONGEST_WAIT if self._longest is None else self._longest
        most = min(longest, FIRST_WAIT * 2 ** min(self._tries, 20))
        await self._sleep(min(random.uniform(most / 2, most), self._seconds - self.silent + 0.01))
        return True


class Calls:
    """Sends calls to one server. A call is retried while that can help, else the stage stops (StoppedError)."""

    def __init__(self, teacher: ApiTeacher, limiter: RateLimiterClient) -> None:
        self.teacher, self.limiter = teacher, limiter
        self.client = connect(teacher)
        self.settle = min(SETTLE_SECONDS, teacher.batch.idle_timeout)
        """Seconds until the server's responses reflect what it accepted."""
        self.requested_wait = 0.0
        """Longest wait in seconds that the server has requested since its last response."""
        self._heard = 0.0  # time of the server's last response, by `time.monotonic`

    async def close(self) -> None:
        """Close all connections."""
        await self.client.close()

    async def retry(self, send: Callable[[], Awaitable[T]]) -> T:
        """Send a call until it succeeds, or stop the stage after `teacher.idle_timeout` seconds of silence."""
        began = time.monotonic()

        def silent(_: RetryCallState) -> bool:
            # A wait requested by the server is granted once. A further request to wait counts as silence.
            return time.monotonic() - max(began, self._heard) > self.teacher.idle_timeout + self.requested_wait

        retrying = AsyncRetrying(
            stop=silent,
            wait=wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
            retry=retry_if_exception_type((openai.OpenAIError, ValueError)),
            sleep=self.limiter.sleep,
        )
        try:
            return await retrying(partial(self.once, send))
        except RetryError:
            await self.limiter.silence(time.monotonic() - max(began, self._heard))
            raise StoppedError from None

    async def once(self, send: Callable[[], Awaitable[T]], own: Collection[int] = ()) -> T:
        """Send a call once. own: status codes that the caller handles."""
        await self.ready()
        try:
            answer = await send()
        except openai.APIStatusError as error:
            if error.status_code not in own:
                await self.refused(error)
            raise
        except (openai.OpenAIError, ValueError) as error:
            unreached = not self._heard and never_sent(error)  # from the start: the address may be wrong
            self.limiter.counts.failed(f"{NOT_REACHED if unreached else ''}{cause_of(error)}")
            raise
        self._heard, self.requested_wait = time.monotonic(), 0.0
        return answer

    async def ready(self) -> None:
        """Wait until no pause delays requests. Raises StoppedError if the stage was stopped."""
        await self.limiter.clear()
        if self.limiter.stopped.is_set():
            raise StoppedError

    async def refused(self, error: openai.APIStatusError) -> None:
        """Handle a refusal before the next try. Raises StoppedError if a retry cannot help."""
        said = said_in(error)
        meaning = outlook(error.status_code, said)
        if meaning in ("final", "filtered"):
            await self.stop(f"{error.status_code}: {said.message}")
        self.limiter.counts.failed(BUSY if meaning == "busy" else f"{error.status_code}")
        seconds = retry_after(error.response.headers)
        if meaning == "busy" or seconds:
            wait = await self.limiter.pause(seconds)
            self.requested_wait = max(self.requested_wait, wait if seconds else 0.0)

    async def back_off(self, tries: int) -> None:
        """Sleep before a response that says nothing is checked again. tries: number of checks so far, from 0."""
        await self.limiter.sleep(FIRST_WAIT * 2**tries)

    def waiting(self, seconds: float | None = None) -> Waiting:
        """Return a backoff that ends if nothing changes for `seconds`, `idle_timeout` by default."""
        batch = self.teacher.batch
        return Waiting(batch.idle_timeout if seconds is None else seconds, self.limiter.sleep, batch.poll_seconds)

    async def stop(self, said: str, check: str | None = None) -> NoReturn:
        """Stop the stage. said: the server's message; check: settings for the user to check."""
        await self.limiter.stop(refusal(self.teacher, said, check))
        raise StoppedError

    async def halt(self, said: str) -> NoReturn:
        """Stop the stage with a message about the server. said: the problem and how to fix it."""
        await self.limiter.stop(f"{self.teacher.base_url} {said}; the same command goes on from here")
        raise StoppedError

    def describe(self, error: Exception) -> str:
        """Return the error message in one line."""
        if isinstance(error, openai.APIStatusError):
            return first_line(self.teacher, f"{error.status_code}: {said_in(error).message}")
        return first_line(self.teacher, cause_of(error))


def may_have_worked(error: BaseException) -> bool:
    """Whether the server may have executed the request despite this error."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code >= 500 or error.status_code in (408, 409)
    return not never_sent(error)
