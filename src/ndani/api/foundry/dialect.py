"""Foundry Local's API: every URL of it, and how its errors look.

First the routes of SDK v2's service, then those of the older daemon. That some GETs change something is its own choice.
"""

from __future__ import annotations

from ndani.api.edge.dialect import Context, Dialect, get, post
from ndani.api.foundry.daemon_routes import FoundryDaemonRoutes
from ndani.api.foundry.responses import ERRORS
from ndani.api.foundry.service_routes import FoundryServiceRoutes

_COUNT = "/v1/chat/completions/tokenizer/encode/count"
_CHAT = "/v1/chat/completions"
_PREFIXES = ("/status", "/shutdown", "/models/", "/openai/", "/foundry/", _COUNT)


def dialect(context: Context) -> Dialect:
    """The dialect over one service."""
    v2, daemon = FoundryServiceRoutes(context.service, context.stop), FoundryDaemonRoutes(context.service)
    # Ollama and Foundry Local give an unknown model's error different types on one path, so only one of them can be obeyed.
    shared = (_CHAT,) if context.service.settings.foundry_errors else ()
    return Dialect(
        routes=(
            get("/status", v2.status),
            post("/shutdown", v2.shutdown),
            get("/models/loaded", v2.loaded),
            get("/models/load/{name:path}", v2.load),
            get("/models/unload/{name:path}", v2.unload),
            get("/foundry/list", daemon.catalogue),
            get("/openai/status", daemon.status),
            get("/openai/models", daemon.models),
            get("/openai/loadedmodels", daemon.loaded),
            get("/openai/load/{name:path}", daemon.load),
            get("/openai/unload/{name:path}", daemon.unload),
            get("/openai/unloadall", daemon.unload_all),
            post("/openai/download", daemon.download),
            get("/openai/getgpudevice", daemon.gpu),
            get("/openai/setgpudevice/{id}", daemon.choose_gpu),
            post("/openai/register", daemon.register),
            post(_COUNT, daemon.count_tokens),
        ),
        errors=tuple((prefix, ERRORS) for prefix in (*_PREFIXES, *shared)),
        large_bodies=frozenset({_COUNT}),
    )
