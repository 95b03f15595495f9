"""What a model thinks is parted from what it replies, whatever form its server gives it."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.api_server import SOUND, completion

from tsd.tasks import SINGLE
from tsd.teachers import judge
from tsd.teachers.api.responses import read_completion
from tsd.teachers.thinking import part, part_text

TOPICS = SINGLE.topics
DRAFT = SINGLE.reply({"trend": "increasing", "noise": "high", "maximum": "end", "minimum": "beginning"}, (0, 0, 0))
STATED = {"trend": "flat", "noise": "low", "maximum": "end", "minimum": "middle"}


@pytest.mark.parametrize(
    "text",
    [
        f"<think>I first read {DRAFT} no.</think>{SOUND}",
        f"<think>\n{DRAFT}\n</think>\n\n{SOUND}",
        f"<THINKING>{DRAFT}</THINKING> {SOUND}",
        f"<thought>{DRAFT}</thought>\n```json\n{SOUND}\n```",
        f"I read {DRAFT}, hm.</think>{SOUND}",  # the first tag stood in the prompt
        f"[THINK]{DRAFT}[/THINK]{SOUND}",
        f"◁think▷{DRAFT}◁/think▷{SOUND}",
        f"<think>a <think>b {DRAFT}</think> c</think>{SOUND}",
        f"<reasoning effort='high'>{DRAFT}</reasoning><answer>{SOUND}</answer>",
        f"<|begin_of_thought|>{DRAFT}<|end_of_thought|><|begin_of_solution|>{SOUND}<|end_of_solution|>",
        f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>final<|message|>{SOUND}<|return|>",
        f"<|channel|>analysis<|message|>{DRAFT}<|end|><|start|>assistant<|channel|>commentary<|message|>so<|end|>"
        f"<|start|>assistant<|channel|>final <|constrain|>json<|message|>{SOUND}",
        f"{DRAFT} On second thought: {SOUND}",
        f"```json\n{DRAFT}\n```\nWait. The maximum is elsewhere.\n```json\n{SOUND}\n```",
        f"<think>{DRAFT}</think>{DRAFT} No: {SOUND}",
        DRAFT.replace('"trend"', '"Trend"').replace('"noise"', '"Noise"').replace('"extrema"', '"Extrema"')
        + f" No: {SOUND}",
        f'{{"analysis": {DRAFT}, "answer": {SOUND}}}',
    ],
)
def test_the_final_object_is_the_reply_and_the_draft_is_the_thought(text: str) -> None:
    parted = part({"content": text}, TOPICS)
    assert parted.closed
    assert parted.text is not None
    assert SINGLE.parse(parted.text).labels == STATED
    assert DRAFT not in parted.text
    assert parted.thought is not None
    assert DRAFT.casefold() in parted.thought.casefold()


@pytest.mark.parametrize(
    "message",
    [
        {"content": SOUND, "reasoning_content": DRAFT},
        {"content": SOUND, "reasoning": DRAFT},
        {"content": SOUND, "reasoning": DRAFT, "reasoning_details": [{"type": "reasoning.text", "text": DRAFT}]},
        {"content": SOUND, "reasoning_details": [{"type": "reasoning.summary", "summary": DRAFT}]},
        {"content": SOUND, "thinking": DRAFT},
        {
            "content": [
                {"type": "thinking", "thinking": [{"type": "text", "text": DRAFT}]},
                {"type": "text", "text": SOUND},
            ]
        },
        {"content": [{"type": "reasoning", "text": DRAFT}, {"type": "output_text", "text": SOUND}]},
        {"content": [{"type": "text", "text": DRAFT, "thought": True}, {"type": "text", "text": SOUND}]},
    ],
)
def test_a_thought_in_a_field_or_a_part_of_its_own_is_kept_beside_the_reply(message: dict[str, Any]) -> None:
    parted = part(message, TOPICS)
    assert (parted.text, parted.thought, parted.closed) == (SOUND, DRAFT, True)


@pytest.mark.parametrize(
    "text", [SOUND, f"Here it is:\n```json\n{SOUND}\n```", "Lovely weather.", "", "a < b {c} d"]
)
def test_a_reply_without_a_thought_stays_as_it_is(text: str) -> None:
    parted = part({"content": text}, TOPICS)
    assert (parted.text, parted.thought, parted.closed) == (text or None, None, True)


def test_objects_that_answer_different_topics_are_one_reply() -> None:
    text = '{"trend": "It is flat."}\n{"noise": "It is low."}\n{"extrema": "The maximum is at the end."}'
    assert part_text(text, TOPICS).text == text


def test_a_thought_inside_the_replys_own_sentences_is_none_of_them() -> None:
    said = json.loads(SOUND)
    parted = part_text(json.dumps(said | {"trend": f"<think>It is increasing.</think>{said['trend']}"}), TOPICS)
    assert parted.text == json.dumps(said)
    assert parted.thought == "It is increasing."
    lone = json.dumps({"trend": "flat <think>no", "noise": "low", "extrema": "x"})
    assert part_text(lone, TOPICS).text == lone


@pytest.mark.parametrize(
    "more",
    [
        SOUND[:40],
        SOUND.replace('"', "'"),
        SOUND[:-1] + ",}",
        "\n**Trend**: The series is flat overall.\n**Noise**: high",
        "\nnoise: high",
    ],
)
def test_of_two_descriptions_of_which_one_cannot_be_read_none_is_taken(more: str) -> None:
    reply = read({"content": f"{DRAFT} On second thought: {more}"}, "stop")
    assert reply.status == "invalid"
    assert "more than one description" in str(reply.reason)


@pytest.mark.parametrize("names", [("a", "b"), ("answer", "other")])
def test_of_two_descriptions_side_by_side_none_is_taken(names: tuple[str, str]) -> None:
    text = f'{{"{names[0]}": {SOUND}, "{names[1]}": {DRAFT}}}'
    assert read({"content": text}, "stop").status == "invalid"


@pytest.mark.parametrize("text", ['{"answer": %s, "draft": %s}', '{"thoughts": {"first": 1}, "answer": %s}'])
def test_a_key_names_the_description_that_is_meant(text: str) -> None:
    parted = part_text(text.replace("%s", SOUND, 1).replace("%s", DRAFT), TOPICS)
    assert SINGLE.parse(parted.text or "").labels == STATED
    assert not parted.unsure


def test_a_wrapped_description_stays_as_it_is() -> None:
    text = f'Here it is: {{"description": {SOUND}}}.'
    assert part_text(text, TOPICS) == part_text(text)


@pytest.mark.parametrize("said", [f"Draft {DRAFT} Hmm, no: it is flat.", f"{DRAFT} no"])
def test_a_draft_in_the_midst_of_a_thought_is_no_reply(said: str) -> None:
    for message in ({"content": "", "reasoning_content": said}, {"content": f"<think>{said}</think>"}):
        reply = read(message, "stop")
        assert (reply.status, reply.text) == ("invalid", None)


@pytest.mark.parametrize("finish", ["stop", "length", "MAX_TOKENS", "model_length"])
@pytest.mark.parametrize(
    "message",
    [{"content": "<think>The series …"}, {"content": f"<think>The series {DRAFT}"},
     {"content": "<|channel|>analysis<|message|>The series"}],
)  # fmt: skip
def test_a_thought_that_never_ends_is_a_truncated_reply(message: dict[str, Any], finish: str) -> None:
    reply = read(message, finish)
    assert (reply.status, reply.text) == ("truncated", None)
    assert "thinking" in str(reply.reason)
    assert "max_tokens" in str(reply.reason)
    assert "The series" in str(reply.thought)


def test_a_thought_in_a_field_that_used_up_the_reply_names_the_field() -> None:
    reply = read({"content": None, "reasoning_content": "The series …"}, "length")
    assert (reply.status, reply.text) == ("truncated", None)
    assert "reasoning_content" in str(reply.reason)


def test_thinking_that_the_server_does_not_show_is_the_reason_of_an_empty_reply() -> None:
    details = {"reasoning_tokens": 256}
    usage = {"prompt_tokens": 9, "completion_tokens": 256, "completion_tokens_details": details}
    reply = read_completion(completion("", "length", usage=usage), lambda *_: 0.0, 100, TOPICS)
    assert reply.status == "truncated"
    assert "thinking" in str(reply.reason)
    assert "256 tokens" in str(reply.reason)


def test_an_answer_that_stands_in_the_thoughts_field_is_read() -> None:
    reply = read({"content": None, "reasoning_content": f"I think {DRAFT}. In the end: {SOUND}"}, "stop")
    assert (reply.status, reply.text) == ("ok", SOUND)
    reply = read({"content": "", "reasoning_content": "Nothing to say."}, "stop")
    assert reply.status == "invalid"
    assert "reasoning_content" in str(reply.reason)


def read(message: dict[str, Any], finish: str) -> Any:
    """The reply to a message, judged."""
    answer = completion(finish=finish)
    answer["choices"][0]["message"] = {"role": "assistant", **message}
    return judge(SINGLE, read_completion(answer, lambda *_: 0.0, 100, TOPICS))


@pytest.mark.parametrize("finish", ["SAFETY", "content_filter", "RECITATION", "PROHIBITED_CONTENT", "refusal"])
def test_every_providers_filter_is_a_refusal(finish: str) -> None:
    assert read({"content": ""}, finish).status == "refused"
    assert read({"content": None}, finish).status == "refused"


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 2890}, (1000, 1890, 1840)),
        ({"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 1050}, (1000, 50, 0)),
        ({"prompt_tokens": 1000, "completion_tokens": 50}, (1000, 50, 0)),
        ({"prompt_tokens": 1000.0, "completion_tokens": 50.0, "total_tokens": 1050.0}, (1000, 50, 0)),
        ({"prompt_tokens": "1000", "completion_tokens": "50"}, (1000, 50, 0)),
        ({"input_tokens": 1000, "output_tokens": 50}, (1000, 50, 0)),
        ({"prompt_tokens": 1000, "completion_tokens": 500, "completion_tokens_details": {"reasoning_tokens": 450}},
         (1000, 500, 450)),
        ({"prompt_tokens": 1000, "completion_tokens": 50, "completion_tokens_details": {"reasoning_tokens": 450}},
         (1000, 500, 450)),
        ({"prompt_tokens": 1000, "completion_tokens": 50, "total_tokens": 20}, (1000, 50, 0)),
        ({"prompt_tokens": "1,000", "completion_tokens": "50", "total_tokens": "2,890"}, (1000, 1890, 1840)),
        ({"total_tokens": 5000}, (100, 4900, 0)),
        ({"total_tokens": 5000, "completion_tokens": 50}, (100, 4900, 0)),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, (100, len(SOUND) // 4, 0)),
        ({"prompt_tokens": 0, "completion_tokens": 90, "total_tokens": 90}, (100, 90, 0)),
    ],
)  # fmt: skip
def test_tokens_are_counted_wherever_the_server_says_them(usage: dict[str, Any], tokens: tuple[int, ...]) -> None:
    reply = read_completion(completion(usage=usage), lambda a, b: a + b, 100)
    assert (reply.input_tokens, reply.output_tokens, reply.thinking_tokens) == tokens
    assert reply.cost_usd == sum(tokens[:2])


@given(st.text(max_size=300))
def test_no_text_is_too_odd(text: str) -> None:
    parted = part({"content": text}, TOPICS)
    SINGLE.parse(parted.text or "")


@given(st.text(alphabet='{}[]",:<>/think| ', max_size=200), st.text(max_size=50))
def test_whatever_stands_in_closed_tags_is_no_part_of_the_reply(thought: str, more: str) -> None:
    inner = (thought + more).replace("<", "").replace("[", "").replace("◁", "")
    parted = part_text(f"<think>{inner}</think>{SOUND}", TOPICS)
    assert parted.text == SOUND


@pytest.mark.parametrize(
    "text",
    [
        "A" * 5_000_000,
        "The trend is up. " * 300_000,
        '{"trend": "' * 400_000,
        "<think>a</think>" + "b " * 2_500_000,
    ],
)
def test_a_reply_of_megabytes_is_invalid_and_takes_no_time(text: str) -> None:
    started = time.process_time()
    reply = read({"content": text}, "stop")
    assert time.process_time() - started < 2.0
    assert reply.status == "invalid"
    assert "letters" in str(reply.reason)
    assert len(reply.text) <= 20_000


@pytest.mark.parametrize(
    "text", ["{" * 200_000, '{"a":' * 100_000, "[" * 200_000, '{"a":[' * 60_000, "<think>" * 50_000]
)
def test_brackets_without_end_are_an_invalid_row_and_take_no_time(text: str) -> None:
    assert read({"content": text}, "stop").status in ("invalid", "truncated")
