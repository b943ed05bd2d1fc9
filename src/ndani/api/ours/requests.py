"""Our own routes for the requests in progress: which there are, and the end of one. What they hold is not told."""

from __future__ import annotations

import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from ndani.api.edge import json_response
from ndani.api.edge.running_requests import RunningRequests, id_of, is_id
from ndani.errors import NotFound


class RequestInProgress(msgspec.Struct):
    """A request in progress: its id, its method and route, and for how many seconds it has been running."""

    id: str
    method: str
    path: str
    age: float


class RequestList(msgspec.Struct):
    """All requests in progress but the one that asks, the oldest first."""

    requests: list[RequestInProgress]


class CancelledRequest(msgspec.Struct):
    """The request of this id is cancelled, and about to end."""

    id: str
    status: str = "cancelled"


class RequestRoutes:
    """The routes for requests in progress."""

    def __init__(self, running: RunningRequests) -> None:
        self._running = running

    async def requests(self, request: Request) -> Response:
        """GET /api/requests: those in progress."""
        now, own = time.monotonic(), id_of(request.scope)
        others = [other for other in self._running.cancellable() if other.id != own]
        listed = [RequestInProgress(other.id, other.scope["method"], other.path, round(now - other.began, 3)) for other in others]
        return json_response.respond(RequestList(listed))

    async def cancel(self, request: Request) -> Response:
        """DELETE /api/requests/{id}: cancels it. It is then answered with an error, or its stream ends in one."""
        request_id = request.path_params["id"]
        if request_id == id_of(request.scope) or not self._running.cancel(request_id):
            named = f" {request_id}" if is_id(request_id) else ""
            raise NotFound(f"no running request has the id{named}; GET /api/requests lists those that run")
        return json_response.respond(CancelledRequest(request_id))
