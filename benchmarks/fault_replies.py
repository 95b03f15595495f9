"""What several kinds of live misbehaviour share: shares of the rows, expectations, and forms of a reply."""

from dataclasses import replace
from typing import Any

from fault_answers import Answer, Asked, Expected, completion, sentence

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


def hidden(asked: Asked) -> Answer:
    """Gemini's OpenAI layer: thinking tokens stand in the total alone."""
    answer = completion(asked)
    put, given = answer.billed or (0, 0)
    usage = {"prompt_tokens": put, "completion_tokens": given, "total_tokens": put + given + 800}
    return replace(answer, body={**answer.body, "usage": usage}, billed=(put, given + 800))


def field_thought(name: str) -> Any:
    """The thought stands in a field beside the content."""
    return lambda asked: completion(asked, message={name: draft(asked)}, thinking=60)


def field_full(asked: Asked) -> Answer:
    """vLLM: thinking reached max_tokens before the reply began."""
    return completion(
        asked, None, "length", {"reasoning_content": draft(asked)}, said=asked.limit, acceptable=False
    )


def tagged(opening: str, closing: str) -> Any:
    """The thought stands in the content, between marks."""
    return lambda asked: completion(asked, f"{opening}{draft(asked)}{closing}{sentence(asked.row)}")


def waited(ledger: dict[str, Any]) -> str | None:
    """Whether others kept sending while the server asked to wait."""
    early = ledger["notes"].get("early", 0)
    return f"{early} requests were sent while the server had asked to wait" if early > 2 else None
