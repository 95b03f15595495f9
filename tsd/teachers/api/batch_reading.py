"""Wait for the end of a batch on the server, then read its results until they are complete.

A batch is complete once its lines account for the provider's counts (`Results.lacking`). Until then its files are
read again. Nothing is requested, stored or deleted here.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial

from openai.types import Batch as ServerBatch

from tsd.progress import clock
from tsd.recipe import ApiTeacher
from tsd.teachers.api.batch_calls import Calls
from tsd.teachers.api.batch_files import Batches, DownloadError
from tsd.teachers.api.batch_lines import UnreadableError, read_line
from tsd.teachers.api.batch_registry import Batch, Rows
from tsd.teachers.api.batch_results import Results, counted, named, progress, stage, status
from tsd.teachers.prompts import Questions

READ_AT_ONCE = 100  # lines read between two switches to other tasks
LOOKS = 3  # consistent reads required if an early-ended batch has no counts to check its lines against
WINDOW_SECONDS = 24 * 3600.0  # completion window of every batch


class IncompleteError(Exception):
    """The results of an ended batch stayed incomplete."""

    def __init__(self, ended: ServerBatch, best: Results, lacking: str, silent: float) -> None:
        """ended: the batch as last polled. best: the reading with the most completed requests. lacking: what the
        last reading lacks. silent: seconds since a reading gave anything new.
        """
        super().__init__(lacking)
        self.ended, self.best, self.lacking, self.silent = ended, best, lacking, silent


class BatchReader:
    """Polls batches and reads their files. Several batches can be in progress at once."""

    def __init__(self, questions: Questions, calls: Calls, server: Batches) -> None:
        """questions: prompts of an `ApiTeacher`."""
        assert isinstance(questions.teacher, ApiTeacher)
        self._teacher: ApiTeacher = questions.teacher
        self._topics = questions.task.topics
        self._limiter, self._calls, self._server = calls.limiter, calls, server
        self._reading = asyncio.Lock()  # a file may have 200 MB: keep one in memory at a time

    async def poll(self, rows: Rows, batch: Batch, completed: Callable[[int], None]) -> ServerBatch:
        """Poll a batch until it has ended. Stops the stage if a status is unknown or lasts too long."""
        waiting, began = self._calls.waiting(), time.time()
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
                await self._calls.halt(
                    f"says that batch {batch.id} {what}, {why}: look it up in the provider's console"
                )
            await self._limiter.sleep(self._teacher.batch.poll_seconds)

    async def results(
        self, rows: Rows, batch: Batch, ended: ServerBatch, completed: Callable[[int], None]
    ) -> tuple[ServerBatch, Results]:
        """Read the results of an ended batch until they are complete. Raises IncompleteError if they never are.

        Also returns the batch as last polled: file ids may appear after its end.
        """
        waiting, best, looks = self._calls.waiting(), Results(batch.requests), 0
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
                self._limiter.counts.failed("batch not whole")
            if not await waiting.wait() and lacking:
                raise IncompleteError(ended, best, lacking, waiting.silent)
            ended = await self._server.look(batch, rows.registry.path)
            if stage(ended) in ("under way", "unknown"):
                ended = await self.poll(rows, batch, completed)

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
                    read_line(text, self._teacher.usd, expected, self._topics),
                    output=kind == "output_file_id",
                )
            except UnreadableError as error:
                results.fail(text, error)
            number += 1
            if number % READ_AT_ONCE == 0:
                await asyncio.sleep(0)


def _created(seen: ServerBatch) -> float | None:
    """The server's creation time of a batch, in seconds since 1970; None if implausible."""
    found = getattr(seen, "created_at", None)
    return float(found) if isinstance(found, int | float) and 1e9 < found < 1e11 else None
