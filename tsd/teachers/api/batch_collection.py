"""Collect batches: store their responses, request again what failed, and let the server delete the files.

Responses are in the journal before the registry drops their batch. Nothing is dropped or deleted while results are
missing that may have been paid for.
"""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import NoReturn

from openai.types import Batch as ServerBatch

from tsd.progress import clock
from tsd.recipe import ApiTeacher
from tsd.teachers import Reply
from tsd.teachers.api.account import Estimator
from tsd.teachers.api.batch_calls import Calls
from tsd.teachers.api.batch_files import Batches
from tsd.teachers.api.batch_lines import Line
from tsd.teachers.api.batch_reading import READ_AT_ONCE, BatchReader, IncompleteError
from tsd.teachers.api.batch_registry import Batch, Rows
from tsd.teachers.api.batch_results import Results, complaints, named, progress, stage, status
from tsd.teachers.api.request_format import RequestFormat
from tsd.teachers.prompts import Questions

FULL = "token_limit_exceeded"  # the account's limit of enqueued tokens is reached
FULL_SECONDS = 24 * 3600.0  # after which all enqueued batches have ended
FEW = 20  # requests: if so few are all refused, each refusal may concern its own row
BATCH_SETTINGS = "teacher.model, teacher.batch and the account"


class BatchCollector:
    """Collects the submitted batches of all parts, each into the rows of its part."""

    def __init__(self, questions: Questions, calls: Calls, server: Batches, request_format: RequestFormat) -> None:
        """questions: prompts of an `ApiTeacher`. request_format: adapted if a whole batch is refused."""
        assert isinstance(questions.teacher, ApiTeacher)
        self._teacher: ApiTeacher = questions.teacher
        self._limiter, self._calls, self._server = calls.limiter, calls, server
        self._request_format = request_format
        self._reader = BatchReader(questions, calls, server)
        self._full_since: float | None = None
        self.estimator = Estimator()
        """Estimator of cost bounds, learned from all parts."""

    def learn(self, rows: Rows) -> None:
        """Update the estimator with what the rows of one part have shown."""
        self.estimator = self.estimator.merged(rows.estimator)

    async def collect(self, rows: Rows, batch: Batch) -> None:
        """Wait until a batch has ended, then store its responses and forget it."""
        with self._limiter.counts.batch(len(batch.requests)) as completed:
            ended = await self._reader.poll(rows, batch, completed)
            empty = stage(ended) == "failed" and not progress(ended)[0] and not named(ended, "output_file_id")
            try:
                results = None if empty else await self._reader.results(rows, batch, ended, completed)
            except IncompleteError as error:
                await self._halt(rows, batch, error)
        if results is None:
            await self._failed(rows, batch, ended)
        else:
            self._full_since = None
            await self._store(rows, batch, *results)

    async def forget(self, rows: Rows, batch: Batch, lines: Iterable[Line], *files: str | None) -> None:
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

    async def _failed(self, rows: Rows, batch: Batch, ended: ServerBatch) -> None:
        """Handle a rejected batch: wait if the enqueued-token limit is reached, else stop the stage."""
        errors = complaints(ended)
        await self.forget(rows, batch, (), batch.file or named(ended, "input_file_id"))
        if any(code == FULL for code, _ in errors):
            self._limiter.counts.failed(FULL)
            self._full_since = self._full_since or time.monotonic()
            if time.monotonic() - self._full_since < FULL_SECONDS:
                await self._limiter.sleep(self._teacher.batch.poll_seconds)
                return
        said = "; ".join(words for _, words in errors)
        await self._calls.stop(f"a batch failed: {said or 'no reason given'}", BATCH_SETTINGS)

    async def _halt(self, rows: Rows, batch: Batch, error: IncompleteError) -> NoReturn:
        """Store the responses that could be read, then stop the stage: missing ones may have been paid for."""
        ended, best = error.ended, error.best
        for name in rows.open(batch):
            line = best.lines.get(name)
            if line and line.served and line.reply.status != "error" and not best.wrong:
                self._take(rows, line)
        await asyncio.to_thread(rows.journal.flush)
        files = list(filter(None, _given(ended)))
        where = f"file {' and '.join(files)}" if files else "no file, neither output nor errors"
        await self._calls.halt(
            f"gave nothing more of batch {batch.id} ({status(ended)[:40]}, {where}) for {clock(error.silent)}: "
            f"{' '.join(error.lacking.split())}; it may be paid for, so nothing was requested again or deleted: "
            "check in the provider's console whether the file is complete (to request the batch, and pay for it, "
            f"again, delete its files there and {rows.registry.path})"
        )

    async def _store(self, rows: Rows, batch: Batch, ended: ServerBatch, results: Results) -> None:
        """Store a batch's responses in the journal. Rows without one are requested again if that can help."""
        lines = self._judged(batch, results)
        files = batch.file or named(ended, "input_file_id"), *_given(ended)
        refused = [line.reply.reason or "" for line in lines.values() if line.fault == "row"]
        if results.served:
            self._request_format.agreed = True
        if len(refused) == len(batch.requests) and not self._request_format.agreed:
            if batch.form != self._request_format.form or self._request_format.adapt(refused[0], every=True):
                await self.forget(rows, batch, results.lines.values(), *files)
                return  # so that it is sent in another request format
            if not any(rows.replies):
                await self.forget(rows, batch, results.lines.values(), *files)
                await self._calls.stop(refused[0])
        for number, name in enumerate(rows.open(batch)):
            line = lines.get(name) or Line(name, Reply(None, "error", f"{status(ended)}: without an answer"))
            if line.fault != "account":
                self._take(rows, line)
            if number % READ_AT_ONCE == 0:
                await asyncio.sleep(0)
        await self.forget(rows, batch, results.lines.values(), *files)
        for line in lines.values():
            if line.fault == "account":
                await self._calls.stop(line.reply.reason or "")

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
        self.learn(rows)
        if line.reply.status == "error":
            self._limiter.counts.failed((line.reply.reason or "").partition(":")[0])
        reply = rows.take(line, self._teacher.batch.rounds)
        if reply and not rows.repairable(reply):
            self._limiter.counts.settled(reply)


def _given(ended: ServerBatch) -> list[str | None]:
    return [named(ended, kind) for kind in ("output_file_id", "error_file_id")]
