"""CORS: which web pages may call, in the way Ollama's clients know."""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ndani.api.edge.empty_response import send_empty

METHODS = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"

_STAINLESS = "Arch Async Custom-Poll-Interval Helper-Method Lang Os Package-Version Poll-Helper Retry-Count Runtime Runtime-Version Timeout"

HEADERS = ",".join(
    ["Authorization", "Content-Type", "User-Agent", "Accept", "X-Requested-With", "Openai-Beta"]
    + [f"X-Stainless-{name}" for name in _STAINLESS.split()]
)


#: OriginGuard that may always call (reference 1.3): this machine's pages on any port, and desktop applications.
_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0")  # noqa: S104 - an origin, not an address to bind

_LOCAL = [f"{scheme}://{host}{port}" for scheme in ("http", "https") for host in _HOSTS for port in ("", ":*")]

ORIGINS = (*_LOCAL, "app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*")


class OriginGuard:
    """CORS as Ollama's: listed origins get their header, others 403 with nothing said; preflight is answered here."""

    def __init__(self, app: ASGIApp, allowed: tuple[str, ...]) -> None:
        self.app = app
        self.everybody = "*" in allowed
        self.allowed = re.compile("|".join(".*".join(map(re.escape, one.lower().split("*"))) for one in (*allowed, *ORIGINS)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = Headers(scope=scope).get("origin") if scope["type"] == "http" else None
        if not origin:
            await self.app(scope, receive, send)
            return
        host = Headers(scope=scope).get("host", "")
        if origin.split("://")[-1] != host and not self.allowed.fullmatch(origin.lower()):
            await send_empty(send, 403, [])
            return
        shown = "*" if self.everybody else origin
        if scope["method"] == "OPTIONS":
            headers = [
                ("access-control-allow-origin", shown),
                ("access-control-allow-methods", METHODS),
                ("access-control-allow-headers", HEADERS),
                ("access-control-max-age", "43200"),
                ("vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
            ]
            await send_empty(send, 204, headers)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"access-control-allow-origin", shown.encode()), (b"vary", b"Origin")]
            await send(message)

        await self.app(scope, receive, marked)
