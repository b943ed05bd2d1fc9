"""Every dialect, every middleware. What a route does is in the dialects' own folders; `dialect.py` there has its URLs."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from ndani.api.anthropic.dialect import dialect as anthropic
from ndani.api.edge.access_log import AccessLog
from ndani.api.edge.body_limit import BodyLimit
from ndani.api.edge.dialect import Context, Dialect
from ndani.api.edge.disconnect import CancelOnDisconnect
from ndani.api.edge.error_boundary import ErrorBoundary
from ndani.api.edge.faults import ErrorFormat, error_response
from ndani.api.edge.host_guard import HostGuard
from ndani.api.edge.origin_guard import OriginGuard
from ndani.api.edge.redirects import redirect
from ndani.api.edge.running_requests import CancelById, RequestIds, RunningRequests
from ndani.api.foundry.dialect import dialect as foundry
from ndani.api.ollama.dialect import dialect as ollama
from ndani.api.openai.dialect import dialect as openai
from ndani.api.openapi import document
from ndani.api.ours.dialect import dialect as ours
from ndani.api.page import page
from ndani.api.responses.dialect import dialect as responses
from ndani.errors import NdaniError
from ndani.service import Service

#: Every API that is spoken here. To add one: a folder with a `dialect` function, and a name in this row.
DIALECTS: tuple[Callable[[Context], Dialect], ...] = (ollama, ours, openai, responses, anthropic, foundry)

#: Bodies below this path are written to disk as they arrive: they may be as large as a model.
UPLOAD_PREFIX = "/api/blobs/"


def build(service: Service, loopback_addresses: frozenset[str], stop: Callable[[], None]) -> Starlette:
    """The application over one service. Requests pass the middleware from the top down; `loopback_addresses`: see `HostGuard`.

    `stop` ends the server, for the route that may.
    """
    running = RunningRequests()
    dialects = [dialect(Context(service, running, stop)) for dialect in DIALECTS]
    error_format = _error_formats(dialects)
    dialects.append(page(lambda: document(dialects, error_format)))
    app = Starlette(
        routes=[route for dialect in dialects for route in dialect.routes],
        middleware=[
            Middleware(RequestIds, running=running),
            Middleware(AccessLog, log=service.log, counts=service.counts),
            Middleware(ErrorBoundary, log=service.log, error_format=error_format),
            Middleware(OriginGuard, allowed=service.settings.origins),
            Middleware(HostGuard, loopback_addresses=loopback_addresses),
            Middleware(CancelById, error_format=error_format),
            Middleware(CancelOnDisconnect),
            Middleware(
                BodyLimit,
                limit=service.settings.max_body,
                large_paths=frozenset().union(*(dialect.large_bodies for dialect in dialects)),
                upload_prefix=UPLOAD_PREFIX,
            ),
        ],
        exception_handlers={NdaniError: _on_error, HTTPException: _on_no_route},
    )
    app.router.redirect_slashes = False  # `_on_no_route` redirects, in Ollama's way
    app.state.error_format = error_format
    return app


def _error_formats(dialects: list[Dialect]) -> Callable[[str], ErrorFormat]:
    """How the errors of requests to a path look: as in the dialect with the longest prefix of it."""
    rows = sorted((row for dialect in dialects for row in dialect.errors), key=lambda row: -len(row[0]))
    return lambda path: next(errors for prefix, errors in rows if path.startswith(prefix))


def _errors(request: Request) -> ErrorFormat:
    errors: ErrorFormat = request.app.state.error_format(request.scope["path"])
    return errors


async def _on_error(request: Request, error: Exception) -> Response:
    """An error before the first byte."""
    assert isinstance(error, NdaniError)
    return error_response(error, _errors(request))


async def _on_no_route(request: Request, error: Exception) -> Response:
    """No such path, or not with this method: a redirect to the path that was meant, else what the dialect says to that."""
    assert isinstance(error, HTTPException)
    errors = _errors(request)
    if error.status_code == 405:
        return errors.no_route(405, _allow_header(request))
    return redirect(request) or errors.no_route(404, {})


def _allow_header(request: Request) -> dict[str, str]:
    matching = (route for route in request.app.routes if route.matches(request.scope)[0] is Match.PARTIAL)
    return {"allow": ", ".join(sorted({method for route in matching for method in route.methods or ()}))}
