"""Check the lines of a batch's files against the provider's counts. Makes no requests.

Providers use different words, files arrive truncated or as an HTML page, and counts lag behind. So a batch is
complete only once its lines account for its counts.
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
"""Meaning of each provider's status. Gemini's statuses start with one of `PREFIXES`."""
PREFIXES = ("job_state_", "batch_state_")
COMPLETED = ("completed", "succeeded", "completed_requests", "succeeded_requests")
FAILED = ("failed", "errored", "failed_requests")
SHOWN = 80  # characters shown of a line that cannot be parsed


def status(batch: Any) -> str:
    """Return the provider's status of a batch. Raises ValueError if the response has none."""
    found = getattr(batch, "status", None)
    if not isinstance(found, str) or not found:
        raise ValueError("an answer without a status")
    return found


def stage(batch: Any) -> Stage:
    """Return the stage that the status means. Raises ValueError as `status` does."""
    word = re.sub(r"[\s-]+", "_", status(batch).strip().lower())
    for prefix in PREFIXES:
        word = word.removeprefix(prefix)
    return STAGES.get(word, "unknown")


def named(batch: Any, name: str) -> str | None:
    """Return an id of a batch, such as `output_file_id`; None if absent."""
    found = getattr(batch, name, None)
    return found if isinstance(found, str) and found else None


def progress(batch: Any) -> tuple[int, int]:
    """Return the provider's counts of completed and failed requests; 0 if not reported."""
    own = getattr(batch, "request_counts", None)
    return _count((own, batch), COMPLETED), _count((own, batch), FAILED)


def counted(batch: Any, requests: int) -> tuple[int, int] | None:
    """Return the counts (completed, failed) of an ended batch; None if they are implausible.

    requests: number of requests in the batch.
    """
    completed, failed = progress(batch)
    return (completed, failed) if 0 < completed + failed <= requests else None


def complaints(batch: Any) -> list[tuple[str, str]]:
    """Return code and message of each error that a batch failed with."""
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
    """The batch's requests, by custom id."""
    lines: dict[str, Line] = field(default_factory=dict)
    """The results, by custom id."""
    output: set[str] = field(default_factory=set)
    """Custom ids that have a line in the output file."""
    wrong: list[str] = field(default_factory=list)
    """Evidence that lines belong to another batch."""
    unread: list[str] = field(default_factory=list)
    """Lines and files that could not be read."""

    @property
    def served(self) -> int:
        """Number of completed, and so billed, requests."""
        return sum(line.served for line in self.lines.values())

    def add(self, line: Line, output: bool) -> None:
        """Add a line. Among several lines of a request, the completed one counts; two different ones are an error.

        output: whether the line is from the output file.
        """
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
        """Record a line that cannot be parsed."""
        start = text[:SHOWN].decode("utf-8", "replace")
        self.unread.append(f"{error}: {start!r}")

    def lacking(self, ended: Any) -> str | None:
        """Return why these lines cannot be the complete results of an ended batch; None if they can."""
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
        if stage(ended) != "completed":  # the provider reports that it did not process the others
            return None
        if counts is None or sum(counts) < total:
            return f"{len(self.lines):,} lines of {total:,} requests, and counts that do not say why"
        if named(ended, "error_file_id") and len(self.lines) < total:
            return f"{len(self.lines):,} lines of {total:,} requests"
        return None  # it counts the others as failed and returns no lines for them


def _count(sources: tuple[Any, ...], names: tuple[str, ...]) -> int:
    for source in sources:
        for name in names:
            found = _get(source, name)
            if type(found) is int and found > 0:
                return found
    return 0


def _get(source: Any, name: str) -> Any:
    return source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
