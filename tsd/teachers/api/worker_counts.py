"""A worker's counts since its start, and the events that it has not yet reported to the rate limiter."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tsd.teachers import Reply
from tsd.teachers.api.messages import (
    ANSWERED,
    BATCHED,
    BATCHES,
    COMPLETED,
    EARLIER,
    ENDED,
    EXAMPLE,
    FAILED,
    FORM,
    MODEL,
    ROWS,
    SENT,
    STATUS,
    THOUGHTS,
    Bill,
    Counts,
    Report,
    Row,
)


class WorkerCounts:
    """Counts requests, responses, rows and batches, and collects them for the next report."""

    def __init__(self) -> None:
        self._counts: Counts = Counter()  # since the start of the worker
        self._next = Report(Counter())

    def sent(self) -> None:
        """Count a request that is sent now."""
        self._counts[SENT] += 1

    def ended(self) -> None:
        """Count the end of a request, with or without response."""
        self._counts[ENDED] += 1

    def answered(self, reply: Reply, form: str | None) -> None:
        """Count a response. form: request format of the reply."""
        if reply.status != "error":
            self._counts[ANSWERED] += 1
            self._next.answers += 1
            if form:
                self._counts[FORM + form] += 1
        if reply.thought:
            self._counts[THOUGHTS] += 1
        if reply.model:
            mark = f" ({reply.fingerprint})" if reply.fingerprint else ""
            self._counts[f"{MODEL}{reply.model}{mark}"] += 1

    def failed(self, kind: str) -> None:
        """Count a request without response."""
        self._counts[FAILED + kind] += 1
        self._next.failures[FAILED + kind] += 1

    def settled(self, reply: Reply, earlier: bool = False) -> None:
        """Count a finished row. earlier: whether an earlier start has finished it."""
        self._counts.update({ROWS: 1, STATUS + reply.status: 1, EARLIER: int(earlier)})
        if not earlier:
            text = " ".join((reply.text or reply.thought or "")[: 4 * EXAMPLE].split())[:EXAMPLE]
            self._next.rows.append(Row(reply.status, reply.reason, text))

    @contextmanager
    def batch(self, requests: int) -> Iterator[Callable[[int], None]]:
        """Count a batch as in progress inside this context.

        Yields a callback for the number of completed requests.
        """
        shown = 0

        def completed(count: int) -> None:
            nonlocal shown
            self._counts[COMPLETED] += count - shown
            shown = count

        self._counts.update({BATCHES: 1, BATCHED: requests})
        try:
            yield completed
        finally:
            completed(0)
            self._counts.update({BATCHES: -1, BATCHED: -requests})

    def billed(self, bill: Bill) -> None:
        """Report the result of a request or batch."""
        self._next.bills.append(bill)

    @property
    def has_bills(self) -> bool:
        """Whether there are bills that have not been reported."""
        return bool(self._next.bills)

    def take(self, stopped: str | None) -> Report:
        """Return all counts and the events since the last report. stopped: why the worker stopped, if it did."""
        report, self._next = self._next, Report(Counter())
        report.counts, report.stopped = self._counts.copy(), stopped
        return report
