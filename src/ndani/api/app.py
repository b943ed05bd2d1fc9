"""Every URL, every middleware, and which dialect's errors a path has. What a route does is in the dialects and in `ours`."""

from __future__ import annotations

from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from ndani.api.anthropic.responses import ERRORS as ANTHROPIC_ERRORS
from ndani.api.anthropic.routes import AnthropicRoutes
from ndani.api.edge.access_log import AccessLog
from ndani.api.edge.body_limit import BodyLimit
from ndani.api.edge.disconnect import CancelOnDisconnect
from ndani.api.edge.error_boundary import ErrorBoundary
from ndani.api.edge.faults import ErrorFormat, error_response
from ndani.api.edge.host_guard import HostGuard
from ndani.api.edge.origin_guard import OriginGuard
from ndani.api.edge.redirects import redirect
from ndani.api.edge.running_requests import CancelById, RequestIds, RunningRequests
from ndani.api.foundry.daemon_routes import FoundryDaemonRoutes
from ndani.api.foundry.responses import ERRORS as FOUNDRY_ERRORS
from ndani.api.foundry.service_routes import FoundryServiceRoutes
from ndani.api.ollama import cloud
from ndani.api.ollama.create import CreateRoutes
from ndani.api.ollama.embed import EmbedRoutes
from ndani.api.ollama.responses import ERRORS as OLLAMA_ERRORS
from ndani.api.ollama.routes import OllamaRoutes
from ndani.api.openai.errors import ERRORS as OPENAI_ERRORS
from ndani.api.openai.errors import MODEL_ERRORS as OPENAI_MODEL_ERRORS
from ndani.api.openai.routes import OpenAIRoutes
from ndani.api.ours.admin import AdminRoutes
from ndani.api.ours.handover import HandoverRoutes
from ndani.api.ours.maintenance import MaintenanceRoutes
from ndani.api.ours.requests import RequestRoutes
from ndani.api.ours.rerank import RerankRoutes
from ndani.api.ours.tokens import TokenRoutes
from ndani.api.responses.conversations import ConversationRoutes
from ndani.api.responses.errors import ERRORS as RESPONSES_ERRORS
from ndani.api.responses.routes import ResponseRoutes
from ndani.api.responses.state import State
from ndani.errors import NdaniError
from ndani.runtime.clock import SystemClock
from ndani.service import Service

#: Bodies below this path are written to disk as they arrive: they may be as large as a model.
UPLOAD_PREFIX = "/api/blobs/"

COUNT_PATH = "/v1/chat/completions/tokenizer/encode/count"

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
        "/v1/messages",
        "/v1/messages/count_tokens",
        COUNT_PATH,
        *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/audio/transcriptions"),
        "/v1/responses",
        "/v1/conversations",
    }
)

#: How errors look, by the prefix of a path. The first match counts, so the dialect without a prefix comes last.
ERROR_FORMATS: tuple[tuple[str, ErrorFormat], ...] = (
    ("/v1/messages", ANTHROPIC_ERRORS),
    ("/models/", FOUNDRY_ERRORS),
    ("/openai/", FOUNDRY_ERRORS),
    ("/foundry/", FOUNDRY_ERRORS),
    ("/status", FOUNDRY_ERRORS),
    ("/shutdown", FOUNDRY_ERRORS),
    (COUNT_PATH, FOUNDRY_ERRORS),
    ("/v1/models/", OPENAI_MODEL_ERRORS),
    ("/v1", OPENAI_ERRORS),
    ("/v1/responses", RESPONSES_ERRORS),
    ("/v1/conversations", RESPONSES_ERRORS),
    ("", OLLAMA_ERRORS),
)


def build(service: Service, loopback_addresses: frozenset[str], stop: Callable[[], None]) -> Starlette:
    """The application over one service. Requests pass the middleware from the top down; `loopback_addresses`: see `HostGuard`.

    `stop` ends the server, for the route that may.
    """
    ollama, create, embed = OllamaRoutes(service), CreateRoutes(service), EmbedRoutes(service)
    maintenance, admin, handover = MaintenanceRoutes(service), AdminRoutes(service), HandoverRoutes(service)
    running = RunningRequests()
    requests, tokens, rerank = RequestRoutes(running), TokenRoutes(service), RerankRoutes(service)
    anthropic = AnthropicRoutes(service)
    openai = OpenAIRoutes(service)
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
            Route("/v1/messages", anthropic.messages, methods=["POST"]),
            Route("/v1/messages/count_tokens", anthropic.count_tokens, methods=["POST"]),
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
            Route("/v1/chat/completions", openai.chat, methods=["POST"]),
            Route("/v1/completions", openai.completions, methods=["POST"]),
            Route("/v1/embeddings", openai.embeddings, methods=["POST"]),
            Route("/v1/models", openai.models, methods=["GET"]),
            Route("/v1/models/{model:path}", openai.model, methods=["GET"]),
            Route("/v1/audio/transcriptions", openai.transcriptions, methods=["POST"]),
            *_response_routes(service),
            Route("/api/verify", maintenance.verify, methods=["POST"]),
            Route("/api/prune", maintenance.prune, methods=["POST"]),
            Route("/api/health", admin.health, methods=["GET"]),
            Route("/v1/rerank", rerank.rerank, methods=["POST"]),
            Route("/rerank", rerank.rerank, methods=["POST"]),
            Route("/api/tokenize", tokens.tokenize, methods=["POST"]),
            Route("/api/detokenize", tokens.detokenize, methods=["POST"]),
            Route("/api/requests", requests.requests, methods=["GET"]),
            Route("/api/requests/{id}", requests.cancel, methods=["DELETE"]),
            Route("/api/doctor", admin.doctor, methods=["POST"]),
            *_foundry_routes(service, stop),
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


def _foundry_routes(service: Service, stop: Callable[[], None]) -> list[Route]:
    """Foundry Local's: those of SDK v2's service, then those of the older daemon. Its GETs that change something are its own choice."""
    v2, daemon = FoundryServiceRoutes(service, stop), FoundryDaemonRoutes(service)
    return [
        Route("/status", v2.status, methods=["GET"]),
        Route("/shutdown", v2.shutdown, methods=["POST"]),
        Route("/models/loaded", v2.loaded, methods=["GET"]),
        Route("/models/load/{name:path}", v2.load, methods=["GET"]),
        Route("/models/unload/{name:path}", v2.unload, methods=["GET"]),
        Route("/foundry/list", daemon.catalogue, methods=["GET"]),
        Route("/openai/status", daemon.status, methods=["GET"]),
        Route("/openai/models", daemon.models, methods=["GET"]),
        Route("/openai/loadedmodels", daemon.loaded, methods=["GET"]),
        Route("/openai/load/{name:path}", daemon.load, methods=["GET"]),
        Route("/openai/unload/{name:path}", daemon.unload, methods=["GET"]),
        Route("/openai/unloadall", daemon.unload_all, methods=["GET"]),
        Route("/openai/download", daemon.download, methods=["POST"]),
        Route("/openai/getgpudevice", daemon.gpu, methods=["GET"]),
        Route("/openai/setgpudevice/{id}", daemon.choose_gpu, methods=["GET"]),
        Route("/openai/register", daemon.register, methods=["POST"]),
        Route(COUNT_PATH, daemon.count_tokens, methods=["POST"]),
def _response_routes(service: Service) -> list[Route]:
    """The routes of the Responses API, over one state of what is kept."""
    state = State(service.settings.responses_ttl, SystemClock())
    responses, conversations = ResponseRoutes(service, state), ConversationRoutes(state)
    return [
        Route("/v1/responses", responses.create, methods=["POST"]),
        Route("/v1/responses/{id}", responses.retrieve, methods=["GET"]),
        Route("/v1/responses/{id}", responses.delete, methods=["DELETE"]),
        Route("/v1/responses/{id}/cancel", responses.cancel, methods=["POST"]),
        Route("/v1/responses/{id}/input_items", responses.input_items, methods=["GET"]),
        Route("/v1/conversations", conversations.create, methods=["POST"]),
        Route("/v1/conversations/{id}", conversations.retrieve, methods=["GET"]),
        Route("/v1/conversations/{id}", conversations.update, methods=["POST"]),
        Route("/v1/conversations/{id}", conversations.delete, methods=["DELETE"]),
        Route("/v1/conversations/{id}/items", conversations.items, methods=["GET"]),
        Route("/v1/conversations/{id}/items", conversations.add_items, methods=["POST"]),
        Route("/v1/conversations/{id}/items/{item}", conversations.item, methods=["GET"]),
        Route("/v1/conversations/{id}/items/{item}", conversations.delete_item, methods=["DELETE"]),
    ]


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
