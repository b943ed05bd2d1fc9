"""Anthropic's routes: each parses the body, calls one method of the service, and formats what comes back."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ndani.api.anthropic.bodies import ConversationBody, TokenCountBody
from ndani.api.anthropic.requests import parse_count_tokens, parse_messages
from ndani.api.anthropic.responses import format_message, id_header
from ndani.api.edge import json_response, request_body, streaming
from ndani.api.edge.ignored_fields import ignored_headers
from ndani.service import Service


class AnthropicRoutes:
    """The routes below /v1/messages, over one service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def messages(self, request: Request) -> Response:
        """POST /v1/messages."""
        fields = await request_body.decode_exact(request)
        body, parsed = parse_messages(fields)
        assert body.max_tokens is not None  # it was required
        show_thinking = body.thinking is None or body.thinking.display != "omitted"
        response_format = format_message(body.model, body.max_tokens, show_thinking=show_thinking)
        sink = streaming.open_sink(bool(body.stream), response_format)
        events, ignored_config = await self._service.answers.chat(parsed, sink)
        headers = id_header() | ignored_headers([*_ignored(fields, body), *ignored_config])
        return await streaming.respond(events, sink, response_format, headers)

    async def count_tokens(self, request: Request) -> Response:
        """POST /v1/messages/count_tokens: exact, since the model's own tokenizer counts the prompt that would be sent."""
        fields = await request_body.decode_exact(request)
        body, parsed = parse_count_tokens(fields)
        count = await self._service.answers.count_tokens(parsed)
        return json_response.respond(TokenCountBody(count), headers=id_header() | ignored_headers(_ignored(fields, body)))


def _ignored(fields: dict[str, Any], body: ConversationBody) -> list[str]:
    """The fields that the API does not have: they have no effect, and a header says so."""
    return [name for name in fields if name not in body.__struct_fields__]
