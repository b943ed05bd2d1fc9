"""The events of a streamed message, as types: for the description of the routes. `responses` writes them, most as bytes at once."""

from __future__ import annotations

from typing import Literal

import msgspec

from ndani.api.anthropic.bodies import ErrorBody, MessageBody, StopReason, TextOut, ThinkingOut, ToolUseOut, UsageBody


class Event(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """An event holds nothing but what its type names."""


class MessageStart(Event, kw_only=True):
    """The first event: the message without content."""

    type: Literal["message_start"]
    message: MessageBody


class Ping(Event, kw_only=True):
    """Nothing has happened that the client can see, and the connection lives."""

    type: Literal["ping"]


class BlockStart(Event, kw_only=True):
    """A block of content begins."""

    type: Literal["content_block_start"]
    index: int
    content_block: TextOut | ThinkingOut | ToolUseOut


class TextDelta(msgspec.Struct, tag_field="type", tag="text_delta", forbid_unknown_fields=True):
    """A piece of text."""

    text: str


class ThinkingDelta(msgspec.Struct, tag_field="type", tag="thinking_delta", forbid_unknown_fields=True):
    """A piece of what the model thinks."""

    thinking: str


class SignatureDelta(msgspec.Struct, tag_field="type", tag="signature_delta", forbid_unknown_fields=True):
    """The signature of the thoughts, which is empty here."""

    signature: str


class InputDelta(msgspec.Struct, tag_field="type", tag="input_json_delta", forbid_unknown_fields=True):
    """A piece of a tool's arguments as JSON."""

    partial_json: str


class BlockDelta(Event, kw_only=True):
    """A block of content goes on."""

    type: Literal["content_block_delta"]
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockStop(Event, kw_only=True):
    """A block of content has ended."""

    type: Literal["content_block_stop"]
    index: int


class EndDelta(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Why the message ends."""

    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(Event, kw_only=True):
    """The message is about to end."""

    type: Literal["message_delta"]
    delta: EndDelta
    usage: UsageBody


class MessageStop(Event, kw_only=True):
    """The last event of a message that has not failed."""

    type: Literal["message_stop"]


EVENT_TYPES = (MessageStart, Ping, BlockStart, BlockDelta, BlockStop, MessageDelta, MessageStop, ErrorBody)
