"""What every way of asking a server behind an API has in common: the client, and what its refusals mean."""

import os
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import openai

from tsd.errors import InputError
from tsd.recipe import ApiTeacher
from tsd.teachers.answers import SHOWN, clean

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before a failed request is tried again, drawn at random below
SETTINGS = "teacher.base_url, teacher.model and the key"
NO_KEY = "none"  # the client insists on one


def require_key(teacher: ApiTeacher) -> str | None:
    """The API's key; None for a server that asks for none. Raises InputError where the environment lacks it."""
    name = teacher.key_variable
    if name is None:
        return None
    key = os.environ.get(name)
    if not key:
        raise InputError(f"the environment variable {name} (teacher.key_env) holds no key: set it")
    return key


def connect(teacher: ApiTeacher) -> openai.AsyncOpenAI:
    """A client of the teacher's server, which tries nothing again: it would count being told to wait as a try."""
    return openai.AsyncOpenAI(
        api_key=require_key(teacher) or NO_KEY,
        base_url=teacher.base_url,
        timeout=teacher.timeout,
        max_retries=0,
        http_client=openai.DefaultAioHttpClient(),
    )


def body_of(error: openai.APIStatusError) -> dict[str, Any]:
    """What the server says in its refusal."""
    return error.body if isinstance(error.body, dict) else {}


def first_line(teacher: ApiTeacher, said: str) -> str:
    """The first line of a server's words, without the key."""
    key = require_key(teacher)
    first = next(iter((said.replace(key, "…") if key else said).splitlines()), "no reason given")
    return clean(first)[:SHOWN]


def refusal(teacher: ApiTeacher, said: str, check: str = SETTINGS) -> str:
    """One line about what no retry will mend. said: the server's words; check: what to see to."""
    if teacher.key_variable is None:
        check += " (teacher.key_env names no variable that holds one)"
    return (
        f"{teacher.base_url} will not serve {teacher.model} ({first_line(teacher, said)}): check {check}; "
        "the same command goes on from here"
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, by its headers; None where it does not say, or says none."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with suppress(KeyError, ValueError):
            seconds = float(headers[name]) * unit
            return seconds if seconds > 0 else None
    try:
        until = parsedate_to_datetime(headers.get("retry-after") or "")
    except (TypeError, ValueError):
        return None
    if until.tzinfo is None:  # HTTP's dates are in UTC
        until = until.replace(tzinfo=UTC)
    seconds = (until - datetime.now(UTC)).total_seconds()
    return seconds if seconds > 0 else None
