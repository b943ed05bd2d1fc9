"""The requests in progress: each has an id that its client reads in `x-request-id`, and can be cancelled by it."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ndani.api.edge.faults import ErrorFormat, error_response
from ndani.errors import Cancelled

#: The header of an id: of a request, if its client chooses one, and of every response.
REQUEST_ID = "x-request-id"

#: The key in a request's scope of its `RunningRequest`.
SCOPE_KEY = "ndani.request"

#: What a client may choose. It is written into the log and into a URL, so it is short and holds nothing that either would escape.
_CHOSEN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


#: The id of the request that the current task answers.
_current_id: ContextVar[str] = ContextVar("ndani.request-id")


@dataclass(slots=True)
class RunningRequest:
    """One request in progress. `task` is set while it can be cancelled: from when it is allowed in until its answer is whole."""

    id: str
    scope: Scope
    began: float = field(default_factory=time.monotonic)
    task: asyncio.Task[object] | None = None
    cancelled: bool = False

    @property
    def path(self) -> str:
        """The pattern of its route: the client chooses the path itself, and may put anything there."""
        return getattr(self.scope.get("route"), "path", "-")


class RunningRequests:
    """All requests in progress, by id."""

    def __init__(self) -> None:
        self._by_id: dict[str, RunningRequest] = {}

    def begin(self, scope: Scope) -> RunningRequest:
        """A request has come; its id is the one that the client chose, if that is valid, else a new one that nobody can guess.

        Clients send one id with several requests (a proxy gives them that of the page they belong to), so a chosen id that is in
        use is not refused: the second request's gets an ending of its own.
        """
        chosen = Headers(scope=scope).get(REQUEST_ID, "")
        first = request_id = chosen if is_id(chosen) else new_id()
        while request_id in self._by_id:
            request_id = f"{first}.{secrets.token_hex(8)}"
        request = self._by_id[request_id] = RunningRequest(request_id, scope)
        scope[SCOPE_KEY] = request
        return request

    def end(self, request: RunningRequest) -> None:
        """It has been answered, or its client has left."""
        self._by_id.pop(request.id, None)

    def cancellable(self) -> list[RunningRequest]:
        """Those that can be cancelled, the oldest first."""
        return [request for request in self._by_id.values() if request.task]

    def cancel(self, request_id: str) -> bool:
        """Cancel a request; false where none of this id is running. Cancelling it again does nothing."""
        request = self._by_id.get(request_id)
        if request is None or request.task is None:
            return False
        if not request.cancelled:
            request.cancelled = True
            request.task.cancel()
        return True


def new_id() -> str:
    """An id that nobody can guess."""
    return f"req_{secrets.token_hex(16)}"


def is_id(text: str) -> bool:
    """Whether a text may be the id of a request."""
    return _CHOSEN.fullmatch(text) is not None


def id_of(scope: Scope) -> str:
    """The id of a request."""
    request: RunningRequest = scope[SCOPE_KEY]
    return request.id


def current_id() -> str:
    """The id of the request that the current task answers, for a dialect that writes it into its errors."""
    return _current_id.get()


def take_cancellation(scope: Scope) -> Cancelled | None:
    """The error of a request whose task was cancelled by its id, so that it can go on and say so; None where it was not."""
    request: RunningRequest | None = scope.get(SCOPE_KEY)
    if request is None or not request.cancelled or request.task is None:
        return None
    request.task.uncancel()
    request.task = None
    return Cancelled("the request was cancelled by its id")


class RequestIds:
    """Gives each request an id, and each response the header with it. Outermost, so that refusals have one too."""

    def __init__(self, app: ASGIApp, running: RunningRequests) -> None:
        self.app, self.running = app, running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = self.running.begin(scope)
        _current_id.set(request.id)
        header = REQUEST_ID.encode(), request.id.encode()

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], header]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            self.running.end(request)


class CancelById:
    """Answers a request that is cancelled by its id, in its dialect, where no response has begun.

    A stream that has begun ends itself (`StreamedResponse`). A response of a known length is complete before its first byte is sent,
    so there is nothing left to cancel.
    """

    def __init__(self, app: ASGIApp, error_format: Callable[[str], ErrorFormat]) -> None:
        self.app, self.error_format = app, error_format

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request: RunningRequest | None = scope.get(SCOPE_KEY)
        if request is None:
            await self.app(scope, receive, send)
            return
        request.task = asyncio.current_task()
        began = False

        async def send_and_note(message: Message) -> None:
            nonlocal began
            if message["type"] == "http.response.start":
                began = True
                if any(name == b"content-length" for name, _ in message["headers"]):
                    request.task = None
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except asyncio.CancelledError:
            error = take_cancellation(scope)
            if error is None or began:
                raise
            await error_response(error, self.error_format(scope["path"]))(scope, receive, send)
        finally:
            request.task = None
