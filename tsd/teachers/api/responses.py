"""Parse a server's response into a reply, whatever it contains. Live and batch responses share one format."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tsd.teachers import Reply
from tsd.teachers.thinking import object_in, part

MOST_TOKENS = 10_000_000  # of one request: a larger count is invalid
# Maximum characters that are kept and parsed: a reply of megabytes would delay a worker's other requests until
# they time out.
LONGEST_REPLY, LONGEST_THOUGHT = 20_000, 200_000
SHOWN = 200  # characters of a server's message in a reason
MAY_PASS = (408, 409, 425)  # retryable codes below 500, besides 429
OF_THE_ROW = (400, 403, 413, 415, 422, 451)  # codes that concern the content of one request
UNSURE = (504, 524)  # gateway timeouts: the model may have run and be billed

# Finish reasons of providers, in lower case: OpenAI, Mistral, Gemini, Anthropic, Cohere, Ollama.
TOO_LONG = ("length", "max_tokens", "model_length", "max_output_tokens", "model_context_window_exceeded")
FILTERED = (
    *("content_filter", "content-filter", "safety", "recitation", "blocklist", "prohibited_content", "spii"),
    *("image_safety", "image_prohibited_content", "refusal", "guardrail_intervened", "error_toxic", "language"),
)
BROKEN = ("error", "load", "unload", "malformed_function_call", "other", "abort")
# Words by which servers report that they refuse the content of a request.
MODERATED = re.compile(
    r"moderat|content.{0,20}(?:polic|filter|management)|polic(?:y|ies).{0,20}violat|violat.{0,30}polic|"
    r"responsible.?ai|(?:was|been|is) flagged|flagged (?:as|by|for)|safety (?:system|filter|setting|reason)|"
    r"inappropriate|harmful|data_inspection_failed|prohibited",
    re.IGNORECASE,
)
# How a 429 says that the request exceeds the limit by itself: "Limit 30000, Requested 41000".
TOO_LARGE = re.compile(r"(?:request|prompt|input)\b.{0,20}\btoo (?:large|long|big)", re.IGNORECASE)
LIMIT = re.compile(r"limit:? ([\d,]+).{0,40}requested:? ([\d,]+)", re.IGNORECASE)
SPENT = ("insufficient_quota", "billing_hard_limit_reached", "insufficient_credits", "billing_not_active")

Price = Callable[[int, int], float]  # (input tokens, output tokens) -> US dollars


@dataclass(frozen=True)
class ServerError:
    """A server's error, independent of its format."""

    code: int | None
    """HTTP status of the response, or the one named in its body."""
    kind: str
    """The server's own identifiers of the error: code, type, status; empty if it gives none."""
    message: str
    """The error message."""

    @property
    def moderated(self) -> bool:
        """Whether the provider's content filter rejected the request."""
        return bool(MODERATED.search(self.message) or MODERATED.search(self.kind))

    @property
    def too_large(self) -> bool:
        """Whether one request alone exceeds a limit per minute, so that waiting does not help."""
        if self.code != 429:
            return False
        counts = LIMIT.search(self.message)
        if counts:
            limit, asked = (int(count.replace(",", "")) for count in counts.groups())
            return asked > limit
        return bool(TOO_LARGE.search(self.message))

    @property
    def spent(self) -> bool:
        """Whether the account has no credit left, so that waiting does not help."""
        return any(name in self.kind for name in SPENT) or self.code == 402


def read_json(content: bytes | str) -> Any:
    """Parse the JSON of a response. Raises ValueError if it is invalid or nested too deeply.

    Comment lines and whitespace before it are skipped: some servers send them to keep a connection alive.
    """
    text = content.decode("utf-8", "replace") if isinstance(content, bytes) else content
    lines = text.lstrip("\ufeff \t\r\n")
    while lines.startswith(":"):
        lines = lines.partition("\n")[2].lstrip()
    try:
        return json.loads(lines, strict=False)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def error_of(code: int | None, content: bytes | str) -> ServerError:
    """Parse the error in the body of a refusal. code: HTTP status of the response."""
    try:
        body = read_json(content)
    except ValueError:
        body = None
    found = find_error(body) if body is not None else None
    if found is None:
        text = content.decode("utf-8", "replace") if isinstance(content, bytes) else content
        return ServerError(code, "", _one_line(re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", text, flags=re.S)))
    return ServerError(code if code is not None and code != 200 else found.code, found.kind, found.message)


def error_within(answer: Any) -> ServerError | None:
    """Return the error in a response of status 200; None if it holds none."""
    if isinstance(answer, list) and answer:
        answer = answer[0]
    if not isinstance(answer, dict):
        return None
    choice = _first(answer.get("choices"))
    for holder in (answer, choice, choice.get("message")):
        if isinstance(holder, dict) and holder.get("error"):
            return find_error(holder)
    if answer.get("object") == "error" or (answer.get("detail") and not answer.get("choices")):
        return find_error(answer)
    return None


def find_error(body: Any) -> ServerError | None:
    """Find the error in a body: an object, a string, a list of either, `detail`, or the body itself."""
    if isinstance(body, list):
        return next(filter(None, map(find_error, body)), None)
    if isinstance(body, str):
        return ServerError(None, "", _one_line(body))
    if not isinstance(body, dict):
        return None
    inner = body.get("error", body.get("errors"))
    if isinstance(inner, dict | list) and inner:
        found = find_error(inner)
        if found and found.message:
            return found
    named = inner if isinstance(inner, dict) else body
    words = inner if isinstance(inner, str) else None
    for name in ("message", "detail", "details", "error_description", "title", "msg", "reason"):
        words = words or _words(named.get(name))
    if not words and named is body and not inner:
        return None
    kinds = [str(named[name]) for name in ("code", "type", "status", "param") if named.get(name) is not None]
    deeper = named.get("innererror")
    if isinstance(deeper, dict) and deeper.get("code"):
        kinds.append(str(deeper["code"]))
    metadata = named.get("metadata")  # OpenRouter passes on the message of the model's provider
    if isinstance(metadata, dict) and metadata.get("raw"):
        words = f"{words or ''} ({_words(metadata['raw'])})"
    return ServerError(_code(named), " ".join(kinds), _one_line(words or " ".join(kinds)))


def _code(named: Mapping[str, Any]) -> int | None:
    for name in ("code", "status", "status_code", "http_status"):
        value = named.get(name)
        if isinstance(value, str) and re.fullmatch(r"[1-5]\d\d", value):
            value = int(value)
        if type(value) is int and 100 <= value < 600:
            return value
    return None


def _words(value: Any) -> str | None:
    if isinstance(value, str):
        return value or None
    if isinstance(value, list):  # FastAPI: one error per field
        said = [_words(one) for one in value]
        return "; ".join(filter(None, said)) or None
    if isinstance(value, dict):
        place = value.get("loc")
        words = next((w for name in ("msg", "message", "detail") if (w := _words(value.get(name)))), None)
        if words is None:
            return json.dumps(value)[:SHOWN] if value else None
        return f"{'.'.join(map(str, place))}: {words}" if isinstance(place, list) else words
    return None


def _one_line(text: str) -> str:
    """Return the first non-empty line."""
    lines = (" ".join(line.split()) for line in text[: 20 * SHOWN].splitlines())
    return clean(next(filter(None, lines), ""))


def read_completion(answer: Any, price: Price, expected: int, topics: Sequence[str] = ()) -> Reply:
    """Parse a chat completion. Anything else becomes an `error` with a reason.

    expected: approximate tokens of the prompt, used if the server's counts are missing or implausible. topics:
    keys of the expected JSON object. Reasoning and reply are separated here and nowhere later.
    """
    if not isinstance(answer, dict):
        return Reply(None, "error", "the answer is not an object")
    found = error_within(answer)
    if found:
        said = ": ".join(str(one) for one in (found.code, found.message) if one)
        return Reply(None, "error", clean(said or "an error without words")[:SHOWN])
    choice = _first(answer.get("choices"))
    message = choice.get("message")
    if not isinstance(message, dict):
        if "text" not in choice:
            return _priced(Reply(None, "error", "the answer was empty: no message"), answer, price, 0, 0)
        message = {"content": choice["text"]}
    parted = part(message, topics)
    letters = len(parted.text or "") + len(parted.thought or "")
    text = clean(parted.text[:LONGEST_REPLY]) if parted.text else None
    thought = clean(parted.thought[:LONGEST_THOUGHT]) if parted.thought else None
    status, reason = "ok", None
    finish = str(choice.get("finish_reason") or "").lower()
    if message.get("refusal"):
        status, reason = "refused", clean(str(message["refusal"]))[:SHOWN]
    elif finish in FILTERED:
        status, reason = "refused", "the provider's filter"
    elif finish in BROKEN:
        status, reason = "error", f"the server ended the reply with {finish!r}"
    elif not parted.closed or (thought and not text and finish in TOO_LONG):
        status, reason = "truncated", f"thinking (in {parted.where}) used up the reply: raise teacher.max_tokens"
    elif finish in TOO_LONG:
        status, reason = "truncated", "the reply reached teacher.max_tokens"
    elif len(parted.text or "") > LONGEST_REPLY:
        status, reason = "invalid", f"the reply has {len(parted.text or ''):,} letters, more than any description"
    elif parted.unsure:
        status, reason = (
            "invalid",
            "the reply holds more than one description, and nothing says which one is meant",
        )
    elif not (text or "").strip() and thought:
        text = object_in(thought, topics) if topics else None
        if text is None:
            status, reason = "invalid", f"the reply is empty: all of it stands in {parted.where}"
    elif not (text or "").strip():
        status, reason = "refused", "the answer was empty"
    model, fingerprint = (answer.get(name) for name in ("model", "system_fingerprint"))
    reply = Reply(
        text,
        status,
        reason,
        thought=thought,
        model=clean(model)[:SHOWN] if isinstance(model, str) else None,
        fingerprint=clean(fingerprint)[:SHOWN] if isinstance(fingerprint, str) else None,
    )
    reply = _priced(reply, answer, price, expected, letters // 4)
    if status == "truncated" and not text and not thought and reply.thinking_tokens:
        spent = f"thinking that the server does not show ({reply.thinking_tokens:,} tokens)"
        return replace(reply, reason=f"{spent} used up the reply: raise teacher.max_tokens")
    return reply


def _priced(reply: Reply, answer: Mapping[str, Any], price: Price, asked: int, said: int) -> Reply:
    """Return the reply with the token counts of the response and their cost.

    asked, said: prompt and response tokens to use if the response states none.
    """
    usage = answer.get("usage")
    counts: Mapping[str, Any] = usage if isinstance(usage, dict) else {}
    prompt = _count(counts, "prompt_tokens", "input_tokens")
    completion = _count(counts, "completion_tokens", "output_tokens")
    whole = _count(counts, "total_tokens")
    details = counts.get("completion_tokens_details") or counts.get("output_tokens_details") or {}
    thinking = _count(details if isinstance(details, dict) else {}, "reasoning_tokens")
    if thinking is None:
        thinking = _count(counts, "reasoning_tokens", "thoughts_token_count")
    into = asked if prompt is None else prompt
    out = said if completion is None else completion
    if thinking and thinking > out:  # more than the total that should include it: it is counted separately
        out += thinking
    if prompt == 0:  # implausible: the server or a proxy does not count
        into, out = asked, max(out, said)
    if whole is not None and whole - into > out:  # reasoning tokens that only the total includes
        if prompt is not None:
            thinking = max(thinking or 0, whole - into - (completion or 0))
        out = whole - into
    return replace(
        reply,
        input_tokens=into,
        output_tokens=out,
        thinking_tokens=min(thinking or 0, out),
        cost_usd=price(into, out),
    )


def states_usage(answer: Any) -> bool:
    """Whether a response reports its usage."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    return isinstance(usage, dict) and _count(usage, "prompt_tokens", "input_tokens", "total_tokens") is not None


def outlook(
    code: int | None, said: Mapping[str, Any] | ServerError
) -> Literal["filtered", "busy", "passing", "final"]:
    """Classify an error status for the next try. said: the server's error.

    filtered: the provider's content filter rejected the row; busy: wait as long as the server says; passing: try
    again; final: a retry cannot help.
    """
    error = said if isinstance(said, ServerError) else find_error(dict(said)) or ServerError(code, "", "")
    if "content_filter" in error.kind or "ResponsibleAIPolicyViolation" in error.kind:  # Azure
        return "filtered"
    if error.spent:
        return "final"
    if code == 429:
        return "final" if error.too_large else "busy"
    return "passing" if code is None or code >= 500 or code in MAY_PASS else "final"


def clean(text: str) -> str:
    """Replace lone surrogates and NUL characters, which not every file format can hold."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _first(choices: Any) -> dict[str, Any]:
    found = choices[0] if isinstance(choices, list) and choices else None
    return found if isinstance(found, dict) else {}


def _count(usage: Mapping[str, Any], *names: str) -> int | None:
    """Return the first plausible count, also from a float or a string of digits; None if there is none."""
    for name in names:
        count = usage.get(name)
        if isinstance(count, str):
            count = float(count) if re.fullmatch(r"\d{1,9}(\.0*)?", count := count.replace(",", "")) else None
        if isinstance(count, bool) or not isinstance(count, int | float):
            continue
        if math.isfinite(count) and 0 <= count <= MOST_TOKENS:
            return math.ceil(count)
    return None
