"""Separate a model's reasoning from its reply, once, before any other code reads either.

Servers send reasoning in tags, behind channel markers, as content parts, in separate fields, or as a draft before
the final object. The functions below convert each form to `Parted`. No other module of tsd handles reasoning.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsd.tasks.language import topics_in

# Message fields that hold reasoning: vLLM and DeepSeek, OpenRouter and Ollama, others.
FIELDS = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts")
THINKING_PARTS = ("thinking", "reasoning", "thought", "redacted_thinking", "reasoning_content")
NAMES = "think|thinking|thought|thoughts|reasoning|reason|reflection|scratchpad|analysis|seed:think"
# Opening and closing tags of several model families.
TAGS = (
    (rf"<(?:{NAMES})(?:\s[^<>]*)?>", rf"</(?:{NAMES})\s*>"),
    (r"\[THINK\]", r"\[/THINK\]"),
    (r"◁think▷", r"◁/think▷"),
    (r"<\|begin_of_thought\|>", r"<\|end_of_thought\|>"),
    (r"<\|START_THINKING\|>", r"<\|END_THINKING\|>"),
    (r"<unused94>", r"<unused95>"),
)
TAG = re.compile("|".join(f"(?P<open{i}>{a})|(?P<close{i}>{b})" for i, (a, b) in enumerate(TAGS)), re.IGNORECASE)
# OpenAI's harmony format: <|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>final<|message|>…
CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>")
MARKER = re.compile(r"<\|(?:start|end|return|call|message|channel|constrain)\|>")
REPLY_MARKS = re.compile(
    r"<\|(?:begin|end)_of_solution\|>|<\|(?:START|END)_RESPONSE\|>|</?(?:answer|response|output|final)>",
    re.IGNORECASE,
)
WITHIN = re.compile(rf"<({NAMES})(?:\s[^<>]*)?>((?:[^\"\\]|\\.)*?)</\1\s*>", re.IGNORECASE)  # inside a JSON string
OWNER = re.compile(r"\"([^\"]{1,40})\"\s*:\s*$")  # the key before an object
THOUGHT_KEY = re.compile(rf"(?:{NAMES}|draft|chain.?of.?thought|notes?|initial|first)", re.IGNORECASE)
CLOSING = " \t\r\n`]})\"'."  # characters allowed after an object that ends a text
MOST = 1_000_000  # maximum characters of a reply that are parsed
LONGEST = 200_000  # maximum characters that are searched for several objects
MOST_BROKEN = 100  # maximum number of invalid object starts


@dataclass(frozen=True)
class Parted:
    """Reply and reasoning of one message. Each is None if absent."""

    text: str | None
    thought: str | None = None
    closed: bool = True
    """Whether the reasoning is complete. If not, there is no reply yet."""
    where: str | None = None
    """Where the reasoning was found, for error messages: a field name or "the content"."""
    unsure: bool = False
    """Whether the text starts a second reply that cannot be parsed, so the intended reply is ambiguous."""


def part(message: Mapping[str, Any], topics: Sequence[str] = ()) -> Parted:
    """Separate reasoning and reply of a chat message. topics: keys of the expected JSON object."""
    text, thoughts, where = _content(message.get("content"))
    text = text[:MOST] if text else text
    for name in FIELDS:
        found = _words(message.get(name))
        if found:
            thoughts.append(found)
            where = name
            break  # servers repeat the same reasoning under several names
    if not thoughts and (details := _words(message.get("reasoning_details"))):
        thoughts.append(details)
        where = "reasoning_details"
    parted = part_text(text, topics) if text else Parted(None)
    if parted.thought:
        thoughts.append(parted.thought)
    thought = "\n".join(thoughts) or None
    return Parted(parted.text, thought, parted.closed, where or parted.where, parted.unsure)


def part_text(text: str, topics: Sequence[str] = ()) -> Parted:
    """Separate reasoning and reply of a plain text. topics: keys of the expected JSON object."""
    parted = _channels(text) if CHANNEL.search(text) else _tags(text)
    if not parted.text:
        return parted
    plain = REPLY_MARKS.sub("", parted.text)
    plain = plain if plain == parted.text else plain.strip()
    within: list[str] = []
    if TAG.search(plain):
        plain = WITHIN.sub(lambda found: within.append(found[2]) or "", plain)  # type: ignore[func-returns-value]
    reply, draft, unsure = last_object(plain, topics)
    thought = "\n".join(filter(None, (parted.thought, draft, *within))) or None
    return Parted(reply or None, thought, parted.closed, "the content" if thought else None, unsure)


def last_object(text: str, topics: Sequence[str]) -> tuple[str, str | None, bool]:
    """Find the last complete JSON object that corrects an earlier one.

    Returns the object, the text before it, and whether the result is ambiguous. Returns the whole text if it holds
    one object, none, or several that answer different topics. The result is ambiguous if another reply starts
    after the last complete object, or if one object contains two replies.
    """
    if len(text) > LONGEST or "{" not in text:
        return text, None, False
    there = [one for one in _objects(text, topics) if one.topics]
    found = [one for one in there if not THOUGHT_KEY.fullmatch(one.owner)]
    if not found:
        return text, None, False
    last, seen = found[-1], set[str]().union(*(one.topics for one in found[:-1]))
    unsure = bool(last.owner and seen & last.topics) or _begins_another(text[last.around :], topics)
    if not (seen & last.topics or len(found) < len(there)):
        return text, None, unsure
    return text[last.start : last.end], text[: last.start].strip() or None, unsure


def object_in(text: str, topics: Sequence[str]) -> str | None:
    """Return the JSON object at the end of a text if it has all topics as keys, else None."""
    if len(text) > LONGEST:
        return None
    found = [one for one in _objects(text, topics) if one.topics >= set(topics)]
    if not found or REPLY_MARKS.sub("", text[found[-1].end :]).strip(CLOSING):
        return None
    return text[found[-1].start : found[-1].end]


@dataclass(frozen=True)
class _Object:
    start: int
    end: int
    topics: set[str]
    """Topics that its keys match; all keys if no topics are given."""
    owner: str
    """The key whose value this object is; empty for a top-level object."""
    around: int
    """End position of the enclosing object."""


def _objects(text: str, topics: Sequence[str]) -> Iterator[_Object]:
    """Yield each top-level JSON object, and the objects nested in one whose own keys match no topic."""
    decoder, broken, around = json.JSONDecoder(strict=False), 0, 0
    start = text.find("{")
    while start >= 0 and broken < MOST_BROKEN:
        try:
            found, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            broken, end = broken + 1, start + 1
        else:
            keys = topics_in(found, topics) if topics else set(found)
            owner = OWNER.search(text, max(0, start - 60), start) if start < around else None
            yield _Object(start, end, keys, owner[1] if owner else "", max(around, end))
            if not keys:
                around, end = max(around, end), start + 1
        start = text.find("{", end)


def _begins_another(rest: str, topics: Sequence[str]) -> bool:
    """Whether the text after an object starts another object or has a topic as a heading."""
    if not rest.strip(CLOSING):
        return False
    return "{" in rest or any(re.search(rf"\b{topic}\W{{0,4}}:", rest, re.IGNORECASE) for topic in topics)


def _content(content: Any) -> tuple[str | None, list[str], str | None]:
    """Split a message's content into text, reasoning and the location of the reasoning. Accepts content parts."""
    if isinstance(content, str):
        return content, [], None
    if not isinstance(content, list):
        return None, [], None
    texts: list[str] = []
    thoughts: list[str] = []
    for piece in content:
        if isinstance(piece, str):
            texts.append(piece)
        elif isinstance(piece, dict):
            thinks = str(piece.get("type", "")).lower() in THINKING_PARTS or piece.get("thought") is True
            (thoughts if thinks else texts).append(_words(piece))
    return "".join(texts) or None, [one for one in thoughts if one], "the content's parts" if thoughts else None


def _words(value: Any) -> str:
    """Extract the text of a string, a list of parts, or an object with a text field."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_words, value))
    if isinstance(value, dict):
        names = ("text", "thinking", "reasoning", "content", "summary", "data")
        return next((words for name in names if (words := _words(value.get(name)))), "")
    return ""


def _channels(text: str) -> Parted:
    """Parse a text in the harmony format: the final channel is the reply, all others are reasoning."""
    found = list(CHANNEL.finditer(text))
    thoughts, reply = [MARKER.sub("", text[: found[0].start()]).replace("assistant", "").strip()], None
    for one, following in zip(found, [*found[1:], None], strict=True):
        end = following.start() if following else len(text)
        said = re.split(r"<\|(?:end|return|call)\|>", text[one.end() : end])[0].strip()
        if one[1].lower() == "final":
            reply = said
        else:
            thoughts.append(said)
    return Parted(reply, "\n".join(filter(None, thoughts)) or None, reply is not None, "the content")


def _tags(text: str) -> Parted:
    """Parse a text with reasoning tags: the text outside the tags is the reply.

    A closing tag without an opening tag ends reasoning that starts at the beginning of the text: some chat
    templates put the opening tag into the prompt. Tags that open inside a started JSON object are part of the
    reply.
    """
    if not TAG.search(text):
        return Parted(text)
    thoughts: list[str] = []
    outside: list[str] = []
    place, depth = 0, 0
    for mark in TAG.finditer(text):
        opens = (mark.lastgroup or "").startswith("open")
        if depth == 0 and opens and _within_json("".join(outside) + text[place : mark.start()]):
            continue
        piece, place = text[place : mark.start()], mark.end()
        if opens:
            (outside if depth == 0 else thoughts).append(piece)
            depth += 1
        elif depth:
            thoughts.append(piece)
            depth -= 1
        elif _within_json("".join(outside) + piece):
            outside.append(piece + mark.group())
        else:
            thoughts += [*outside, piece]
            outside = []
    (thoughts if depth else outside).append(text[place:])
    thought = "".join(thoughts).strip() or None
    if depth:
        return Parted("".join(outside).strip() or None, thought, False, "the content")
    return Parted("".join(outside).strip() or None, thought, True, "the content" if thought else None)


def _within_json(before: str) -> bool:
    """Whether a text ends inside a string of the JSON object that it starts with."""
    start = before.lstrip()
    if not start.startswith(("{", "```")) or len(before) > LONGEST:
        return False
    quotes = len(re.findall(r'(?<!\\)"', before))
    return quotes % 2 == 1
