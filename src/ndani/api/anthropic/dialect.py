"""Anthropic's API: every URL of it, and how its errors look."""

from __future__ import annotations

from ndani.api.anthropic.responses import ERRORS
from ndani.api.anthropic.routes import AnthropicRoutes
from ndani.api.edge.dialect import Context, Dialect, post


def dialect(context: Context) -> Dialect:
    """The dialect over one service."""
    anthropic = AnthropicRoutes(context.service)
    return Dialect(
        routes=(
            post("/v1/messages", anthropic.messages),
            post("/v1/messages/count_tokens", anthropic.count_tokens),
        ),
        errors=(("/v1/messages", ERRORS),),
        large_bodies=frozenset({"/v1/messages", "/v1/messages/count_tokens"}),
    )
