"""A provider's files and batches: each call is made as often as may help, and stops the stage where none will."""

import asyncio
import math
import random
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Any, Literal, NoReturn, TypeVar

import openai
from openai.types import Batch as ServerBatch
from tenacity import AsyncRetrying, RetryCallState, RetryError, retry_if_exception_type, wait_random_exponential

from tsd.progress import clock
from tsd.recipe import ApiTeacher
from tsd.teachers.api.batch_registry import Batch, Ledger
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
from tsd.teachers.api.limits import BUSY, NOT_REACHED, StoppedError, Turnstile
from tsd.teachers.api.responses import SHOWN, outlook

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
WINDOW: Literal["24h"] = "24h"
MARK = "tsd"  # the name of a batch's digest in its metadata
ABSENT = (404, 405, 501)  # codes of a path that a server does not serve
SETTLE_SECONDS = 600.0  # until a server shows in all its answers what it has accepted; never above idle_timeout
ATTEMPTS = 3  # to create a batch, before a server that gives no answer counts as silent
TRIES = 5  # to find a file, before it counts as gone
EVERY_REFUSAL = range(400, 600)
REFUSED_FILE = (400, 404, 409, 422)  # codes by which a server says that it is not done with an uploaded file
NOT_NOW = (400, 404, 405, 409, 410, 422)  # codes of a file that may be there later
PENDING = re.compile(
    r"pending|not (?:yet )?(?:been )?(?:process|ready|available|upload|found|exist)|(?:being|still) process|"
    r"no such file|does not exist|in progress",
    re.IGNORECASE,
)
UNREADY = ("pending", "running", "processing", "queued", "uploading", "notstarted", "not_started")
CHUNK = 2**16  # bytes of a download at a time
LONGEST_LINE = 2**25  # bytes; a longer line is none

T = TypeVar("T")


class DownloadError(Exception):
    """A file that did not come; it may later."""


class Waiting:
    """Waits between tries, longer each time, until nothing new was seen for so many seconds."""

    def __init__(
        self, seconds: float, sleep: Callable[[float], Awaitable[None]], longest: float | None = None
    ) -> None:
        """longest: seconds between two tries at most."""
        self._seconds, self._sleep, self._longest = seconds, sleep, longest
        self._since, self._tries, self._state = time.monotonic(), 0, object()

    def saw(self, state: object) -> None:
        """Take note of what was seen; the time counts from the last change."""
        if state != self._state:
            self._since, self._tries, self._state = time.monotonic(), 0, state

    @property
    def silent(self) -> float:
        """Seconds since the last change."""
        return time.monotonic() - self._since

    @property
    def over(self) -> bool:
        """Whether there is no use in another try."""
        return self.silent >= self._seconds

    async def wait(self) -> bool:
        """Wait before the next try. False, at once, where there is none."""
        if self.over:
            return False
        self._tries += 1
        longest = LONGEST_WAIT if self._longest is None else self._longest
        most = min(longest, FIRST_WAIT * 2 ** min(self._tries, 20))
        await self._sleep(min(random.uniform(most / 2, most), self._seconds - self.silent + 0.01))
        return True


class Batches:
    """The server's side of batches. Every call may raise StoppedError."""

    def __init__(self, teacher: ApiTeacher, turnstile: Turnstile) -> None:
        self._teacher, self._turnstile = teacher, turnstile
        self._client = connect(teacher)
        self._listed: list[ServerBatch] | None = None  # the newest first
        self._lists: bool | None = None  # whether the server lists batches; None until it was asked
        self._required = False
        self._heard = 0.0  # when the server last answered, by `time.monotonic`
        self._told = 0.0  # the longest that it has asked to wait since then
        self._settle = min(SETTLE_SECONDS, teacher.batch.idle_timeout)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    def waiting(self, seconds: float | None = None) -> Waiting:
        """Back-off until nothing changes for so long, `idle_timeout` by default."""
        batch = self._teacher.batch
        return Waiting(
            batch.idle_timeout if seconds is None else seconds, self._turnstile.sleep, batch.poll_seconds
        )

    async def require(self) -> None:
        """Have the stage stop, before anything is uploaded, where the server has no batches at all."""
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
        """Have the server keep a file of requests. Returns its id."""

        async def send() -> str:
            return _id(await self._client.files.create(file=(name, content), purpose="batch"))

        return await self._call(send)

    async def create(self, batch: Batch, ledger: Ledger) -> str:
        """Have the server accept a batch, once; its id.

        Where an answer was lost, the batch is looked for until the server's list has had time to show it. ledger:
        holds the batch, so that a later start looks for it too.
        """
        began, attempts = time.monotonic(), 0
        unready, backoff = self.waiting(self._settle), self.waiting(math.inf)
        while True:
            await self._clear()
            batch.asked_at = time.time()
            ledger.save()
            attempts += 1
            try:
                return _id(await self._try(partial(self._create, batch), EVERY_REFUSAL))
            except (openai.OpenAIError, ValueError) as error:
                lost, failure = _may_have_worked(error), error
            if not lost:
                batch.asked_at = None
                ledger.save()
            if isinstance(failure, openai.APIStatusError) and not (
                not unready.over and await self._unready(batch, failure)
            ):
                await self._refused(failure)
            if found := await self._appears(batch, self._settle if lost else 0.0, ledger.path):
                return found
            busy = isinstance(failure, openai.RateLimitError)  # its queue may be full for as long as a batch takes
            longest = max(self._teacher.patience, self._teacher.batch.idle_timeout if busy else 0.0) + self._told
            silent = time.monotonic() - began
            if attempts >= ATTEMPTS and silent > longest:
                await self.halt(f"has accepted no batch for {clock(silent)} ({self._words(failure)})")
            await backoff.wait()

    async def find(self, batch: Batch, kept: str | None) -> str | None:
        """The id of a batch that the server has accepted; None where it has not.

        kept: the ledger in which an earlier start has noted it. None: no ledger knows it, and a batch whose files
        the server has no more was collected by whoever noted it.
        """
        if kept:
            left = min(self._settle, max(0.0, (batch.asked_at or 0.0) + self._settle - time.time()))
            return await self._appears(batch, left, kept)
        if self._listed is None:
            await self._refresh()
        found = self._known(batch)
        if found is None or (stage(found) not in ("under way", "unknown") and not await self._keeps(found)):
            return None
        return _id(found)

    async def look(self, batch: Batch, kept: str) -> ServerBatch:
        """How far a batch is. kept: the ledger that says that there is one."""

        async def send() -> ServerBatch | openai.NotFoundError:
            assert batch.id
            try:
                seen = await self._client.batches.retrieve(batch.id)
            except openai.NotFoundError as error:  # one that was just made may not be known everywhere yet
                return error
            status(seen)
            if _mark(seen) not in (None, batch.digest):
                raise ValueError("an answer about another batch")
            return seen

        waiting = self.waiting(self._settle)
        while isinstance(seen := await self._call(send), openai.NotFoundError):
            self._turnstile.failed("404 for a batch")
            if not await waiting.wait():
                await self.halt(
                    f"does not know batch {batch.id} ({self._words(seen)}): check that teacher.base_url "
                    f"and the key are those that submitted it; {kept} keeps it, and nothing was asked again"
                )
        return seen

    async def download(self, file: str, read: Callable[[AsyncIterator[bytes]], Awaitable[T]]) -> T:
        """Read a file's lines, in one try. Raises DownloadError where it does not come, or not whole."""

        async def send() -> T:
            async with self._client.files.with_streaming_response.content(file) as response:
                return await read(_lines(response.iter_bytes(CHUNK)))

        try:
            async with asyncio.timeout(self._teacher.batch.idle_timeout):
                return await self._try(send, NOT_NOW)
        except openai.APIStatusError as error:
            raise DownloadError(self._words(error)) from None
        except (openai.OpenAIError, ValueError, TimeoutError) as error:
            raise DownloadError(cause_of(error)) from None

    async def delete(self, file: str) -> None:
        """Have the server let go of a file, where it lets us."""
        with suppress(openai.OpenAIError, ValueError):
            await self._client.files.delete(file)

    async def stop(self, said: str, check: str = SETTINGS) -> NoReturn:
        """Stop the stage. said: the server's words; check: what to see to."""
        await self._turnstile.stop(refusal(self._teacher, said, check))
        raise StoppedError

    async def halt(self, said: str) -> NoReturn:
        """Stop the stage with a line about the server. said: what it does or lacks, and what to do about it."""
        await self._turnstile.stop(f"{self._teacher.base_url} {said}; the same command goes on from here")
        raise StoppedError

    # ---- What was accepted

    async def _create(self, batch: Batch) -> ServerBatch:
        assert batch.file
        return await self._client.batches.create(
            input_file_id=batch.file, endpoint=ENDPOINT, completion_window=WINDOW, metadata={MARK: batch.digest}
        )

    async def _unready(self, batch: Batch, error: openai.APIStatusError) -> bool:
        """Whether a refusal says no more than that the server is not done yet with the uploaded file."""
        if error.status_code not in REFUSED_FILE:
            return False
        said = said_in(error)
        words = f"{said.message} {said.kind}"
        if "file" in words.lower() and PENDING.search(words):
            self._turnstile.failed("uploaded file pending")
            return True
        with suppress(openai.OpenAIError, ValueError):
            kept = await self._client.files.retrieve(str(batch.file))
            if str(getattr(kept, "status", "")).lower() in UNREADY:
                self._turnstile.failed("uploaded file pending")
                return True
        return False

    async def _appears(self, batch: Batch, seconds: float, kept: str) -> str | None:
        """Look for a batch that may have been accepted, until so long from now; None where it is not there.

        kept: the ledger that says so. The stage stops where only a person can see whether there is such a batch.
        """
        until = time.monotonic() + seconds
        waiting = self.waiting(seconds)
        while True:
            await self._refresh()
            if found := self._known(batch):
                return _id(found)
            if not self._lists and batch.file and batch.asked_at:
                await self.halt(
                    f"lists no batches, and its answer to the creation of one from file {batch.file} was lost: "
                    f'look whether there is one; in {kept} set its "id", or "asked_at" to null where there is none'
                )
            if time.monotonic() >= until or not await waiting.wait():
                return None

    def _known(self, batch: Batch) -> ServerBatch | None:
        """The newest batch made of a batch's file; where no file is known, or none is listed, with its digest."""
        for seen in self._listed or ():
            file = named(seen, "input_file_id")
            if batch.file and file:
                if file == batch.file:
                    return seen
                continue
            if _mark(seen) == batch.digest:
                return seen
        return None

    async def _keeps(self, batch: ServerBatch) -> bool:
        """Whether the server still has a file of a batch. Who has collected one lets go of all its files."""

        async def send(file: str) -> str | None:
            try:
                return _id(await self._client.files.retrieve(file))
            except openai.NotFoundError:
                return None

        for number in range(TRIES):
            for name in ("output_file_id", "error_file_id", "input_file_id"):
                file = named(batch, name)
                if file and await self._call(partial(send, file)):
                    return True
            if number + 1 < TRIES:
                await self._turnstile.sleep(FIRST_WAIT * 2**number)
        return False

    async def _refresh(self) -> None:
        listed = await self._call(self._list)
        for number in range(TRIES):
            if listed is not None or self._lists is False:  # one 404 does not say that there is no list
                break
            await self._turnstile.sleep(FIRST_WAIT * 2**number)
            listed = await self._call(self._list)
        self._lists, self._listed = listed is not None, listed or []

    async def _list(self) -> list[ServerBatch] | None:
        """All batches that did not fail, the newest first; None where the server does not list them."""
        found: dict[str, ServerBatch] = {}
        try:
            page = await self._client.batches.list(limit=100)
            while True:
                if not isinstance(getattr(page, "data", None), list):
                    raise ValueError("an answer without a list")
                before = len(found)
                for seen in page.data:
                    found.setdefault(_id(seen), seen)
                if len(found) == before or not page.has_next_page():  # a server may give the first page for ever
                    return [seen for seen in found.values() if stage(seen) != "failed"]
                page = await page.get_next_page()
        except openai.APIStatusError as error:
            if error.status_code not in ABSENT:
                raise
        except AttributeError:  # the client's own, of a page that is none
            raise ValueError("an answer without a list") from None
        return None

    async def _probe(self) -> int:
        """The code of an attempt to create a batch out of nothing, which no server accepts."""
        try:
            await self._client.post("/batches", body={}, cast_to=object)
        except openai.APIStatusError as error:
            spoken = re.search(r"input_?file|endpoint|completion_window", said_in(error).message)
            return 400 if spoken else error.status_code
        return 200

    # ---- Calls

    async def _call(self, send: Callable[[], Awaitable[T]]) -> T:
        """What the server answers, asked again while that may help, no longer than teacher.patience in silence."""
        began = time.monotonic()

        def silent(_: RetryCallState) -> bool:
            # A wait that the server asked for is granted once: after it, being told to wait again is no answer.
            return time.monotonic() - max(began, self._heard) > self._teacher.patience + self._told

        retrying = AsyncRetrying(
            stop=silent,
            wait=wait_random_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT),
            retry=retry_if_exception_type((openai.OpenAIError, ValueError)),
            sleep=self._turnstile.sleep,
        )
        try:
            return await retrying(partial(self._try, send))
        except RetryError:
            await self._turnstile.silence(time.monotonic() - max(began, self._heard))
            raise StoppedError from None

    async def _try(self, send: Callable[[], Awaitable[T]], own: Collection[int] = ()) -> T:
        """One try. own: codes of refusals that the caller sees to."""
        await self._clear()
        try:
            answer = await send()
        except openai.APIStatusError as error:
            if error.status_code not in own:
                await self._refused(error)
            raise
        except (openai.OpenAIError, ValueError) as error:
            unreached = not self._heard and never_sent(error)  # from the start: an address that is wrong, perhaps
            self._turnstile.failed(f"{NOT_REACHED if unreached else ''}{cause_of(error)}")
            raise
        self._heard, self._told = time.monotonic(), 0.0
        return answer

    async def _clear(self) -> None:
        """Wait until no pause holds calls back."""
        await self._turnstile.clear()
        if self._turnstile.stopped.is_set():
            raise StoppedError

    async def _refused(self, error: openai.APIStatusError) -> None:
        """What a refusal means for the next try. Raises StoppedError where there is to be none."""
        said = said_in(error)
        meaning = outlook(error.status_code, said)
        if meaning in ("final", "filtered"):
            await self.stop(f"{error.status_code}: {said.message}")
        self._turnstile.failed(BUSY if meaning == "busy" else f"{error.status_code}")
        seconds = retry_after(error.response.headers)
        if meaning == "busy" or seconds:
            wait = await self._turnstile.pause(seconds)
            self._told = max(self._told, wait if seconds else 0.0)

    def _words(self, error: Exception) -> str:
        """What a failure says, in one line."""
        if isinstance(error, openai.APIStatusError):
            return first_line(self._teacher, f"{error.status_code}: {said_in(error).message}")
        return first_line(self._teacher, cause_of(error))


def _may_have_worked(error: BaseException) -> bool:
    """Whether the server may have done what it was asked, although its answer was this."""
    if isinstance(error, openai.APIStatusError):
        return error.status_code >= 500 or error.status_code in (408, 409)
    return not never_sent(error)


def _id(answer: Any) -> str:
    """The id of what a server made. Raises ValueError where its answer is something else."""
    found = named(answer, "id")
    if found is None:
        raise ValueError("an answer without an id")
    return found


def _mark(batch: Any) -> Any:
    """The digest of ours that a batch was created with; None where the server keeps none."""
    metadata = getattr(batch, "metadata", None)
    return metadata.get(MARK) if isinstance(metadata, dict) else None


async def _lines(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Lines that are not empty, as they come. Raises ValueError where the connection breaks."""
    rest, skipping = bytearray(), False
    while True:
        try:
            chunk = await anext(chunks)
        except StopAsyncIteration:
            break
        except Exception as error:  # of whatever transport: the client wraps these in its other calls alone
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
