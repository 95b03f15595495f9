"""Misbehaviour of servers of open models: vLLM, Ollama, and the router OpenRouter."""

from dataclasses import replace

from fault_answers import (
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
    told_to_wait,
    unless,
)
from fault_replies import (
    FEW,
    REFUSED,
    ROWS_ERROR,
    SOME,
    TRUNCATED,
    draft,
    field_full,
    field_thought,
    json_schema,
    tagged,
    waited,
)


def field_only(asked: Asked) -> Answer:
    """vLLM's parser took the whole reply for the thought."""
    text = f"{draft(asked)} {sentence(asked.row)}"
    return completion(asked, None, message={"reasoning_content": text}, said=len(text) // 4)


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
