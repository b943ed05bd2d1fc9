"""Ollama's API: every URL of it, and how its errors look. What is no other dialect's is this one's."""

from __future__ import annotations

from ndani.api.edge.dialect import Context, Dialect, delete, get, head, post
from ndani.api.ollama import cloud
from ndani.api.ollama.create import CreateRoutes
from ndani.api.ollama.embed import EmbedRoutes
from ndani.api.ollama.responses import ERRORS
from ndani.api.ollama.routes import OllamaRoutes


def dialect(context: Context) -> Dialect:
    """The dialect over one service."""
    ollama, create, embed = OllamaRoutes(context.service), CreateRoutes(context.service), EmbedRoutes(context.service)
    return Dialect(
        routes=(
            get("/", ollama.root),
            get("/api/version", ollama.version),
            get("/api/status", ollama.status),
            post("/api/generate", ollama.generate),
            post("/api/chat", ollama.chat),
            post("/api/embed", embed.embed),
            post("/api/embeddings", embed.embeddings),
            get("/api/tags", ollama.tags),
            get("/api/ps", ollama.ps),
            post("/api/show", ollama.show),
            post("/api/copy", ollama.copy),
            delete("/api/delete", ollama.delete),
            post("/api/pull", ollama.pull),
            post("/api/push", ollama.push),
            post("/api/create", create.create),
            head("/api/blobs/{digest}", create.has_blob),
            post("/api/blobs/{digest}", create.upload_blob),
            post("/api/me", cloud.account),
            post("/api/signout", cloud.account),
            post("/api/experimental/web_search", cloud.web_search),
            post("/api/experimental/web_fetch", cloud.web_fetch),
        ),
        errors=(("", ERRORS),),
        large_bodies=frozenset({"/api/generate", "/api/chat", "/api/embed", "/api/embeddings", "/api/create"}),
    )
