"""What is known of a part's rows: their replies, the batches they are in, and what batches left unanswered.

It is on disk before the server hears of it, so that any process can go on from there.
"""

import json
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field

import pyarrow as pa
from pydantic import ConfigDict, TypeAdapter, ValidationError

from tsd.errors import StorageError
from tsd.recipe import ApiTeacher
from tsd.storage import datasets
from tsd.teachers import Reply, outcome, repairable, summed
from tsd.teachers.api.account import Cost, Estimator, total
from tsd.teachers.api.batch_lines import Line
from tsd.teachers.api.journal import Journal
from tsd.teachers.prompts import Message, Questions, repair, repair_tokens

FILE = "batches.json"  # beside the part's replies
VERSION = 2  # of the file; the first one named none
STRICT = ConfigDict(extra="forbid")  # what a newer version has written besides must not be lost


@dataclass
class Batch:
    """One batch that was, or may have been, submitted."""

    digest: str
    """Of what it asks, which the server keeps with it: by it the batch is found where its id was lost."""
    requests: dict[str, tuple[str, int]]
    """By custom id, the series' id: the request's key, and which repair it is, 0 for the question itself."""
    form: list[object]
    """The words in which it asks (`Dialect.form`)."""
    file: str | None = None
    """The server's id of what it was made from."""
    id: str | None = None
    """The server's id of the batch; None until the server is known to have accepted it."""
    asked_at: float | None = None
    """When the server was last asked to accept it, in seconds since 1970. With it and without an id, the batch may
    be under way, and paid for; None: it is not."""
    bound_input_tokens: int = 0
    """The most that its requests may take, by the estimate of their prompts."""
    bound_output_tokens: int = 0
    """The same of their replies, by `teacher.max_tokens`."""
    name: str = field(default_factory=lambda: f"batch {uuid.uuid4().hex[:16]}")
    """By which the journal knows its money."""

    __pydantic_config__ = STRICT


@dataclass
class Missed:
    """A request that batches left without an answer."""

    key: str
    """The request's."""
    reply: Reply
    """An `error`, with the attempts and the costs so far."""
    repairs: int
    """Which repair it is, 0 for the question itself."""
    final: bool
    """Whether it is not asked again."""

    __pydantic_config__ = STRICT


@dataclass
class _Kept:
    """What the file holds."""

    batches: list[Batch] = field(default_factory=list)
    missed: dict[str, Missed] = field(default_factory=dict)
    version: int = 1

    __pydantic_config__ = STRICT


_KEPT = TypeAdapter(_Kept)


class Ledger:
    """The batches of one part that are not collected yet, and what collected ones left unanswered."""

    def __init__(self, folder: str) -> None:
        """folder: that of the part's replies. Only who holds its journal writes here.

        Raises StorageError where what is there cannot be read.
        """
        self._folder = folder
        self.path = f"{folder}/{FILE}"
        kept = self._read()
        self.found = kept is not None
        """Whether an earlier start kept one here."""
        self.batches = kept.batches if kept else []
        self.missed = kept.missed if kept else {}  # by custom id

    def under_way(self, keys: Collection[str]) -> list[Batch]:
        """The batches that hold some of these requests."""
        return [batch for batch in self.batches if any(key in keys for key, _ in batch.requests.values())]

    def save(self) -> None:
        """Write it, whole or not at all. Raises StorageError where it cannot be written."""
        missed = {name: asdict(one) for name, one in self.missed.items()}
        kept = {"version": VERSION, "batches": [asdict(batch) for batch in self.batches], "missed": missed}
        datasets.write_bytes(self._folder, FILE, json.dumps(kept).encode())

    def _read(self) -> _Kept | None:
        try:
            content = datasets.read_bytes(self._folder, FILE)
            kept = None if content is None else json.loads(content)
            if isinstance(kept, dict) and type(kept.get("version")) is int and kept["version"] > VERSION:
                raise StorageError(
                    f"{self.path} was written by a newer version of tsd: use that version; it lists batches that "
                    "may be under way and paid for"
                )
            return None if content is None else _KEPT.validate_python(kept)
        except ValidationError as error:
            first = error.errors()[0]
            wrong = f"{'.'.join(map(str, first['loc'])) or 'its content'}: {first['msg']}"
        except (ValueError, RecursionError) as error:
            wrong = f"{error}".partition("\n")[0] or "no JSON"
        raise StorageError(
            f"{self.path} is damaged, or of another version of tsd ({wrong}): restore it or use that version; it "
            "lists batches that may be under way and paid for, and without it they may be paid for again"
        )


class Rows:
    """A part's rows: their keys and replies, and what was submitted."""

    def __init__(self, questions: Questions, series: pa.Table, journal: Journal) -> None:
        assert isinstance(questions.teacher, ApiTeacher)
        self._teacher, self._questions, self._series = questions.teacher, questions, series
        self.journal, self.ledger = journal, Ledger(journal.folder)
        history = journal.read()
        known = history.failed | history.replies
        self.ended = history.account.ended
        """Requests and batches whose bill is in the journal."""
        self._open = set(history.account.open)
        self.names = [str(one) for one in series["series_id"].to_pylist()]
        """The custom id of each row."""
        self.row = {name: row for row, name in enumerate(self.names)}
        self.keys = questions.keys(series)
        self.replies = [known.get(key) for key in self.keys]
        self.estimator = self._learned(history.account.estimator)
        """What bounds are made from."""
        for name, one in list(self.ledger.missed.items()):
            row = self.row.get(name)
            if row is None or not self.awaits(name, one.key, one.repairs):
                del self.ledger.missed[name]  # answered since then by a start that was killed, or another model's
            elif one.final:
                self.replies[row] = one.reply

    def settled(self) -> list[Reply]:
        """The replies of rows that are done."""
        return [reply for reply in self.replies if reply and not self.repairable(reply)]

    def repairable(self, reply: Reply) -> bool:
        """Whether a reply is to be mended."""
        return repairable(reply, self._teacher.repairs)

    def repairs(self, row: int) -> int:
        """Which repair a row's next request is, 0 for the question itself."""
        before = self.replies[row]
        return before.repairs + 1 if before else 0

    def missing(self) -> list[int]:
        """The rows that are to be put into a batch."""
        waiting = {key for batch in self.under_way() for key, _ in batch.requests.values()}
        rows = enumerate(zip(self.keys, self.replies, strict=True))
        return [row for row, (key, reply) in rows if key not in waiting and (not reply or self.repairable(reply))]

    def under_way(self) -> list[Batch]:
        """The batches whose answers are still to be collected. Those of another model are left as they are."""
        return self.ledger.under_way(set(self.keys))

    def ask(self, rows: Sequence[int]) -> list[list[Message]]:
        """What is asked about some rows."""
        questions = self._questions.ask(self._series.take(rows), [self.keys[row] for row in rows])
        replies = [self.replies[row] for row in rows]
        return [
            [*question.messages, *(repair(before) if before else [])]
            for question, before in zip(questions, replies, strict=True)
        ]

    def tokens(self, name: str) -> int:
        """That a row's next question has, roughly, with what it says of the reply before."""
        row = self.row[name]
        before = self.replies[row]
        return self._question_tokens(row) + (repair_tokens(before) if before else 0)

    def open(self, batch: Batch) -> list[str]:
        """The custom ids of a batch whose answers are still to be taken."""
        return [name for name, (key, repairs) in batch.requests.items() if self.awaits(name, key, repairs)]

    def bound(self, batch: Batch) -> Cost:
        """What a batch may cost. It is kept with the batch, and there before the server hears of it."""
        if not batch.bound_output_tokens:  # packed just now, or by a version that did not know it
            for name in batch.requests:
                one = self.estimator.bound(self._teacher, self.tokens(name) if name in self.row else 0)
                batch.bound_input_tokens += one.input_tokens
                batch.bound_output_tokens += one.output_tokens
        asked, said = batch.bound_input_tokens, batch.bound_output_tokens
        return Cost(asked, said, self._teacher.usd(asked, said))

    async def sent(self, batch: Batch) -> None:
        """Have the journal hold a batch's bound before the batch may cost anything."""
        if batch.name not in self._open and batch.name not in self.ended:
            self.journal.sent(batch.name, self.bound(batch), 0)
            self._open.add(batch.name)
            await self.journal.stored()

    def billed(self, batch: Batch, lines: Iterable[Line]) -> Cost | None:
        """Have the journal hold what a batch was billed. Returns it; None where it was there already."""
        if batch.name in self.ended:
            return None
        costs = [Cost(one.reply.input_tokens, one.reply.output_tokens, one.reply.cost_usd) for one in lines]
        billed = total(costs)
        self.journal.ended(batch.name, billed, known=False)  # it is no single reply to learn from
        self.ended.add(batch.name)
        return billed

    def learn(self, line: Line) -> None:
        """Take what an answer has cost into later bounds."""
        if line.served and line.name in self.row:
            cost = Cost(line.reply.input_tokens, line.reply.output_tokens, line.reply.cost_usd)
            self.estimator = self.estimator.after(cost, self.tokens(line.name))

    def _learned(self, estimator: Estimator) -> Estimator:
        for row, reply in enumerate(self.replies):
            if reply and reply.attempts == 1 and reply.input_tokens:
                cost = Cost(reply.input_tokens, reply.output_tokens, reply.cost_usd)
                estimator = estimator.after(cost, self._question_tokens(row))
        return estimator

    def _question_tokens(self, row: int) -> int:
        return self._questions.tokens(len(self._series["values"][row]) // self._questions.task.curves)

    def awaits(self, name: str, key: str, repairs: int) -> bool:
        """Whether a request's answer is still to be taken; a start that was killed meanwhile may have done it."""
        row = self.row.get(name)
        return row is not None and self.keys[row] == key and self.repairs(row) == repairs

    def take(self, line: Line, rounds: int) -> Reply | None:
        """Keep an answer. Returns what the row has come to, None where it is to be asked again for want of one."""
        row = self.row[line.name]
        before, missed = self.replies[row], self.ledger.missed.pop(line.name, None)
        tried = [missed.reply, line.reply] if missed else [line.reply]
        if line.reply.status == "error" and line.fault is None:
            so_far = summed(line.reply, tried)
            if so_far.attempts <= rounds:
                self.ledger.missed[line.name] = Missed(self.keys[row], so_far, self.repairs(row), final=False)
                return None
        reply = self.replies[row] = outcome(self._questions.task, before, tried)
        if reply.status == "error":
            self.ledger.missed[line.name] = Missed(self.keys[row], reply, 0, final=True)
        else:
            self.journal.add(self.keys[row], reply)
        return reply
