"""The items that conversations are made of, in OpenAI's JSON: messages, calls of functions, their results, reasoning.

Input and output are the same items, so that an output can be the input of the next request. `input_items` parses them.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from typing import Any, Literal

import msgspec

Status = Literal["in_progress", "completed", "incomplete"]


class TokenChance(msgspec.Struct, kw_only=True):
    """A token with its natural log-probability, and its bytes."""

    token: str
    logprob: float
    bytes: list[int] = []


class Logprob(TokenChance, kw_only=True):
    """A token of a text, with the most probable tokens at its place."""

    top_logprobs: list[TokenChance] = []


class InputText(msgspec.Struct, tag="input_text", kw_only=True):
    """A text that was sent."""

    text: str


class InputImage(msgspec.Struct, tag="input_image", kw_only=True):
    """An image that was sent, as a data URL. A model sees it at the size that it was trained on, whatever `detail` says."""

    image_url: str | None = None
    file_id: str | None = None
    detail: Literal["low", "high", "auto", "original"] | None = "auto"


class OutputText(msgspec.Struct, tag="output_text", kw_only=True):
    """A text that a model wrote. Nothing here cites sources, so it has no annotations."""

    text: str
    annotations: list[Any] = []
    logprobs: list[Logprob] | None = []


class Refusal(msgspec.Struct, tag="refusal", kw_only=True):
    """A refusal that a model of another server wrote; here it is a text like any other."""

    refusal: str


Part = InputText | InputImage | OutputText | Refusal


class MessageItem(msgspec.Struct, tag="message", kw_only=True):
    """A turn of a conversation."""

    id: str
    status: Status = "completed"
    role: Literal["user", "assistant", "system", "developer"]
    content: list[Part] = []


class SummaryText(msgspec.Struct, tag="summary_text", kw_only=True):
    """What a model thought. It is the thought itself, not a summary of it."""

    text: str


class ReasoningText(msgspec.Struct, tag="reasoning_text", kw_only=True):
    """What a model of another server thought."""

    text: str


class ReasoningItem(msgspec.Struct, tag="reasoning", kw_only=True):
    """What a model thought before it answered."""

    id: str
    status: Status | None = "completed"
    summary: list[SummaryText] = []
    content: list[ReasoningText] | None = None
    encrypted_content: str | None = None


class FunctionCall(msgspec.Struct, tag="function_call", kw_only=True):
    """A call of a function by a model; `arguments` is a JSON object as a text."""

    id: str
    status: Status | None = "completed"
    call_id: str
    name: str
    arguments: str = ""


class FunctionCallOutput(msgspec.Struct, tag="function_call_output", kw_only=True):
    """What a function returned to the call of this id."""

    id: str
    status: Status | None = "completed"
    call_id: str
    output: str | list[Part]


Item = MessageItem | ReasoningItem | FunctionCall | FunctionCallOutput


def new_id(prefix: str) -> str:
    """An id that nobody can guess: whoever knows the id of a response or a conversation can read it."""
    return f"{prefix}_{secrets.token_hex(20)}"


def text_of(parts: Iterable[Part]) -> str:
    """The texts of a message's parts, joined."""
    return "".join(part.refusal if isinstance(part, Refusal) else part.text for part in parts if not isinstance(part, InputImage))
