"""The kinds of misbehaviour of a server that is asked live, each with what is expected of the annotation stage."""

from dataclasses import replace
from typing import Any

from fault_answers import (
    KEY,
    MODEL,
    Answer,
    Asked,
    Expected,
    Kind,
    after,
    always,
    completion,
    every,
    first_tries,
    for_rows,
    forms,
    mixed,
    most_in,
    outage,
    raw,
    refusal,
    sentence,
    sound,
    spoiled,
    told_to_wait,
    unless,
)

HTML = {"Content-Type": "text/html"}
FEW, SOME = 0.02, 0.1  # shares of the rows
REFUSED = Expected(marked="refused", asked=1)
ROWS_ERROR = Expected(marked="error|refused", asked=1)
TRUNCATED = Expected(marked="truncated", paid=1 + SOME * 2, asked=2)
THOUGHT = "I first read: {} Wait, that is wrong. Let me look again."


def draft(asked: Asked) -> str:
    """A thought that holds a whole reply, with another class of every facet."""
    return THOUGHT.format(sentence(asked.row, shift=1))


def json_schema(body: Any) -> bool:
    """Whether a request asks for a schema."""
    return (body.get("response_format") or {}).get("type") == "json_schema"


def reasoned_away(asked: Asked) -> Answer:
    """OpenAI's o-series: all tokens went into reasoning."""
    return completion(asked, "", "length", thinking=asked.limit, acceptable=False, said=0)


def hidden(asked: Asked) -> Answer:
    """Gemini's OpenAI layer: thinking tokens stand in the total alone."""
    answer = completion(asked)
    put, given = answer.billed or (0, 0)
    usage = {"prompt_tokens": put, "completion_tokens": given, "total_tokens": put + given + 800}
    return replace(answer, body={**answer.body, "usage": usage}, billed=(put, given + 800))


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


def part_thought(asked: Asked) -> Answer:
    """Mistral's reasoning models: the content is a list of parts."""
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": draft(asked)}]},
        {"type": "text", "text": sentence(asked.row)},
    ]
    return completion(asked, parts, thinking=0)


def field_thought(name: str) -> Any:
    """The thought stands in a field beside the content."""
    return lambda asked: completion(asked, message={name: draft(asked)}, thinking=60)


def field_only(asked: Asked) -> Answer:
    """vLLM's parser took the whole reply for the thought."""
    text = f"{draft(asked)} {sentence(asked.row)}"
    return completion(asked, None, message={"reasoning_content": text}, said=len(text) // 4)


def field_full(asked: Asked) -> Answer:
    """vLLM: thinking reached max_tokens before the reply began."""
    return completion(
        asked, None, "length", {"reasoning_content": draft(asked)}, said=asked.limit, acceptable=False
    )


def tagged(opening: str, closing: str) -> Any:
    """The thought stands in the content, between marks."""
    return lambda asked: completion(asked, f"{opening}{draft(asked)}{closing}{sentence(asked.row)}")


def corrected(asked: Asked) -> Answer:
    """A draft, then a correction."""
    return completion(asked, f"{sentence(asked.row, 1)} On second thought: {sentence(asked.row)}")


def unclosed(asked: Asked) -> Answer:
    """A thought without an end."""
    return completion(asked, f"<think>{draft(asked)} The series", acceptable=False)


def dirty(text: str, where: str) -> Any:
    """Characters that few files can hold."""
    return lambda asked: completion(asked, sentence(asked.row).replace(where, text) + "\x00", acceptable=True)


def processing(asked: Asked) -> Answer:
    """OpenRouter keeps a connection open with comments and blanks before the JSON."""
    answer = completion(asked)
    lead = b": OPENROUTER PROCESSING\n\n" * 3 if asked.number % 2 else b"\n         \n" * 5
    return replace(answer, body=lead + answer.payload)


def in_choices(asked: Asked) -> Answer:
    """OpenRouter: the upstream model failed in mid-reply."""
    wrong = {"error": {"code": 502, "message": "Upstream error"}, "native_finish_reason": "error"}
    answer = completion(asked, "", "error", choice=wrong, acceptable=False)
    return replace(answer, billed=None, body={**answer.body, "usage": None})


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


def waited(ledger: dict[str, Any]) -> str | None:
    """Whether others kept sending while the server asked to wait."""
    early = ledger["notes"].get("early", 0)
    return f"{early} requests were sent while the server had asked to wait" if early > 2 else None


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


def no_long_request(ledger: dict[str, Any]) -> str | None:
    """Whether a huge reply was sent back to the server."""
    longest = ledger["longest_request"]
    return f"a request of {longest:,} bytes" if longest > 200_000 else None


def slow_start(asked: Asked) -> Answer:
    """A server that loads its model first."""
    return replace(sound(asked), hang=4.0) if asked.age < 4 else sound(asked)


def openai_limits(number: int, headers: dict[str, str]) -> Any:
    """OpenAI's 429."""
    words = (
        f"Rate limit reached for {MODEL} on requests per min (RPM): Limit 500, Used 500. Please try again in 1s."
    )
    return every(number, refusal(429, words, headers, type="requests", code="rate_limit_exceeded"))


OPENAI = (
    Kind("sound", "a server that behaves"),
    Kind(
        "openai-400-max-tokens",
        "max_tokens is not supported, max_completion_tokens is",
        unless(
            lambda body: "max_tokens" not in body,
            refusal(
                400,
                "Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                "'max_completion_tokens' instead.",
                type="invalid_request_error",
                param="max_tokens",
                code="unsupported_parameter",
            ),
        ),
    ),
    Kind(
        "openai-400-temperature",
        "only the default temperature is supported",
        unless(
            lambda body: "temperature" not in body,
            refusal(
                400,
                "Unsupported value: 'temperature' does not support 0.0 with this model. Only the default (1) "
                "value is supported.",
                type="invalid_request_error",
                param="temperature",
                code="unsupported_value",
            ),
        ),
    ),
    Kind(
        "openai-400-response-format",
        "JSON schemas are not supported, JSON mode is",
        unless(
            lambda body: not json_schema(body),
            refusal(
                400,
                "Invalid parameter: 'response_format' of type 'json_schema' is not supported with this model.",
                type="invalid_request_error",
                param="response_format",
            ),
        ),
    ),
    Kind(
        "openai-401",
        "a wrong key, which the server repeats",
        always(
            refusal(
                401,
                f"Incorrect API key provided: {KEY}. You can find your API key at "
                "https://platform.openai.com/account/api-keys.",
                type="invalid_request_error",
                code="invalid_api_key",
            )
        ),
        Expected(stop="Incorrect API key"),
    ),
    Kind(
        "openai-403-rows",
        "some rows get a 403 after others were answered",
        for_rows(FEW, refusal(403, "Your input was flagged.", type="invalid_request_error", code="flagged")),
        ROWS_ERROR,
    ),
    Kind("openai-429-retry-after", "429 with Retry-After", openai_limits(150, {"Retry-After": "1"})),
    Kind("openai-429-retry-after-ms", "429 with retry-after-ms", openai_limits(150, {"retry-after-ms": "700"})),
    Kind("openai-429-bare", "429 that does not say how long", openai_limits(200, {})),
    Kind(
        "openai-429-reset",
        "429 with x-ratelimit-reset headers alone",
        openai_limits(
            200,
            {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s"} | {"x-request-id": "r"},
        ),
    ),
    Kind(
        "openai-insufficient-quota",
        "the account runs dry after 200 requests",
        after(
            200,
            refusal(
                429,
                "You exceeded your current quota, please check your plan and billing details.",
                type="insufficient_quota",
                code="insufficient_quota",
            ),
        ),
        Expected(stop="quota"),
    ),
    Kind(
        "openai-500",
        "a tenth fails once",
        first_tries(
            SOME, refusal(500, "The server had an error while processing your request.", type="server_error")
        ),
    ),
    Kind(
        "openai-503-html",
        "a gateway's page with 503",
        first_tries(SOME, raw(503, b"<html><h1>503 Service Unavailable</h1></html>", HTML)),
    ),
    Kind(
        "openai-refusal",
        "the refusal field",
        for_rows(SOME, lambda one: completion(one, None, message={"refusal": "I'm sorry, I cannot help."})),
        REFUSED,
    ),
    Kind(
        "openai-content-filter",
        "finish_reason content_filter with half a reply",
        for_rows(SOME, lambda one: completion(one, sentence(one.row)[:50], "content_filter")),
        REFUSED,
    ),
    Kind(
        "openai-reasoning-length",
        "all tokens went into reasoning",
        for_rows(SOME, reasoned_away),
        replace(TRUNCATED, reason="think|reason"),
    ),
)
AZURE = (
    Kind(
        "azure-content-filter",
        "400 with the filter's innererror",
        for_rows(
            SOME,
            refusal(
                400,
                "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
                param="prompt",
                code="content_filter",
                status=400,
                innererror={
                    "code": "ResponsibleAIPolicyViolation",
                    "content_filter_result": {"violence": {"filtered": True, "severity": "medium"}},
                },
            ),
        ),
        REFUSED,
    ),
    Kind(
        "azure-no-deployment",
        "DeploymentNotFound",
        always(
            refusal(
                404,
                "The API deployment for this resource does not exist. If you created the deployment within the "
                "last 5 minutes, please wait a moment and try again.",
                code="DeploymentNotFound",
            )
        ),
        Expected(stop="deployment"),
    ),
    Kind(
        "azure-429",
        "429 in Azure's words",
        every(
            150,
            refusal(
                429,
                "Requests to the ChatCompletions_Create Operation under Azure OpenAI API version 2024-10-21 have "
                "exceeded call rate limit of your current OpenAI S0 pricing tier. Please retry after 1 second.",
                {"Retry-After": "1"},
                code="429",
            ),
        ),
    ),
)


def google(code: int, message: str, status: str) -> list[dict[str, Any]]:
    """Gemini's OpenAI layer words errors as a list."""
    return [{"error": {"code": code, "message": message, "status": status}}]


GEMINI = (
    Kind(
        "gemini-429-list",
        "429 as a list",
        every(200, raw(429, google(429, "Resource has been exhausted.", "RESOURCE_EXHAUSTED"))),
    ),
    Kind(
        "gemini-503-list",
        "503 as a list",
        first_tries(SOME, raw(503, google(503, "The model is overloaded.", "UNAVAILABLE"))),
    ),
    Kind(
        "gemini-bad-key",
        "a wrong key is a 400, as a list",
        always(
            raw(400, google(400, "API key not valid. Please pass a valid API key.", "INVALID_ARGUMENT")),
        ),
        Expected(stop="API key not valid"),
    ),
    Kind(
        "gemini-safety",
        "finish reason SAFETY",
        for_rows(SOME, lambda one: completion(one, None, "SAFETY", said=0)),
        REFUSED,
    ),
    Kind(
        "gemini-recitation",
        "finish reason RECITATION, with empty content",
        for_rows(SOME, lambda one: completion(one, "", "RECITATION", said=0)),
        REFUSED,
    ),
    Kind(
        "gemini-max-tokens",
        "finish reason MAX_TOKENS",
        for_rows(SOME, lambda one: completion(one, sentence(one.row)[:40], "MAX_TOKENS", acceptable=False)),
        TRUNCATED,
    ),
    Kind("gemini-hidden-thinking", "thinking tokens stand in the total alone", hidden),
    Kind(
        "gemini-hidden-thinking-budget",
        "the same within a budget",
        hidden,
        Expected(stop="budget", goes_on=False),
        settings=("budget_usd=120",),
    ),
)


def mistral(status: int, message: str, kind: str, code: str) -> Any:
    """Mistral's errors."""
    return raw(status, {"object": "error", "message": message, "type": kind, "param": None, "code": code})


MISTRAL = (
    Kind(
        "mistral-429",
        "429 without an `error` object",
        every(200, mistral(429, "Requests rate limit exceeded", "rate_limited", "1300")),
    ),
    Kind(
        "mistral-422-detail",
        "422 with a list of details for the schema",
        unless(
            lambda body: not json_schema(body),
            raw(
                422,
                {
                    "detail": [
                        {
                            "type": "extra_forbidden",
                            "loc": ["body", "response_format", "json_schema"],
                            "msg": "Extra inputs are not permitted",
                        }
                    ]
                },
            ),
        ),
    ),
    Kind(
        "mistral-bad-model",
        "400 Invalid model",
        always(mistral(400, f"Invalid model: {MODEL}", "invalid_model", "1500")),
        Expected(stop="Invalid model"),
    ),
    Kind(
        "mistral-model-length",
        "finish_reason model_length",
        for_rows(SOME, lambda one: completion(one, sentence(one.row)[:40], "model_length", acceptable=False)),
        TRUNCATED,
    ),
    Kind(
        "mistral-finish-error",
        "finish_reason error, once",
        first_tries(SOME, lambda one: completion(one, sentence(one.row)[:30], "error", acceptable=False)),
        Expected(paid=1 + SOME * 1.5),
    ),
    Kind("mistral-thinking-parts", "the thought is a part of the content", part_thought),
)
VLLM = (
    Kind(
        "vllm-too-long",
        "400 of the context length for some rows",
        for_rows(
            FEW,
            raw(
                400,
                {
                    "object": "error",
                    "message": "This model's maximum context length is 512 tokens. However, you requested 790 "
                    "tokens. Please reduce the length of the messages or completion.",
                    "type": "BadRequestError",
                    "param": None,
                    "code": 400,
                },
            ),
        ),
        replace(ROWS_ERROR, reason="maximum context length"),
    ),
    Kind("vllm-reasoning-content", "the thought in reasoning_content", field_thought("reasoning_content")),
    Kind(
        "vllm-thought-only",
        "content null, the thought is cut",
        for_rows(SOME, field_full),
        replace(TRUNCATED, reason="reasoning_content|think"),
    ),
    Kind(
        "vllm-answer-in-thought",
        "content null, the reply ends the thought",
        field_only,
        Expected(stop="reasoning|think|empty", may_stop=True, goes_on=False),
    ),
    Kind(
        "vllm-no-guided-decoding",
        "the grammar backend refuses the schema",
        unless(
            lambda body: not json_schema(body),
            raw(
                400,
                {
                    "object": "error",
                    "message": "Grammar error: unsupported json schema",
                    "type": "BadRequestError",
                },
            ),
        ),
    ),
)
OLLAMA = (
    Kind(
        "ollama-error-string",
        "500 with the error as a string",
        first_tries(SOME, raw(500, {"error": "llama runner process has terminated: exit status 2"})),
    ),
    Kind(
        "ollama-no-model",
        "404, the error as a string",
        always(raw(404, {"error": f"model '{MODEL}' not found, try pulling it first"})),
        Expected(stop="not found"),
        models=("llama3.2",),
    ),
    Kind(
        "ollama-400-temperature",
        "400 as a string: no temperature",
        unless(lambda body: "temperature" not in body, raw(400, {"error": "model does not support temperature"})),
    ),
    Kind("ollama-think-tags", "the thought between <think> tags", tagged("<think>\n", "\n</think>\n\n")),
    Kind("ollama-reasoning", "the thought in `reasoning`", field_thought("reasoning")),
)
ROUTER_ERROR = {"error": {"code": 429, "message": "Rate limit exceeded: limit_rpm"}, "user_id": "u"}
OPENROUTER = (
    Kind("openrouter-429-in-200", "an error inside a 200", every(200, raw(200, ROUTER_ERROR))),
    Kind(
        "openrouter-402-in-200",
        "no credits, inside a 200",
        after(200, raw(200, {"error": {"code": 402, "message": "Insufficient credits. Add more to go on."}})),
        Expected(stop="credits"),
    ),
    Kind("openrouter-error-in-choices", "an error in choices[0]", first_tries(SOME, in_choices)),
    Kind(
        "openrouter-native-finish",
        "content_filter, whose native reason is SAFETY",
        for_rows(
            SOME,
            lambda one: completion(one, "", "content_filter", choice={"native_finish_reason": "SAFETY"}, said=0),
        ),
        REFUSED,
    ),
    Kind("openrouter-processing", "comments or blanks before the JSON", processing),
    Kind(
        "openrouter-402",
        "no credits after 200 requests",
        after(200, refusal(402, "This request requires more credits, or fewer max_tokens.", code=402)),
        Expected(stop="credits"),
    ),
    Kind(
        "openrouter-529",
        "529 with Retry-After: everybody waits",
        told_to_wait(100, 4.0, 529),
        Expected(also=waited),
    ),
    Kind(
        "openrouter-403-moderation",
        "some rows are flagged, with metadata",
        for_rows(
            FEW,
            refusal(
                403,
                "Your chosen model requires moderation and your input was flagged",
                code=403,
                metadata={"reasons": ["violence"], "flagged_input": "…", "provider_name": "P"},
            ),
        ),
        ROWS_ERROR,
    ),
)


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
LIVE = (
    OPENAI
    + AZURE
    + GEMINI
    + MISTRAL
    + VLLM
    + OLLAMA
    + OPENROUTER
    + TRANSPORT
    + USAGE
    + FORMS
    + COURSE
    + OVER_STARTS
)
