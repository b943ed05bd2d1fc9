"""The edge: what every request passes before it reaches a route. Each class adds one concern, and all are ASGI.

`Journal` (a log line, how many are under way), `Origins` (CORS), `Hosts` (against DNS rebinding), `Limit` (body
size), `Leaving` (a client that hangs up cancels its request). Their order is in `app.py`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import time

import psutil
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ndani.api.wire import failure, fault, reply
from ndani.errors import TooLarge
from ndani.ledger.counts import Counts
from ndani.ledger.log import Log

METHODS = "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
_STAINLESS = "Arch Async Custom-Poll-Interval Helper-Method Lang Os Package-Version Poll-Helper Retry-Count Runtime Runtime-Version Timeout"
HEADERS = ",".join(
    ["Authorization", "Content-Type", "User-Agent", "Accept", "X-Requested-With", "Openai-Beta"]
    + [f"X-Stainless-{name}" for name in _STAINLESS.split()]
)

#: Origins that may always call (reference 1.3): this machine's pages on any port, and desktop applications.
_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0")  # noqa: S104 - an origin, not an address to bind
_LOCAL = [f"{scheme}://{host}{port}" for scheme in ("http", "https") for host in _HOSTS for port in ("", ":*")]
ORIGINS = (*_LOCAL, "app://*", "file://*", "tauri://*", "vscode-webview://*", "vscode-file://*")

#: A host with its port or without: an address of IPv6 in brackets, a name or another address, or one of IPv6 by itself.
_PLACE = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]@]*))(?::[0-9]*)?|([0-9A-Fa-f:.]+)")

#: Asked again and again by whoever watches; they do not make a server busy.
WATCHING = frozenset({"/", "/api/version", "/api/health"})


#: A body whose length nobody said must be held to be counted, so it gets less than one that says it.
MOST_UNSAID = 16 * 2**20
#: For a body that is names and switches, and perhaps a template.
MOST_SMALL = 2**20


class Journal:
    """One log line per request, without a word of it, and when the last one ended (for the idle exit)."""

    def __init__(self, app: ASGIApp, log: Log, counts: Counts) -> None:
        self.app, self.log, self.counts = app, log, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        watched = scope["path"] in WATCHING
        if not watched:
            self.counts.begin()
        try:
            await self.app(scope, receive, noting)
        except Exception as error:
            met = fault(error)
            self.log.warn(str(met))
            if not status:
                await reply(failure(met), met.status)(scope, receive, noting)
        finally:
            status = 499 if scope.get("left") else status or 499  # nobody was there to be answered, or not to the end
            if not watched:
                self.counts.end(status)
                route = scope.get("route")
                path = getattr(route, "path", "-")  # the route's own words: a path could be anybody's
                self.log.info("request", method=scope["method"], route=path, status=status, seconds=f"{time.monotonic() - started:.3f}")


class Origins:
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
            await _empty(send, 403, [])
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
            await _empty(send, 204, headers)
            return

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"access-control-allow-origin", shown.encode()), (b"vary", b"Origin")]
            await send(message)

        await self.app(scope, receive, marked)


class Hosts:
    """Refuses a Host that a rebound name would carry. Only where the server listens on loopback, as in Ollama.

    `guarded` are the loopback addresses that it really listens on, however they were written.
    """

    def __init__(self, app: ASGIApp, guarded: frozenset[str]) -> None:
        self.app, self.guarded = app, guarded
        self.machine = socket.gethostname().lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope.get("server") or ("",))[0] in self.guarded:
            if not self._known(Headers(scope=scope).get("host", "")):
                await _empty(send, 403, [])
                return
            if scope["method"] == "OPTIONS":
                await _empty(send, 204, [])
                return
        await self.app(scope, receive, send)

    def _known(self, host: str) -> bool:
        if not (found := _PLACE.fullmatch(host)):
            return False
        name = (found[1] or found[2] or found[3] or "").lower().rstrip(".")
        if name in ("", "localhost", self.machine) or name.endswith((".localhost", ".local", ".internal")):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        if address.is_loopback or address.is_private or address.is_unspecified:
            return True
        return any(name == entry.address.partition("%")[0] for links in psutil.net_if_addrs().values() for entry in links)


class Limit:
    """Refuses a body above the limit: at once when its length is said, else as soon as it has grown too long.

    `most` is for the paths `large`, whose bodies have a reason to be. What goes below the path `uploads` has no limit but
    the disk: it is written as it comes, and never held.
    """

    def __init__(self, app: ASGIApp, most: int, large: frozenset[str], uploads: str) -> None:
        self.app, self.most, self.large, self.uploads = app, most, large, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (scope["method"] == "POST" and scope["path"].startswith(self.uploads)):
            await self.app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        said = int(length) if length.isdigit() else 0
        large = scope["path"] in self.large
        most = min(self.most, MOST_SMALL if not large else self.most if said else MOST_UNSAID)
        got = 0

        async def counted() -> Message:
            nonlocal got
            if said > most:
                raise _too_large(most, large)
            message = await receive()
            got += len(message.get("body", b""))
            if got > most:
                raise _too_large(most, large)
            return message

        await self.app(scope, counted, send)


class Leaving:
    """A client that hangs up cancels its request, in an answer or before it: `finally` runs from the inside out.

    Once the body is read, the next thing the server can say about a client is that it has gone.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        task = asyncio.current_task()
        watch: asyncio.Task[None] | None = None
        left = False

        async def until_gone() -> None:
            nonlocal left
            while (await receive())["type"] != "http.disconnect":
                pass
            left = True
            if task:
                task.cancel()

        async def reading() -> Message:
            nonlocal watch
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body") and watch is None:
                watch = asyncio.create_task(until_gone())
            return message

        try:
            await self.app(scope, reading, send)
        except asyncio.CancelledError:
            if not left:
                raise
            scope["left"] = True
            if task:
                task.uncancel()
        finally:
            if watch:
                watch.cancel()


def _too_large(most: int, large: bool) -> TooLarge:
    more = ", or raise NDANI_MAX_BODY and say Content-Length" if large else ", for nothing here needs more"
    return TooLarge(f"the request body is larger than the limit of {most} bytes; send less{more}")


async def _empty(send: Send, status: int, headers: list[tuple[str, str]]) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers]
    if status != 204:
        raw.append((b"content-length", b"0"))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": b""})
