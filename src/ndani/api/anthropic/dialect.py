"""Anthropic's API: every URL of it, and how its errors look."""

from __future__ import annotations

from ndani.api.anthropic import bodies
from ndani.api.anthropic.events import EVENT_TYPES
from ndani.api.anthropic.responses import ERRORS
from ndani.api.anthropic.routes import AnthropicRoutes
from ndani.api.edge.dialect import Context, Dialect, post
from ndani.api.edge.media_types import EVENTS
from ndani.api.edge.operation import Operation


def dialect(context: Context) -> Dialect:
    """The dialect over one service."""
    anthropic = AnthropicRoutes(context.service)
    return Dialect(
        name="anthropic",
        title="Anthropic's API",
        routes=(
            post(
                "/v1/messages",
                anthropic.messages,
                Operation("Continue a conversation", bodies.MessagesBody, bodies.MessageBody, EVENT_TYPES, EVENTS),
            ),
            post(
                "/v1/messages/count_tokens",
                anthropic.count_tokens,
                Operation("How many tokens a conversation has", bodies.CountTokensBody, bodies.TokenCountBody),
            ),
        ),
        errors=(("/v1/messages", ERRORS),),
        large_bodies=frozenset({"/v1/messages", "/v1/messages/count_tokens"}),
    )
