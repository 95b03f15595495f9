"""ASGI middleware that asks for the token on every path of an engine's server.

vLLM's own check covers `/v1` and a few others, and `/invocations` gives the same answers as `/v1`. vLLM imports
this module by its name (`--middleware`). It needs the standard library alone.
"""

import hmac
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]  # as ASGI defines it
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

TOKEN = "VLLM_API_KEY"  # environment variable of the token
REFUSED = b'{"error": "Unauthorized"}'


class RequireToken:
    """Passes on a request that has the token, and refuses any other."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        """app: the server's application. Raises KeyError if the environment holds no token."""
        self._app, self._wanted = app, f"Bearer {os.environ[TOKEN]}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection, as ASGI defines it."""
        if scope["type"] == "lifespan" or self._has_token(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(REFUSED))]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": REFUSED})

    def _has_token(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(given) == 1 and hmac.compare_digest(given[0], self._wanted)
