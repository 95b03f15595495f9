"""The guard of an engine's server: no path answers without the token."""

import asyncio
from typing import Any

import pytest

from tsd.teachers.engine_modules import tsd_engine_guard
from tsd.teachers.engine_modules.tsd_engine_guard import RequireToken

PATHS = ("/v1/models", "/health", "/metrics", "/tokenize", "/invocations", "/docs", "/")
RIGHT = [(b"authorization", b"Bearer secret")]


def ask(kind: str, headers: list[tuple[bytes, bytes]], path: str = "/v1/models") -> list[dict[str, Any]]:
    """What is sent to a client of an application that says yes to all."""
    said: list[dict[str, Any]] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "yes"})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        said.append(message)

    scope = {"type": kind, "path": path, "headers": headers, "method": "GET"}
    asyncio.run(RequireToken(application)(scope, receive, send))
    return said


@pytest.fixture(autouse=True)
def _token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(tsd_engine_guard.TOKEN, "secret")


@pytest.mark.parametrize("path", PATHS)
def test_every_path_asks_for_the_token(path: str) -> None:
    assert ask("http", RIGHT, path) == [{"type": "yes"}]
    for wrong in ([], [(b"authorization", b"Bearer other")], [(b"authorization", b"secret")], [*RIGHT, *RIGHT]):
        start, body = ask("http", wrong, path)
        assert (start["status"], body["body"]) == (401, tsd_engine_guard.REFUSED)


def test_other_kinds_of_connections_ask_for_it_too_and_the_start_of_the_server_does_not() -> None:
    assert ask("websocket", RIGHT) == [{"type": "yes"}]
    assert ask("websocket", []) == [{"type": "websocket.close", "code": 1008}]
    assert ask("lifespan", []) == [{"type": "yes"}]


def test_without_a_token_there_is_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tsd_engine_guard.TOKEN)
    with pytest.raises(KeyError):
        ask("http", [])
