"""OpenAI's API: every URL of it, and how its errors look."""

from __future__ import annotations

from ndani.api.edge.dialect import Context, Dialect, get, post
from ndani.api.openai.errors import ERRORS, MODEL_ERRORS
from ndani.api.openai.routes import OpenAIRoutes


def dialect(context: Context) -> Dialect:
    """The dialect over one service."""
    openai = OpenAIRoutes(context.service)
    return Dialect(
        routes=(
            post("/v1/chat/completions", openai.chat),
            post("/v1/completions", openai.completions),
            post("/v1/embeddings", openai.embeddings),
            get("/v1/models", openai.models),
            get("/v1/models/{model:path}", openai.model),
            post("/v1/audio/transcriptions", openai.transcriptions),
        ),
        errors=(("/v1", ERRORS), ("/v1/models/", MODEL_ERRORS)),
        large_bodies=frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/audio/transcriptions"}),
    )
