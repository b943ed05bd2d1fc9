"""Every URL, every middleware, and which dialect's errors a path has. What a route does is in `ollama` and `ours`."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from ndani.api.edge.access_log import AccessLog
from ndani.api.edge.body_limit import BodyLimit
from ndani.api.edge.disconnect import CancelOnDisconnect
from ndani.api.edge.error_boundary import ErrorBoundary
from ndani.api.edge.faults import ErrorFormat, error_response
from ndani.api.edge.host_guard import HostGuard
from ndani.api.edge.origin_guard import OriginGuard
from ndani.api.edge.redirects import redirect
from ndani.api.edge.running_requests import CancelById, RequestIds, RunningRequests
from ndani.api.ollama import cloud
from ndani.api.ollama.create import CreateRoutes
from ndani.api.ollama.embed import EmbedRoutes
from ndani.api.ollama.responses import ERRORS as OLLAMA_ERRORS
from ndani.api.ollama.routes import OllamaRoutes
from ndani.api.openapi import document
from ndani.api.ours.admin import AdminRoutes
from ndani.api.ours.handover import HandoverRoutes
from ndani.api.ours.maintenance import MaintenanceRoutes
from ndani.api.ours.requests import RequestRoutes
from ndani.api.ours.rerank import RerankRoutes
from ndani.api.ours.tokens import TokenRoutes
from ndani.api.page import PageRoutes
from ndani.errors import NdaniError
from ndani.service import Service

#: Bodies below this path are written to disk as they arrive: they may be as large as a model.
UPLOAD_PREFIX = "/api/blobs/"

#: Paths whose bodies hold conversations, texts or licenses; all other bodies hold only names and flags.
LARGE_BODY_PATHS = frozenset(
    {
        "/api/generate",
        "/api/chat",
        "/api/embed",
        "/api/embeddings",
        "/api/create",
        "/api/tokenize",
        "/api/detokenize",
        "/rerank",
        "/v1/rerank",
    }
)

#: How errors look, by the prefix of a path. The first match counts, so the dialect without a prefix comes last.
ERROR_FORMATS: tuple[tuple[str, ErrorFormat], ...] = (("", OLLAMA_ERRORS),)


def build(service: Service, loopback_addresses: frozenset[str]) -> Starlette:
    """The application over one service. Requests pass the middleware from the top down; `loopback_addresses`: see `HostGuard`."""
    ollama, create, embed = OllamaRoutes(service), CreateRoutes(service), EmbedRoutes(service)
    maintenance, admin, handover = MaintenanceRoutes(service), AdminRoutes(service), HandoverRoutes(service)
    running = RunningRequests()
    requests, tokens, rerank = RequestRoutes(running), TokenRoutes(service), RerankRoutes(service)
    page = PageRoutes(document)
    settings = service.settings
    app = Starlette(
        routes=[
            Route("/", ollama.root, methods=["GET"]),
            Route("/api/version", ollama.version, methods=["GET"]),
            Route("/api/status", ollama.status, methods=["GET"]),
            Route("/api/generate", ollama.generate, methods=["POST"]),
            Route("/api/chat", ollama.chat, methods=["POST"]),
            Route("/api/embed", embed.embed, methods=["POST"]),
            Route("/api/embeddings", embed.embeddings, methods=["POST"]),
            Route("/api/tags", ollama.tags, methods=["GET"]),
            Route("/api/ps", ollama.ps, methods=["GET"]),
            Route("/api/show", ollama.show, methods=["POST"]),
            Route("/api/copy", ollama.copy, methods=["POST"]),
            Route("/api/delete", ollama.delete, methods=["DELETE"]),
            Route("/api/pull", ollama.pull, methods=["POST"]),
            Route("/api/create", create.create, methods=["POST"]),
            Route("/api/blobs/{digest}", create.has_blob, methods=["HEAD"]),
            Route("/api/blobs/{digest}", create.upload_blob, methods=["POST"]),
            Route("/api/handover", handover.hand_over, methods=["POST"]),
            Route("/api/push", ollama.push, methods=["POST"]),
            Route("/api/me", cloud.account, methods=["POST"]),
            Route("/api/signout", cloud.account, methods=["POST"]),
            Route("/api/experimental/web_search", cloud.web_search, methods=["POST"]),
            Route("/api/experimental/web_fetch", cloud.web_fetch, methods=["POST"]),
            Route("/api/verify", maintenance.verify, methods=["POST"]),
            Route("/api/prune", maintenance.prune, methods=["POST"]),
            Route("/api/health", admin.health, methods=["GET"]),
            Route("/v1/rerank", rerank.rerank, methods=["POST"]),
            Route("/rerank", rerank.rerank, methods=["POST"]),
            Route("/api/tokenize", tokens.tokenize, methods=["POST"]),
            Route("/api/detokenize", tokens.detokenize, methods=["POST"]),
            Route("/openapi.json", page.openapi, methods=["GET"]),
            Route("/docs", page.page, methods=["GET"]),
            Route("/docs/page.js", page.script, methods=["GET"]),
            Route("/docs/page.css", page.style, methods=["GET"]),
            Route("/api/requests", requests.requests, methods=["GET"]),
            Route("/api/requests/{id}", requests.cancel, methods=["DELETE"]),
            Route("/api/doctor", admin.doctor, methods=["POST"]),
        ],
        middleware=[
            Middleware(RequestIds, running=running),
            Middleware(AccessLog, log=service.log, counts=service.counts),
            Middleware(ErrorBoundary, log=service.log, error_format=error_format),
            Middleware(OriginGuard, allowed=settings.origins),
            Middleware(HostGuard, loopback_addresses=loopback_addresses),
            Middleware(CancelById, error_format=error_format),
            Middleware(CancelOnDisconnect),
            Middleware(BodyLimit, limit=settings.max_body, large_paths=LARGE_BODY_PATHS, upload_prefix=UPLOAD_PREFIX),
        ],
        exception_handlers={NdaniError: _on_error, HTTPException: _on_no_route},
    )
    app.router.redirect_slashes = False  # `_on_no_route` redirects, in Ollama's way
    return app


def error_format(path: str) -> ErrorFormat:
    """How the errors of requests to this path look."""
    return next(errors for prefix, errors in ERROR_FORMATS if path.startswith(prefix))


async def _on_error(request: Request, error: Exception) -> Response:
    """An error before the first byte."""
    assert isinstance(error, NdaniError)
    return error_response(error, error_format(request.scope["path"]))


async def _on_no_route(request: Request, error: Exception) -> Response:
    """No such path, or not with this method: a redirect to the path that was meant, else what the dialect says to that."""
    assert isinstance(error, HTTPException)
    errors = error_format(request.scope["path"])
    if error.status_code == 405:
        return errors.no_route(405, _allow_header(request))
    return redirect(request) or errors.no_route(404, {})


def _allow_header(request: Request) -> dict[str, str]:
    matching = (route for route in request.app.routes if route.matches(request.scope)[0] is Match.PARTIAL)
    return {"allow": ", ".join(sorted({method for route in matching for method in route.methods or ()}))}
