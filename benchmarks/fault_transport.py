"""Misbehaviour of any server in one answer: the connection, the usage, and the form of the reply."""

from dataclasses import replace
from typing import Any

from fault_answers import (
    Answer,
    Asked,
    Expected,
    Kind,
    completion,
    every,
    first_tries,
    for_rows,
    raw,
    sentence,
    sound,
    spoiled,
)
from fault_replies import FEW, HTML, SOME, TRUNCATED, draft, tagged


def usage_as(change: Any) -> Any:
    """An answer whose usage has another form. change: of its three numbers."""

    def give(asked: Asked) -> Answer:
        answer = completion(asked)
        usage = {name: change(count) for name, count in answer.body["usage"].items()}
        return replace(answer, body={**answer.body, "usage": usage})

    return give


def no_usage(asked: Asked) -> Answer:
    """Usage is null for some and left out for others."""
    answer = completion(asked)
    body = {**answer.body, "usage": None}
    if asked.number % 2:
        del body["usage"]
    return replace(answer, body=body)


def far_above(asked: Asked) -> Answer:
    """The server ignores max_tokens and bills ten times as many, now and then."""
    return completion(asked, said=10 * asked.limit) if asked.number % 10 == 5 else sound(asked)


def corrected(asked: Asked) -> Answer:
    """A draft, then a correction."""
    return completion(asked, f"{sentence(asked.row, 1)} On second thought: {sentence(asked.row)}")


def unclosed(asked: Asked) -> Answer:
    """A thought without an end."""
    return completion(asked, f"<think>{draft(asked)} The series", acceptable=False)


def dirty(text: str, where: str) -> Any:
    """Characters that few files can hold."""
    return lambda asked: completion(asked, sentence(asked.row).replace(where, text) + "\x00", acceptable=True)


def no_long_request(ledger: dict[str, Any]) -> str | None:
    """Whether a huge reply was sent back to the server."""
    longest = ledger["longest_request"]
    return f"a request of {longest:,} bytes" if longest > 200_000 else None


def with_mark(asked: Asked) -> Answer:
    """JSON as some proxies write it."""
    answer = completion(asked)
    return replace(answer, body=b"\xef\xbb\xbf" + answer.payload)


PAID_AGAIN = Expected(paid=1 + 2 * FEW + 0.02)  # an answer that never arrived has to be paid for again
TRANSPORT = (
    Kind(
        "timeout",
        "some answers come after the client has gone",
        first_tries(FEW, spoiled(lambda answer: replace(answer, hang=8.0))),
        PAID_AGAIN,
    ),
    Kind(
        "timeout-budget",
        "one in three comes too late, within a budget",
        every(3, spoiled(lambda answer: replace(answer, hang=8.0))),
        Expected(stop="budget", goes_on=False),
        settings=("budget_usd=100", "timeout=3"),
    ),
    Kind(
        "reset-mid-body",
        "the connection is reset in mid-body",
        first_tries(SOME, spoiled(lambda answer: replace(answer, cut=100))),
        Expected(paid=1 + 2 * SOME),
    ),
    Kind(
        "reset-mid-body-budget",
        "every other one is, within a budget",
        every(2, spoiled(lambda answer: replace(answer, cut=100))),
        Expected(stop="budget", goes_on=False),
        settings=("budget_usd=100",),
    ),
    Kind(
        "reset-before-headers",
        "the connection is reset before any header",
        first_tries(SOME, spoiled(lambda answer: replace(answer, cut=-1))),
        Expected(paid=1 + 2 * SOME),
    ),
    Kind(
        "drip",
        "some answers drip for longer than the time limit",
        first_tries(FEW, spoiled(lambda answer: replace(answer, drip=0.5))),
        PAID_AGAIN,
    ),
    Kind(
        "html-200",
        "a page with 200",
        first_tries(SOME, raw(200, b"<html>Sign in to the proxy</html>", HTML, paid=True)),
        Expected(paid=1 + 2 * SOME),
    ),
    Kind(
        "truncated-json",
        "half of the JSON with a fitting length",
        first_tries(SOME, spoiled(lambda answer: replace(answer, body=answer.payload[:150]))),
        Expected(paid=1 + 2 * SOME),
    ),
    Kind(
        "empty-200", "nothing, with 200", first_tries(SOME, raw(200, b"", paid=True)), Expected(paid=1 + 2 * SOME)
    ),
    Kind(
        "gzip-garbage",
        "what is said to be gzip is not",
        first_tries(SOME, raw(200, b"\x1f\x8b\x08garbage" * 9, {"Content-Encoding": "gzip"}, paid=True)),
        Expected(paid=1 + 2 * SOME),
    ),
    Kind(
        "empty-choices",
        "choices is an empty list",
        first_tries(SOME, spoiled(lambda answer: replace(answer, body={**answer.body, "choices": []}))),
        Expected(paid=1 + 2 * SOME),
    ),
    Kind(
        "json-list-200",
        "a list in the place of an object",
        first_tries(SOME, raw(200, [1, 2, 3], paid=True)),
        Expected(paid=1 + 2 * SOME),
    ),
    Kind("byte-order-mark", "JSON after a byte order mark", with_mark),
)

USAGE = (
    Kind("usage-negative", "usage is negative", usage_as(lambda count: -count)),
    Kind("usage-strings", "usage is strings", usage_as(lambda count: f"{count} tokens")),
    Kind("usage-floats", "usage is floats", usage_as(float)),
    Kind("usage-missing", "usage is null or left out", no_usage),
    Kind("usage-above-limit", "a reply of ten times max_tokens, now and then", far_above),
)
FORMS = (
    Kind(
        "huge-reply",
        "a reply of 5 MB",
        for_rows(0.01, lambda one: completion(one, "A" * 5_000_000, said=one.limit, acceptable=False)),
        Expected(marked="invalid|truncated|error", paid=1.1, asked=2, also=no_long_request),
        settings=("timeout=30",),  # on a busy machine 5 MB may take longer than the usual 5 s
    ),
    Kind(
        "open-brackets",
        "200,000 opening brackets",
        for_rows(0.01, lambda one: completion(one, "[" * 200_000, said=one.limit, acceptable=False)),
        Expected(marked="invalid", paid=1.1, asked=2),
    ),
    Kind(
        "open-brackets-body",
        "200,000 opening brackets in the place of the whole answer",
        first_tries(FEW, raw(200, b"[" * 200_000, paid=True)),
        PAID_AGAIN,
    ),
    Kind("control-characters", "control characters in the reply", dirty("The\x01\x08 ", "The ")),
    Kind("lone-surrogates", "halves of surrogate pairs", dirty("The \ud800", "The ")),
    Kind("draft-and-correction", "two objects, the second one counts", corrected),
    Kind(
        "unclosed-thought",
        "<think> without an end, finish stop",
        for_rows(SOME, unclosed),
        replace(TRUNCATED, reason="think"),
    ),
    Kind(
        "channel-markers",
        "harmony's channels in the content",
        tagged(
            "<|channel|>analysis<|message|>",
            "<|end|><|start|>assistant<|channel|>final<|message|>",
        ),
    ),
    Kind("thinking-tags", "<thinking> in the place of <think>", tagged("<thinking>", "</thinking>\n")),
    Kind("closing-tag-alone", "the template opened the thought: only its end is sent", tagged("", "\n</think>\n")),
    Kind(
        "fenced",
        "the reply in a fence after a sentence",
        tagged("Here it is:\n```json\n", "```\nOr rather:\n```json\n"),
    ),
)
