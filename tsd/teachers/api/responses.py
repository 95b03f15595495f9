"""A server's answer -> a reply, whatever the answer holds. Live and in batches it has the same form."""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tsd.teachers import Reply
from tsd.teachers.thinking import object_in, part

MOST_TOKENS = 10_000_000  # of one request: a count above it is not one
# Letters that are kept and read: a reply of megabytes would hold up a worker's other requests until they time out.
LONGEST_REPLY, LONGEST_THOUGHT = 20_000, 200_000
SHOWN = 200  # letters of what a server says, in a reason
MAY_PASS = (408, 409, 425)  # of the codes below 500, besides 429
OF_THE_ROW = (400, 403, 413, 415, 422, 451)  # codes that are about what one request holds
UNSURE = (504, 524)  # a gateway gave up waiting: the model behind it may have worked, and be paid for

# How providers say why a reply ended, in lower case: OpenAI, Mistral, Gemini, Anthropic, Cohere, Ollama.
TOO_LONG = ("length", "max_tokens", "model_length", "max_output_tokens", "model_context_window_exceeded")
FILTERED = (
    *("content_filter", "content-filter", "safety", "recitation", "blocklist", "prohibited_content", "spii"),
    *("image_safety", "image_prohibited_content", "refusal", "guardrail_intervened", "error_toxic", "language"),
)
BROKEN = ("error", "load", "unload", "malformed_function_call", "other", "abort")
# Words by which servers say that it is what a request shows or asks that they will not take.
MODERATED = re.compile(
    r"moderat|content.{0,20}(?:polic|filter|management)|polic(?:y|ies).{0,20}violat|violat.{0,30}polic|"
    r"responsible.?ai|(?:was|been|is) flagged|flagged (?:as|by|for)|safety (?:system|filter|setting|reason)|"
    r"inappropriate|harmful|data_inspection_failed|prohibited",
    re.IGNORECASE,
)
# How a 429 says that the request would never fit, and that it does not fit now: "Limit 30000, Requested 41000".
TOO_LARGE = re.compile(r"(?:request|prompt|input)\b.{0,20}\btoo (?:large|long|big)", re.IGNORECASE)
LIMIT = re.compile(r"limit:? ([\d,]+).{0,40}requested:? ([\d,]+)", re.IGNORECASE)
SPENT = ("insufficient_quota", "billing_hard_limit_reached", "insufficient_credits", "billing_not_active")

Price = Callable[[int, int], float]  # tokens in, tokens out -> dollars


@dataclass(frozen=True)
class ServerError:
    """What a server says in a refusal, whatever form it has."""

    code: int | None
    """An HTTP status: that of the response, or the one named in its body."""
    kind: str
    """The server's own names for it: code, type, status; empty where it gives none."""
    message: str
    """Its words."""

    @property
    def moderated(self) -> bool:
        """Whether the provider's filter took what the request holds."""
        return bool(MODERATED.search(self.message) or MODERATED.search(self.kind))

    @property
    def too_large(self) -> bool:
        """Whether one request alone exceeds a limit of a minute: waiting does not help it."""
        if self.code != 429:
            return False
        counts = LIMIT.search(self.message)
        if counts:
            limit, asked = (int(count.replace(",", "")) for count in counts.groups())
            return asked > limit
        return bool(TOO_LARGE.search(self.message))

    @property
    def spent(self) -> bool:
        """Whether the account has no money left: waiting does not help."""
        return any(name in self.kind for name in SPENT) or self.code == 402


def read_json(content: bytes | str) -> Any:
    """The JSON of an answer. Raises ValueError where it is none, or nested too deeply to be read.

    Some servers keep a connection alive with comment lines or blanks before it.
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
    """What a server says in the body of a refusal. code: the response's status."""
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
    """The error in an answer whose status was 200; None where it holds none."""
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
    """The error in a body: an object, a string, a list of either, `detail`, or the body itself."""
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
    metadata = named.get("metadata")  # OpenRouter hands on what the model's own provider says
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
    if isinstance(value, list):  # FastAPI: what is wrong with each field
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
    """The first line that says something."""
    lines = (" ".join(line.split()) for line in text[: 20 * SHOWN].splitlines())
    return clean(next(filter(None, lines), ""))


def read_completion(answer: Any, price: Price, expected: int, topics: Sequence[str] = ()) -> Reply:
    """Read a chat completion; what is not one becomes an `error` with a reason.

    expected: tokens of the question, roughly, for servers whose counts cannot be true. topics: the keys of the
    object that the reply should be. Thought and reply are parted here, and nowhere later.
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
    """The reply with the tokens that the answer states, and what they cost. asked, said: where it states none."""
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
    if thinking and thinking > out:  # more than what it should be part of: it is counted beside it
        out += thinking
    if prompt == 0:  # no prompt takes nothing: a server or a proxy that does not count
        into, out = asked, max(out, said)
    if whole is not None and whole - into > out:  # thoughts that stand in the total alone
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
    """Whether an answer says what it took."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    return isinstance(usage, dict) and _count(usage, "prompt_tokens", "input_tokens", "total_tokens") is not None


def outlook(
    code: int | None, said: Mapping[str, Any] | ServerError
) -> Literal["filtered", "busy", "passing", "final"]:
    """What a status other than 200 means for the next try. said: the server's error.

    filtered: the provider's filter took the row; busy: wait as long as the server says; passing: try again;
    final: no retry will mend it.
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
    """Text that every file can hold: halves of surrogate pairs and NULs are replaced."""
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


def _first(choices: Any) -> dict[str, Any]:
    found = choices[0] if isinstance(choices, list) and choices else None
    return found if isinstance(found, dict) else {}


def _count(usage: Mapping[str, Any], *names: str) -> int | None:
    """The first of some counts that can be true, also as a float or in digits; None where none can."""
    for name in names:
        count = usage.get(name)
        if isinstance(count, str):
            count = float(count) if re.fullmatch(r"\d{1,9}(\.0*)?", count := count.replace(",", "")) else None
        if isinstance(count, bool) or not isinstance(count, int | float):
            continue
        if math.isfinite(count) and 0 <= count <= MOST_TOKENS:
            return math.ceil(count)
    return None
