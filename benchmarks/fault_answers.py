"""What a misbehaving server gives: answers, each with what it bills, and the table of kinds of misbehaviour.

A kind says what requests get, what `tsd annotate` is expected to make of it, and with which settings it runs. The
forms of errors, finish reasons and fields are those of the services' own pages: OpenAI "Error codes" and "Batch
API", Azure OpenAI "Content filtering" and "Quotas and limits", Gemini API "OpenAI compatibility" and
"Troubleshooting", Mistral's API reference, vLLM "Reasoning outputs" and its OpenAI server, Ollama "API" and
"Thinking", OpenRouter "Errors and debugging".
"""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tsd.tasks import SINGLE

USD_PER_TOKEN = 1000 / 1e6
MODEL, KEY = "seer", "sk-adversary-0123456789abcdef"
NUMBERS = re.compile(r"\d+(?:, \d+){15,}")  # the series in a prompt
SHOWN_LABELS = SINGLE.classes

# ---- Rows: which one a request is about, and what is true of it here


def row_id(values: str) -> str:
    """A row's name by the numbers of its series, as a prompt holds them: "12, 34, …"."""
    return hashlib.sha256(values.encode()).hexdigest()[:16]


NO_ROW = "f" * 16  # of a request that shows no series


def row_of(body: Mapping[str, Any]) -> str:
    """Which row a request is about."""
    found = NUMBERS.search(first_text(body))
    return row_id(found[0]) if found else NO_ROW


def first_text(body: Mapping[str, Any]) -> str:
    """The text of a request's first message."""
    content = body["messages"][0]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def labels_of(row: str, shift: int = 0) -> dict[str, str]:
    """The labels that this server states of a row. shift: another class of every facet, as a draft has."""
    number = int(row[:8], 16)
    labels = {}
    for facet, names in SHOWN_LABELS.items():
        number, rest = divmod(number, len(names))
        labels[facet] = names[(rest + shift) % len(names)]
    return labels


def chosen(row: str, share: float) -> bool:
    """Whether a row is one of this share, the same ones at every start."""
    return int(row[8:], 16) / 2**32 < share


# ---- Answers


@dataclass(frozen=True)
class Answer:
    """What a request gets."""

    status: int = 200
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    billed: tuple[int, int] | None = None
    """Tokens in and out that are paid for; None where nothing is."""
    acceptable: bool = False
    """Whether the row needs no other answer."""
    hang: float = 0.0
    """Seconds before it."""
    drip: float = 0.0
    """Seconds between its pieces."""
    cut: int | None = None
    """The connection is reset after so many bytes of the body; -1: before any header."""

    @property
    def payload(self) -> bytes:
        """The body as bytes."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass
class Asked:
    """A request, as a kind sees it."""

    row: str
    body: Mapping[str, Any]
    number: int
    """Of the kind's requests, from 0; in a batch, of its lines."""
    tries: int
    """How often the row was asked before."""
    age: float
    """Seconds since the kind's first request."""
    state: dict[str, Any]
    """The kind's own, which the ledger shows where it is a number or a text."""
    marked: set[str]
    batch: int = 0
    """Its batch's number."""

    @property
    def limit(self) -> int:
        """The longest reply that is asked for, in tokens."""
        return int(self.body.get("max_tokens") or self.body.get("max_completion_tokens") or 0)

    def mark(self) -> None:
        """Have the row counted among those with a fault of their own."""
        self.marked.add(self.row)


Giver = Callable[[Asked], Answer]


def tokens_of(body: Mapping[str, Any]) -> int:
    """The tokens of a request by this server's own count, a little below any careful estimate of them."""
    words = NUMBERS.sub("", first_text(body))
    numbers = sum(len(found[0].split(",")) for found in NUMBERS.finditer(first_text(body)))
    later = sum(len(json.dumps(message["content"])) for message in body["messages"][1:])
    return round(len(words) / 4.2 + 1.8 * numbers + later / 4.2)


def sentence(row: str, shift: int = 0) -> str:
    """The reply of a teacher that reads a row well."""
    return SINGLE.reply(labels_of(row, shift), (0, 0, 0))


def completion(
    asked: Asked,
    content: Any = ...,
    finish: str = "stop",
    message: Mapping[str, Any] | None = None,
    thinking: int = 0,
    usage: Any = ...,
    choice: Mapping[str, Any] | None = None,
    model: str = MODEL,
    acceptable: bool = True,
    said: int | None = None,
) -> Answer:
    """A chat completion that is paid for. said: tokens of the reply, where its length does not tell."""
    content = sentence(asked.row) if content is ... else content
    text = content if isinstance(content, str) else json.dumps(content or "")
    given, put = said if said is not None else max(1, len(text) // 4), tokens_of(asked.body)
    if usage is ...:
        usage = {
            "prompt_tokens": put,
            "completion_tokens": given + thinking,
            "total_tokens": put + given + thinking,
        }
        if thinking:
            usage["completion_tokens_details"] = {"reasoning_tokens": thinking}
    body = {
        "id": f"chatcmpl-{asked.number}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": content, **(message or {})},
                **(choice or {}),
            }
        ],
        "usage": usage,
    }
    return Answer(200, body, billed=(put, given + thinking), acceptable=acceptable)


def sound(asked: Asked) -> Answer:
    """What a well-behaved server gives."""
    return completion(asked)


def refusal(status: int, message: str, headers: Mapping[str, str] | None = None, /, **more: Any) -> Giver:
    """An error in OpenAI's form; more: what stands beside the message."""
    body = {"error": {"message": message, "type": None, "param": None, "code": None, **more}}
    return lambda _: Answer(status, body, headers or {})


def raw(status: int, body: Any, headers: Mapping[str, str] | None = None, paid: bool = False) -> Giver:
    """An answer of any form; paid: the model worked all the same."""

    def give(asked: Asked) -> Answer:
        return Answer(status, body, headers or {}, billed=sound(asked).billed if paid else None)

    return give


def spoiled(change: Callable[[Answer], Answer]) -> Giver:
    """An answer that was paid for and does not arrive as it should."""
    return lambda asked: replace(change(sound(asked)), acceptable=False)


# ---- When a fault comes


def first_tries(share: float, fault: Giver, tries: int = 1) -> Giver:
    """A share of the rows is given the fault until it was asked so often."""
    return lambda asked: fault(asked) if chosen(asked.row, share) and asked.tries < tries else sound(asked)


def for_rows(share: float, fault: Giver) -> Giver:
    """A share of the rows always is, once others were answered."""

    def give(asked: Asked) -> Answer:
        if (asked.number >= 8 and chosen(asked.row, share)) or asked.row in asked.marked:
            asked.mark()
            return fault(asked)
        return sound(asked)

    return give


def every(number: int, fault: Giver) -> Giver:
    """Each so-manieth request is."""
    return lambda asked: fault(asked) if asked.number % number == number - 1 else sound(asked)


def after(number: int, fault: Giver) -> Giver:
    """All requests are from one on."""
    return lambda asked: fault(asked) if asked.number >= number else sound(asked)


def always(fault: Giver) -> Giver:
    """All are."""
    return fault


def unless(fine: Callable[[Mapping[str, Any]], bool], fault: Giver) -> Giver:
    """Requests in the wrong words are."""
    return lambda asked: sound(asked) if fine(asked.body) else fault(asked)


def outage(begins: int, seconds: float, fault: Giver) -> Giver:
    """From one request on, all are for so many seconds."""

    def give(asked: Asked) -> Answer:
        if asked.number >= begins:
            asked.state.setdefault("began", asked.age)
            if asked.age - asked.state["began"] < seconds:
                asked.state["failed"] = asked.state.get("failed", 0) + 1
                return fault(asked)
        return sound(asked)

    return give


def told_to_wait(begins: int, seconds: float, status: int, grace: float = 1.0) -> Giver:
    """At one request the server asks everybody to wait; it counts who does not."""

    def give(asked: Asked) -> Answer:
        now, state = time.monotonic(), asked.state
        if asked.number >= begins and "until" not in state:
            state["until"] = now + seconds
        left = state.get("until", 0.0) - now
        if left <= 0:
            return sound(asked)
        state["early"] = state.get("early", 0) + (left < seconds - grace)
        return Answer(status, {"error": {"message": "Overloaded"}}, {"Retry-After": f"{left:.2f}"})

    return give


def mixed(asked: Asked) -> Answer:
    """One request in four goes wrong, in turns; no row more than twice, and none is unusable twice."""
    faults = (
        refusal(500, "The server had an error while processing your request."),
        spoiled(lambda answer: replace(answer, cut=60)),
        spoiled(lambda answer: replace(answer, body=answer.payload[:150])),
        raw(200, b"<html>Bad gateway</html>", {"Content-Type": "text/html"}, paid=True),
        lambda one: completion(one, "{}", acceptable=False) if one.tries == 0 else sound(one),
        raw(503, b"<html>Service Unavailable</html>", {"Content-Type": "text/html"}),
    )
    fails = asked.number % 4 == 3 and asked.tries < 2
    return faults[asked.number // 4 % len(faults)](asked) if fails else sound(asked)


# ---- What is expected


@dataclass(frozen=True)
class Expected:
    """What the stage makes of a kind. Rows that the kind does not mark end `ok`, with the labels of their row."""

    marked: str = "ok"
    """The statuses that marked rows may have, parted by |."""
    reason: str = ""
    """What their reasons name (a regular expression)."""
    stop: str = ""
    """What the one line names where the stage stops; "" where it comes to its end."""
    may_stop: bool = False
    """Whether coming to the end with every row `ok` will do as well."""
    paid: float = 1.0
    """The most answers that are paid for, a row."""
    asked: float = 8.0
    """The most requests, a row that is marked."""
    goes_on: bool = True
    """Whether after a stop, once the server behaves, the same command finishes with every row `ok`."""
    also: Callable[[dict[str, Any]], str | None] = lambda _: None
    """What else is wrong, by the server's ledger with `said`, what was printed, and `about`."""


@dataclass(frozen=True)
class Kind:
    """One kind of misbehaviour."""

    name: str
    about: str
    answer: Giver = sound
    expected: Expected = Expected()
    settings: tuple[str, ...] = ()
    """Of the teacher."""
    kills: int = 0
    """How often the command is killed before it may end."""
    workers: tuple[int, ...] = (1,)
    """Of each start, in turns."""
    budget: float | None = None
    """Dollars, of all starts but the last."""
    latency: float = 0.02
    models: tuple[str, ...] = (MODEL,)
    """What the server lists."""
    address: str = ""
    """Another one in the place of the server's."""
    batch: Any = None
    """How files and batches are served; None: live."""

    @property
    def by_command(self) -> bool:
        """Whether it takes processes of its own."""
        return bool(self.kills or self.budget)


def forms(ledger: dict[str, Any]) -> Counter[str]:
    """How many requests asked for which form of a reply."""
    return Counter(ledger["forms"])


def most_in(sent: list[float], tokens: list[int], seconds: float) -> int:
    """The most tokens in any window."""
    most = so_far = first = 0
    for at, count in zip(sent, tokens, strict=True):
        so_far += count
        while sent[first] <= at - seconds:
            so_far -= tokens[first]
            first += 1
        most = max(most, so_far)
    return most
