"""The routes of conversations: items that the server keeps for a while, so that a response can continue them."""

from __future__ import annotations

import time
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from ndani.api.edge import json_response
from ndani.api.edge.body_type import convert
from ndani.api.edge.ignored_fields import unknown_fields
from ndani.api.edge.request_body import decode_exact
from ndani.api.responses.input_items import parse_items, to_messages
from ndani.api.responses.items import Item, new_id
from ndani.api.responses.metadata import require_metadata
from ndani.api.responses.objects import (
    ConversationObject,
    CreateConversation,
    CreateItems,
    DeletedObject,
    ItemList,
    UpdateConversation,
)
from ndani.api.responses.paging import page_of
from ndani.api.responses.state import Conversation, State
from ndani.errors import Cancelled, NotFound


class ConversationRoutes:
    """The routes of conversations, over what is kept."""

    def __init__(self, state: State) -> None:
        self._state = state

    async def create(self, request: Request) -> Response:
        """POST /v1/conversations; its body may be missing."""
        fields = await _optional_body(request)
        body = convert(fields, CreateConversation)
        head = ConversationObject(id=new_id("conv"), created_at=int(time.time()), metadata=require_metadata(body.metadata))
        items = parse_items(body.items or [], "items", self._state.items_by_id)
        to_messages(items)  # what no answer could continue is refused now
        created = self._state.create_conversation(head, items).head
        return json_response.respond(created, headers=unknown_fields(fields, CreateConversation))

    async def retrieve(self, request: Request) -> Response:
        """GET /v1/conversations/{id}."""
        return json_response.respond(self._found(request).head)

    async def update(self, request: Request) -> Response:
        """POST /v1/conversations/{id}: other metadata."""
        fields = await decode_exact(request)
        body = convert(fields, UpdateConversation)
        found = self._found(request)
        head = msgspec.structs.replace(found.head, metadata=require_metadata(body.metadata))
        self._state.change(head.id, head, found.items)
        return json_response.respond(head, headers=unknown_fields(fields, UpdateConversation))

    async def delete(self, request: Request) -> Response:
        """DELETE /v1/conversations/{id}. Its items go with it; responses are kept or deleted on their own."""
        conversation_id = request.path_params["id"]
        self._state.delete_conversation(conversation_id)
        return json_response.respond(DeletedObject(id=conversation_id, object="conversation.deleted"))

    async def items(self, request: Request) -> Response:
        """GET /v1/conversations/{id}/items."""
        return await json_response.respond_large(msgspec.to_builtins(page_of(self._found(request).items, request.query_params)))

    async def add_items(self, request: Request) -> Response:
        """POST /v1/conversations/{id}/items."""
        fields = await decode_exact(request)
        body = convert(fields, CreateItems)
        found = self._found(request)
        items = parse_items(body.items, "items", self._state.items_by_id)
        to_messages((*found.items, *items))
        self._state.extend(found.head.id, items)
        first, last = (items[0].id, items[-1].id) if items else (None, None)
        listed = ItemList(data=list(items), first_id=first, last_id=last)
        return json_response.respond(listed, headers=unknown_fields(fields, CreateItems))

    async def item(self, request: Request) -> Response:
        """GET /v1/conversations/{id}/items/{item}."""
        return json_response.respond(self._found_item(request)[1])

    async def delete_item(self, request: Request) -> Response:
        """DELETE /v1/conversations/{id}/items/{item}: answers with the conversation."""
        found, removed = self._found_item(request)
        self._state.change(found.head.id, found.head, [item for item in found.items if item is not removed])
        return json_response.respond(found.head)

    def _found(self, request: Request) -> Conversation:
        return self._state.conversation(request.path_params["id"])

    def _found_item(self, request: Request) -> tuple[Conversation, Item]:
        found = self._found(request)
        for item in found.items:
            if item.id == request.path_params["item"]:
                return found, item
        raise NotFound("the conversation has no item of this id")


async def _optional_body(request: Request) -> dict[str, Any]:
    """The body, or an empty one. Raises BadRequest, and Cancelled when the client disconnects before its end."""
    try:
        content = await request.body()
    except ClientDisconnect:
        raise Cancelled("request canceled") from None
    return await decode_exact(request) if content else {}
