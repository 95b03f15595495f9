"""Teacher that uses the provider's offline Batch API: submit, poll, collect. Cheaper, and completed within a day.

A batch is written to the part's registry before it is submitted. Its responses are in the journal before the
registry drops it. So any later process can resume, and only rows without a response are requested again.
A batch is complete once its lines account for the provider's counts (`Results.lacking`). Until then its files are
read again, no request is repeated, nothing is deleted, and its bound stays reserved.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

import pyarrow as pa
from openai.types import Batch as ServerBatch

from tsd.progress import clock
from tsd.recipe import ApiTeacher
from tsd.storage import keys
from tsd.teachers import Reply, annotations
from tsd.teachers.api.account import Estimator
from tsd.teachers.api.batch_files import ENDPOINT, Batches
from tsd.teachers.api.batch_lines import Line, UnreadableError, read_line
from tsd.teachers.api.batch_lists import DownloadError, Waiting
from tsd.teachers.api.batch_registry import Batch, Rows
from tsd.teachers.api.batch_results import Results, complaints, counted, named, progress, stage, status
from tsd.teachers.api.journal import Journal
from tsd.teachers.api.messages import StoppedError
from tsd.teachers.api.request_format import RequestFormat
from tsd.teachers.api.worker import RateLimiterClient
from tsd.teachers.prompts import Questions

FULL = "token_limit_exceeded"  # the account's limit of enqueued tokens is reached
FULL_SECONDS = 24 * 3600.0  # after which all enqueued batches have ended
DRAWN_AT_ONCE = 16  # plots rendered between two switches to other tasks
READ_AT_ONCE = 100  # lines read between two switches to other tasks
LOOKS = 3  # consistent reads required if an early-ended batch has no counts to check its lines against
WINDOW_SECONDS = 24 * 3600.0  # completion window of every batch
FEW = 20  # requests: if so few are all refused, each refusal may concern its own row
BATCH_SETTINGS = "teacher.model, teacher.batch and the account"


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
        self._server = Batches(self._teacher, limiter)
        self._request_format = RequestFormat(self._teacher, questions.task)
        self._slots = asyncio.Semaphore(share)
        self._packing = asyncio.Lock()  # a file may have 200 MB: keep one in memory at a time
        self._reading = asyncio.Lock()  # same reason
        self._full_since: float | None = None
        self._estimator = Estimator()  # cost bounds learned from all parts

    async def close(self) -> None:
        """Close all connections."""
        await self._server.close()

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
                    await self._follow(rows, batch)

    async def _resume(self, rows: Rows, batch: Batch) -> None:
        """Resume a batch of an earlier start. A batch that the server never accepted is dropped."""
        async with self._slots:
            await rows.sent(batch)
            rows.registry.save()
            if batch.id is None:
                batch.id = await self._server.find(batch, rows.registry.path)
            if batch.id is None:
                await self._forget(rows, batch, (), batch.file)
                return
            if batch.name not in rows.ended:
                await self._limiter.reserve(batch.name, rows.bound(batch), submitted=True)
            await self._follow(rows, batch)

    # ---- Submit

    async def _submit(self, rows: Rows, missing: deque[int]) -> Batch | None:
        """Submit one batch of missing rows. Returns None if no row is left."""
        rows.estimator = self._estimator = self._estimator.merged(rows.estimator)
        batch, content = await self._pack(rows, missing)
        if not batch.requests:
            return None
        await self._server.require()
        if not rows.registry.found:  # possibly submitted by a start whose disk is lost
            batch.id = await self._server.find(batch, kept=None)
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

    # ---- Poll

    async def _follow(self, rows: Rows, batch: Batch) -> None:
        """Wait until a batch has ended, then collect its results."""
        with self._limiter.batch(len(batch.requests)) as completed:
            ended = await self._end(rows, batch, completed)
            empty = stage(ended) == "failed" and not progress(ended)[0] and not named(ended, "output_file_id")
            results = None if empty else await self._results(rows, batch, ended, completed)
        if results is None:
            await self._failed(rows, batch, ended)
        else:
            self._full_since = None
            await self._collect(rows, batch, *results)

    async def _end(self, rows: Rows, batch: Batch, completed: Callable[[int], None]) -> ServerBatch:
        """Poll a batch until it has ended. Stops the stage if a status is unknown or lasts too long."""
        waiting, began = self._server.waiting(), time.time()
        while True:
            seen = await self._server.look(batch, rows.registry.path)
            now = stage(seen)
            if now not in ("under way", "unknown"):
                return seen
            completed(progress(seen)[0])
            waiting.saw((status(seen), progress(seen)))
            age = time.time() - min(batch.asked_at or began, _created(seen) or began)
            if waiting.over and (now == "unknown" or age > WINDOW_SECONDS):
                what = f"has had the status {status(seen)[:40]!r}, unchanged for {clock(waiting.silent)}"
                why = "which tsd does not know" if now == "unknown" else f"{clock(age)} after its creation"
                await self._server.halt(
                    f"says that batch {batch.id} {what}, {why}: look it up in the provider's console"
                )
            await self._limiter.sleep(self._teacher.batch.poll_seconds)

    async def _failed(self, rows: Rows, batch: Batch, ended: ServerBatch) -> None:
        """Handle a rejected batch: wait if the enqueued-token limit is reached, else stop the stage."""
        errors = complaints(ended)
        await self._forget(rows, batch, (), batch.file or named(ended, "input_file_id"))
        if any(code == FULL for code, _ in errors):
            self._limiter.failed(FULL)
            self._full_since = self._full_since or time.monotonic()
            if time.monotonic() - self._full_since < FULL_SECONDS:
                await self._limiter.sleep(self._teacher.batch.poll_seconds)
                return
        said = "; ".join(words for _, words in errors)
        await self._server.stop(f"a batch failed: {said or 'no reason given'}", BATCH_SETTINGS)

    # ---- Read

    async def _results(
        self, rows: Rows, batch: Batch, ended: ServerBatch, completed: Callable[[int], None]
    ) -> tuple[ServerBatch, Results]:
        """Read the results of a batch until they are complete. Stops the stage if they never are.

        Also returns the batch as last polled: file ids may appear after its end.
        """
        waiting, best, looks = self._server.waiting(), Results(batch.requests), 0
        while True:
            async with self._reading:
                results = await self._read(rows, batch, ended)
            best = max(results, best, key=lambda one: one.served)
            lacking, looks = results.lacking(ended), looks + 1
            known = len(results.lines) == len(batch.requests) or counted(ended, len(batch.requests))
            if lacking is None and (known or looks >= LOOKS):
                return ended, results
            waiting.saw(best.served)
            if lacking:
                looks = 0
                self._limiter.failed("batch not whole")
            if not await waiting.wait() and lacking:
                await self._stuck(rows, batch, ended, best, lacking, waiting)
            ended = await self._server.look(batch, rows.registry.path)
            if stage(ended) in ("under way", "unknown"):
                ended = await self._end(rows, batch, completed)

    async def _read(self, rows: Rows, batch: Batch, ended: ServerBatch) -> Results:
        """Read a batch's files once."""
        results = Results(batch.requests)
        expected = {name: rows.tokens(name) for name in batch.requests if name in rows.row}
        for kind in ("output_file_id", "error_file_id"):
            file = named(ended, kind)
            if file is None:
                continue
            try:
                await self._server.download(file, partial(self._add_lines, results, expected, kind))
            except DownloadError as error:
                results.unread.append(f"file {file} does not come: {error}")
        return results

    async def _add_lines(
        self, results: Results, expected: Mapping[str, int], kind: str, lines: AsyncIterator[bytes]
    ) -> None:
        """Parse the lines of one file into `results`. kind: output_file_id or error_file_id.

        expected: approximate prompt tokens by custom id. Yields to other tasks every READ_AT_ONCE lines.
        """
        number = 0
        async for text in lines:
            try:
                results.add(
                    read_line(text, self._teacher.usd, expected, self._questions.task.topics),
                    output=kind == "output_file_id",
                )
            except UnreadableError as error:
                results.fail(text, error)
            number += 1
            if number % READ_AT_ONCE == 0:
                await asyncio.sleep(0)

    async def _stuck(
        self, rows: Rows, batch: Batch, ended: ServerBatch, best: Results, lacking: str, waiting: Waiting
    ) -> None:
        """Store the responses that could be read, then stop the stage: missing ones may have been paid for."""
        for name in rows.open(batch):
            line = best.lines.get(name)
            if line and line.served and line.reply.status != "error" and not best.wrong:
                self._take(rows, line)
        await asyncio.to_thread(rows.journal.flush)
        files = [file for kind in ("output_file_id", "error_file_id") if (file := named(ended, kind))]
        where = f"file {' and '.join(files)}" if files else "no file, neither output nor errors"
        await self._server.halt(
            f"gave nothing more of batch {batch.id} ({status(ended)[:40]}, {where}) for {clock(waiting.silent)}: "
            f"{' '.join(lacking.split())}; it may be paid for, so nothing was asked again or deleted: look in the "
            f"provider's console whether the file is whole (only without its files there and {rows.registry.path} "
            "would it be asked, and paid for, again)"
        )

    # ---- Collect

    async def _collect(self, rows: Rows, batch: Batch, ended: ServerBatch, results: Results) -> None:
        """Store a batch's responses in the journal. Rows without one are requested again if that can help."""
        lines = self._judged(batch, results)
        files = batch.file or named(ended, "input_file_id"), *_given(ended)
        refused = [line.reply.reason or "" for line in lines.values() if line.fault == "row"]
        if results.served:
            self._request_format.agreed = True
        if len(refused) == len(batch.requests) and not self._request_format.agreed:
            if batch.form != self._request_format.form or self._request_format.adapt(refused[0], every=True):
                await self._forget(rows, batch, results.lines.values(), *files)
                return  # so that it is sent in another request format
            if not any(rows.replies):
                await self._forget(rows, batch, results.lines.values(), *files)
                await self._server.stop(refused[0])
        for number, name in enumerate(rows.open(batch)):
            line = lines.get(name) or Line(name, Reply(None, "error", f"{status(ended)}: without an answer"))
            if line.fault != "account":
                self._take(rows, line)
            if number % READ_AT_ONCE == 0:
                await asyncio.sleep(0)
        await self._forget(rows, batch, results.lines.values(), *files)
        for line in lines.values():
            if line.fault == "account":
                await self._server.stop(line.reply.reason or "")

    def _judged(self, batch: Batch, results: Results) -> dict[str, Line]:
        """Attribute ambiguous refusals to the row if other rows got a response, else to the account."""
        rows = results.served or (self._request_format.agreed and len(batch.requests) < FEW)
        return {
            name: replace(line, fault="row" if rows else "account") if line.fault == "either" else line
            for name, line in results.lines.items()
        }

    def _take(self, rows: Rows, line: Line) -> None:
        self._limiter.answered(line.reply, self._request_format.name)
        rows.learn(line)
        self._estimator = self._estimator.merged(rows.estimator)
        if line.reply.status == "error":
            self._limiter.failed((line.reply.reason or "").partition(":")[0])
        reply = rows.take(line, self._teacher.batch.rounds)
        if reply and not rows.repairable(reply):
            self._limiter.settled(reply)

    async def _forget(self, rows: Rows, batch: Batch, lines: Iterable[Line], *files: str | None) -> None:
        """Drop a completed batch from the registry and let the server delete its files.

        lines: all result lines, which determine the bill. Responses are stored durably before anything is deleted.
        """
        lines = list(lines)
        billed = rows.billed(batch, lines)
        await asyncio.to_thread(rows.journal.flush)
        rows.registry.batches.remove(batch)
        rows.registry.save()
        if billed is not None:
            self._limiter.settle(batch.name, billed, sum(line.served for line in lines))
        for file in filter(None, files):
            await self._server.delete(file)


def _given(ended: ServerBatch) -> list[str | None]:
    return [named(ended, kind) for kind in ("output_file_id", "error_file_id")]


def _created(seen: ServerBatch) -> float | None:
    """The server's creation time of a batch, in seconds since 1970; None if implausible."""
    found = getattr(seen, "created_at", None)
    return float(found) if isinstance(found, int | float) and 1e9 < found < 1e11 else None
