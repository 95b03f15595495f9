"""A server's answer -> a reply, whatever the answer holds. Live and in batches it has the same form."""

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

from tsd.teachers import Reply

MOST_TOKENS = 10_000_000  # of one request: a count above it is not one
SHOWN = 200  # letters of what a server says, in a reason
MAY_PASS = (408, 409, 425)  # of the codes below 500, besides 429
OF_THE_ROW = (400, 413, 415, 422)  # codes that are about what one request holds

Price = Callable[[int, int], float]  # tokens in, tokens out -> dollars


def read_answer(content: bytes | str, price: Price, expected: int) -> Reply:
    """Read a chat completion; what is not one becomes an `error` with a reason.

    expected: tokens of the question, roughly, for servers whose counts cannot be true.
    """
    try:
        answer = json.loads(content, strict=False)
    except ValueError:
        return _unreadable("the answer is not JSON", price, expected)
    return read_completion(answer, price, expected)


def read_completion(answer: Any, price: Price, expected: int) -> Reply:
    """The same of an answer that is no longer JSON."""
    if not isinstance(answer, dict):
        return _unreadable("the answer is not an object", price, expected)
    choice = _first(answer.get("choices"))
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else None
    refusal = message.get("refusal") if isinstance(message, dict) else None
    finish = choice.get("finish_reason")
    if isinstance(text, list):  # some servers answer in parts
        text = "".join(str(part.get("text", "")) for part in text if isinstance(part, dict))
    text = clean(text) if isinstance(text, str) else None
    if refusal:
        status, reason = "refused", clean(str(refusal))[:SHOWN]
    elif finish == "content_filter":
        status, reason = "refused", "the provider's filter"
    elif finish == "length":  # nothing at all where a model has spent them on thinking
        status, reason = "truncated", "the reply reached teacher.max_tokens"
    elif not text:
        status, reason = "error", "the answer was empty"
    else:
        status, reason = "ok", None
    usage = answer.get("usage")
    asked = _tokens(usage, "prompt_tokens", expected)
    said = _tokens(usage, "completion_tokens", len(text or "") // 4)
    return Reply(text, status, reason, input_tokens=asked, output_tokens=said, cost_usd=price(asked, said))


def outlook(code: int, said: Mapping[str, Any]) -> Literal["filtered", "busy", "passing", "final"]:
    """What a status other than 200 means for the next try. said: the server's error.

    filtered: the provider's filter took the row; busy: wait as long as the server says; passing: try again;
    final: no retry will mend it.
    """
    if said.get("code") == "content_filter":  # Azure
        return "filtered"
    if code == 429 and said.get("code") != "insufficient_quota":
        return "busy"
    return "passing" if code >= 500 or code in MAY_PASS else "final"


def clean(text: str) -> str:
    """Text that every file can hold: halves of surrogate pairs and NULs are replaced."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _unreadable(reason: str, price: Price, expected: int) -> Reply:
    """An answer that says nothing of its tokens: the question at least was taken."""
    return Reply(None, "error", reason, input_tokens=expected, cost_usd=price(expected, 0))


def _first(choices: Any) -> dict[str, Any]:
    found = choices[0] if isinstance(choices, list) and choices else None
    return found if isinstance(found, dict) else {}


def _tokens(usage: Any, name: str, otherwise: int) -> int:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count <= MOST_TOKENS else otherwise
