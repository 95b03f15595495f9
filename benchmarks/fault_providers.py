"""Misbehaviour of the hosted APIs of OpenAI, Azure, Gemini and Mistral."""

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
    raw,
    refusal,
    sentence,
    unless,
)
from fault_replies import FEW, HTML, REFUSED, ROWS_ERROR, SOME, TRUNCATED, draft, hidden, json_schema


def reasoned_away(asked: Asked) -> Answer:
    """OpenAI's o-series: all tokens went into reasoning."""
    return completion(asked, "", "length", thinking=asked.limit, acceptable=False, said=0)


def part_thought(asked: Asked) -> Answer:
    """Mistral's reasoning models: the content is a list of parts."""
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": draft(asked)}]},
        {"type": "text", "text": sentence(asked.row)},
    ]
    return completion(asked, parts, thinking=0)


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
