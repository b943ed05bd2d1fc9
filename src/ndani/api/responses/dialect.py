"""OpenAI's Responses API: every URL of it. All routes share one state of what is kept; errors are those of every path of OpenAI's."""

from __future__ import annotations

from ndani.api.edge.dialect import Context, Dialect, delete, get, post
from ndani.api.edge.media_types import EVENTS
from ndani.api.edge.operation import DescribedRoute, Operation
from ndani.api.responses import items, objects
from ndani.api.responses.conversations import ConversationRoutes
from ndani.api.responses.events import ResponseEvent
from ndani.api.responses.paging import QUERY
from ndani.api.responses.routes import ResponseRoutes
from ndani.api.responses.state import State
from ndani.runtime.clock import SystemClock


def dialect(context: Context) -> Dialect:
    """The dialect over one service."""
    state = State(context.service.settings.responses_ttl, SystemClock())
    responses, conversations = ResponseRoutes(context.service, state), ConversationRoutes(state)
    return Dialect(
        name="responses",
        title="OpenAI's Responses API",
        routes=(
            post(
                "/v1/responses",
                responses.create,
                Operation("Answer an input", objects.CreateResponse, objects.ResponseObject, ResponseEvent, EVENTS),
            ),
            post(
                "/v1/responses/input_tokens",
                responses.input_tokens,
                Operation("Count an input's tokens", objects.CreateResponse, objects.InputTokens),
            ),
            get(
                "/v1/responses/{id}",
                responses.retrieve,
                Operation("A response that is kept", answer=objects.ResponseObject, query={"stream": str}),
            ),
            delete("/v1/responses/{id}", responses.delete, Operation("Forget a response", answer=objects.DeletedObject)),
            post(
                "/v1/responses/{id}/cancel", responses.cancel, Operation("Refused: a response that has an id here is finished", statuses=())
            ),
            get(
                "/v1/responses/{id}/input_items",
                responses.input_items,
                Operation("What a response answers", answer=objects.ItemList, query=QUERY),
            ),
            *_conversation_routes(conversations),
        ),
        large_bodies=frozenset({"/v1/responses", "/v1/responses/input_tokens", "/v1/conversations"}),
    )


def _conversation_routes(conversations: ConversationRoutes) -> tuple[DescribedRoute, ...]:
    return (
        post(
            "/v1/conversations",
            conversations.create,
            Operation("Begin a conversation", objects.CreateConversation, objects.ConversationObject, body_optional=True),
        ),
        get(
            "/v1/conversations/{id}",
            conversations.retrieve,
            Operation("A conversation, without its items", answer=objects.ConversationObject),
        ),
        post(
            "/v1/conversations/{id}",
            conversations.update,
            Operation("Give a conversation other metadata", objects.UpdateConversation, objects.ConversationObject),
        ),
        delete("/v1/conversations/{id}", conversations.delete, Operation("Forget a conversation", answer=objects.DeletedObject)),
        get(
            "/v1/conversations/{id}/items",
            conversations.items,
            Operation("The items of a conversation", answer=objects.ItemList, query=QUERY),
        ),
        post(
            "/v1/conversations/{id}/items",
            conversations.add_items,
            Operation("Add items to a conversation", objects.CreateItems, objects.ItemList),
        ),
        get("/v1/conversations/{id}/items/{item}", conversations.item, Operation("An item of a conversation", answer=items.Item)),
        delete(
            "/v1/conversations/{id}/items/{item}",
            conversations.delete_item,
            Operation("Remove an item of a conversation", answer=objects.ConversationObject),
        ),
    )
