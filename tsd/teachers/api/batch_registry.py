"""Registry of a part's rows: their replies, the batches they are in, and requests that batches left unanswered.

It is written to disk before anything is submitted, so that any process can resume.
"""

import json
import uuid
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass, field

import pyarrow as pa
from pydantic import ConfigDict, TypeAdapter, ValidationError

from tsd.errors import StorageError
from tsd.recipe import ApiTeacher
from tsd.storage import folders
from tsd.teachers import Reply, outcome, repairable, summed
from tsd.teachers.api.account import Cost, Estimator, total
from tsd.teachers.api.batch_lines import Line
from tsd.teachers.api.journal import Journal
from tsd.teachers.prompts import Message, Questions, repair, repair_tokens

FILE = "batches.json"  # in the same folder as the part's replies
VERSION = 2  # of the file format; the first version had no field for it
STRICT = ConfigDict(extra="forbid")  # do not lose fields that a newer version has written


@dataclass
class Batch:
    """A batch that was, or may have been, submitted."""

    digest: str
    """Hash of its requests. The server stores it as metadata, so the batch can be found if its id was lost."""
    requests: dict[str, tuple[str, int]]
    """By custom id (the series id): the request key and the repair number, 0 for the first request."""
    form: list[object]
    """The request format (`RequestFormat.form`)."""
    file: str | None = None
    """The server's id of the input file."""
    id: str | None = None
    """The server's id of the batch; None until the server is known to have accepted it."""
    asked_at: float | None = None
    """Time of the last creation request, in seconds since 1970.

    If it is set and there is no id, the batch may be in progress and billed. None: no creation request is pending.
    """
    bound_input_tokens: int = 0
    """Upper bound of its prompt tokens, from the estimates."""
    bound_output_tokens: int = 0
    """Upper bound of its response tokens, from `teacher.max_tokens`."""
    name: str = field(default_factory=lambda: f"batch {uuid.uuid4().hex[:16]}")
    """Name under which the journal records its cost."""

    __pydantic_config__ = STRICT


@dataclass
class Missed:
    """A request that batches left without a response."""

    key: str
    """The request key."""
    reply: Reply
    """A reply with status `error`, with the attempts and the cost so far."""
    repairs: int
    """The repair number, 0 for the first request."""
    final: bool
    """Whether it is never requested again."""

    __pydantic_config__ = STRICT


@dataclass
class _Kept:
    """Content of the registry file."""

    batches: list[Batch] = field(default_factory=list)
    missed: dict[str, Missed] = field(default_factory=dict)
    version: int = 1

    __pydantic_config__ = STRICT


_KEPT = TypeAdapter(_Kept)


class BatchRegistry:
    """The batches of one part that are not yet collected, and requests left without a response."""

    def __init__(self, folder: str) -> None:
        """folder: folder of the part's replies. Only the process that holds its journal writes here.

        Raises StorageError if the existing file cannot be read.
        """
        self._folder = folder
        self.path = f"{folder}/{FILE}"
        kept = self._read()
        self.found = kept is not None
        """Whether an earlier start has written a registry here."""
        self.batches = kept.batches if kept else []
        self.missed = kept.missed if kept else {}  # by custom id

    def under_way(self, keys: Collection[str]) -> list[Batch]:
        """Return the batches that contain some of these request keys."""
        return [batch for batch in self.batches if any(key in keys for key, _ in batch.requests.values())]

    def save(self) -> None:
        """Write the file atomically. Raises StorageError if it cannot be written."""
        missed = {name: asdict(one) for name, one in self.missed.items()}
        kept = {"version": VERSION, "batches": [asdict(batch) for batch in self.batches], "missed": missed}
        folders.write_bytes(self._folder, FILE, json.dumps(kept).encode())

    def _read(self) -> _Kept | None:
        """Read the registry file; None if there is none.

        Raises StorageError if the file is damaged or was written by a newer version of tsd.
        """
        try:
            content = folders.read_bytes(self._folder, FILE)
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
    """The rows of a part: their keys, replies and submitted batches."""

    def __init__(self, questions: Questions, series: pa.Table, journal: Journal) -> None:
        """Load the part's journal and registry.

        questions: prompts of an `ApiTeacher`. series: the part's series table. Raises StorageError if a file
        cannot be read.
        """
        assert isinstance(questions.teacher, ApiTeacher)
        self._teacher, self._questions, self._series = questions.teacher, questions, series
        self.journal, self.registry = journal, BatchRegistry(journal.folder)
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
        """Estimator of cost bounds."""
        for name, one in list(self.registry.missed.items()):
            row = self.row.get(name)
            if row is None or not self.awaits(name, one.key, one.repairs):
                del self.registry.missed[name]  # since answered by a process that was killed, or of another model
            elif one.final:
                self.replies[row] = one.reply

    def settled(self) -> list[Reply]:
        """Return the replies of finished rows."""
        return [reply for reply in self.replies if reply and not self.repairable(reply)]

    def repairable(self, reply: Reply) -> bool:
        """Whether to send a repair request for a reply."""
        return repairable(reply, self._teacher.repairs)

    def repairs(self, row: int) -> int:
        """Return the repair number of a row's next request, 0 for the first request."""
        before = self.replies[row]
        return before.repairs + 1 if before else 0

    def missing(self) -> list[int]:
        """Return the indices of rows that need a batch."""
        waiting = {key for batch in self.under_way() for key, _ in batch.requests.values()}
        rows = enumerate(zip(self.keys, self.replies, strict=True))
        return [row for row, (key, reply) in rows if key not in waiting and (not reply or self.repairable(reply))]

    def under_way(self) -> list[Batch]:
        """Return the batches that are not yet collected. Batches of another model are ignored."""
        return self.registry.under_way(set(self.keys))

    def ask(self, rows: Sequence[int]) -> list[list[Message]]:
        """Build the messages of some rows, with a repair request where a reply exists."""
        questions = self._questions.ask(self._series.take(rows), [self.keys[row] for row in rows])
        replies = [self.replies[row] for row in rows]
        return [
            [*question.messages, *(repair(before) if before else [])]
            for question, before in zip(questions, replies, strict=True)
        ]

    def tokens(self, name: str) -> int:
        """Approximate tokens of a row's next prompt, including a repair request."""
        row = self.row[name]
        before = self.replies[row]
        return self._question_tokens(row) + (repair_tokens(before) if before else 0)

    def open(self, batch: Batch) -> list[str]:
        """Return the custom ids of a batch whose responses are not yet stored."""
        return [name for name, (key, repairs) in batch.requests.items() if self.awaits(name, key, repairs)]

    def bound(self, batch: Batch) -> Cost:
        """Return the cost bound of a batch. It is stored with the batch before submission."""
        if not batch.bound_output_tokens:  # just built, or written by a version without bounds
            for name in batch.requests:
                one = self.estimator.bound(self._teacher, self.tokens(name) if name in self.row else 0)
                batch.bound_input_tokens += one.input_tokens
                batch.bound_output_tokens += one.output_tokens
        asked, said = batch.bound_input_tokens, batch.bound_output_tokens
        return Cost(asked, said, self._teacher.usd(asked, said))

    async def sent(self, batch: Batch) -> None:
        """Record a batch's bound in the journal before the batch can cost anything."""
        if batch.name not in self._open and batch.name not in self.ended:
            self.journal.sent(batch.name, self.bound(batch), 0)
            self._open.add(batch.name)
            await self.journal.stored()

    def billed(self, batch: Batch, lines: Iterable[Line]) -> Cost | None:
        """Record a batch's bill in the journal. Returns the bill, or None if it was already recorded."""
        if batch.name in self.ended:
            return None
        costs = [Cost(one.reply.input_tokens, one.reply.output_tokens, one.reply.cost_usd) for one in lines]
        billed = total(costs)
        self.journal.ended(batch.name, billed, known=False)  # the bill covers many replies: no estimate
        self.ended.add(batch.name)
        return billed

    def learn(self, line: Line) -> None:
        """Update the estimator of cost bounds with the usage of a response."""
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
        """Whether a request's response is not yet stored. A process that was killed may have stored it."""
        row = self.row.get(name)
        return row is not None and self.keys[row] == key and self.repairs(row) == repairs

    def take(self, line: Line, rounds: int) -> Reply | None:
        """Store a response. Returns the row's reply, or None if the request failed and will be repeated.

        rounds: how often a request without response may be repeated.
        """
        row = self.row[line.name]
        before, missed = self.replies[row], self.registry.missed.pop(line.name, None)
        tried = [missed.reply, line.reply] if missed else [line.reply]
        if line.reply.status == "error" and line.fault is None:
            so_far = summed(line.reply, tried)
            if so_far.attempts <= rounds:
                self.registry.missed[line.name] = Missed(self.keys[row], so_far, self.repairs(row), final=False)
                return None
        reply = self.replies[row] = outcome(self._questions.task, before, tried)
        if reply.status == "error":
            self.registry.missed[line.name] = Missed(self.keys[row], reply, 0, final=True)
        else:
            self.journal.add(self.keys[row], reply)
        return reply
