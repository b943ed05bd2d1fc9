"""Parses input items, and makes of a conversation's items the messages that a model reads. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ndani.api.edge.body_type import convert
from ndani.api.openai.messages import image_of, parse_arguments
from ndani.api.responses.items import (
    FunctionCall,
    FunctionCallOutput,
    InputImage,
    InputText,
    Item,
    MessageItem,
    OutputText,
    Part,
    ReasoningItem,
    new_id,
    text_of,
)
from ndani.errors import BadRequest
from ndani.types import Message, ToolCall

#: Kinds of items, with the prefix of their ids.
_KINDS: dict[str, tuple[type[Item], str]] = {
    "message": (MessageItem, "msg"),
    "reasoning": (ReasoningItem, "rs"),
    "function_call": (FunctionCall, "fc"),
    "function_call_output": (FunctionCallOutput, "fco"),
}
_PARTS = ("input_text", "input_image", "output_text", "refusal")

_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


def parse_items(value: str | list[dict[str, Any]], where: str, kept: Callable[[], dict[str, Item]]) -> tuple[Item, ...]:
    """The items of a request: a text is a message of the user. `kept` has those that the server keeps, for references.

    Raises BadRequest that names the item, by `where` and its index.
    """
    if isinstance(value, str):
        return (MessageItem(id=new_id("msg"), role="user", content=[InputText(text=value)]),)
    items: list[Item] = []
    known: dict[str, Item] | None = None
    for index, raw in enumerate(value):
        try:
            if _is_reference(raw):
                known = kept() if known is None else known
                items.append(_referenced(raw, known))
            else:
                items.append(_parse_item(raw))
        except BadRequest as error:
            raise BadRequest(f"{where}[{index}].{error}") from None
    return tuple(items)


def _is_reference(raw: dict[str, Any]) -> bool:
    return raw.get("type") == "item_reference" or (raw.get("type") is None and "role" not in raw and "id" in raw)


def _referenced(raw: dict[str, Any], known: dict[str, Item]) -> Item:
    found = known.get(raw["id"]) if isinstance(raw.get("id"), str) else None
    if found is None:
        raise BadRequest("id names no item that is kept here; send the item itself")
    return found


def _parse_item(raw: dict[str, Any]) -> Item:
    kind = raw.get("type") or "message"
    if not isinstance(kind, str) or kind not in _KINDS:
        raise BadRequest(f"type must be one of {', '.join(_KINDS)}, item_reference; no other items are served here")
    item_type, prefix = _KINDS[kind]
    fields = {key: value for key, value in raw.items() if value is not None} | {"type": kind, "id": _item_id(raw, prefix)}
    for name in ("content", "output"):
        if name in fields and kind != "reasoning":
            fields[name] = _parts(fields[name], name, str(raw.get("role")))
    item = convert(fields, item_type)
    if isinstance(item, FunctionCall):
        parse_arguments(item.arguments, "arguments")
    return item


def _item_id(raw: dict[str, Any], prefix: str) -> str:
    identity = raw.get("id")
    if identity is None:
        return new_id(prefix)
    if not isinstance(identity, str) or not _ID.fullmatch(identity):
        raise BadRequest("id must be a text of 1 to 128 letters, digits and any of _ . : -")
    return identity


def _parts(value: object, where: str, role: str) -> object:
    """The content of a message or of a function's result, its kinds of parts checked; a text is a list of one part in a message."""
    if isinstance(value, str):
        if where == "output":
            return value
        return [{"type": "output_text" if role == "assistant" else "input_text", "text": value}]
    if isinstance(value, list):
        for index, part in enumerate(value):
            if not isinstance(part, dict):
                raise BadRequest(f"{where}[{index}] must be an object")
            kind = "input_text" if part.get("type") == "text" else part.get("type")
            if kind not in _PARTS:
                raise BadRequest(f"{where}[{index}].type must be one of {', '.join(_PARTS)}; no other parts are served here")
        return [part | {"type": "input_text"} if part["type"] == "text" else part for part in value]
    raise BadRequest(f"{where} must be a string or an array of parts")


@dataclass(slots=True)
class _Turn:
    """The assistant's turn in progress: several items make one message."""

    thoughts: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)

    def message(self) -> Message:
        return Message("assistant", "".join(self.texts), "".join(self.thoughts), images=tuple(self.images), tool_calls=tuple(self.calls))


def to_messages(items: Iterable[Item]) -> tuple[Message, ...]:
    """The messages of a conversation. Reasoning, text and calls that follow each other are one turn of the assistant.

    Raises BadRequest for the result of a call that no item made, and for an image that cannot be read.
    """
    messages: list[Message] = []
    names: dict[str, str] = {}  # of the functions, by the ids of their calls
    turn: _Turn | None = None
    for item in items:
        is_assistants = not isinstance(item, FunctionCallOutput) and (not isinstance(item, MessageItem) or item.role == "assistant")
        if turn is not None and (not is_assistants or _begins_turn(item, turn)):
            messages.append(turn.message())
            turn = None
        if is_assistants:
            turn = turn or _Turn()
            _add(item, turn)
        if isinstance(item, FunctionCall):
            names[item.call_id] = item.name
        elif isinstance(item, FunctionCallOutput):
            messages.append(_tool_message(item, names))
        elif isinstance(item, MessageItem) and not is_assistants:
            role = "system" if item.role == "developer" else item.role
            messages.append(Message(role, text_of(item.content), images=_images(item.content)))
    return (*messages, *([turn.message()] if turn is not None else ()))


def _begins_turn(item: Item, turn: _Turn) -> bool:
    """Whether an item of the assistant belongs to a turn after the one in progress: thoughts come before texts, texts before calls."""
    if isinstance(item, ReasoningItem):
        return bool(turn.texts or turn.calls)
    return isinstance(item, MessageItem) and bool(turn.calls)


def _add(item: Item, turn: _Turn) -> None:
    if isinstance(item, ReasoningItem):
        turn.thoughts += [part.text for part in item.summary] or [part.text for part in item.content or ()]
    elif isinstance(item, MessageItem):
        turn.texts.append(text_of(item.content))
        turn.images += _images(item.content)
    elif isinstance(item, FunctionCall):
        turn.calls.append(ToolCall(item.name, parse_arguments(item.arguments, "arguments"), item.call_id, len(turn.calls)))


def _tool_message(item: FunctionCallOutput, names: dict[str, str]) -> Message:
    if item.call_id not in names:
        raise BadRequest("a function_call_output has a call_id that no function_call before it has; send that item too")
    parts: list[Part] = [OutputText(text=item.output)] if isinstance(item.output, str) else item.output
    return Message("tool", text_of(parts), tool_name=names[item.call_id], tool_call_id=item.call_id, images=_images(parts))


def _images(parts: Iterable[Part]) -> tuple[bytes, ...]:
    return tuple(_image(part) for part in parts if isinstance(part, InputImage))


def _image(part: InputImage) -> bytes:
    if part.image_url is None:
        raise BadRequest("an input_image needs an image_url; files are not kept here")
    return image_of(part.image_url, "input_image")
