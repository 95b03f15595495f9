"""What every way of asking a server behind an API has in common: the client, and what its refusals mean."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import openai

from tsd.errors import InputError
from tsd.recipe import ApiTeacher
from tsd.teachers.answers import SHOWN, clean

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before a failed request is tried again, drawn at random below
SETTINGS = "teacher.base_url, teacher.model and the key"


def require_key(teacher: ApiTeacher) -> str:
    """The API's key. Raises InputError where the environment has none."""
    key = os.environ.get(teacher.key_env)
    if not key:
        raise InputError(f"the environment variable {teacher.key_env} (teacher.key_env) holds no key: set it")
    return key


def connect(teacher: ApiTeacher) -> openai.AsyncOpenAI:
    """A client of the teacher's server, which tries nothing again: it would count being told to wait as a try."""
    return openai.AsyncOpenAI(
        api_key=require_key(teacher),
        base_url=teacher.base_url,
        timeout=teacher.timeout,
        max_retries=0,
        http_client=openai.DefaultAioHttpClient(),
    )


def body_of(error: openai.APIStatusError) -> dict[str, Any]:
    """What the server says in its refusal."""
    return error.body if isinstance(error.body, dict) else {}


def refusal(teacher: ApiTeacher, said: str, check: str = SETTINGS) -> str:
    """One line about what no retry will mend, without the key. said: the server's words; check: what to see to."""
    first = next(iter(said.replace(require_key(teacher), "…").splitlines()), "no reason given")
    return (
        f"{teacher.base_url} will not serve {teacher.model} ({clean(first)[:SHOWN]}): check {check}; "
        "the same command goes on from here"
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, by its headers; None where it does not say."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        try:
            if value is not None:
                return max(0.0, float(value) * unit)
        except ValueError:
            pass
    try:
        until = parsedate_to_datetime(headers.get("retry-after") or "")
    except (TypeError, ValueError):
        return None
    return max(0.0, (until - datetime.now(UTC)).total_seconds())
