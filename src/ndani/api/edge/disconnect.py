"""Cancels the work of a request when its client disconnects."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class CancelOnDisconnect:
    """Cancels the request's task when its client disconnects, before its response or during it, so that every `finally` runs.

    Once the body is read, the only message that the server can still deliver is `http.disconnect`.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        task = asyncio.current_task()
        watch: asyncio.Task[None] | None = None
        disconnected = False

        async def cancel_on_disconnect() -> None:
            nonlocal disconnected
            while (await receive())["type"] != "http.disconnect":
                pass
            disconnected = True
            if task:
                task.cancel()

        async def receive_and_watch() -> Message:
            nonlocal watch
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body") and watch is None:
                watch = asyncio.create_task(cancel_on_disconnect())
            return message

        try:
            await self.app(scope, receive_and_watch, send)
        except asyncio.CancelledError:
            if not disconnected:
                raise
            scope["ndani.disconnected"] = True
            if task:
                task.uncancel()
        finally:
            if watch:
                watch.cancel()
