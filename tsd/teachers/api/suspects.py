"""Rows that may have ended the server that answered them: which ones, and how few of them are sent at a time.

A worker's own engine may crash because of one row. The rows that were sent and not answered are then sent before
all others: first `AT_ONCE` at a time, and alone after the next end. So one row is found within a few starts, and
no other row is blamed for it. A server that is never restarted by tsd has no suspects.
"""

from collections.abc import Iterator
from contextlib import contextmanager

AT_ONCE = 16  # suspects under way together, unless the server has ended again


class Suspect:
    """What the ends of the server say about one row."""

    def __init__(self, retries: int) -> None:
        """retries: number of ends that it may cause and still be sent again."""
        self._retries = retries
        self.doubts = 0
        """Ends of the server while it had no answer."""
        self.ends = 0
        """Those of them where no other row was sent."""

    @property
    def guilty(self) -> bool:
        """Whether the row ends the server each time, so that it must not be sent again."""
        return self.ends > self._retries


class Suspects:
    """The rows of one worker. All methods are called in its event loop."""

    def __init__(self) -> None:
        self._going: set[Suspect] = set()  # under way, from the decision to send it
        self._sent: set[Suspect] = set()  # sent to the server that runs now, and not answered
        self._few: set[Suspect] = set()  # were sent with any number of others
        self._alone: set[Suspect] = set()  # were sent with few others, or alone
        self.blamed = 0
        """Ends of the server while only one row was sent."""
        self.answers = 0
        """Rows' requests that were answered."""

    def may_go(self, row: Suspect | None) -> bool:
        """Whether a row may be sent now. None: a test request, which may always be."""
        if row is None:
            return True
        if row in self._alone:
            return not self._going and not self._few
        if row in self._few:
            return len(self._going) < AT_ONCE
        return not (self._few or self._alone)

    @contextmanager
    def going(self, row: Suspect | None) -> Iterator[None]:
        """Count a row as under way inside this context."""
        if row is None:
            yield
            return
        self._going.add(row)
        try:
            yield
        finally:
            self._going.discard(row)

    def sent(self, row: Suspect | None) -> bool:
        """Remember that a row is sent. Returns whether none of its earlier requests waits for an answer."""
        if row is None or row in self._sent:
            return False
        self._sent.add(row)
        return True

    def unsent(self, row: Suspect | None) -> None:
        """Take `sent` back: no connection was established."""
        if row:
            self._sent.discard(row)

    def ended(self) -> None:
        """Suspect every row without an answer, since the server has ended."""
        alone = len(self._sent) == 1
        for row in self._sent:
            row.doubts += 1
            row.ends += alone
            if alone or row in self._few:
                self._few.discard(row)
                self._alone.add(row)
            elif row not in self._alone:
                self._few.add(row)
        self.blamed += alone
        self._sent.clear()

    def answered(self, row: Suspect) -> None:
        """Record that a row was answered: it does not end the server."""
        self.answers += 1
        self.clear(row)

    def clear(self, row: Suspect) -> None:
        """Forget a row, which is not sent again."""
        for rows in (self._sent, self._few, self._alone):
            rows.discard(row)
