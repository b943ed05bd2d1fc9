"""OpenAI's API: every URL of it, and how its errors look."""

from __future__ import annotations

from ndani.api.edge.dialect import Context, Dialect, get, post
from ndani.api.edge.media_types import BYTES, EVENTS
from ndani.api.edge.operation import Operation
from ndani.api.openai import bodies, objects
from ndani.api.openai.errors import ERRORS, MODEL_ERRORS
from ndani.api.openai.routes import OpenAIRoutes


def dialect(context: Context) -> Dialect:
    """The dialect over one service."""
    openai = OpenAIRoutes(context.service)
    return Dialect(
        name="openai",
        title="OpenAI's API",
        routes=(
            post(
                "/v1/chat/completions",
                openai.chat,
                Operation("Continue a conversation", bodies.ChatBody, objects.ChatCompletion, objects.ChatChunk, EVENTS),
            ),
            post(
                "/v1/completions",
                openai.completions,
                Operation("Continue a prompt", bodies.CompletionBody, objects.TextCompletion, objects.TextCompletion, EVENTS),
            ),
            post("/v1/embeddings", openai.embeddings, Operation("Make vectors of texts", bodies.EmbeddingsBody, objects.EmbeddingList)),
            get("/v1/models", openai.models, Operation("The models in the store", answer=objects.ModelList)),
            get("/v1/models/{model:path}", openai.model, Operation("A model in the store", answer=objects.ModelObject)),
            post(
                "/v1/audio/transcriptions",
                openai.transcriptions,
                Operation("Refused: no model here hears", bytes, body_media=BYTES, body_optional=True, statuses=()),
            ),
        ),
        errors=(("/v1", ERRORS), ("/v1/models/", MODEL_ERRORS)),
        large_bodies=frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/audio/transcriptions"}),
    )
