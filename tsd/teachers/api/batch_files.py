"""Client for a provider's files and batches. Each call retries while that can help, else it stops the stage."""

import asyncio
import math
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Literal, NoReturn, TypeVar

import openai
from openai.types import Batch as ServerBatch
from tenacity import AsyncRetrying, RetryCallState, RetryError, retry_if_exception_type, wait_random_exponential

from tsd.progress import clock
from tsd.recipe import ApiTeacher
from tsd.teachers.api.batch_lists import MARK, DownloadError, Waiting, id_of, lines_of, mark_of, may_have_worked
from tsd.teachers.api.batch_registry import Batch, BatchRegistry
from tsd.teachers.api.batch_results import named, stage, status
from tsd.teachers.api.connection import (
    FIRST_WAIT,
    LONGEST_WAIT,
    SETTINGS,
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

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
WINDOW: Literal["24h"] = "24h"
ABSENT = (404, 405, 501)  # status codes of an endpoint that a server does not implement
SETTLE_SECONDS = 600.0  # until a server's responses reflect what it accepted; at most idle_timeout
ATTEMPTS = 3  # to create a batch, before a server without response counts as silent
TRIES = 5  # to find a file, before it counts as deleted
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

T = TypeVar("T")


class Batches:
    """The server's batch endpoints. Every call may raise StoppedError."""

    def __init__(self, teacher: ApiTeacher, limiter: RateLimiterClient) -> None:
        self._teacher, self._limiter = teacher, limiter
        self._client = connect(teacher)
        self._listed: list[ServerBatch] | None = None  # newest first
        self._lists: bool | None = None  # whether the server lists batches; None if not yet known
        self._required = False
        self._heard = 0.0  # time of the server's last response, by `time.monotonic`
        self._told = 0.0  # longest wait that the server has requested since then
        self._settle = min(SETTLE_SECONDS, teacher.batch.idle_timeout)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    def waiting(self, seconds: float | None = None) -> Waiting:
        """Return a backoff that ends if nothing changes for `seconds`, `idle_timeout` by default."""
        batch = self._teacher.batch
        return Waiting(batch.idle_timeout if seconds is None else seconds, self._limiter.sleep, batch.poll_seconds)

    async def require(self) -> None:
        """Stop the stage, before any upload, if the server has no Batch API."""
        if self._required:
            return
        if self._listed is None:
            await self._refresh()
        if not self._lists:
            code = await self._call(self._probe)
            if code in ABSENT:
                await self.halt(
                    f"has no Batch API ({code} on /batches): set teacher.mode=live or another base_url"
                )
        self._required = True

    async def upload(self, name: str, content: bytes) -> str:
        """Upload a file of requests. Returns its id."""

        async def send() -> str:
            return id_of(await self._client.files.create(file=(name, content), purpose="batch"))

        return await self._call(send)

    async def create(self, batch: Batch, registry: BatchRegistry) -> str:
        """Create a batch exactly once. Returns its id.

        If a response was lost, the batch is searched until the server's list has had time to show it. registry:
        registry that holds the batch, so that a later start searches for it too.
        """
        began, attempts = time.monotonic(), 0
        unready, backoff = self.waiting(self._settle), self.waiting(math.inf)
        while True:
            await self._clear()
            batch.asked_at = time.time()
            registry.save()
            attempts += 1
            try:
                return id_of(await self._try(partial(self._create, batch), EVERY_REFUSAL))
            except (openai.OpenAIError, ValueError) as error:
                lost, failure = may_have_worked(error), error
            if not lost:
                batch.asked_at = None
                registry.save()
            if isinstance(failure, openai.APIStatusError) and not (
                not unready.over and await self._unready(batch, failure)
            ):
                await self._refused(failure)
            if found := await self._appears(batch, self._settle if lost else 0.0, registry.path):
                return found
            busy = isinstance(failure, openai.RateLimitError)  # the queue may be full for as long as a batch runs
            longest = max(self._teacher.patience, self._teacher.batch.idle_timeout if busy else 0.0) + self._told
            silent = time.monotonic() - began
            if attempts >= ATTEMPTS and silent > longest:
                await self.halt(f"has accepted no batch for {clock(silent)} ({self._words(failure)})")
            await backoff.wait()

    async def find(self, batch: Batch, kept: str | None) -> str | None:
        """Return the id of a batch that the server has accepted, else None.

        kept: path of the registry in which an earlier start recorded it. None: no registry knows it. In that case
        a batch whose files no longer exist on the server was already collected by the process that recorded it.
        """
        if kept:
            left = min(self._settle, max(0.0, (batch.asked_at or 0.0) + self._settle - time.time()))
            return await self._appears(batch, left, kept)
        if self._listed is None:
            await self._refresh()
        found = self._known(batch)
        if found is None or (stage(found) not in ("under way", "unknown") and not await self._keeps(found)):
            return None
        return id_of(found)

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

        waiting = self.waiting(self._settle)
        while isinstance(seen := await self._call(send), openai.NotFoundError):
            self._limiter.failed("404 for a batch")
            if not await waiting.wait():
                await self.halt(
                    f"does not know batch {batch.id} ({self._words(seen)}): check that teacher.base_url "
                    f"and the key are those that submitted it; {kept} keeps it, and nothing was asked again"
                )
        return seen

    async def download(self, file: str, read: Callable[[AsyncIterator[bytes]], Awaitable[T]]) -> T:
        """Read a file's lines in one try. Raises DownloadError if it is unavailable or incomplete."""

        async def send() -> T:
            async with self._client.files.with_streaming_response.content(file) as response:
                return await read(lines_of(response.iter_bytes(CHUNK)))

        try:
            async with asyncio.timeout(self._teacher.batch.idle_timeout):
                return await self._try(send, NOT_NOW)
        except openai.APIStatusError as error:
            raise DownloadError(self._words(error)) from None
        except (openai.OpenAIError, ValueError, TimeoutError) as error:
            raise DownloadError(cause_of(error)) from None

    async def delete(self, file: str) -> None:
        """Delete a file on the server. Errors are ignored."""
        with suppress(openai.OpenAIError, ValueError):
            await self._client.files.delete(file)

    async def stop(self, said: str, check: str = SETTINGS) -> NoReturn:
        """Stop the stage. said: the server's message; check: settings for the user to check."""
        await self._limiter.stop(refusal(self._teacher, said, check))
        raise StoppedError

    async def halt(self, said: str) -> NoReturn:
        """Stop the stage with a message about the server. said: the problem and how to fix it."""
        await self._limiter.stop(f"{self._teacher.base_url} {said}; the same command goes on from here")
        raise StoppedError

    # ---- Accepted batches

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
            self._limiter.failed("uploaded file pending")
            return True
        with suppress(openai.OpenAIError, ValueError):
            kept = await self._client.files.retrieve(str(batch.file))
            if str(getattr(kept, "status", "")).lower() in UNREADY:
                self._limiter.failed("uploaded file pending")
                return True
        return False

    async def _appears(self, batch: Batch, seconds: float, kept: str) -> str | None:
        """Search for a batch that may have been accepted, for up to `seconds`. Returns None if it is not found.

        kept: path of the registry that records it. Stops the stage if only a person can check whether the batch
        exists.
        """
        until = time.monotonic() + seconds
        waiting = self.waiting(seconds)
        while True:
            await self._refresh()
            if found := self._known(batch):
                return id_of(found)
            if not self._lists and batch.file and batch.asked_at:
                await self.halt(
                    f"lists no batches, and its answer to the creation of one from file {batch.file} was lost: "
                    f'look whether there is one; in {kept} set its "id", or "asked_at" to null where there is none'
                )
            if time.monotonic() >= until or not await waiting.wait():
                return None

    def _known(self, batch: Batch) -> ServerBatch | None:
        """Return the newest listed batch with the same input file, or with the same digest if no file is known."""
        for seen in self._listed or ():
            file = named(seen, "input_file_id")
            if batch.file and file:
                if file == batch.file:
                    return seen
                continue
            if mark_of(seen) == batch.digest:
                return seen
        return None

    async def _keeps(self, batch: ServerBatch) -> bool:
        """Whether the server still has a file of a batch.

        A process that collects a batch deletes all its files.
        """

        async def send(file: str) -> str | None:
            try:
                return id_of(await self._client.files.retrieve(file))
            except openai.NotFoundError:
                return None

        for number in range(TRIES):
            for name in ("output_file_id", "error_file_id", "input_file_id"):
                file = named(batch, name)
                if file and await self._call(partial(send, file)):
                    return True
            if number + 1 < TRIES:
                await self._limiter.sleep(FIRST_WAIT * 2**number)
        return False

    async def _refresh(self) -> None:
        listed = await self._call(self._list)
        for number in range(TRIES):
            if listed is not None or self._lists is False:  # a single 404 does not prove that there is no list
                break
            await self._limiter.sleep(FIRST_WAIT * 2**number)
            listed = await self._call(self._list)
        self._lists, self._listed = listed is not None, listed or []

    async def _list(self) -> list[ServerBatch] | None:
        """Return all batches that did not fail, newest first; None if the server does not list batches."""
        found: dict[str, ServerBatch] = {}
        try:
            page = await self._client.batches.list(limit=100)
            while True:
                if not isinstance(getattr(page, "data", None), list):
                    raise ValueError("an answer without a list")
                before = len(found)
                for seen in page.data:
                    found.setdefault(id_of(seen), seen)
                if len(found) == before or not page.has_next_page():  # a server may return the first page forever
                    return [seen for seen in found.values() if stage(seen) != "failed"]
                page = await page.get_next_page()
        except openai.APIStatusError as error:
            if error.status_code not in ABSENT:
                raise
        except AttributeError:  # raised by the client for an invalid page
            raise ValueError("an answer without a list") from None
        return None

    async def _probe(self) -> int:
        """Return the status code of creating an empty batch, which every server rejects."""
        try:
            await self._client.post("/batches", body={}, cast_to=object)
        except openai.APIStatusError as error:
            spoken = re.search(r"input_?file|endpoint|completion_window", said_in(error).message)
            return 400 if spoken else error.status_code
        return 200

    # ---- Calls

    async def _call(self, send: Callable[[], Awaitable[T]]) -> T:
        """Send a call and retry it until it succeeds, or until the server is silent for teacher.patience
        seconds.
        """
        began = time.monotonic()

        def silent(_: RetryCallState) -> bool:
            # A wait requested by the server is granted once. A further request to wait counts as silence.
            return time.monotonic() - max(began, self._heard) > self._teacher.patience + self._told

        retrying = AsyncRetrying(
            stop=silent,
            wait=wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
            retry=retry_if_exception_type((openai.OpenAIError, ValueError)),
            sleep=self._limiter.sleep,
        )
        try:
            return await retrying(partial(self._try, send))
        except RetryError:
            await self._limiter.silence(time.monotonic() - max(began, self._heard))
            raise StoppedError from None

    async def _try(self, send: Callable[[], Awaitable[T]], own: Collection[int] = ()) -> T:
        """Send a call once. own: status codes that the caller handles."""
        await self._clear()
        try:
            answer = await send()
        except openai.APIStatusError as error:
            if error.status_code not in own:
                await self._refused(error)
            raise
        except (openai.OpenAIError, ValueError) as error:
            unreached = not self._heard and never_sent(error)  # from the start: the address may be wrong
            self._limiter.failed(f"{NOT_REACHED if unreached else ''}{cause_of(error)}")
            raise
        self._heard, self._told = time.monotonic(), 0.0
        return answer

    async def _clear(self) -> None:
        """Wait until no pause delays requests. Raises StoppedError if the stage was stopped."""
        await self._limiter.clear()
        if self._limiter.stopped.is_set():
            raise StoppedError

    async def _refused(self, error: openai.APIStatusError) -> None:
        """Handle a refusal before the next try. Raises StoppedError if a retry cannot help."""
        said = said_in(error)
        meaning = outlook(error.status_code, said)
        if meaning in ("final", "filtered"):
            await self.stop(f"{error.status_code}: {said.message}")
        self._limiter.failed(BUSY if meaning == "busy" else f"{error.status_code}")
        seconds = retry_after(error.response.headers)
        if meaning == "busy" or seconds:
            wait = await self._limiter.pause(seconds)
            self._told = max(self._told, wait if seconds else 0.0)

    def _words(self, error: Exception) -> str:
        """Return the error message in one line."""
        if isinstance(error, openai.APIStatusError):
            return first_line(self._teacher, f"{error.status_code}: {said_in(error).message}")
        return first_line(self._teacher, cause_of(error))
