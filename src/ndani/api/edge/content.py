"""Parts of a conversation that several dialects spell alike: base64 files, and tools as JSON Schema functions."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from typing import Any

from ndani.errors import BadRequest
from ndani.types import Tool, ToolChoice

#: What a browser puts before the base64 of a file: `data:image/png;base64,`.
_DATA_URL = re.compile(r"data:[\w.+/-]*(?:;[\w.+=-]+)*;base64,", re.ASCII)

#: Letters of a tool's name: those that the public APIs accept.
_MAX_NAME = 256


def decode_base64(value: object, where: str) -> bytes:
    """The file of a base64 text, which may be a data URL. Raises BadRequest that names `where`."""
    if not isinstance(value, str):
        raise BadRequest(f"{where} must be a base64 text")
    prefix = _DATA_URL.match(value)
    try:
        data = base64.b64decode(value[prefix.end() :] if prefix else value, validate=True)
    except (binascii.Error, ValueError):
        raise BadRequest(f"{where} must be base64") from None
    if not data:
        raise BadRequest(f"{where} is empty")
    return data


def parse_tool(value: object, where: str) -> Tool:
    """A tool of the form `{"type": "function", "function": {"name", "description", "parameters"}}`. Raises BadRequest."""
    if not isinstance(value, dict):
        raise BadRequest(f"{where} must be an object")
    if value.get("type", "function") != "function":
        raise BadRequest(f"{where}.type must be function")
    function = value.get("function")
    if not isinstance(function, dict):
        raise BadRequest(f"{where}.function must be an object with a name")
    return Tool(tool_name(function.get("name"), f"{where}.function.name"), tool_parameters(function, f"{where}.function"), value)


def tool_name(value: object, where: str) -> str:
    """A tool's name. Raises BadRequest."""
    if not isinstance(value, str) or not value or len(value) > _MAX_NAME:
        raise BadRequest(f"{where} must be a text of 1 to {_MAX_NAME} characters")
    return value


def tool_parameters(function: dict[str, Any], where: str) -> dict[str, Any]:
    """The JSON Schema of a function's parameters; without one it takes none. Raises BadRequest."""
    parameters = function.get("parameters")
    if parameters is None:
        return {"type": "object", "properties": {}}
    if not isinstance(parameters, dict):
        raise BadRequest(f"{where}.parameters must be a JSON Schema object")
    return parameters


def parse_tool_choice(value: object) -> ToolChoice:
    """ "auto", "none", "required", or `{"type": "function", "function": {"name": …}}`. Raises BadRequest."""
    if value is None:
        return ToolChoice()
    if value in ("auto", "none", "required"):
        return ToolChoice(value)
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict):
        raise BadRequest("tool_choice must be auto, none, required, or an object that names a function")
    return ToolChoice("required", tool_name(function.get("name"), "tool_choice.function.name"))


def unenforced_strict(strict: Iterable[bool | None], choice: ToolChoice) -> list[str]:
    """`strict` as the name of an ignored field, where tools have it and no call must be made: only such a call is held to its schema."""
    return ["strict"] if choice.mode != "required" and any(strict) else []
