"""The books of a server that bills and misbehaves: what each kind was asked, billed and delivered."""

import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from aiohttp import web
from fault_answers import NO_ROW, USD_PER_TOKEN, Answer, Asked, Kind, most_in, refusal, row_of, sound
from fault_batches import BATCH, Ways
from fault_live import LIVE

KINDS: dict[str, Kind] = {kind.name: kind for kind in (*LIVE, *BATCH)}
BATCH_SHARE = 0.5  # of the live price
NO_KEY = refusal(401, "this server was told to end the run", code="invalid_api_key")


@dataclass
class Book:
    """What one kind was asked, billed and delivered."""

    kind: Kind
    healed: bool = False
    aborted: bool = False
    state: dict[str, Any] = field(default_factory=dict)
    marked: set[str] = field(default_factory=set)
    began: float | None = None
    requests: Counter[str] = field(default_factory=Counter)
    """By row; in batches, lines."""
    paid: Counter[str] = field(default_factory=Counter)
    delivered: Counter[str] = field(default_factory=Counter)
    """Acceptable answers, by row."""
    paid_twice: int = 0
    """Answers that were billed although an acceptable one had been delivered before."""
    tokens_in: int = 0
    tokens_out: int = 0
    dearest: int = 0
    """Tokens of the dearest answer."""
    sent: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    """Of each request, what it was billed."""
    in_flight: int = 0
    most_in_flight: int = 0
    longest_request: int = 0
    forms: Counter[str] = field(default_factory=Counter)
    last: float = 0.0
    """When anything was asked last."""
    calls: Counter[str] = field(default_factory=Counter)
    about: Counter[tuple[str, str]] = field(default_factory=Counter)
    files: dict[str, bytes] = field(default_factory=dict)
    rows: dict[str, list[str]] = field(default_factory=dict)
    """Of each output file, whose acceptable answers it holds."""
    read: set[str] = field(default_factory=set)
    """Files that were downloaded whole."""
    deleted_unread: int = 0
    born: dict[str, float] = field(default_factory=dict)
    """Of files and batches."""
    batches: list[dict[str, Any]] = field(default_factory=list)
    lines: list[list[dict[str, Any]]] = field(default_factory=list)

    @property
    def ways(self) -> Ways:
        """How files and batches are served; once healed, as they should be."""
        ways: Ways = self.kind.batch or Ways()
        return Ways(seconds=ways.seconds) if self.healed else ways

    @property
    def dollars(self) -> float:
        """What it all costs."""
        return (self.tokens_in + self.tokens_out) * USD_PER_TOKEN * (BATCH_SHARE if self.kind.batch else 1.0)

    def ask(self, body: dict[str, Any], batch: int = 0) -> Answer:
        """The answer to a request, and its bill."""
        now = time.monotonic()
        self.began = self.began or now
        row = row_of(body)
        asked = Asked(
            row,
            body,
            self.requests.total(),
            self.requests[row],
            now - self.began,
            self.state,
            self.marked,
            batch,
        )
        self.requests[row] += 1
        self.forms[(body.get("response_format") or {}).get("type", "none")] += 1
        give = NO_KEY if self.aborted else sound if self.healed else self.kind.answer
        answer = give(asked)
        if row == NO_ROW:  # whether the server works, which may be asked often
            answer = replace(answer, acceptable=False)
        taken = sum(answer.billed or (0, 0))
        self.sent.append(now)
        self.tokens.append(taken)
        if answer.billed is not None:
            self.paid[row] += 1
            self.paid_twice += bool(self.delivered[row])
            self.tokens_in += answer.billed[0]
            self.tokens_out += answer.billed[1]
            self.dearest = max(self.dearest, taken)
        return answer

    def ledger(self) -> dict[str, Any]:
        """All of it, in JSON's types."""
        began = self.began or 0.0
        marked = [self.requests[row] for row in self.marked]
        return {
            "requests": self.requests.total(),
            "rows": len(self.requests),
            "paid": self.paid.total(),
            "dollars": self.dollars,
            "answered": len(+self.delivered),
            "delivered": self.delivered.total(),
            "paid_twice": self.paid_twice,
            "dearest_dollars": self.dearest * USD_PER_TOKEN * (BATCH_SHARE if self.kind.batch else 1.0),
            "tokens_in_60_s": most_in(self.sent, self.tokens, 60.0),
            "most_in_flight": self.most_in_flight,
            "longest_request": self.longest_request,
            "marked": sorted(self.marked),
            "most_asked_marked": max(marked, default=0),
            "forms": dict(self.forms),
            "calls": dict(self.calls),
            "batches": len(self.batches),
            "files": len(self.files),
            "deleted_unread": self.deleted_unread,
            "quiet": time.monotonic() - self.last,
            "notes": {name: one for name, one in self.state.items() if isinstance(one, int | float | str)},
            "sent": [at - began for at in self.sent],
            "tokens": self.tokens,
        }


BOOKS: dict[str, Book] = {}


def book_of(request: web.Request) -> Book:
    """The book of the kind in a request's address."""
    name = request.match_info["kind"]
    if name not in KINDS:
        raise web.HTTPNotFound(text=f"no kind is called {name}")
    book = BOOKS.setdefault(name, Book(KINDS[name]))
    if "/v1/" in request.path:
        book.last = time.monotonic()
    return book
