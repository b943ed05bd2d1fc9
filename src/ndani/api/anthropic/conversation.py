"""The turns of a conversation, as messages: blocks are sorted into text, images, thinking, tool calls and tool results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from ndani.api.anthropic.bodies import (
    Base64Source,
    Block,
    ContentBlock,
    ImageBlock,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
    Turn,
)
from ndani.api.edge import content
from ndani.errors import BadRequest
from ndani.types import Message, ToolCall

#: Between the text blocks of one turn.
_SEPARATOR = "\n"

#: A line that Anthropic's terminal program puts before its system prompt, for its maker's accounts. It has a new number in every
#: request, so that with it no prompt would begin as an earlier one, and the prefix cache would never be used.
_BILLING = "x-anthropic-billing-header:"

#: What stands before the result of a tool that failed: messages have no field for it.
_FAILED = "Error: "


@dataclass(frozen=True, slots=True)
class _Placed:
    """A block, and where it stands in the request."""

    where: str
    block: Block


def parse_conversation(system: str | list[TextBlock] | None, turns: Sequence[Turn]) -> tuple[Message, ...]:
    """The messages of a request, the system's first. Neighbouring turns of one role are one, as in Anthropic's API.

    Raises BadRequest for a block that does not belong to its turn, or that cannot be read here.
    """
    messages = list(_system(_placed(system or "", "system")))
    tool_names: dict[str, str] = {}
    for role, group in groupby(enumerate(turns), lambda numbered: numbered[1].role):
        blocks = [placed for index, turn in group for placed in _turn(turn, f"messages[{index}].content")]
        if role == "system":
            messages += _system(blocks)
        elif role == "assistant":
            messages.append(_assistant(blocks, tool_names))
        else:
            messages += _user(blocks, tool_names)
    if not messages:
        raise BadRequest("messages holds no words to answer; send a turn of the user")
    return tuple(messages)


def _turn(turn: Turn, where: str) -> list[_Placed]:
    if not turn.content and not isinstance(turn.content, str):
        raise BadRequest(f"{where} must not be an empty array")
    return _placed(turn.content, where)


def _placed(blocks: str | Sequence[ContentBlock], where: str) -> list[_Placed]:
    if isinstance(blocks, str):
        return [_Placed(where, TextBlock(text=blocks))]
    return [_Placed(f"{where}[{index}]", block) for index, block in enumerate(blocks)]


def _system(blocks: list[_Placed]) -> Iterator[Message]:
    """One message of all texts, or none where there is no text."""
    for placed in blocks:
        if not isinstance(placed.block, TextBlock):
            raise _misplaced(placed, "the system")
    text = _text([placed for placed in blocks if isinstance(placed.block, TextBlock) and not placed.block.text.startswith(_BILLING)])
    if text:
        yield Message("system", text)


def _assistant(blocks: list[_Placed], tool_names: dict[str, str]) -> Message:
    """An assistant's turn; the names of its calls are added to `tool_names`, by their ids."""
    calls: list[ToolCall] = []
    for placed in blocks:
        block = placed.block
        if isinstance(block, ToolUseBlock):
            calls.append(ToolCall(content.tool_name(block.name, f"{placed.where}.name"), block.input, block.id, len(calls)))
            tool_names[block.id] = block.name
        elif not isinstance(block, (TextBlock, ThinkingBlock, RedactedThinkingBlock)):
            raise _misplaced(placed, "the assistant")
    thoughts = [placed.block.thinking for placed in blocks if isinstance(placed.block, ThinkingBlock) and placed.block.thinking]
    return Message("assistant", _text(blocks), thinking=_SEPARATOR.join(thoughts), tool_calls=tuple(calls))


def _user(blocks: list[_Placed], tool_names: dict[str, str]) -> Iterator[Message]:
    """A user's turn: what tools returned, a message each, and then what the user says."""
    said = []
    for placed in blocks:
        if isinstance(placed.block, ToolResultBlock):
            yield _tool_result(placed.block, placed.where, tool_names)
        elif isinstance(placed.block, (TextBlock, ImageBlock)):
            said.append(placed)
        else:
            raise _misplaced(placed, "the user")
    if said:
        yield Message("user", _text(said), images=_images(said))


def _tool_result(block: ToolResultBlock, where: str, tool_names: dict[str, str]) -> Message:
    if block.tool_use_id not in tool_names:
        raise BadRequest(f"{where}.tool_use_id is not the id of a tool_use block in an earlier turn of the assistant")
    blocks = _placed(block.content or "", f"{where}.content")
    for placed in blocks:
        if not isinstance(placed.block, (TextBlock, ImageBlock)):
            raise _misplaced(placed, "a tool")
    text = (_FAILED if block.is_error else "") + _text(blocks)
    return Message("tool", text, tool_name=tool_names[block.tool_use_id], tool_call_id=block.tool_use_id, images=_images(blocks))


def _text(blocks: list[_Placed]) -> str:
    return _SEPARATOR.join(placed.block.text for placed in blocks if isinstance(placed.block, TextBlock) and placed.block.text)


def _images(blocks: list[_Placed]) -> tuple[bytes, ...]:
    return tuple(_image(placed.block, placed.where) for placed in blocks if isinstance(placed.block, ImageBlock))


def _image(block: ImageBlock, where: str) -> bytes:
    if not isinstance(block.source, Base64Source):
        raise BadRequest(f"{where}.source must be of the type base64: this server fetches no URL and keeps no files")
    return content.decode_base64(block.source.data, f"{where}.source.data")


def _misplaced(placed: _Placed, speaker: str) -> BadRequest:
    kind = placed.block.__struct_config__.tag
    if kind in ("document", "search_result"):
        return BadRequest(f"{placed.where} is a {kind} block, which this server does not read; send its text as a text block")
    return BadRequest(f"{placed.where} is a {kind} block, which does not belong in a turn of {speaker}")
