"""One line of a batch's output or error file -> whose it is, and the reply."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tsd.teachers import Reply
from tsd.teachers.answers import (
    OF_THE_ROW,
    SHOWN,
    Price,
    ServerError,
    clean,
    error_within,
    find_error,
    outlook,
    read_completion,
)

OF_THE_ACCOUNT = (401, 402)  # codes that are about the key or the money, whatever else was answered


class UnreadableError(ValueError):
    """A line that is not a whole line of a batch's file."""


@dataclass(frozen=True)
class Line:
    """A line of what a batch gave: whose it is, and the reply."""

    name: str
    """The request's custom id."""
    reply: Reply
    fault: Literal["row", "account", "either"] | None = None
    """What asking again does not mend: the server refuses this request, or to serve at all; either: it is about
    the request where others of the batch were answered."""
    served: bool = False
    """Whether the provider completed the request, and so bills it, whatever the reply is worth."""


def read_line(text: bytes, price: Price, expected: Mapping[str, int], topics: Sequence[str] = ()) -> Line:
    """Read a line. Raises UnreadableError where it is not one: cut off, HTML, no JSON, without a custom id.

    expected: tokens of each question, roughly, by its custom id. topics: the keys of the object that a reply is.
    """
    try:
        entry = json.loads(text, strict=False)
    except (ValueError, RecursionError):  # bytes in no known encoding are a ValueError too
        raise UnreadableError("a line that is not JSON") from None
    name = entry.get("custom_id") if isinstance(entry, dict) else None
    if type(name) is int:  # written as a number by who reads our digits so
        name = str(name)
    if not isinstance(name, str):
        raise UnreadableError("a line without a custom id")
    code, body = _response(entry)
    if code is None and body is None and not find_error(entry):
        raise UnreadableError(f"a line with neither answer nor error for custom id {name[:SHOWN]}")
    error = error_within(body)
    if error is None and code != 200:
        error = find_error(body) or find_error(entry)
    if code is not None and 200 <= code < 300 and error is None:
        reply = read_completion(body, price, expected.get(name, 0), topics)
        if not reply.input_tokens and not reply.output_tokens:  # it says nothing of its tokens
            asked = expected.get(name, 0)
            reply = replace(reply, input_tokens=asked, cost_usd=price(asked, 0))
        return Line(name, reply, served=True)
    return _refused(name, code, error or ServerError(None, "", ""))


def _refused(name: str, code: int | None, error: ServerError) -> Line:
    if code is None or 200 <= code < 300:  # an error in the place of an answer may have its own
        code = error.code
    meaning = outlook(code, error)
    if meaning == "filtered":
        return Line(name, Reply(None, "refused", "the provider's filter"))
    words = [str(one) for one in (code or error.kind, error.message) if one]
    reply = Reply(None, "error", clean(": ".join(words) or "no answer")[:SHOWN])
    if meaning != "final":
        return Line(name, reply)
    if code in OF_THE_ACCOUNT or code == 429:
        return Line(name, reply, "account")
    return Line(name, reply, "row" if error.moderated or (code in OF_THE_ROW and code != 403) else "either")


def _response(entry: Mapping[str, Any]) -> tuple[int | None, Any]:
    """Status and body of a line; some servers write the completion itself in the response's place."""
    response = entry.get("response")
    if not isinstance(response, dict):
        return None, None
    if "body" not in response and ("choices" in response or response.get("object") == "chat.completion"):
        return 200, response
    code, body = _status(response.get("status_code")), response.get("body")
    if isinstance(body, str):  # a completion that was written as text
        try:
            body = json.loads(body, strict=False)
        except (ValueError, RecursionError):
            body = {"error": body} if code != 200 else body
    if code is None and isinstance(body, dict) and "choices" in body:
        code = 200
    return code, body


def _status(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    return value if type(value) is int and 100 <= value < 600 else None
