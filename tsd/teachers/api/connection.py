"""HTTP client and error interpretation shared by live and batch requests."""

import os
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import openai

from tsd.errors import InputError
from tsd.recipe import ApiTeacher
from tsd.teachers.api.responses import SHOWN, ServerError, clean, error_of

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds before a retry; the actual wait is random below this
NO_KEY = "none"  # the client requires a non-empty key


def require_key(teacher: ApiTeacher) -> str | None:
    """Return the API key, or None for a server that needs none.

    Raises InputError if the environment variable is missing or its value cannot be a key.
    """
    name = teacher.key_variable
    if name is None:
        return None
    key = os.environ.get(name)
    if not key or not key.strip():
        raise InputError(f"the environment variable {name} (teacher.key_env) holds no key: set it")
    wrong = next((letter for letter in key if not "!" <= letter <= "~"), None)
    if wrong is not None:
        kinds = {
            "\n": "a line break",
            "\r": "a line break",
            " ": "a space",
            "\t": "a tab",
            "\ufeff": "a byte order mark",
        }
        quotes = "\u2018\u2019\u201c\u201d\u00ab\u00bb"
        kind = kinds.get(wrong) or ("a curly quote" if wrong in quotes else f"the character U+{ord(wrong):04X}")
        raise InputError(
            f"the environment variable {name} (teacher.key_env) holds {kind}, which a key cannot contain: set it "
            "to the key only, without quotes or line breaks"
        )
    return key


def connect(teacher: ApiTeacher) -> openai.AsyncOpenAI:
    """Return a client of the teacher's server without automatic retries: they would count a requested wait as a
    try.
    """
    parts = urlsplit(teacher.base_url)
    return openai.AsyncOpenAI(
        api_key=require_key(teacher) or NO_KEY,
        base_url=urlunsplit((parts.scheme, parts.netloc, parts.path, "", "")),
        default_query=dict(parse_qsl(parts.query)),  # API version for Azure
        timeout=teacher.timeout,
        max_retries=0,
        # A proxy of the environment cannot reach this machine's own servers, and must not see their tokens.
        http_client=openai.DefaultAioHttpClient(trust_env=not teacher.is_local),
    )


async def serves(teacher: ApiTeacher) -> bool:
    """Whether the server lists the teacher's model. Raises InputError if the list cannot be retrieved."""
    client = connect(teacher)
    try:
        async for model in client.models.list():
            if model.id == teacher.model or model.id.removeprefix("models/") == teacher.model:
                return True
    except openai.APIStatusError as error:
        said = said_in(error).message
        raise InputError(
            f"{teacher.base_url} does not list its models ({error.status_code}: {first_line(teacher, said)})"
        ) from None
    except (openai.OpenAIError, ValueError, AttributeError) as error:
        raise InputError(f"{teacher.base_url} cannot be asked for its models: {cause_of(error)}") from None
    finally:
        await client.close()
    return False


def said_in(error: openai.APIStatusError) -> ServerError:
    """Parse the error message of a refusal, in any provider's format."""
    try:
        content: bytes = error.response.content
    except Exception:  # the body was cut off
        content = b""
    found = error_of(error.status_code, content)
    return found if found.message else ServerError(error.status_code, found.kind, error.message)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and its causes, down to the innermost."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__


def cause_of(error: BaseException) -> str:
    """Return the innermost cause of a failure in one line."""
    *_, innermost = chain(error)
    if isinstance(innermost, socket.gaierror):
        said = f"unknown host ({innermost.strerror})"
    elif isinstance(innermost, ConnectionRefusedError):
        said = "connection refused"
    elif isinstance(innermost, ssl.SSLCertVerificationError):
        said = f"TLS: {innermost.verify_message or innermost.reason}"
    elif isinstance(innermost, ssl.SSLError):
        said = f"TLS: {innermost.reason or innermost}"
    elif isinstance(innermost, OSError) and innermost.errno:
        said = os.strerror(innermost.errno).lower()
    else:
        said = str(innermost) or type(innermost).__name__
    return clean(" ".join(said.split()))[:SHOWN]


def never_sent(error: BaseException) -> bool:
    """Whether a request cannot have reached the server because no connection was established."""
    for one in chain(error):
        if isinstance(one, ConnectionRefusedError | socket.gaierror | ssl.SSLError):
            return True
        if type(one).__name__.startswith(
            ("ClientConnector", "InvalidUrl", "ConnectionTimeout", "UnsupportedProtocol")
        ):
            return True
    return False


def timed_out(error: openai.OpenAIError) -> bool:
    """Whether a request took too long. openai also raises APITimeoutError where the peer closes a connection while
    a request is written (aiohttp's ClientOSError, which its transport maps to ConnectTimeout).
    """
    return isinstance(error, openai.APITimeoutError) and any(isinstance(one, TimeoutError) for one in chain(error))


def first_line(teacher: ApiTeacher, said: str) -> str:
    """Return the first line of a server's message, with the API key removed."""
    key = require_key(teacher)
    first = next(iter((said.replace(key, "…") if key else said).splitlines()), "no reason given")
    return clean(first)[:SHOWN]


def refusal(teacher: ApiTeacher, said: str, check: str | None = None) -> str:
    """Format the message for a permanent refusal. said: the server's message; check: settings to check."""
    check = check or teacher.checks
    if teacher.key_variable is None:
        check += " (teacher.key_env names no variable that holds one)"
    return (
        f"{teacher.place} will not serve {teacher.model} ({first_line(teacher, said)}): check {check}; "
        "the same command goes on from here"
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server's headers ask to wait; None if absent or not positive."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with suppress(KeyError, ValueError):
            seconds = float(headers[name]) * unit
            return seconds if seconds > 0 else None
    try:
        until = parsedate_to_datetime(headers.get("retry-after") or "")
    except (TypeError, ValueError):
        return None
    if until.tzinfo is None:  # HTTP dates are in UTC
        until = until.replace(tzinfo=UTC)
    seconds = (until - datetime.now(UTC)).total_seconds()
    return seconds if seconds > 0 else None
