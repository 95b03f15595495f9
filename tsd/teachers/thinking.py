"""What a model thinks is parted from what it replies, once, before anything reads either.

Servers send thoughts in tags, behind channel markers, as parts of the content, in fields of their own, or as a
draft before the final object. Everything below turns one of these into a `Parted`; nothing else in tsd looks for
thoughts.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tsd.tasks.language import topics_in

# Fields of a message that hold thoughts: vLLM and DeepSeek, OpenRouter and Ollama, others.
FIELDS = ("reasoning_content", "reasoning", "thinking", "thought", "thoughts")
THINKING_PARTS = ("thinking", "reasoning", "thought", "redacted_thinking", "reasoning_content")
NAMES = "think|thinking|thought|thoughts|reasoning|reason|reflection|scratchpad|analysis|seed:think"
# Opening and closing, as models of several families write them.
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
CLOSING = " \t\r\n`]})\"'."  # what may follow an object that ends a text
MOST = 1_000_000  # letters of a reply that are looked at
LONGEST = 200_000  # letters that are searched for several objects
MOST_BROKEN = 100  # beginnings of an object that turn out to be none


@dataclass(frozen=True)
class Parted:
    """A message's reply and its thoughts. text, thought: None where there is none."""

    text: str | None
    thought: str | None = None
    closed: bool = True
    """Whether the thought came to its end; if not, there is no reply yet."""
    where: str | None = None
    """Where the thought stood, for a person: a field's name, or "the content"."""
    unsure: bool = False
    """Whether the text begins another reply that cannot be read, so nobody knows which one is meant."""


def part(message: Mapping[str, Any], topics: Sequence[str] = ()) -> Parted:
    """Part a chat message. topics: the keys of the object that the reply should be."""
    text, thoughts, where = _content(message.get("content"))
    text = text[:MOST] if text else text
    for name in FIELDS:
        found = _words(message.get(name))
        if found:
            thoughts.append(found)
            where = name
            break  # servers repeat the same thought under several names
    if not thoughts and (details := _words(message.get("reasoning_details"))):
        thoughts.append(details)
        where = "reasoning_details"
    parted = part_text(text, topics) if text else Parted(None)
    if parted.thought:
        thoughts.append(parted.thought)
    thought = "\n".join(thoughts) or None
    return Parted(parted.text, thought, parted.closed, where or parted.where, parted.unsure)


def part_text(text: str, topics: Sequence[str] = ()) -> Parted:
    """The same of a text alone."""
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
    """The last whole JSON object of a text that corrects an earlier one, what stands before it, and a doubt.

    The whole text where there is one object, none, or several that answer different topics. The doubt is whether
    another reply begins after the last whole object, or two stand side by side in one.
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
    """The JSON object with all of the topics as keys that a text ends with; None where there is none."""
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
    """Those that its keys mean; any keys where no topics are known."""
    owner: str
    """The key that it is the value of; empty for an object that is in no other."""
    around: int
    """Where the object ends that it is in."""


def _objects(text: str, topics: Sequence[str]) -> Iterator[_Object]:
    """Each JSON object that is not inside another, and those inside of one that is about no topic itself."""
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
    """Whether what follows an object begins one more, or names a topic like a heading."""
    if not rest.strip(CLOSING):
        return False
    return "{" in rest or any(re.search(rf"\b{topic}\W{{0,4}}:", rest, re.IGNORECASE) for topic in topics)


def _content(content: Any) -> tuple[str | None, list[str], str | None]:
    """A message's content -> text, thoughts, and where these stood. Some servers send it in parts."""
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
    """The text in whatever a server wraps it in: a string, a list of parts, an object with a text."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_words, value))
    if isinstance(value, dict):
        names = ("text", "thinking", "reasoning", "content", "summary", "data")
        return next((words for name in names if (words := _words(value.get(name)))), "")
    return ""


def _channels(text: str) -> Parted:
    """A text in the harmony format: what its final channel says is the reply."""
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
    """A text with tags: what stands outside of them is the reply.

    A closing tag without an opening one closes what stands before it: some templates put the first tag into the
    prompt. Tags that open after the reply has begun as a JSON object are part of it.
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
    """Whether a text ends inside a string of a JSON object that it begins with."""
    start = before.lstrip()
    if not start.startswith(("{", "```")) or len(before) > LONGEST:
        return False
    quotes = len(re.findall(r'(?<!\\)"', before))
    return quotes % 2 == 1
