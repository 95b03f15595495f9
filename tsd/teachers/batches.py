"""A provider's files and batches: each call is made as often as may help, and stops the stage where none will."""

import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Literal, NoReturn, TypeVar

import openai
from openai.types import Batch as ServerBatch
from tenacity import AsyncRetrying, RetryCallState, RetryError, retry_if_exception_type, wait_random_exponential

from tsd.recipe import ApiTeacher
from tsd.teachers.answers import outlook
from tsd.teachers.gate import StoppedError, Turnstile
from tsd.teachers.ledger import Batch
from tsd.teachers.server import FIRST_WAIT, LONGEST_WAIT, SETTINGS, body_of, connect, refusal, retry_after

ENDPOINT: Literal["/v1/chat/completions"] = "/v1/chat/completions"
WINDOW: Literal["24h"] = "24h"
ENDED = ("completed", "expired", "cancelled", "failed")
MARK = "tsd"  # the name of a batch's digest in its metadata
NO_LIST = (404, 405, 501)  # codes of servers that do not list batches

T = TypeVar("T")


class Batches:
    """The server's side of batches. Every call may raise StoppedError."""

    def __init__(self, teacher: ApiTeacher, turnstile: Turnstile) -> None:
        self._teacher, self._turnstile = teacher, turnstile
        self._client = connect(teacher)
        self._listed: dict[str, ServerBatch] | None = None  # by digest and by input file
        self._heard = 0.0  # when the server last answered, by `time.monotonic`
        self._told = 0.0  # the longest that it has asked to wait since then

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def upload(self, name: str, content: bytes) -> str:
        """Have the server keep a file of requests. Returns its id."""

        async def send() -> str:
            return _id(await self._client.files.create(file=(name, content), purpose="batch"))

        return await self._call(send)

    async def create(self, file: str, digest: str) -> str:
        """Have the server accept a batch, once: where its answer was lost, the batch is looked for; its id."""
        tried = False

        async def send() -> str:
            nonlocal tried
            if tried:
                self._listed = await self._list()
                if file in self._listed:
                    return self._listed[file].id
            tried = True
            made = await self._client.batches.create(
                input_file_id=file, endpoint=ENDPOINT, completion_window=WINDOW, metadata={MARK: digest}
            )
            return _id(made)

        return await self._call(send)

    async def find(self, batch: Batch, anew: bool) -> str | None:
        """The id of a batch that the server has accepted; None where it has not, or what it gave is gone.

        anew: whether the batch may be younger than what was listed last.
        """
        if anew or self._listed is None:
            self._listed = await self._call(self._list)
        found = self._listed.get(batch.file or batch.digest)
        if found is None or (status(found) in ENDED and not await self._keeps(found)):
            return None
        return found.id

    async def look(self, batch: str, kept: str) -> ServerBatch:
        """How far a batch is. kept: the file that says that there is one."""

        async def send() -> ServerBatch:
            try:
                seen = await self._client.batches.retrieve(batch)
            except openai.NotFoundError as error:
                check = f"teacher.base_url and the key, or delete {kept} to ask, and pay for, its rows again"
                await self.stop(f"batch {batch}: {error.message}", check)
            status(seen)
            return seen

        return await self._call(send)

    async def download(self, file: str) -> bytes:
        """What a file holds; nothing where the server no longer has it."""

        async def send() -> bytes:
            try:
                return (await self._client.files.content(file)).content
            except openai.NotFoundError:
                return b""

        return await self._call(send)

    async def delete(self, file: str) -> None:
        """Have the server let go of a file, where it lets us."""
        with suppress(openai.OpenAIError, ValueError):
            await self._client.files.delete(file)

    async def stop(self, said: str, check: str = SETTINGS) -> NoReturn:
        """Stop the stage. said: the server's words; check: what to see to."""
        await self._turnstile.stop(refusal(self._teacher, said, check))
        raise StoppedError

    async def _keeps(self, batch: ServerBatch) -> bool:
        """Whether the server still has something of what a batch gave."""

        async def send(file: str) -> bool:
            try:
                return bool(_id(await self._client.files.retrieve(file)))
            except openai.NotFoundError:
                return False

        files = filter(None, (batch.output_file_id, batch.error_file_id))
        return any([await self._call(partial(send, file)) for file in files])

    async def _list(self) -> dict[str, ServerBatch]:
        found: dict[str, ServerBatch] = {}
        try:
            page = await self._client.batches.list(limit=100)  # the newest first
            while True:
                if not isinstance(getattr(page, "data", None), list):
                    raise ValueError("no list")
                for seen in page.data:
                    if status(seen) != "failed" and _id(seen):
                        for name in ((seen.metadata or {}).get(MARK), seen.input_file_id):
                            found.setdefault(str(name), seen)
                if not page.has_next_page():
                    return found
                page = await page.get_next_page()
        except openai.APIStatusError as error:
            if error.status_code not in NO_LIST:
                raise
        except AttributeError:  # the client's own, of a page that is none
            raise ValueError("no list") from None
        return found

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

    async def _try(self, send: Callable[[], Awaitable[T]]) -> T:
        await self._turnstile.clear()
        if self._turnstile.stopped.is_set():
            raise StoppedError
        try:
            answer = await send()
        except openai.APIStatusError as error:
            await self._refused(error)
            raise
        except (openai.OpenAIError, ValueError) as error:
            self._turnstile.failed(type(error).__name__)
            raise
        self._heard, self._told = time.monotonic(), 0.0
        return answer

    async def _refused(self, error: openai.APIStatusError) -> None:
        """What a refusal means for the next try. Raises StoppedError where there is to be none."""
        meaning = outlook(error.status_code, body_of(error))
        if meaning in ("final", "filtered"):
            await self.stop(error.message)
        self._turnstile.failed(f"{error.status_code}")
        if meaning == "busy":
            seconds = retry_after(error.response.headers)
            wait = await self._turnstile.pause(seconds)
            self._told = max(self._told, wait if seconds else 0.0)


def _id(answer: Any) -> str:
    """The id of what a server made. Raises ValueError where its answer is something else."""
    found = getattr(answer, "id", None)
    if not isinstance(found, str):
        raise ValueError("no id")
    return found


def status(batch: Any) -> str:
    """How far a batch is. Raises ValueError where the server's answer is something else."""
    found = getattr(batch, "status", None)
    if not isinstance(found, str):
        raise ValueError("no status")
    return found.lower()
