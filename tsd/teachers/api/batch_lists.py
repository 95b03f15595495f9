"""How long to wait for a provider's files and batches, and which errors leave open whether a call worked."""

import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import openai

from tsd.teachers.api.batch_results import named
from tsd.teachers.api.connection import (
    FIRST_WAIT,
    LONGEST_WAIT,
    never_sent,
)
from tsd.teachers.api.responses import SHOWN

MARK = "tsd"  # metadata key of a batch's digest
LONGEST_LINE = 2**25  # bytes; longer lines are discarded


class DownloadError(Exception):
    """A file could not be downloaded. It may become available later."""


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


def may_have_worked(error: BaseException) -> bool:
    """Whether the server may have executed the request despite this error."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code >= 500 or error.status_code in (408, 409)
    return not never_sent(error)


def id_of(answer: Any) -> str:
    """Return the id of a created object. Raises ValueError if the response has none."""
    found = named(answer, "id")
    if found is None:
        raise ValueError("an answer without an id")
    return found


def mark_of(batch: Any) -> Any:
    """Return the tsd digest in a batch's metadata; None if the server does not store it."""
    metadata = getattr(batch, "metadata", None)
    return metadata.get(MARK) if isinstance(metadata, dict) else None


async def lines_of(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield the non-empty lines of a download. Raises ValueError if the connection breaks."""
    rest, skipping = bytearray(), False
    while True:
        try:
            chunk = await anext(chunks)
        except StopAsyncIteration:
            break
        except Exception as error:  # transport errors: the client wraps them only in its other calls
            raise ValueError("the download was cut off") from error
        head, *lines = chunk.split(b"\n")
        rest += b"" if skipping else head
        for line in lines:
            if rest.strip():
                yield bytes(rest)
            rest, skipping = bytearray(line), False
        if len(rest) > LONGEST_LINE:
            del rest[SHOWN:]
            skipping = True
    if rest.strip():
        yield bytes(rest)
