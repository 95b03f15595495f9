"""Teacher that uses the provider's offline Batch API: submit, poll, collect. Cheaper, and completed within a day.

A batch is written to the part's registry before it is submitted. Its responses are in the journal before the
registry drops it. So any later process can resume, and only rows without a response are requested again.
A batch is complete once its lines account for the provider's counts (`Results.lacking`). Until then its files are
read again, no request is repeated, nothing is deleted, and its bound stays reserved.
"""

import asyncio
import json
from collections import deque

import pyarrow as pa

from tsd.recipe import ApiTeacher
from tsd.storage import keys
from tsd.teachers import annotations
from tsd.teachers.api.batch_calls import Calls
from tsd.teachers.api.batch_collection import BatchCollector
from tsd.teachers.api.batch_files import ENDPOINT, Batches
from tsd.teachers.api.batch_lists import AcceptedBatches
from tsd.teachers.api.batch_registry import Batch, Rows
from tsd.teachers.api.journal import Journal
from tsd.teachers.api.messages import StoppedError
from tsd.teachers.api.request_format import RequestFormat
from tsd.teachers.api.worker import RateLimiterClient
from tsd.teachers.prompts import Questions

DRAWN_AT_ONCE = 16  # plots rendered between two switches to other tasks


class BatchApi:
    """Annotates series part by part. Several parts can be in progress at once in its event loop.

    A batch cannot negotiate the request format: `structured: auto` means schema until every request of a batch was
    refused because of it.
    """

    def __init__(self, questions: Questions, limiter: RateLimiterClient, share: int) -> None:
        """questions: prompts of an `ApiTeacher`. share: maximum number of concurrent batches."""
        assert isinstance(questions.teacher, ApiTeacher)
        self._teacher: ApiTeacher = questions.teacher
        self._questions, self._limiter, self._share = questions, limiter, share
        self._calls = Calls(self._teacher, limiter)
        self._accepted = AcceptedBatches(self._calls)
        self._server = Batches(self._calls, self._accepted)
        self._request_format = RequestFormat(self._teacher, questions.task)
        self._slots = asyncio.Semaphore(share)
        self._packing = asyncio.Lock()  # a file may have 200 MB: keep one in memory at a time
        self._collector = BatchCollector(questions, self._calls, self._server, self._request_format)

    async def close(self) -> None:
        """Close all connections."""
        await self._calls.close()

    async def annotate(self, part: int, series: pa.Table, journal: Journal) -> pa.Table | None:
        """series: the part's rows of the task's series table. Returns their annotations table.

        Returns None if the stage stopped and replies are missing. Rows in the journal are not requested again, and
        submitted batches are awaited. Raises StorageError if the folder cannot be written.
        """
        rows = await asyncio.to_thread(Rows, self._questions, series, journal)
        await self._limiter.begin(part, rows.settled())
        while (missing := deque(rows.missing())) or rows.under_way():
            tasks = [asyncio.create_task(self._resume(rows, batch)) for batch in rows.under_way()]
            loops = min(self._share, len(missing))
            tasks += [asyncio.create_task(self._ask(rows, missing)) for _ in range(loops)]
            await self._limiter.wait_for(tasks)
            for task in tasks:
                if not task.cancelled() and not isinstance(task.exception(), StoppedError):
                    task.result()
            if self._limiter.stopped.is_set():
                break
        await self._limiter.hand_in()
        whole = [reply for reply in rows.replies if reply is not None]
        if rows.missing() or rows.under_way() or len(whole) < len(rows.replies):
            return None
        return annotations(self._questions.task, self._teacher.name, series, rows.keys, whole)

    async def _ask(self, rows: Rows, missing: deque[int]) -> None:
        """Submit the missing rows, one batch after another."""
        while missing and not self._limiter.stopped.is_set():
            async with self._slots:
                async with self._packing:
                    batch = await self._submit(rows, missing)
                if batch:
                    await self._collector.collect(rows, batch)

    async def _resume(self, rows: Rows, batch: Batch) -> None:
        """Resume a batch of an earlier start. A batch that the server never accepted is dropped."""
        async with self._slots:
            await rows.sent(batch)
            rows.registry.save()
            if batch.id is None:
                batch.id = await self._accepted.find(batch, rows.registry.path)
            if batch.id is None:
                await self._collector.forget(rows, batch, (), batch.file)
                return
            if batch.name not in rows.ended:
                await self._limiter.reserve(batch.name, rows.bound(batch), submitted=True)
            await self._collector.collect(rows, batch)

    async def _submit(self, rows: Rows, missing: deque[int]) -> Batch | None:
        """Submit one batch of missing rows. Returns None if no row is left."""
        self._collector.learn(rows)
        rows.estimator = self._collector.estimator
        batch, content = await self._pack(rows, missing)
        if not batch.requests:
            return None
        await self._accepted.require()
        if not rows.registry.found:  # possibly submitted by a start whose disk is lost
            batch.id = await self._accepted.find(batch, kept=None)
        await self._limiter.reserve(batch.name, rows.bound(batch), submitted=batch.id is not None)
        rows.registry.batches.append(batch)
        rows.registry.save()
        await rows.sent(batch)
        if batch.id is None:
            batch.file = await self._server.upload(f"{batch.digest}.jsonl", content)
            batch.id = await self._server.create(batch, rows.registry)
            rows.registry.save()
        return batch

    async def _pack(self, rows: Rows, missing: deque[int]) -> tuple[Batch, bytes]:
        """Build one batch within the provider's limits. Returns it and its JSON-lines file."""
        limit, most = int(1e6 * self._teacher.batch.most_megabytes), self._teacher.batch.most_requests
        requests: dict[str, tuple[str, int]] = {}
        content = bytearray()
        while missing and len(requests) < most:
            few = [missing.popleft() for _ in range(min(len(missing), DRAWN_AT_ONCE, most - len(requests)))]
            for row, messages in zip(few, rows.ask(few), strict=True):
                request = {"custom_id": rows.names[row], "method": "POST", "url": ENDPOINT}
                line = json.dumps({**request, "body": self._request_format.body(messages)}).encode() + b"\n"
                if content and len(content) + len(line) > limit:
                    missing.extendleft(reversed(few[few.index(row) :]))
                    most = 0
                    break
                content += line
                requests[rows.names[row]] = rows.keys[row], rows.repairs(row)
            await asyncio.sleep(0)
        tried = [
            rows.registry.missed[name].reply.attempts if name in rows.registry.missed else 0 for name in requests
        ]
        digest = keys.digest([list(requests.items()), tried, self._request_format.form])
        return Batch(digest, requests, self._request_format.form), bytes(content)
