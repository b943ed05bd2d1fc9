"""Answers and errors in Anthropic's JSON and events. Pure but for the ids, which are random."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from ndani.api.anthropic.bodies import (
    ErrorBody,
    ErrorDetail,
    MessageBody,
    StopReason,
    TextOut,
    ThinkingOut,
    ToolUseOut,
    UsageBody,
)
from ndani.api.edge import json_response
from ndani.api.edge.faults import ErrorFormat
from ndani.api.edge.json_response import encode
from ndani.api.edge.media_types import EVENTS
from ndani.api.edge.running_requests import current_id
from ndani.api.edge.streaming import ResponseFormat
from ndani.types import Answer, Called, Done, Event, Rendered, Text, Thought, ToolCall, Usage

#: Anthropic's kinds of errors, by status; any other is an error of the API.
_KINDS: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}

_END_OF_DELTA = b"}}\n\n"
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'


def id_header() -> dict[str, str]:
    """The header in which Anthropic's clients look for the id of a request; the one that all dialects have is the edge's."""
    return {"request-id": current_id()}


def _error_body(status: int, message: str) -> ErrorBody:
    return ErrorBody(ErrorDetail(_KINDS.get(status, "api_error"), message), current_id())


def _no_route(status: int, headers: Mapping[str, str]) -> Response:
    message = "this path does not have this method" if status == 405 else "there is no such path"
    return json_response.respond(_error_body(status, message), status, {**headers, **id_header()})


ERRORS = ErrorFormat(
    lambda error: _error_body(error.status, str(error)),
    lambda error: _frame("error", _error_body(error.status, str(error))),
    _no_route,
    ErrorBody,
    id_header,
)


def format_message(model: str, max_tokens: int, *, show_thinking: bool = True) -> ResponseFormat:
    """How /v1/messages writes its events and its one object; `model` is the name as the client spelt it.

    Without `show_thinking` a thinking block is empty.
    """
    message_id = f"msg_{secrets.token_hex(12)}"
    begin = MessageBody(message_id, model, [], UsageBody())
    stream = _Stream(begin, max_tokens, show_thinking)

    def whole(answer: Answer, end: Done | Rendered) -> bytes:
        assert isinstance(end, Done)
        content: list[TextOut | ThinkingOut | ToolUseOut] = []
        if answer.thinking:
            content.append(ThinkingOut(answer.thinking if show_thinking else ""))
        if answer.text:
            content.append(TextOut(answer.text))
        content += [_tool_use(call, dict(call.arguments)) for call in answer.tool_calls]
        reason = _stop_reason(end, max_tokens, called=bool(answer.tool_calls))
        return encode(MessageBody(message_id, model, content, _usage(end.usage), reason, end.stop_sequence))

    return ResponseFormat(f"{EVENTS}; charset=utf-8", stream.frames, whole, lambda first: False, ERRORS, stream.measure)


class _Stream:
    """The events of one answer: pieces of one kind are the deltas of one content block."""

    def __init__(self, begin: MessageBody, max_tokens: int, show_thinking: bool) -> None:
        self._begin: MessageBody | None = begin
        self._max_tokens = max_tokens
        self._show_thinking = show_thinking
        self._index = -1  # of the content block that was opened last
        self._open: type[Text] | type[Thought] | None = None
        self._delta = b""  # what stands before the text in each delta of the open block
        self._called = False

    def measure(self, prompt_tokens: int, cached_tokens: int) -> None:
        """The size of the prompt, which the first event tells."""
        if self._begin:
            self._begin.usage = _usage(Usage(prompt_tokens, cached_tokens))

    def frames(self, event: Event) -> bytes:
        """The bytes of everything that an event of the answer means: starts and ends of blocks too."""
        if type(event) is self._open:
            return self._text(event)  # nearly all of them
        head = b""
        if self._begin:
            head, self._begin = _frame("message_start", {"type": "message_start", "message": self._begin}), None
        head += self._stop_block()
        if isinstance(event, (Text, Thought)):
            return head + self._start_block(event) + self._text(event)
        if isinstance(event, Called):
            self._called = True
            arguments = {"type": "input_json_delta", "partial_json": encode(event.call.arguments).decode()}
            start = self._start(_tool_use(event.call, {}))
            delta = _frame("content_block_delta", {"type": "content_block_delta", "index": self._index, "delta": arguments})
            return head + start + delta + self._stop()
        assert isinstance(event, Done)
        reason = _stop_reason(event, self._max_tokens, called=self._called)
        end = {
            "type": "message_delta",
            "delta": {"stop_reason": reason, "stop_sequence": event.stop_sequence},
            "usage": _usage(event.usage),
        }
        return head + _frame("message_delta", end) + _frame("message_stop", {"type": "message_stop"})

    def _text(self, piece: Any) -> bytes:
        if not self._delta:  # thinking that is not shown; something must be sent for each piece
            return _PING
        return self._delta + encode(piece.text) + _END_OF_DELTA

    def _start_block(self, piece: Text | Thought) -> bytes:
        self._open = type(piece)
        thinks = isinstance(piece, Thought)
        start = self._start(ThinkingOut("") if thinks else TextOut(""))
        kind, field = (b"thinking_delta", b"thinking") if thinks else (b"text_delta", b"text")
        self._delta = b"" if thinks and not self._show_thinking else _DELTA % (self._index, kind, field)
        return start

    def _stop_block(self) -> bytes:
        """End the block of text or thinking that is open, if one is."""
        if self._open is None:
            return b""
        signature = b""
        if self._open is Thought:
            delta = {"type": "signature_delta", "signature": ""}
            signature = _frame("content_block_delta", {"type": "content_block_delta", "index": self._index, "delta": delta})
        self._open = None
        return signature + self._stop()

    def _start(self, block: TextOut | ThinkingOut | ToolUseOut) -> bytes:
        self._index += 1
        return _frame("content_block_start", {"type": "content_block_start", "index": self._index, "content_block": block})

    def _stop(self) -> bytes:
        return _frame("content_block_stop", {"type": "content_block_stop", "index": self._index})


#: The start of a delta, up to its text: the index of its block, the kind of delta, and the name of the field.
_DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":"%b","%b":'


def _frame(name: str, value: object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), encode(value))


def _tool_use(call: ToolCall, arguments: dict[str, Any]) -> ToolUseOut:
    return ToolUseOut(f"toolu_{secrets.token_hex(12)}", call.name, arguments)


def _usage(usage: Usage) -> UsageBody:
    cached = min(usage.cached_tokens, usage.prompt_tokens)
    return UsageBody(usage.prompt_tokens - cached, 0, cached, usage.output_tokens)


def _stop_reason(end: Done, max_tokens: int, *, called: bool) -> StopReason:
    if end.reason == "length":  # an answer also ends at the end of the context, which is not shifted
        return "max_tokens" if end.usage.output_tokens >= max_tokens else "model_context_window_exceeded"
    if called:
        return "tool_use"
    return "end_turn" if end.stop_sequence is None else "stop_sequence"
