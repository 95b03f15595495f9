"""Client for a provider's files and batches: upload requests, create a batch, poll it, download its results."""

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Literal, TypeVar

import openai
from openai.types import Batch as ServerBatch

from tsd.progress import clock
from tsd.teachers.api.batch_calls import Calls, may_have_worked
from tsd.teachers.api.batch_lists import MARK, AcceptedBatches, id_of, mark_of
from tsd.teachers.api.batch_registry import Batch, BatchRegistry
from tsd.teachers.api.batch_results import status
from tsd.teachers.api.connection import cause_of, said_in
from tsd.teachers.api.responses import SHOWN

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
WINDOW: Literal["24h"] = "24h"
ATTEMPTS = 3  # to create a batch, before a server without response counts as silent
EVERY_REFUSAL = range(400, 600)
REFUSED_FILE = (400, 404, 409, 422)  # codes of a server that has not yet processed an uploaded file
NOT_NOW = (400, 404, 405, 409, 410, 422)  # codes of a file that may become available later
PENDING = re.compile(
    r"pending|not (?:yet )?(?:been )?(?:process|ready|available|upload|found|exist)|(?:being|still) process|"
    r"no such file|does not exist|in progress",
    re.IGNORECASE,
)
UNREADY = ("pending", "running", "processing", "queued", "uploading", "notstarted", "not_started")
CHUNK = 2**16  # bytes per download chunk
LONGEST_LINE = 2**25  # bytes; longer lines are discarded

T = TypeVar("T")


class DownloadError(Exception):
    """A file could not be downloaded. It may become available later."""


class Batches:
    """The server's files, and the batches that are made of them. Every call may raise StoppedError."""

    def __init__(self, calls: Calls, accepted: AcceptedBatches) -> None:
        self._calls, self._accepted = calls, accepted
        self._client, self._teacher = calls.client, calls.teacher

    async def upload(self, name: str, content: bytes) -> str:
        """Upload a file of requests. Returns its id."""

        async def send() -> str:
            return id_of(await self._client.files.create(file=(name, content), purpose="batch"))

        return await self._calls.retry(send)

    async def create(self, batch: Batch, registry: BatchRegistry) -> str:
        """Create a batch exactly once. Returns its id.

        If a response was lost, the batch is searched until the server's list has had time to show it. registry:
        registry that holds the batch, so that a later start searches for it too.
        """
        began, attempts = time.monotonic(), 0
        unready, backoff = self._calls.waiting(self._calls.settle), self._calls.waiting(math.inf)
        while True:
            await self._calls.ready()
            batch.asked_at = time.time()
            registry.save()
            attempts += 1
            try:
                return id_of(await self._calls.once(partial(self._create, batch), EVERY_REFUSAL))
            except (openai.OpenAIError, ValueError) as error:
                lost, failure = may_have_worked(error), error
            if not lost:
                batch.asked_at = None
                registry.save()
            if isinstance(failure, openai.APIStatusError) and not (
                not unready.over and await self._unready(batch, failure)
            ):
                await self._calls.refused(failure)
            if found := await self._accepted.appears(batch, self._calls.settle if lost else 0.0, registry.path):
                return found
            busy = isinstance(failure, openai.RateLimitError)  # the queue may be full for as long as a batch runs
            longest = max(self._teacher.idle_timeout, self._teacher.batch.idle_timeout if busy else 0.0)
            longest += self._calls.requested_wait
            silent = time.monotonic() - began
            if attempts >= ATTEMPTS and silent > longest:
                await self._calls.halt(
                    f"has accepted no batch for {clock(silent)} ({self._calls.describe(failure)})"
                )
            await backoff.wait()

    async def look(self, batch: Batch, kept: str) -> ServerBatch:
        """Retrieve the state of a batch. kept: path of the registry that records it."""

        async def send() -> ServerBatch | openai.NotFoundError:
            assert batch.id
            try:
                seen = await self._client.batches.retrieve(batch.id)
            except openai.NotFoundError as error:  # a new batch may not be visible on all servers yet
                return error
            status(seen)
            if mark_of(seen) not in (None, batch.digest):
                raise ValueError("an answer about another batch")
            return seen

        waiting = self._calls.waiting(self._calls.settle)
        while isinstance(seen := await self._calls.retry(send), openai.NotFoundError):
            self._calls.limiter.counts.failed("404 for a batch")
            if not await waiting.wait():
                await self._calls.halt(
                    f"does not know batch {batch.id} ({self._calls.describe(seen)}): check that teacher.base_url "
                    f"and the key are those that submitted it; {kept} keeps it, and nothing was asked again"
                )
        return seen

    async def download(self, file: str, read: Callable[[AsyncIterator[bytes]], Awaitable[T]]) -> T:
        """Read a file's lines in one try. Raises DownloadError if it is unavailable or incomplete."""

        async def send() -> T:
            async with self._client.files.with_streaming_response.content(file) as response:
                return await read(_lines_of(response.iter_bytes(CHUNK)))

        try:
            async with asyncio.timeout(self._teacher.batch.idle_timeout):
                return await self._calls.once(send, NOT_NOW)
        except openai.APIStatusError as error:
            raise DownloadError(self._calls.describe(error)) from None
        except (openai.OpenAIError, ValueError, TimeoutError) as error:
            raise DownloadError(cause_of(error)) from None

    async def delete(self, file: str) -> None:
        """Delete a file on the server. Errors are ignored."""
        with suppress(openai.OpenAIError, ValueError):
            await self._client.files.delete(file)

    async def _create(self, batch: Batch) -> ServerBatch:
        assert batch.file
        return await self._client.batches.create(
            input_file_id=batch.file, endpoint=ENDPOINT, completion_window=WINDOW, metadata={MARK: batch.digest}
        )

    async def _unready(self, batch: Batch, error: openai.APIStatusError) -> bool:
        """Whether a refusal only means that the server has not yet processed the uploaded file."""
        if error.status_code not in REFUSED_FILE:
            return False
        said = said_in(error)
        words = f"{said.message} {said.kind}"
        if "file" in words.lower() and PENDING.search(words):
            self._calls.limiter.counts.failed("uploaded file pending")
            return True
        with suppress(openai.OpenAIError, ValueError):
            kept = await self._client.files.retrieve(str(batch.file))
            if str(getattr(kept, "status", "")).lower() in UNREADY:
                self._calls.limiter.counts.failed("uploaded file pending")
                return True
        return False


async def _lines_of(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
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
