"""Foundry Local's API: every URL of it, and how its errors look.

First the routes of SDK v2's service, then those of the older daemon. That some GETs change something is its own choice.
"""

from __future__ import annotations

from ndani.api.edge.dialect import Context, Dialect, get, post
from ndani.api.edge.media_types import TEXT
from ndani.api.edge.operation import Operation
from ndani.api.foundry import bodies
from ndani.api.foundry.daemon_routes import FoundryDaemonRoutes
from ndani.api.foundry.responses import ERRORS
from ndani.api.foundry.service_routes import FoundryServiceRoutes
from ndani.api.openai.bodies import ChatBody

_COUNT = "/v1/chat/completions/tokenizer/encode/count"
_CHAT = "/v1/chat/completions"
_PREFIXES = ("/status", "/shutdown", "/models/", "/openai/", "/foundry/", _COUNT)


def dialect(context: Context) -> Dialect:
    """The dialect over one service."""
    v2, daemon = FoundryServiceRoutes(context.service, context.stop), FoundryDaemonRoutes(context.service)
    # Ollama and Foundry Local give an unknown model's error different types on one path, so only one of them can be obeyed.
    shared = (_CHAT,) if context.service.settings.foundry_errors else ()
    return Dialect(
        name="foundry",
        title="Foundry Local's API",
        routes=(
            get("/status", v2.status, Operation("Where the service is", answer=bodies.ServiceStatus)),
            post(
                "/shutdown",
                v2.shutdown,
                Operation("End a server that a command has started in the background", answer=bodies.ShutdownState),
            ),
            get("/models/loaded", v2.loaded, Operation("The ids of the models in memory", answer=list[str])),
            get("/models/load/{name:path}", v2.load, Operation("Load a model", answer=bodies.LoadState)),
            get("/models/unload/{name:path}", v2.unload, Operation("Unload a model", answer=bodies.UnloadState)),
            get(
                "/foundry/list",
                daemon.catalogue,
                Operation("The models that are here, and those that can be downloaded", answer=list[bodies.ListedModel]),
            ),
            get("/openai/status", daemon.status, Operation("Where the daemon is", answer=bodies.DaemonStatus)),
            get("/openai/models", daemon.models, Operation("The ids of the models in the store", answer=list[str])),
            get("/openai/loadedmodels", daemon.loaded, Operation("The ids of the models in memory", answer=list[str])),
            get("/openai/load/{name:path}", daemon.load, Operation("Load a model", query={"ttl": str, "unload": str, "ep": str})),
            get("/openai/unload/{name:path}", daemon.unload, Operation("Unload a model", query={"force": str})),
            get("/openai/unloadall", daemon.unload_all, Operation("Unload all models")),
            post(
                "/openai/download",
                daemon.download,
                Operation("Fetch a model: lines of progress, then one object", bodies.DownloadBody, str, answer_media=TEXT),
            ),
            get("/openai/getgpudevice", daemon.gpu, Operation("The GPU that is used", answer=int)),
            get("/openai/setgpudevice/{id}", daemon.choose_gpu, Operation("Choose a GPU: only the one that is used")),
            post("/openai/register", daemon.register, Operation("Refused: every model runs on this machine", statuses=())),
            post(_COUNT, daemon.count_tokens, Operation("How many tokens a conversation has", ChatBody, bodies.TokenCount)),
        ),
        errors=tuple((prefix, ERRORS) for prefix in (*_PREFIXES, *shared)),
        large_bodies=frozenset({_COUNT}),
    )
