"""Turns unexpected exceptions into error responses, and logs them without their message."""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ndani.api.edge.faults import ErrorFormat, error_response, fault
from ndani.ledger.log import Log


class ErrorBoundary:
    """Logs an exception that nothing below has handled, and answers with status 500 if no response has begun.

    `error_format` says by its path how a request's errors look. This stands between the access log, which records the
    status that it gives, and everything else.
    """

    def __init__(self, app: ASGIApp, log: Log, error_format: Callable[[str], ErrorFormat]) -> None:
        self.app, self.log, self.error_format = app, log, error_format

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = False

        async def send_and_note(message: Message) -> None:
            nonlocal began
            began = began or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception as exception:
            error = fault(exception)
            self.log.warn(str(error))
            if not began:
                await error_response(error, self.error_format(scope["path"]))(scope, receive, send)
