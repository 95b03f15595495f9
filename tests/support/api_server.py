"""A real HTTP server that answers like an OpenAI-compatible API, or misbehaves as it is told, and measures."""

import asyncio
import hashlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from aiohttp import web

from tsd.tasks import SINGLE

SOUND = SINGLE.reply({"trend": "flat", "noise": "low", "maximum": "end", "minimum": "middle"}, (0, 0, 0))


@dataclass(frozen=True)
class Answer:
    """What a request gets. hang: seconds before it; drip: between its bytes; reset: the connection is cut."""

    status: int = 200
    body: dict[str, Any] | bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    hang: float = 0.0
    drip: float = 0.0
    reset: bool = False
    whole: bool = True
    """Whether the row needs no other answer."""


def completion(
    content: str | None = SOUND, finish: str = "stop", refusal: str | None = None, usage: Any = None
) -> dict[str, Any]:
    """A chat completion as OpenAI's API words it."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    return {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "seer",
        "choices": [{"index": 0, "finish_reason": finish, "message": message, "logprobs": None}],
        "usage": usage or {"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050},
    }


def error(status: int, message: str = "no", **headers: str) -> Answer:
    """A refusal with a message."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, {"error": {"message": message}}, named, whole=False)


# One answer in five is one of these in the tests of a whole stage; a few of them are final for their row.
FAULTS: dict[str, Answer] = {
    "429 with Retry-After": error(429, Retry_After="1"),
    "429": error(429),
    "500": error(500),
    "hang": Answer(200, completion(), hang=6.0, whole=False),
    "reset": Answer(reset=True, whole=False),
    "HTML": Answer(200, b"<html>Bad gateway</html>", {"Content-Type": "text/html"}, whole=False),
    "truncated JSON": Answer(200, json.dumps(completion()).encode()[:150], whole=False),
    "wrong schema": Answer(200, completion('{"answer": 42}'), whole=False),
    "refusal": Answer(200, completion(None, refusal="I would rather not.")),
    "empty choices": Answer(200, {**completion(), "choices": []}, whole=False),
    "control characters": Answer(200, completion(SOUND.replace("The ", "The\x01\n ") + "\x00\ud800")),
    "wrong usage": Answer(200, completion(usage={"prompt_tokens": -7, "completion_tokens": "many"})),
}


@dataclass
class Server:
    """What each request gets, and what was asked and measured."""

    answer: Callable[[int, dict[str, Any]], Answer] = lambda *_: Answer(200, completion())
    url: str = ""
    latency: float = 0.0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    answered: Counter[str] = field(default_factory=Counter)
    """How often each row was asked once it had its answer; 0 is how it should be."""
    in_flight: int = 0
    most_in_flight: int = 0
    tokens: list[int] = field(default_factory=list)
    """Of each request: what its answer says that it took."""
    keep_bodies: bool = True

    @property
    def asked(self) -> int:
        """Requests so far."""
        return len(self.times)

    def most_in(self, seconds: float) -> int:
        """The most requests in any window of so many seconds."""
        return _most(self.times, np.ones(len(self.times)), seconds)

    def most_tokens_in(self, seconds: float) -> int:
        """The most tokens of requests in any window of so many seconds."""
        return _most(self.times, np.array(self.tokens), seconds)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        body = json.loads(await request.read())
        number = len(self.times)
        self.times.append(time.monotonic())
        self.tokens.append(0)
        self.keys.add(request.headers["Authorization"])
        if self.keep_bodies:
            self.bodies.append(body)
        row = row_of(body)
        if row in self.answered:
            self.answered[row] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            answer = self.answer(number, body)
            self.tokens[number] = taken(answer)
            await asyncio.sleep(self.latency)
            response = await respond(request, answer)
            if answer.whole:
                self.answered.setdefault(row, 0)
            return response
        finally:
            self.in_flight -= 1


def _most(times: list[float], counts: np.ndarray, seconds: float) -> int:
    so_far = np.concatenate(([0], np.cumsum(counts)))
    first = np.arange(len(times))  # they are in order
    return int((so_far[np.searchsorted(times, np.array(times) + seconds)] - so_far[first]).max(initial=0))


def taken(answer: Answer) -> int:
    """The tokens that an answer says it took, in and out."""
    usage = answer.body.get("usage") if isinstance(answer.body, dict) else None
    counts = usage.values() if isinstance(usage, dict) else ()
    return sum(one for one in counts if type(one) is int and one > 0) // 2  # the total is one of them


def row_of(body: dict[str, Any]) -> str:
    """Which series a request is about: its first message."""
    return hashlib.sha256(json.dumps(body["messages"][0]).encode()).hexdigest()


def unruly(share: float, seed: int = 0) -> Callable[[int, dict[str, Any]], Answer]:
    """Answers of which a share are faults, drawn by chance; being told to wait, which all do, is rare."""
    rng, weights = random.Random(seed), [0.02 if name.startswith("429") else 1.0 for name in FAULTS]

    def answer(*_: Any) -> Answer:
        fault = rng.random() < share
        return rng.choices(list(FAULTS.values()), weights)[0] if fault else Answer(200, completion())

    return answer


@contextmanager
def serving(port: int = 0) -> Iterator[Server]:
    """A server for as long as the context lasts; port 0 is a free one."""
    state = Server()
    with listening([web.post("/v1/chat/completions", state.handle)], port) as state.url:
        yield state


@contextmanager
def listening(routes: Sequence[web.RouteDef], port: int = 0) -> Iterator[str]:
    """Serve routes in a thread of its own for as long as the context lasts; the API's address. port: 0 is any."""
    loop, started, urls = asyncio.new_event_loop(), threading.Event(), list[str]()

    async def start() -> web.AppRunner:
        app = web.Application(client_max_size=2**28)
        app.add_routes(routes)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
        return runner

    def work() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        loop.call_soon(started.set)
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)


async def respond(request: web.Request, answer: Answer) -> web.StreamResponse:
    """Send an answer, or cut the connection in its place."""
    await asyncio.sleep(answer.hang)
    if answer.reset:
        assert request.transport
        request.transport.abort()
        return web.Response()
    payload = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
    headers = {"Content-Type": "application/json", **answer.headers}
    response = web.Response(status=answer.status, body=payload, headers=headers)
    if answer.drip:
        slow = web.StreamResponse(status=answer.status, headers=headers)
        await slow.prepare(request)
        for byte in payload:
            await slow.write(bytes([byte]))
            await asyncio.sleep(answer.drip)
        await slow.write_eof()
        return slow
    await response.prepare(request)
    await response.write_eof()
    return response


def answers_pings_alone(_: int, body: dict[str, Any]) -> Answer:
    """A server that fails at every row, and answers a question that shows nothing."""
    shows_nothing = isinstance(body["messages"][0]["content"], str)
    return Answer(200, completion("yes")) if shows_nothing else error(500, "broken")


HTML = Answer(200, b"<html><body>503 Service Temporarily Unavailable</body></html>", {"Content-Type": "text/html"})
SURE = Answer(200, completion())
