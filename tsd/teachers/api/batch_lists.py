"""The batches that a provider has accepted, as it lists them: whether one exists whose id was never received."""

import re
import time
from functools import partial
from typing import Any

import openai
from openai.types import Batch as ServerBatch

from tsd.teachers.api.batch_calls import Calls
from tsd.teachers.api.batch_registry import Batch
from tsd.teachers.api.batch_results import named, stage
from tsd.teachers.api.connection import said_in

MARK = "tsd"  # metadata key of a batch's digest
ABSENT = (404, 405, 501)  # status codes of an endpoint that a server does not implement
TRIES = 5  # to find a list or a batch's files, before they count as absent


class AcceptedBatches:
    """The server's list of batches. Every call may raise StoppedError."""

    def __init__(self, calls: Calls) -> None:
        self._calls, self._client = calls, calls.client
        self._listed: list[ServerBatch] | None = None  # newest first
        self._lists: bool | None = None  # whether the server lists batches; None if not yet known
        self._required = False

    async def require(self) -> None:
        """Stop the stage, before any upload, if the server has no Batch API."""
        if self._required:
            return
        if self._listed is None:
            await self._refresh()
        if not self._lists:
            code = await self._calls.retry(self._probe)
            if code in ABSENT:
                await self._calls.halt(
                    f"has no Batch API ({code} on /batches): set teacher.mode=live or another base_url"
                )
        self._required = True

    async def find(self, batch: Batch, kept: str | None) -> str | None:
        """Return the id of a batch that the server has accepted, else None.

        kept: path of the registry in which an earlier start recorded it. None: no registry knows it. In that case
        a batch whose files no longer exist on the server was already collected by the process that recorded it.
        """
        if kept:
            left = min(self._calls.settle, max(0.0, (batch.asked_at or 0.0) + self._calls.settle - time.time()))
            return await self.appears(batch, left, kept)
        if self._listed is None:
            await self._refresh()
        found = self._known(batch)
        if found is None or (stage(found) not in ("under way", "unknown") and not await self._keeps(found)):
            return None
        return id_of(found)

    async def appears(self, batch: Batch, seconds: float, kept: str) -> str | None:
        """Search for a batch that may have been accepted, for up to `seconds`. Returns None if it is not found.

        kept: path of the registry that records it. Stops the stage if only a person can check whether the batch
        exists.
        """
        until = time.monotonic() + seconds
        waiting = self._calls.waiting(seconds)
        while True:
            await self._refresh()
            if found := self._known(batch):
                return id_of(found)
            if not self._lists and batch.file and batch.asked_at:
                await self._calls.halt(
                    f"lists no batches, and its answer to the creation of one from file {batch.file} was lost: "
                    f'check whether the batch exists; in {kept} set its "id", or set "asked_at" to null if not'
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
                if file and await self._calls.retry(partial(send, file)):
                    return True
            if number + 1 < TRIES:
                await self._calls.back_off(number)
        return False

    async def _refresh(self) -> None:
        listed = await self._calls.retry(self._list)
        for number in range(TRIES):
            if listed is not None or self._lists is False:  # a single 404 does not prove that there is no list
                break
            await self._calls.back_off(number)
            listed = await self._calls.retry(self._list)
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
