"""OpenAI's Responses API: every URL of it. All routes share one state of what is kept; errors are those of every path of OpenAI's."""

from __future__ import annotations

from ndani.api.edge.dialect import Context, Dialect, delete, get, post
from ndani.api.responses.conversations import ConversationRoutes
from ndani.api.responses.routes import ResponseRoutes
from ndani.api.responses.state import State
from ndani.runtime.clock import SystemClock


def dialect(context: Context) -> Dialect:
    """The dialect over one service."""
    state = State(context.service.settings.responses_ttl, SystemClock())
    responses, conversations = ResponseRoutes(context.service, state), ConversationRoutes(state)
    return Dialect(
        routes=(
            post("/v1/responses", responses.create),
            post("/v1/responses/input_tokens", responses.input_tokens),
            get("/v1/responses/{id}", responses.retrieve),
            delete("/v1/responses/{id}", responses.delete),
            post("/v1/responses/{id}/cancel", responses.cancel),
            get("/v1/responses/{id}/input_items", responses.input_items),
            post("/v1/conversations", conversations.create),
            get("/v1/conversations/{id}", conversations.retrieve),
            post("/v1/conversations/{id}", conversations.update),
            delete("/v1/conversations/{id}", conversations.delete),
            get("/v1/conversations/{id}/items", conversations.items),
            post("/v1/conversations/{id}/items", conversations.add_items),
            get("/v1/conversations/{id}/items/{item}", conversations.item),
            delete("/v1/conversations/{id}/items/{item}", conversations.delete_item),
        ),
        large_bodies=frozenset({"/v1/responses", "/v1/responses/input_tokens", "/v1/conversations"}),
    )
