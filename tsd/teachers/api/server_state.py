"""What a worker's requests show of the server: whether it responds, since when not, and how slowly."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

# When the stage stops, responses in flight are awaited, since they are paid for. The timeout is twice the slowest
# response so far, within these bounds in seconds.
LEAST_GRACE, MOST_GRACE, TIMES_SLOWEST = 5.0, 60.0, 2.0
LEAST_FAILURES = 20  # failures in a row that mean an outage; at least twice a worker's requests in flight
TIMES_OVERDUE = 10.0  # the slowest response so far, after which a server without any response is overdue


class ServerState:
    """State of the server as seen by one worker. All times are by `time.monotonic`."""

    def __init__(self, share: int) -> None:
        """share: maximum number of requests in flight of this worker."""
        self.in_flight = 0
        self.last_answer = 0.0
        """When this worker last received a response."""
        self.last_heard = 0.0
        """When the latest of its requests with a response was sent."""
        self._last_failed = 0.0  # when the latest of its requests without response was sent
        self.kept = False
        """Whether a keeper on this machine watches the server, which this worker alone asks."""
        self.doubted = False
        """Whether a connection has broken off that the keeper has not looked into."""
        self._failed_in_row, self._many = 0, max(LEAST_FAILURES, 2 * share)
        self._slowest = 0.0  # longest response time in seconds
        self._waits_since = 0.0  # since the latest response, or since something is in flight if that is later

    @property
    def works(self) -> bool:
        """Whether the latest request that has ended got a response."""
        return self.last_heard > self._last_failed

    @property
    def down(self) -> bool:
        """Whether enough requests in a row have failed to mean an outage of the server."""
        return self._failed_in_row >= self._many

    @property
    def grace(self) -> float:
        """Seconds to wait for responses in flight when the stage stops."""
        return min(max(TIMES_SLOWEST * self._slowest, LEAST_GRACE), MOST_GRACE)

    def overdue(self, least: float) -> bool:
        """Whether requests wait, and none has got a response for far longer than any response took so far.

        least: seconds that are no sign of anything. A server that has not responded yet may be slow.
        """
        waits = time.monotonic() - self._waits_since
        return self.in_flight > 0 and self._slowest > 0 and waits > max(least, TIMES_OVERDUE * self._slowest)

    @contextmanager
    def request(self, sent: float) -> Iterator[None]:
        """Count a request as in flight inside this context. It has failed if no response was heard by the end."""
        if not self.in_flight:
            self._waits_since = time.monotonic()
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.last_heard < sent:
                self._last_failed = max(self._last_failed, sent)
                self._failed_in_row += 1

    def broke_off(self) -> None:
        """Record that a connection broke off. A server with a keeper is asked nothing more until it has looked:
        processes that the server leaves behind may still accept connections, and never answer.
        """
        self.doubted = self.kept

    def heard(self, sent: float) -> None:
        """Record a response. sent: when its request was sent; 0 if unknown."""
        self.last_heard, self._failed_in_row = max(self.last_heard, sent), 0
        self.last_answer = self._waits_since = time.monotonic()
        if sent:
            self._slowest = max(self._slowest, self.last_answer - sent)
