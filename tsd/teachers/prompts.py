"""Build prompts from series: chat messages with the plot, the numbers or both, and the response's JSON schema."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from tsd.plots import plotter
from tsd.plots.plotter import NAMES, Plotter, choose_look
from tsd.plots.rasterised import Curve
from tsd.recipe import ModelTeacher, PlotConfig
from tsd.tasks import Task
from tsd.teachers import Reply, request_keys
from tsd.training import runs

VERSION = "asking-1"  # part of each request key: change it whenever a message or a schema changes
LETTERS = 4  # characters per token of English text, approximately
LONGEST_REPAIRED = 4000  # characters of an unusable response that a repair request quotes
TOKENS_A_NUMBER = 2.5  # two digits and a comma, approximately

Message = dict[str, Any]  # in the format of OpenAI's chat API


@dataclass(frozen=True)
class Question:
    """The prompt for one series."""

    series_id: int
    key: str
    messages: list[Message]
    tokens: int
    """Approximate number of tokens in the messages."""


class Questions:
    """Builds the prompts of one teacher. Caches what all plots share."""

    def __init__(self, teacher: ModelTeacher, task: Task, plots: PlotConfig, seed: int) -> None:
        self.teacher, self.task, self.plots, self.seed = teacher, task, plots, seed
        self._plotter = Plotter()

    def keys(self, series: pa.Table) -> list[str]:
        """Return the request key of each series."""
        shape = [VERSION, self.teacher.identity, *([runs.VERSION] if self.teacher.train else [])]
        if not self.teacher.sees_images:
            return request_keys(self.task, shape, series)
        looks = [vars(choose_look(self.plots, self.seed, one)) for one in series["series_id"].to_pylist()]
        return request_keys(self.task, [*shape, *plotter.versions(self.plots)], series, looks)

    def tokens(self, length: int) -> int:
        """Approximate number of tokens in the prompt of a series of `length` points."""
        return round(text_tokens(self.teacher, self.task, length) + image_tokens(self.teacher, self.plots))

    def ask(self, series: pa.Table, keys: Sequence[str]) -> list[Question]:
        """Build the prompt of each series. Renders the plots if the teacher uses images."""
        ids = series["series_id"].to_pylist()
        items = self.task.items(series)
        pictures: Sequence[bytes | None] = [None] * len(items)
        if self.teacher.sees_images:
            pictures = self._plotter(items, [choose_look(self.plots, self.seed, one) for one in ids])
        return [
            Question(
                one,
                key,
                [{"role": "user", "content": self._content(curves, picture, key)}],
                self.tokens(len(curves[0])),
            )
            for one, key, curves, picture in zip(ids, keys, items, pictures, strict=True)
        ]

    def _content(self, curves: Sequence[Curve], picture: bytes | None, key: str) -> list[dict[str, Any]]:
        text = prompt_text(self.teacher, self.task, len(curves[0]), key)
        if self.teacher.modality != "image":
            names = ["The values"] if len(curves) == 1 else [f"The {name} series" for name in NAMES]
            lines = [f"{name}: {', '.join(map(str, curve))}" for name, curve in zip(names, curves, strict=True)]
            text = "\n".join([text, *lines])
        content: list[dict[str, Any]] = [{"type": "text", "text": text}]
        if picture is not None:
            url = "data:image/png;base64," + base64.b64encode(picture).decode()
            content.append({"type": "image_url", "image_url": {"url": url}})
        return content


def text_tokens(teacher: ModelTeacher, task: Task, length: int) -> float:
    """Approximate number of text tokens in the prompt of a series of `length` points."""
    numbers = 0 if teacher.modality == "image" else length * task.curves
    return len(prompt_text(teacher, task, length)) / LETTERS + TOKENS_A_NUMBER * numbers


def prompt_text(teacher: ModelTeacher, task: Task, length: int, key: str = "") -> str:
    """The text of the prompt of a series of `length` points, without its values. key: of the request."""
    if teacher.own:
        return task.styled_prompt(task.style(key))
    by_default = task.defined is not None and task.defined.truth == "robust"
    return task.teacher_prompt(length, by_default if teacher.prompt is None else teacher.prompt == "defined")


def image_tokens(teacher: ModelTeacher, plots: PlotConfig) -> float:
    """Approximate number of image tokens in a prompt; 0 if the teacher does not use images."""
    return plots.image_tokens if teacher.sees_images else 0.0


def repair(reply: Reply) -> list[Message]:
    """Build the messages of a repair request: the unusable response and a description of the problem."""
    wrong = (
        "it was cut off" if reply.status == "truncated" else f"it does not say all that was asked ({reply.reason})"
    )
    asked = (
        f"That reply cannot be used: {wrong}. Reply again with the JSON object alone, one short sentence a key."
    )
    told: list[Message] = [{"role": "user", "content": asked}]
    if not reply.text:
        return told
    return [{"role": "assistant", "content": reply.text[:LONGEST_REPAIRED]}, *told]


def repair_tokens(reply: Reply) -> int:
    """Approximate number of tokens that a repair request adds."""
    return sum(len(message["content"]) for message in repair(reply)) // LETTERS


def reply_schema(task: Task, choices: bool) -> dict[str, Any]:
    """Return the JSON schema of a response: one string per topic, free text or one of the task's own sentences."""
    texts = {topic: {"enum": task.statements(topic)} if choices else {"type": "string"} for topic in task.topics}
    return {"type": "object", "properties": texts, "required": list(texts), "additionalProperties": False}
