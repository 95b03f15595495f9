"""Parse one line of a batch's output or error file into a custom id and a reply."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from tsd.teachers import Reply
from tsd.teachers.api.responses import (
    OF_THE_ROW,
    SHOWN,
    Price,
    ServerError,
    clean,
    error_of,
    error_within,
    outlook,
    read_completion,
    read_json,
)

OF_THE_ACCOUNT = (401, 402, 429)  # codes that concern the key or the billing, whatever other requests returned


class UnreadableError(ValueError):
    """A line that is not a complete line of a batch's file."""


@dataclass(frozen=True)
class Line:
    """One parsed result line of a batch."""

    name: str
    """The request's custom id."""
    reply: Reply
    fault: Literal["row", "account", "either"] | None = None
    """Cause of a permanent failure. row: the server refuses this request; account: it refuses all requests;
    either: it concerns the request if others of the batch got a response.
    """
    served: bool = False
    """Whether the provider completed the request and so bills it, even if the reply is unusable."""


def read_line(text: bytes, price: Price, expected: Mapping[str, int], topics: Sequence[str] = ()) -> Line:
    """Parse a line. Raises UnreadableError if it is cut off, HTML, not JSON, or has no custom id.

    expected: approximate tokens of each prompt, by custom id. topics: see `read_completion`.
    """
    try:
        entry = read_json(text)
    except ValueError:
        raise UnreadableError("a line that is not JSON") from None
    name = entry.get("custom_id") if isinstance(entry, dict) else None
    if type(name) is int:  # written as a number by servers that parse digits
        name = str(name)
    if not isinstance(name, str):
        raise UnreadableError("a line without a custom id")
    code, body = _response(entry)
    beside = error_within({"error": entry.get("error")})
    if code is None and body is None and beside is None:
        raise UnreadableError(f"a line with neither answer nor error for custom id {name[:SHOWN]}")
    if code is None or not 200 <= code < 300:
        within = error_of(code, json.dumps(body)) if body else None
        return _refused(name, code, within or beside or ServerError(code, "", "no answer"))
    if error := error_within(body):
        return _refused(name, error.code, error)
    asked = expected.get(name, 0)
    reply = read_completion(body, price, asked, topics)
    # No usage in the response: use the estimate of the prompt.
    if reply.status == "error" and not reply.input_tokens:
        reply = replace(reply, input_tokens=asked, cost_usd=price(asked, 0))
    return Line(name, reply, served=True)


def _refused(name: str, code: int | None, said: ServerError) -> Line:
    """Convert a failed request to a line, with the cause of the failure. code: HTTP status, if known."""
    code = code if code is not None else said.code
    meaning = outlook(code, said)
    if meaning == "filtered":
        return Line(name, Reply(None, "refused", "the provider's filter"))
    kind = "" if code else said.kind
    words = ": ".join(str(one) for one in (code, kind, said.message if said.message != kind else "") if one)
    reply = Reply(None, "error", clean(words or "no answer")[:SHOWN])
    if meaning != "final":
        return Line(name, reply)
    if said.too_large:
        return Line(name, reply, "row")
    if code in OF_THE_ACCOUNT or said.spent:
        return Line(name, reply, "account")
    return Line(name, reply, "row" if said.moderated or (code in OF_THE_ROW and code != 403) else "either")


def _response(entry: Mapping[str, Any]) -> tuple[int | None, Any]:
    """Return status code and body of a line. Some servers put the completion directly in the response field."""
    response = entry.get("response")
    if not isinstance(response, dict):
        return None, None
    if "body" not in response and "choices" in response:
        return 200, response
    code, body = _status(response.get("status_code")), response.get("body")
    if isinstance(body, str):
        with suppress(ValueError):  # a completion encoded as a string
            body = read_json(body)
    if code is None and isinstance(body, dict) and "choices" in body:
        code = 200
    return code, body


def _status(value: Any) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    return value if type(value) is int and 100 <= value < 600 else None
