"""CORS: which web pages may call the server, with the same rules as Ollama."""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ndani.api.edge.empty_response import send_empty

ALLOWED_METHODS = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"

_STAINLESS_HEADERS = (
    "Arch Async Custom-Poll-Interval Helper-Method Lang Os Package-Version Poll-Helper Retry-Count Runtime Runtime-Version Timeout"
)

ALLOWED_HEADERS = ",".join(
    ["Authorization", "Content-Type", "User-Agent", "Accept", "X-Requested-With", "Openai-Beta"]
    + [f"X-Stainless-{name}" for name in _STAINLESS_HEADERS.split()]
)


_LOCAL_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0")  # noqa: S104 - an origin, not an address to bind

_LOCAL_ORIGINS = [f"{scheme}://{host}{port}" for scheme in ("http", "https") for host in _LOCAL_HOSTS for port in ("", ":*")]

#: Origins that are always allowed as in Ollama: this machine's pages on any port, and desktop applications.
DEFAULT_ORIGINS = (*_LOCAL_ORIGINS, "app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*")


class OriginGuard:
    """Sends allowed origins their CORS headers, and others 403 without a body; answers preflight requests itself."""

    def __init__(self, app: ASGIApp, allowed: tuple[str, ...]) -> None:
        self.app = app
        self.allows_all = "*" in allowed
        patterns = (".*".join(map(re.escape, origin.lower().split("*"))) for origin in (*allowed, *DEFAULT_ORIGINS))
        self.allowed = re.compile("|".join(patterns))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = Headers(scope=scope).get("origin") if scope["type"] == "http" else None
        if not origin:
            await self.app(scope, receive, send)
            return
        host = Headers(scope=scope).get("host", "")
        same_origin = origin.split("://")[-1] == host
        if not same_origin and not self.allowed.fullmatch(origin.lower()):
            await send_empty(send, 403, [])
            return
        allowed_origin = "*" if self.allows_all else origin
        if scope["method"] == "OPTIONS":
            headers = [
                ("access-control-allow-origin", allowed_origin),
                ("access-control-allow-methods", ALLOWED_METHODS),
                ("access-control-allow-headers", ALLOWED_HEADERS),
                ("access-control-max-age", "43200"),
                ("vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
            ]
            await send_empty(send, 204, headers)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"access-control-allow-origin", allowed_origin.encode()), (b"vary", b"Origin")]
            await send(message)

        await self.app(scope, receive, send_with_headers)
