"""Cancels the work of a request when its client hangs up."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class CancelOnDisconnect:
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
