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

#: Ollama's headers, then those that a page's Anthropic and OpenAI clients send besides, and ours.
ALLOWED_HEADERS = ",".join(
    ["Authorization", "Content-Type", "User-Agent", "Accept", "X-Requested-With", "Openai-Beta"]
    + [f"X-Stainless-{name}" for name in _STAINLESS_HEADERS.split()]
    + ["X-Api-Key", "Anthropic-Version", "Anthropic-Beta", "Anthropic-Dangerous-Direct-Browser-Access"]
    + ["Openai-Organization", "Openai-Project", "Idempotency-Key", "X-Request-Id"]
)

#: What a page's script may read of a response besides its type and length: the ids of the request, and what was ignored of it.
EXPOSED_HEADERS = "X-Request-Id,Request-Id,X-Ndani-Ignored"


_LOCAL_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0")  # noqa: S104 - an origin, not an address to bind

_LOCAL_ORIGINS = [f"{scheme}://{host}{port}" for scheme in ("http", "https") for host in _LOCAL_HOSTS for port in ("", ":*")]

#: Origins that are always allowed as in Ollama: this machine's pages on any port, and desktop applications.
DEFAULT_ORIGINS = (*_LOCAL_ORIGINS, "app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*")


#: Browsers send these for any page without an Origin: for images, links, frames. Every other request of theirs has one.
_READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class OriginGuard:
    """Sends allowed origins their CORS headers, and others 403 without a body; answers preflight requests itself.

    So is a request refused that comes from another site by its browser's word, and hides which, unless it only reads.
    """

    def __init__(self, app: ASGIApp, allowed: tuple[str, ...]) -> None:
        self.app = app
        self.allows_all = "*" in allowed
        patterns = (".*".join(map(re.escape, origin.lower().split("*"))) for origin in (*allowed, *DEFAULT_ORIGINS))
        self.allowed = re.compile("|".join(patterns))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = Headers(scope=scope) if scope["type"] == "http" else Headers()
        origin = asked.get("origin")
        if not origin:
            if asked.get("sec-fetch-site") == "cross-site" and scope["method"] not in _READING_METHODS:
                await send_empty(send, 403, [])
                return
            await self.app(scope, receive, send)
            return
        host = asked.get("host", "")
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
                cors = [
                    ("access-control-allow-origin", allowed_origin),
                    ("access-control-expose-headers", EXPOSED_HEADERS),
                    ("vary", "Origin"),
                ]
                message["headers"] = [*message["headers"], *((name.encode(), value.encode()) for name, value in cors)]
            await send(message)

        await self.app(scope, receive, send_with_headers)
