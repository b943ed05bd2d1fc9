"""The messages of a chat, from OpenAI's form into ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ndani import untrusted_json
from ndani.api.edge.content import decode_base64
from ndani.api.openai.bodies import AssistantToolCall, ChatMessage, ImagePart, Part, RefusalPart, TextPart
from ndani.errors import BadRequest
from ndani.types import Message, ToolCall

HTTP_IMAGE = "image URLs are not currently supported, please use base64 encoded data instead"

#: Roles by another name; every other role is whatever the model's template knows.
_ROLES = {"developer": "system"}


def parse_messages(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """The messages of a conversation. A tool's turn is given the name of the function that its call was of. Raises BadRequest."""
    parsed: list[Message] = []
    called: dict[str, str] = {}
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        calls = _tool_calls(message.tool_calls or (), f"{where}.tool_calls")
        called |= {call.id: call.name for call in calls if call.id}
        parsed.append(_message(message, calls, called.get(message.tool_call_id or "", ""), where))
    return tuple(parsed)


def _message(message: ChatMessage, calls: tuple[ToolCall, ...], called: str, where: str) -> Message:
    role = message.role.strip().lower()
    if not role:
        raise BadRequest(f"{where}.role is empty; say system, user, assistant or tool")
    if role == "function":
        raise BadRequest(f"{where}.role is the older function; send the result as role tool with its tool_call_id")
    thinking = message.reasoning or message.reasoning_content or ""
    if message.content is None and not (calls or message.refusal or thinking):
        raise BadRequest(f"{where}.content must be a string or an array of parts")
    content, images = _content(message.content, where)
    return Message(
        _ROLES.get(role, role),
        content or message.refusal or "",
        thinking=thinking,
        tool_name=(message.name or called) if role == "tool" else "",
        tool_call_id=message.tool_call_id or "",
        images=images,
        tool_calls=calls,
    )


def _content(content: str | Sequence[Part] | None, where: str) -> tuple[str, tuple[bytes, ...]]:
    """The text of a message, its parts on lines of their own, and its images."""
    if content is None or isinstance(content, str):
        return content or "", ()
    texts, images = [], []
    for index, part in enumerate(content):
        if isinstance(part, TextPart):
            texts.append(part.text)
        elif isinstance(part, RefusalPart):
            texts.append(part.refusal)
        elif isinstance(part, ImagePart):
            images.append(image_of(part.image_url if isinstance(part.image_url, str) else part.image_url.url, f"{where}.content[{index}]"))
        else:
            raise BadRequest(f"{where}.content[{index}] is of a type that no model here reads; send text and images")
    return "\n".join(texts), tuple(images)


def image_of(url: str, where: str) -> bytes:
    """The image of a data URL. Raises BadRequest, for an address too: this server fetches nothing."""
    if url[:8].lower().startswith(("http://", "https://")):
        raise BadRequest(HTTP_IMAGE)
    if not url.startswith("data:"):
        raise BadRequest(f"{where}.image_url must be a data URL: data:image/png;base64,…")
    return decode_base64(url, f"{where}.image_url")


def _tool_calls(calls: Sequence[AssistantToolCall], where: str) -> tuple[ToolCall, ...]:
    parsed = []
    for index, call in enumerate(calls):
        if call.type not in (None, "", "function"):
            raise BadRequest(f"{where}[{index}].type must be function")
        arguments = parse_arguments(call.function.arguments, f"{where}[{index}].function.arguments")
        parsed.append(ToolCall(call.function.name, arguments, call.id or "", index))
    return tuple(parsed)


def parse_arguments(arguments: str | dict[str, Any], where: str) -> dict[str, Any]:
    """The arguments of an earlier call: the text of a JSON object, or the object itself; an empty text is no arguments."""
    if isinstance(arguments, dict):
        return arguments
    if not arguments.strip():
        return {}
    try:
        return untrusted_json.decode(arguments.encode("utf-8", "replace"), dict)
    except untrusted_json.InvalidJson:
        raise BadRequest(f"{where} must be the text of a JSON object") from None
