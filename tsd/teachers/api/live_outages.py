"""Tell an outage of the server from rows that the server fails on, by short test requests."""

import asyncio
import time

from tsd.teachers import Reply
from tsd.teachers.api.account import Cost
from tsd.teachers.api.connection import FIRST_WAIT
from tsd.teachers.api.journal import Journal
from tsd.teachers.api.live_requests import FinalError, RequestSender
from tsd.teachers.api.worker import RateLimiterClient, Ticket
from tsd.teachers.prompts import Message

PING_SECONDS = 20.0  # without any response, after which a test request is sent


class OutageDetector:
    """Knows from a worker's responses, and from test requests if there are none, whether the server responds."""

    def __init__(self, sender: RequestSender, limiter: RateLimiterClient) -> None:
        """sender: sends the test requests."""
        self._sender, self._limiter = sender, limiter
        self._pinging = asyncio.Lock()
        # Time of the last test request, and of the last row's request in an outage.
        self._pinged = self._probed = time.monotonic()
        self._ping_worked = 0.0  # when the last test request got a response; 0 if it got none

    async def wait_out(self, journal: Journal) -> None:
        """Wait for the end of an outage, if there is one.

        Test requests without plot or numbers detect it, since each row's request may be billed. From time to time
        one row's request is sent too, since a server may respond to nothing else.
        """
        while self._limiter.server.down and not await self.works(time.monotonic(), False, journal):
            if time.monotonic() - self._probed >= PING_SECONDS:
                self._probed = time.monotonic()
                break
            await self._limiter.sleep(FIRST_WAIT)

    async def works(self, since: float, worked: bool, journal: Journal) -> bool:
        """Whether the server responds to requests sent after a failure. worked: whether it did before the failure.

        If no request got a response for a while, a short test request is sent. It distinguishes rows that the
        server fails on from an outage of the server, and costs only a few tokens.
        """
        if await self._limiter.hear(since, PING_SECONDS):
            return True
        async with self._pinging:
            now, last = time.monotonic(), self._limiter.server.last_answer
            quiet = now - max(last, self._pinged) >= PING_SECONDS
            only_pings = 0 < self._ping_worked >= last  # responses to rows give no information
            if self._limiter.server.last_heard > since or not (quiet or (worked and only_pings)):
                return self._limiter.server.last_heard > since
            self._pinged = now
            messages: list[Message] = [{"role": "user", "content": "Reply with the word yes."}]

            def keep(ticket: Ticket, reply: Reply, _: bool) -> None:  # its usage says nothing about rows
                ticket.billed(Cost(reply.input_tokens, reply.output_tokens, reply.cost_usd), known=False)

            try:
                works = (await self._sender.send(messages, 10, journal, keep))[0].status != "error"
            except FinalError:
                works = True  # a refusal is a response
            self._ping_worked = time.monotonic() if works else 0.0
            return works
