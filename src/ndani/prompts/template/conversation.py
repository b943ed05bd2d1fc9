"""What Ollama adds to Go's templates: a conversation as values, with adjacent turns of one role merged.

Texts arrive as the API parsed them and leave as valid Unicode; an invalid character becomes U+FFFD, as in Go. Images
are only counted here: their tags are put into the texts before (`prompts.image_tags`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from ndani.errors import BadRequest
from ndani.prompts.template.bounds import MAX_NESTING
from ndani.prompts.template.functions import typescript
from ndani.prompts.template.values import Items, Record, Table, Value
from ndani.types import ToolCall

_SURROGATE = re.compile("[\ud800-\udfff]")
_PROPERTY = (
    ("AnyOf", "anyOf", True),
    ("Type", "type", True),
    ("Items", "items", True),
    ("Description", "description", True),
    ("Enum", "enum", True),
    ("Properties", "properties", True),
    ("Required", "required", True),
)
_PARAMETERS = (
    ("Type", "type", False),
    ("Defs", "$defs", True),
    ("Items", "items", True),
    ("Required", "required", True),
    ("Properties", "properties", False),
)


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a conversation as templates see it."""

    role: str
    content: str
    thinking: str = ""
    images: tuple[bytes, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    tool_name: str = ""
    tool_call_id: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a template renders. `tools` are the JSON objects of a request; prompt and suffix (both, or neither) fill in the middle.

    `think` is None when the request does not set it; a string is a level, which also counts as true.
    """

    turns: Sequence[Turn] = ()
    tools: Sequence[object] | None = None
    prompt: str = ""
    suffix: str = ""
    think: bool | str | None = None


def clean(text: str) -> str:
    """Valid Unicode: bytes that were split are joined where they are whole again, and U+FFFD where they are not."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    kept = _SURROGATE.sub(lambda match: match[0] if 0xDC80 <= ord(match[0]) <= 0xDCFF else "\ufffd", text)
    return _SURROGATE.sub("\ufffd", kept.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape"))


def scrub(text: str) -> str:
    """A text from outside as valid Unicode: lone surrogates, which JSON can spell, become U+FFFD."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def merge(turns: Sequence[Turn]) -> tuple[str, list[Turn]]:
    """All system texts joined, and the turns with neighbours of one role joined by a blank line (tool results stay apart)."""
    joined: list[tuple[Turn, list[str]]] = []
    for turn in turns:
        if joined and joined[-1][0].role == turn.role != "tool":
            joined[-1][1].append(turn.content)
        else:
            joined.append((turn, [turn.content]))
    system = "\n\n".join(turn.content for turn in turns if turn.role == "system")
    return scrub(system), [replace(turn, content=scrub("\n\n".join(texts))) for turn, texts in joined]


def thinking_values(think: bool | str | None) -> dict[str, Value]:
    """`.Think`, `.ThinkLevel` and `.IsThinkSet`."""
    return {"Think": bool(think), "ThinkLevel": think if isinstance(think, str) else "", "IsThinkSet": think is not None}


def messages(turns: Sequence[Turn]) -> Items:
    """`.Messages`."""
    return Items(tuple(_message(turn) for turn in turns), "[]*template.templateMessage")


def _message(turn: Turn) -> Record:
    fields: dict[str, Value] = {
        "Role": scrub(turn.role),
        "Content": turn.content,
        "Thinking": scrub(turn.thinking),
        "Images": Items(turn.images, "[]api.ImageData", nil=not turn.images),
        "ToolCalls": Items(tuple(map(_tool_call, turn.tool_calls)), "[]template.templateToolCall", nil=not turn.tool_calls),
        "ToolName": scrub(turn.tool_name),
        "ToolCallID": scrub(turn.tool_call_id),
    }
    return Record("template.templateMessage", fields, pointer=True)


def _tool_call(call: ToolCall) -> Record:
    parsed = from_json(call.arguments, "the arguments of a tool call")
    assert isinstance(parsed, Table)
    arguments = Table(parsed.entries, "template.templateArgs", "json")
    function = Record("template.templateToolCallFunction", {"Index": call.index, "Name": scrub(call.name), "Arguments": arguments})
    return Record("template.templateToolCall", {"ID": scrub(call.id), "Function": function})


def from_json(value: object, what: str, depth: int = 0) -> Value:
    """A JSON value as Go holds it in an `any`: every number a float. Raises BadRequest when it is nested too deep."""
    if depth > MAX_NESTING:
        raise BadRequest(f"{what} is nested more than {MAX_NESTING} deep")
    match value:
        case None | bool():
            return value
        case int() | float():
            return _float(value, what)
        case str():
            return scrub(value)
        case Mapping():
            return Table({scrub(str(key)): from_json(member, what, depth + 1) for key, member in value.items()})
        case list() | tuple():
            return Items(tuple(from_json(member, what, depth + 1) for member in value))
        case _:
            raise BadRequest(f"{what} holds something that is not JSON")


def _float(value: float, what: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise BadRequest(f"a number in {what} is too large") from None


def tool_values(tools: Sequence[object] | None) -> Items:
    """`.Tools`. Raises BadRequest, which names the tool and the field, for an invalid tool."""
    if tools is None:
        return Items((), "template.templateTools", "json", nil=True)
    records = tuple(_tool(_PropertyNode(tool, f"tools[{index}]")) for index, tool in enumerate(tools))
    return Items(records, "template.templateTools", "json")


class _PropertyNode:
    """One JSON object of a tool, and its path for error messages."""

    def __init__(self, value: object, where: str) -> None:
        if value is not None and not isinstance(value, Mapping):
            raise BadRequest(f"{where} must be an object")
        self.value = cast(Mapping[str, object], value or {})
        self.where = where

    def part(self, key: str) -> _PropertyNode:
        return _PropertyNode(self.value.get(key), f"{self.where}.{key}")

    def text(self, key: str) -> str:
        value = self.value.get(key)
        if value is not None and not isinstance(value, str):
            raise BadRequest(f"{self.where}.{key} must be a string")
        return scrub(value or "")

    def texts(self, key: str, kind: str = "[]string", string_method: str = "", single: bool = False) -> Items:
        value = self.value.get(key)
        if single and isinstance(value, str):
            value = [value]
        if value is None:
            return Items((), kind, string_method, nil=True)
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise BadRequest(f"{self.where}.{key} must be a list of strings")
        return Items(tuple(scrub(item) for item in value), kind, string_method)

    def anything(self, key: str) -> Value:
        return from_json(self.value.get(key), f"{self.where}.{key}")


def _tool(tool: _PropertyNode) -> Record:
    function = tool.part("function")
    parameters = function.part("parameters")
    parameters_record = Record(
        "template.templateToolFunctionParameters",
        {
            "Type": parameters.text("type"),
            "Defs": parameters.anything("$defs"),
            "Items": parameters.anything("items"),
            "Required": parameters.texts("required"),
            "Properties": _properties(parameters, "template.templateProperties", "json", False, 0),
        },
        _PARAMETERS,
    )
    function_record = Record(
        "template.templateToolFunction",
        {"Name": function.text("name"), "Description": function.text("description"), "Parameters": parameters_record},
        (("Name", "name", False), ("Description", "description", False), ("Parameters", "parameters", False)),
    )
    return Record(
        "template.templateTool",
        {"Type": tool.text("type"), "Items": tool.anything("items"), "Function": function_record},
        (("Type", "type", False), ("Items", "items", True), ("Function", "function", False)),
        "json",
    )


def _properties(part: _PropertyNode, kind: str, string_method: str, ordered: bool, depth: int) -> Table:
    if part.value.get("properties") is None:
        return Table({}, kind, string_method, nil=True)
    inner = part.part("properties")
    entries = {scrub(str(key)): _property(inner.part(key), depth) for key in inner.value}
    return Table(entries, kind, string_method, zero=_property(_PropertyNode(None, ""), depth), ordered=ordered)


def _property(part: _PropertyNode, depth: int) -> Record:
    if depth > MAX_NESTING:
        raise BadRequest(f"a tool's parameters are nested more than {MAX_NESTING} deep")
    options = part.value.get("anyOf")
    if options is not None and not isinstance(options, list | tuple):
        raise BadRequest(f"{part.where}.anyOf must be a list")
    enum = part.anything("enum")
    if enum is not None and not isinstance(enum, Items):
        raise BadRequest(f"{part.where}.enum must be a list")
    nested = None if part.value.get("properties") is None else _properties(part, "*api.ToolPropertiesMap", "", True, depth + 1)
    choices = tuple(
        _property(_PropertyNode(option, f"{part.where}.anyOf[{index}]"), depth + 1) for index, option in enumerate(options or ())
    )
    fields: dict[str, Value] = {
        "AnyOf": Items(choices, "[]api.ToolProperty", nil=options is None),
        "Type": part.texts("type", "api.PropertyType", "type", single=True),
        "Items": part.anything("items"),
        "Description": part.text("description"),
        "Enum": enum or Items((), nil=True),
        "Properties": nested,
        "Required": part.texts("required"),
    }
    record = Record("api.ToolProperty", fields, _PROPERTY)
    return replace(record, methods={"ToTypeScriptType": lambda: typescript(record)})
