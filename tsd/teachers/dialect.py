"""The words in which a server takes a request: not every one knows JSON schemas, and some renamed a parameter."""

from typing import Any

from tsd.recipe import ApiTeacher
from tsd.tasks import Task
from tsd.teachers.asking import Message, reply_schema

FORMS = {"auto": ("schema", "json", "none"), "schema": ("schema",), "json": ("json",), "none": ("none",)}


class Dialect:
    """Builds requests. Until a server has taken one, what it refuses is said otherwise."""

    def __init__(self, teacher: ApiTeacher, task: Task) -> None:
        self._teacher, self._task = teacher, task
        self._forms = list(FORMS[teacher.structured])
        self._limit = "max_tokens"
        self._temperature = True
        self.agreed = False
        """Whether the server has taken a request: from then on nothing is changed."""

    def body(self, messages: list[Message]) -> dict[str, Any]:
        """A request in the form of OpenAI's chat API."""
        teacher = self._teacher
        body = {"model": teacher.model, "messages": messages, self._limit: teacher.max_tokens}
        if self._temperature:
            body["temperature"] = teacher.temperature
        if self._forms[0] == "schema":
            schema = reply_schema(self._task, teacher.choices)
            named = {"name": "description", "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        elif self._forms[0] == "json":
            body["response_format"] = {"type": "json_object"}
        return body

    @property
    def form(self) -> list[Any]:
        """What tells these words from those before and after an `adapt`, in JSON's types."""
        return [self._limit, self._temperature, self._forms[0]]

    def adapt(self, refusal: str) -> bool:
        """Change what the server's words name, else the reply's form. False where nothing is left to change."""
        if self.agreed:
            return False
        if "max_tokens" in refusal and self._limit == "max_tokens":
            self._limit = "max_completion_tokens"  # OpenAI's reasoning models
        elif "temperature" in refusal and self._temperature:
            self._temperature = False
        elif len(self._forms) > 1:
            del self._forms[0]
        else:
            return False
        return True
