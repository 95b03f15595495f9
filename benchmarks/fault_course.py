"""Misbehaviour over the course of a run: outages, limits and changes, and runs over several starts."""

from dataclasses import replace
from typing import Any

from fault_answers import (
    Answer,
    Asked,
    Expected,
    Kind,
    always,
    completion,
    forms,
    mixed,
    most_in,
    outage,
    raw,
    refusal,
    sentence,
    sound,
    told_to_wait,
)
from fault_replies import HTML, field_full, tagged, waited


def flagged_first(asked: Asked) -> Answer:
    """The very first row is flagged, always; whether later requests keep the schema is counted."""
    if asked.number == 0:
        asked.mark()
    if asked.row in asked.marked:
        return refusal(
            400,
            "Your input was flagged as potentially violating our usage policy.",
            type="invalid_request_error",
            code="content_policy_violation",
        )(asked)
    return sound(asked)


def schema_stays(ledger: dict[str, Any]) -> str | None:
    """Whether the schema was dropped."""
    lost = sum(count for form, count in forms(ledger).items() if form != "json_schema")
    return f"{lost} requests without the schema" if lost > 4 else None


def other_model(asked: Asked) -> Answer:
    """An alias moves on to the next snapshot in the middle of the run."""
    return completion(asked, model="seer-2026-01" if asked.number < 250 else "seer-2026-06")


def says_change(ledger: dict[str, Any]) -> str | None:
    """Whether the change of the model was said."""
    return None if "seer-2026-06" in ledger["said"] else "the new model's name is said nowhere"


def garbage(asked: Asked) -> Answer:
    """A model that cannot do it."""
    return completion(asked, "I am sorry, I only talk about the weather.", acceptable=False)


def cut_short(asked: Asked) -> Answer:
    """max_tokens is too low for any reply."""
    return completion(asked, sentence(asked.row)[:40], "length", acceptable=False)


def long_one(asked: Asked) -> Answer:
    """One reply takes half of the token limit."""
    if asked.number == 40:
        asked.state["big"] = asked.age
        return completion(asked, said=HALF)
    return completion(asked, said=150)


def of_mixed_length(asked: Asked) -> Answer:
    """Replies of 20 to 250 tokens."""
    return completion(asked, said=20 + int(asked.row[:4], 16) % 230)


LIMIT = 160_000  # tokens a minute
HALF = LIMIT // 2


def within_limit(ledger: dict[str, Any]) -> str | None:
    """Whether any 60 s window exceeds the limit, and whether 85 % of it were used."""
    sent, tokens = ledger["sent"], ledger["tokens"]
    most = most_in(sent, tokens, 60.0)
    if most > LIMIT:
        return f"{most:,} tokens in 60 s, limit {LIMIT:,}"
    # After the start, at which little may be in flight, and before the end, at which little is left.
    begin, end = sent[0] + 10, sent[-1] - 2
    used = sum(count for at, count in zip(sent, tokens, strict=True) if begin <= at < end)
    share = used / (LIMIT / 60 * (end - begin)) if end > begin + 30 else 0.0
    return f"{share:.0%} of the limit used" if share < 0.85 else None


def within_limit_later(ledger: dict[str, Any]) -> str | None:
    """Whether a window after the long reply exceeds the limit, or one with it by more than its excess."""
    sent, tokens = ledger["sent"], ledger["tokens"]
    big = max(range(len(tokens)), key=tokens.__getitem__)
    later = most_in(sent[big + 1 :], tokens[big + 1 :], 60.0)
    if later > LIMIT:
        return f"{later:,} tokens in 60 s after the long reply, limit {LIMIT:,}"
    most = most_in(sent, tokens, 60.0)
    if most > LIMIT + HALF:
        return f"{most:,} tokens in 60 s with the long reply"
    return None if len(sent) >= 500 else "not all rows were asked"


def slow_start(asked: Asked) -> Answer:
    """A server that loads its model first."""
    return replace(sound(asked), hang=4.0) if asked.age < 4 else sound(asked)


COURSE = (
    Kind(
        "outage-20s",
        "500s for 20 s, 64 in flight",
        outage(100, 20.0, refusal(500, "Internal error")),
        settings=("in_flight=64", "workers=2", "idle_timeout=120"),
    ),
    Kind(
        "outage-60s",
        "500s for 60 s, 64 in flight",
        outage(100, 60.0, refusal(500, "Internal error")),
        settings=("in_flight=64", "workers=2", "idle_timeout=240"),
    ),
    Kind(
        "outage-503-gateway",
        "a gateway's 503s for 20 s, 64 in flight",
        outage(100, 20.0, raw(503, b"<html>upstream connect error</html>", HTML)),
        settings=("in_flight=64", "idle_timeout=120"),
    ),
    Kind(
        "outage-resets",
        "connections are reset for 15 s",
        outage(100, 15.0, lambda _: Answer(cut=-1)),
        settings=("in_flight=64", "idle_timeout=120"),
    ),
    Kind(
        "503-retry-after",
        "503 with Retry-After: everybody waits",
        told_to_wait(100, 4.0, 503),
        Expected(also=waited),
    ),
    Kind(
        "flagged-first-row",
        "moderation refuses the very first row",
        flagged_first,
        Expected(marked="error|refused", asked=4, also=schema_stays),
    ),
    Kind("model-changes", "the model that answers changes", other_model, Expected(also=says_change)),
    Kind(
        "mixed-lengths-limit",
        f"replies of mixed length, {LIMIT:,} tokens a minute",
        of_mixed_length,
        Expected(also=within_limit),
        settings=(f"tokens_per_minute={LIMIT}", "idle_timeout=120"),
    ),
    Kind(
        "half-the-limit",
        "one reply of half the token limit",
        long_one,
        Expected(also=within_limit_later),
        settings=(f"tokens_per_minute={LIMIT}", "idle_timeout=120"),
    ),
    Kind(
        "always-garbage", "no reply is usable", garbage, Expected(stop="usable|invalid", paid=1.0, goes_on=False)
    ),
    Kind(
        "always-truncated",
        "every reply is cut",
        cut_short,
        Expected(stop="usable|truncated|max_tokens", paid=1.0, goes_on=False),
    ),
    Kind(
        "always-thinking",
        "thinking takes all tokens of every reply",
        field_full,
        Expected(stop="think|reasoning|max_tokens", paid=1.0, goes_on=False),
    ),
    Kind("slow-start", "the first answers take long", slow_start),
    Kind(
        "silent",
        "nothing is ever answered",
        always(lambda one: replace(sound(one), hang=60.0, acceptable=False)),
        Expected(stop="timed out|no answer|timeout", paid=0.5),
        settings=("timeout=2", "idle_timeout=20"),
    ),
    Kind(
        "refused-port",
        "nobody listens at the address",
        expected=Expected(stop="refused|connect", goes_on=False),
        address="http://127.0.0.1:1/v1",
        settings=("idle_timeout=20",),
    ),
    Kind(
        "unknown-host",
        "the address has no host",
        expected=Expected(stop="resolve|not known|unknown|name", goes_on=False),
        address="http://no-such-host.invalid/v1",
        settings=("idle_timeout=20",),
    ),
    Kind(
        "not-tls",
        "TLS is spoken to a server that has none",
        expected=Expected(stop="SSL|TLS|ssl", goes_on=False),
        address="https",
        settings=("idle_timeout=20",),
    ),
)
OVER_STARTS = (
    Kind(
        "starts-budget",
        "three starts within one budget, other workers each",
        expected=Expected(goes_on=True),
        workers=(2, 1, 3),
        budget=120.0,
        latency=0.1,
    ),
    Kind(
        "kill-budget",
        "killed within one budget, other workers each",
        kills=4,
        workers=(2, 1, 3),
        budget=160.0,
        latency=0.25,
    ),
    Kind("kill-sound", "killed while a server behaves", kills=6, workers=(2, 1), latency=0.4),
    Kind(
        "kill-mixed",
        "killed while one request in four goes wrong",
        mixed,
        Expected(paid=1.5),
        kills=5,
        workers=(1, 2),
        latency=0.3,
    ),
    Kind(
        "kill-thoughts", "killed while replies hold thoughts", tagged("<think>", "</think>"), kills=3, latency=0.4
    ),
    Kind(
        "kill-repairs",
        "killed while every row needs a second request",
        lambda one: completion(one, "{}", acceptable=False) if one.tries < 1 else sound(one),
        Expected(paid=2.0),
        kills=3,
        latency=0.25,
    ),
)
