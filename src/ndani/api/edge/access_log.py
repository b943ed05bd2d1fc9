"""One log line per request, without any of its content, and a count of the requests in progress."""

from __future__ import annotations

import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ndani.api.edge.running_requests import SCOPE_KEY, RunningRequest
from ndani.ledger.counts import Counts
from ndani.ledger.log import Log

#: Polled by monitoring; these requests do not count as activity.
MONITORING_PATHS = frozenset({"/", "/api/version", "/api/health"})


class AccessLog:
    """One log line per request, without any of its content, and the time when the last one ended (for the idle exit)."""

    def __init__(self, app: ASGIApp, log: Log, counts: Counts) -> None:
        self.app, self.log, self.counts = app, log, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = time.monotonic(), 0

        async def send_and_record(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        counted = scope["path"] not in MONITORING_PATHS
        if counted:
            self.counts.begin_request()
        try:
            await self.app(scope, receive, send_and_record)
        finally:
            request: RunningRequest = scope[SCOPE_KEY]
            # The client left before the end of its response, or somebody cancelled it.
            status = 499 if scope.get("ndani.disconnected") or request.cancelled else status or 499
            if counted:
                self.counts.end_request(status)
                seconds = f"{time.monotonic() - started:.3f}"
                self.log.info("request", method=scope["method"], route=request.path, status=status, seconds=seconds, id=request.id)
