"""The same teacher through its provider's offline Batch API: submit, poll, collect; cheaper, and within a day.

Before the server hears of a batch, it stands in the part's ledger; what it gave is in the journal before the
ledger forgets it. So any process, days later, goes on from there, and only rows without an answer are asked again.
"""

import asyncio
import json
import time
from collections import deque

import pyarrow as pa
from openai.types import Batch as ServerBatch

from tsd import store
from tsd.recipe import ApiTeacher
from tsd.teachers import Reply, annotations
from tsd.teachers.answers import Line, read_line
from tsd.teachers.asking import Questions
from tsd.teachers.batches import ENDED, ENDPOINT, Batches, status
from tsd.teachers.dialect import Dialect
from tsd.teachers.gate import StoppedError, Turnstile
from tsd.teachers.journal import Journal
from tsd.teachers.ledger import Batch, Rows

FULL = "token_limit_exceeded"  # the provider holds as many tokens of this account as it will
FULL_SECONDS = 24 * 3600.0  # after which all that it held has ended
DRAWN_AT_ONCE = 16  # plots, between which other batches are looked after
READ_AT_ONCE = 100  # lines, likewise
BATCH_SETTINGS = "teacher.model, teacher.batch and the account"


class BatchApi:
    """Asks about series, a part at a time; many parts may be under way at once in its event loop.

    Nobody can negotiate about a request's form: `structured: auto` means schema, until every request of a batch
    was refused for it.
    """

    def __init__(self, questions: Questions, turnstile: Turnstile, share: int) -> None:
        """questions: of an `ApiTeacher`. share: the batches that may be under way."""
        assert isinstance(questions.teacher, ApiTeacher)
        self._teacher: ApiTeacher = questions.teacher
        self._questions, self._turnstile, self._share = questions, turnstile, share
        self._server = Batches(self._teacher, turnstile)
        self._dialect = Dialect(self._teacher, questions.task)
        self._slots = asyncio.Semaphore(share)
        self._packing = asyncio.Lock()  # a file may have 200 MB: one in memory at a time
        self._full_since: float | None = None

    async def close(self) -> None:
        """Close all connections."""
        await self._server.close()

    async def annotate(self, part: int, series: pa.Table, journal: Journal) -> pa.Table | None:
        """series: the part's rows of the task's series table. Returns their annotations table.

        None where the stage was stopped and replies are missing. What the journal holds is not asked again, and
        a batch that was submitted is waited for. Raises StorageError where the folder cannot be written.
        """
        rows = Rows(self._questions, series, journal)
        await self._turnstile.begin(part, rows.paid(), rows.settled())
        while (missing := deque(rows.missing())) or rows.under_way():
            tasks = [asyncio.create_task(self._resume(rows, batch)) for batch in rows.under_way()]
            loops = min(self._share, len(missing))
            tasks += [asyncio.create_task(self._ask(rows, missing)) for _ in range(loops)]
            await self._turnstile.wait_for(tasks)
            for task in tasks:
                if not task.cancelled() and not isinstance(task.exception(), StoppedError):
                    task.result()
            if self._turnstile.stopped.is_set():
                break
        await self._turnstile.hand_in()
        whole = [reply for reply in rows.replies if reply is not None]
        if rows.missing() or rows.under_way() or len(whole) < len(rows.replies):
            return None
        return annotations(self._questions.task, self._teacher.name, series, rows.keys, whole)

    async def _ask(self, rows: Rows, missing: deque[int]) -> None:
        """Put missing rows into batches, one batch after another."""
        while missing and not self._turnstile.stopped.is_set():
            async with self._slots:
                async with self._packing:
                    batch = await self._submit(rows, missing)
                if batch:
                    await self._follow(rows, batch)

    async def _resume(self, rows: Rows, batch: Batch) -> None:
        """Go on with a batch of an earlier start; one that the server never accepted is forgotten."""
        async with self._slots:
            if batch.id is None:
                batch.id = await self._server.find(batch, anew=True)
            if batch.id is None:
                await self._forget(rows, batch, batch.file)
                return
            await self._turnstile.reserve(0, len(batch.requests), submitted=True)
            await self._follow(rows, batch)

    # ---- Submit

    async def _submit(self, rows: Rows, missing: deque[int]) -> Batch | None:
        """Take rows for one batch and hand it to the server. None where no row is left."""
        batch, content, tokens = await self._pack(rows, missing)
        if not batch.requests:
            return None
        if not rows.ledger.found:  # by a start whose disk is lost, perhaps
            batch.id = await self._server.find(batch, anew=False)
        await self._turnstile.reserve(tokens, len(batch.requests), submitted=batch.id is not None)
        rows.ledger.batches.append(batch)
        rows.ledger.save()
        if batch.id is None:
            batch.file = await self._server.upload(f"{batch.digest}.jsonl", content)
            rows.ledger.save()
            batch.id = await self._server.create(batch.file, batch.digest)
            rows.ledger.save()
        return batch

    async def _pack(self, rows: Rows, missing: deque[int]) -> tuple[Batch, bytes, int]:
        """One batch within the provider's limits, its file, and the most tokens that a request may take."""
        limit, most = int(1e6 * self._teacher.batch.most_megabytes), self._teacher.batch.most_requests
        requests: dict[str, tuple[str, int]] = {}
        content, tokens = bytearray(), 0
        while missing and len(requests) < most:
            few = [missing.popleft() for _ in range(min(len(missing), DRAWN_AT_ONCE, most - len(requests)))]
            for row, (messages, asked) in zip(few, rows.ask(few), strict=True):
                request = {"custom_id": rows.names[row], "method": "POST", "url": ENDPOINT}
                line = json.dumps({**request, "body": self._dialect.body(messages)}).encode() + b"\n"
                if content and len(content) + len(line) > limit:
                    missing.extendleft(reversed(few[few.index(row) :]))
                    most = 0
                    break
                content += line
                requests[rows.names[row]] = rows.keys[row], rows.repairs(row)
                tokens = max(tokens, asked + self._teacher.max_tokens)
            await asyncio.sleep(0)
        tried = [rows.ledger.missed[name].reply.attempts if name in rows.ledger.missed else 0 for name in requests]
        digest = store.digest([list(requests.items()), tried, self._dialect.form])
        return Batch(digest, requests, self._dialect.form), bytes(content), tokens

    # ---- Poll

    async def _follow(self, rows: Rows, batch: Batch) -> None:
        """Wait until a batch has ended, and take what it gave."""
        try:
            ended = await self._end(rows, batch)
            if status(ended) == "failed":
                await self._failed(rows, batch, ended)
            else:
                self._full_since = None
                await self._collect(rows, batch, ended)
        finally:
            self._turnstile.returned(len(batch.requests))

    async def _end(self, rows: Rows, batch: Batch) -> ServerBatch:
        assert batch.id
        with self._turnstile.batch(len(batch.requests)) as completed:
            while True:
                seen = await self._server.look(batch.id, rows.ledger.path)
                if status(seen) in ENDED:
                    return seen
                completed(getattr(seen.request_counts, "completed", None) or 0)
                await self._turnstile.sleep(self._teacher.batch.poll_seconds)

    async def _failed(self, rows: Rows, batch: Batch, ended: ServerBatch) -> None:
        """The server would not begin with a batch: wait where it holds too much already, else stop the stage."""
        errors = (ended.errors.data if ended.errors else None) or []
        await self._forget(rows, batch, ended.input_file_id)
        if any(error.code == FULL for error in errors):
            self._turnstile.failed(FULL)
            self._full_since = self._full_since or time.monotonic()
            if time.monotonic() - self._full_since < FULL_SECONDS:
                await self._turnstile.sleep(self._teacher.batch.poll_seconds)
                return
        said = [f"{error.message} (line {error.line})" if error.line else str(error.message) for error in errors]
        await self._server.stop(f"a batch failed: {'; '.join(said) or 'no reason given'}", BATCH_SETTINGS)

    # ---- Collect

    async def _collect(self, rows: Rows, batch: Batch, ended: ServerBatch) -> None:
        """Take a batch's answers into the journal; what has none is missed, and asked again if that may help."""
        lines = await self._lines(rows, batch, ended)
        refused = [line.reply.reason or "" for line in lines.values() if line.fault == "row"]
        if any(line.reply.status != "error" for line in lines.values()):
            self._dialect.agreed = True
        if len(refused) == len(batch.requests) and not self._dialect.agreed:
            if batch.form != self._dialect.form or self._dialect.adapt(refused[0]):
                await self._forget(rows, batch, ended.input_file_id, ended.error_file_id)
                return  # to be asked in other words
            if not any(rows.replies):
                await self._forget(rows, batch, ended.input_file_id, ended.error_file_id)
                await self._server.stop(refused[0])
        for number, (name, (key, repairs)) in enumerate(batch.requests.items()):
            line = lines.get(name) or Line(name, Reply(None, "error", f"{status(ended)}: without an answer"))
            if rows.awaits(name, key, repairs) and line.fault != "account":
                self._take(rows, line)
            if number % READ_AT_ONCE == 0:
                await asyncio.sleep(0)
        rows.journal.flush()
        files = ended.input_file_id, ended.output_file_id, ended.error_file_id
        await self._forget(rows, batch, *files)
        for line in lines.values():
            if line.fault == "account":
                await self._server.stop(line.reply.reason or "")

    async def _lines(self, rows: Rows, batch: Batch, ended: ServerBatch) -> dict[str, Line]:
        """What a batch gave, by custom id. A file that the server no longer has gives nothing."""
        found: dict[str, Line] = {}
        expected = {name: rows.tokens(name) for name in batch.requests if name in rows.row}
        for file in filter(None, (ended.output_file_id, ended.error_file_id)):
            content = await self._server.download(file)
            for number, text in enumerate(content.split(b"\n")):
                line = read_line(text, self._teacher.usd, expected)
                if line:
                    found.setdefault(line.name, line)
                if number % READ_AT_ONCE == 0:
                    await asyncio.sleep(0)
        return found

    def _take(self, rows: Rows, line: Line) -> None:
        self._turnstile.answered(line.reply)
        if line.reply.status == "error":
            self._turnstile.failed((line.reply.reason or "").partition(":")[0])
        reply = rows.take(line, self._teacher.batch.rounds)
        if reply and not rows.repairable(reply):
            self._turnstile.settled(reply)

    async def _forget(self, rows: Rows, batch: Batch, *files: str | None) -> None:
        """A batch is done with: its rows are as open as their replies say. The server may let go of its files."""
        rows.ledger.batches.remove(batch)
        rows.ledger.save()
        for file in filter(None, files):
            await self._server.delete(file)
