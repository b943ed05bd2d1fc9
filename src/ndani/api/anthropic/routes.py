"""Anthropic's routes: each parses the body, calls one method of the service, and formats what comes back."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ndani.api.anthropic.bodies import ConversationBody, TokenCountBody
from ndani.api.anthropic.requests import parse_count_tokens, parse_messages
from ndani.api.anthropic.responses import format_message, id_header
from ndani.api.edge import json_response, request_body, streaming
from ndani.api.edge.content import unenforced_strict
from ndani.api.edge.ignored_fields import ignored_headers
from ndani.service import Service
from ndani.types import ToolChoice


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
    """The fields that have no effect here, those that the API does not have among them: a header says so."""
    tools, choice = body.tools or [], body.tool_choice
    must_call = choice is not None and choice.type in ("any", "tool")
    ignored = [name for name in fields if name not in body.__struct_fields__]
    ignored += unenforced_strict((tool.strict for tool in tools), ToolChoice("required" if must_call else "auto"))
    return [*ignored, "eager_input_streaming"] if any(tool.eager_input_streaming for tool in tools) else ignored
