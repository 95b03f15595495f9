"""Request format of a server: not all servers support JSON schemas, and some renamed a parameter."""

import re
from typing import Any

from tsd.recipe import ApiTeacher
from tsd.tasks import Task
from tsd.teachers.prompts import Message, reply_schema

FORMS = {"auto": ("schema", "json", "none"), "schema": ("schema",), "json": ("json",), "none": ("none",)}
NAMED = {"schema": "json_schema", "json": "json_object", "none": "plain text"}
OF_THE_FORM = re.compile(  # words that refer to the response format
    r"response.?format|json.?schema|json.?object|json.?mode|structured|guided|grammar|schema|strict", re.IGNORECASE
)


class RequestFormat:
    """Builds requests. A refused request is changed to another format until the server has accepted one."""

    def __init__(self, teacher: ApiTeacher, task: Task) -> None:
        self._teacher, self._task = teacher, task
        self._forms = list(FORMS[teacher.structured])
        self._limit = "max_tokens"
        self._temperature = True
        self._unexplained = 0  # refusals that do not name the format
        self.agreed = teacher.takes_schemas
        """Whether the server has accepted a request. From then on the format is fixed."""

    def body(self, messages: list[Message]) -> dict[str, Any]:
        """Build a request in the format of OpenAI's chat API."""
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
    def name(self) -> str:
        """Name of the response format: json_schema, json_object or plain text."""
        return NAMED[self._forms[0]]

    @property
    def form(self) -> list[Any]:
        """Identifies the current format among those that `adapt` chooses, as JSON types."""
        return [self._limit, self._temperature, self._forms[0]]

    def adapt(self, refusal: str, every: bool = False) -> bool:
        """Change the parameter that a refusal names. Returns False if nothing that it may mean is left to change.

        A refusal that does not name the format may concern the content of one request. The same format is tried
        once more, then plain text. every: whether all requests of a batch were refused, which means the format is
        at fault.
        """
        if self.agreed:
            return False
        if "max_tokens" in refusal and self._limit == "max_tokens":
            self._limit = "max_completion_tokens"  # OpenAI's reasoning models
        elif "temperature" in refusal and self._temperature:
            self._temperature = False
        elif (every or OF_THE_FORM.search(refusal)) and len(self._forms) > 1:
            del self._forms[0]
        elif every:
            return False
        else:
            self._unexplained += 1
            if self._unexplained > 1 and len(self._forms) > 1:
                del self._forms[:-1]
            elif self._unexplained > 1:
                return False
        return True
