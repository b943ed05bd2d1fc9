"""One log line per request, without a word of it, and a count of what is under way."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ndani.api.edge.faults import failure, fault
from ndani.api.edge.json_response import reply
from ndani.ledger.counts import Counts
from ndani.ledger.log import Log

#: Asked again and again by whoever watches; they do not make a server busy.
WATCHING = frozenset({"/", "/api/version", "/api/health"})


class AccessLog:
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
            self.counts.begin_request()
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
                self.counts.end_request(status)
                route = scope.get("route")
                path = getattr(route, "path", "-")  # the route's own words: a path could be anybody's
                self.log.info("request", method=scope["method"], route=path, status=status, seconds=f"{time.monotonic() - started:.3f}")
