"""What a provider says of a batch and what its files hold, held against each other. Nothing here asks a server.

Providers word the same things differently, files arrive cut or as a page of HTML, and counts lag behind. So a
batch counts as collected only once its lines explain its counts.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tsd.teachers.api.batch_lines import Line, UnreadableError

Stage = Literal["under way", "completed", "expired", "cancelled", "failed", "unknown"]

STAGES: dict[str, Stage] = {
    **dict.fromkeys(
        (
            *("validating", "in_progress", "finalizing", "cancelling"),  # OpenAI, Azure, Groq, Together
            *("queued", "running", "cancellation_requested"),  # Mistral
            *("pending", "processing", "created", "submitted", "scheduled", "not_started", "notstarted"),
            *("preparing", "preparing_input", "finalising", "canceling", "paused", "updating"),
        ),
        "under way",
    ),
    **dict.fromkeys(("completed", "complete", "success", "succeeded", "done", "finished", "ended"), "completed"),
    **dict.fromkeys(("partially_succeeded", "partially_completed"), "completed"),
    **dict.fromkeys(("expired", "timeout_exceeded", "timed_out"), "expired"),
    **dict.fromkeys(("cancelled", "canceled"), "cancelled"),
    **dict.fromkeys(("failed", "error"), "failed"),
}
"""What each provider's word means; Gemini's words have one of `PREFIXES` before them."""
PREFIXES = ("job_state_", "batch_state_")
COMPLETED = ("completed", "succeeded", "completed_requests", "succeeded_requests")
FAILED = ("failed", "errored", "failed_requests")
SHOWN = 80  # letters of a line that cannot be read


def status(batch: Any) -> str:
    """The provider's own word for how far a batch is. Raises ValueError where its answer is something else."""
    found = getattr(batch, "status", None)
    if not isinstance(found, str) or not found:
        raise ValueError("an answer without a status")
    return found


def stage(batch: Any) -> Stage:
    """What that word means. Raises ValueError as `status` does."""
    word = re.sub(r"[\s-]+", "_", status(batch).strip().lower())
    for prefix in PREFIXES:
        word = word.removeprefix(prefix)
    return STAGES.get(word, "unknown")


def named(batch: Any, name: str) -> str | None:
    """An id that a batch holds, such as `output_file_id`; None where there is none."""
    found = getattr(batch, name, None)
    return found if isinstance(found, str) and found else None


def progress(batch: Any) -> tuple[int, int]:
    """How many requests the provider counts as completed and as failed; 0 where it does not say."""
    own = getattr(batch, "request_counts", None)
    return _count((own, batch), COMPLETED), _count((own, batch), FAILED)


def counted(batch: Any, requests: int) -> tuple[int, int] | None:
    """The same of a batch of so many requests that has ended; None where the counts cannot be true."""
    completed, failed = progress(batch)
    return (completed, failed) if 0 < completed + failed <= requests else None


def complaints(batch: Any) -> list[tuple[str, str]]:
    """Code and words of each error that a batch failed with."""
    found = getattr(batch, "errors", None)
    listed = found if isinstance(found, list) else getattr(found, "data", None)
    said = []
    for one in listed if isinstance(listed, list) else []:
        code, message, line = (_get(one, name) for name in ("code", "message", "line"))
        words = str(message or code or one)
        said.append((str(code or ""), f"{words} (line {line})" if line else words))
    return said


@dataclass
class Results:
    """The lines of one reading of a batch's files."""

    requests: Mapping[str, Any]
    """By custom id: what the batch asked."""
    lines: dict[str, Line] = field(default_factory=dict)
    """By custom id: what it gave."""
    output: set[str] = field(default_factory=set)
    """The custom ids with a line in the output file."""
    wrong: list[str] = field(default_factory=list)
    """What says that these are not, or not only, this batch's lines."""
    unread: list[str] = field(default_factory=list)
    """What could not be read."""

    @property
    def served(self) -> int:
        """How many requests were completed, and so paid for."""
        return sum(line.served for line in self.lines.values())

    def add(self, line: Line, output: bool) -> None:
        """Take a line. Of several to one request, the one that was served counts; two different ones are wrong."""
        if line.name not in self.requests:
            self.wrong.append(f"custom id {line.name[:SHOWN]!r} is not of this batch")
            return
        before = self.lines.setdefault(line.name, line)
        if line.served and before.served and line.reply != before.reply:
            self.wrong.append(f"custom id {line.name!r} has two different answers")
        elif line.served:
            self.lines[line.name] = line
        if output:
            self.output.add(line.name)

    def fail(self, text: bytes, error: UnreadableError) -> None:
        """Take note of a line that cannot be read."""
        start = text[:SHOWN].decode("utf-8", "replace")
        self.unread.append(f"{error}: {start!r}")

    def lacking(self, ended: Any) -> str | None:
        """Why these lines cannot be all that a batch which has ended gave; None where they can."""
        if self.wrong:
            return self.wrong[0]
        total, counts = len(self.requests), counted(ended, len(self.requests))
        completed = max(self.served, len(self.output))
        short = f"{completed:,} lines of {counts[0]:,} completed requests" if counts else None
        few = counts is not None and completed < counts[0]
        if len(self.lines) == total and not few:
            return None
        if self.unread:
            return self.unread[0]
        if few:
            return short
        if stage(ended) != "completed":  # the provider says that it did not get to the others
            return None
        if counts is None or sum(counts) < total:
            return f"{len(self.lines):,} lines of {total:,} requests, and counts that do not say why"
        if named(ended, "error_file_id") and len(self.lines) < total:
            return f"{len(self.lines):,} lines of {total:,} requests"
        return None  # it counts the others as failed, and gives no lines of those


def _count(sources: tuple[Any, ...], names: tuple[str, ...]) -> int:
    for source in sources:
        for name in names:
            found = _get(source, name)
            if type(found) is int and found > 0:
                return found
    return 0


def _get(source: Any, name: str) -> Any:
    return source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
