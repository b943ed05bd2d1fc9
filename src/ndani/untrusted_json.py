"""Reads JSON from outside, with limits on how deep it is nested and on how many values it holds.

Both are counted before anything is decoded, so that no file, manifest or request body can exhaust the stack, the memory or
the time of its reader. A leading byte-order mark is skipped, because Windows editors write one. Messages between our own
processes are not read here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import msgspec

#: Levels of nesting: real bodies and configurations have fewer than twenty, and every decoder here survives so many.
MAX_DEPTH = 200
#: Values in one text: a tokenizer of 256,000 words with its merges has fewer than two million.
MAX_VALUES = 4_000_000
#: The byte-order mark of UTF-8.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

#: Bytes examined per step, which takes a few milliseconds.
_CHUNK_SIZE = 1 << 16

_T = TypeVar("_T")
_WHOLE_STRINGS = re.compile(rb'[^"]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"]*+)*+', re.DOTALL)
_STRING_REST = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+("?)', re.DOTALL)
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_BRACKETS = re.compile(rb"[\[{]+|[\]}]+")


class InvalidJson(ValueError):
    """The text is not JSON, or exceeds a limit. The message is a clause that quotes nothing of the content."""


def decode(content: bytes, kind: type[_T], *, depth: int = MAX_DEPTH, values: int = MAX_VALUES) -> _T:
    """Decode the text as `kind` with msgspec. As in Go, a null member whose type allows no null counts as absent. Raises InvalidJson."""
    bounded = _bounded(content, depth, values)
    try:
        try:
            return msgspec.json.decode(bounded, type=kind)
        except msgspec.ValidationError:
            if b"null" not in bounded:
                raise
            return msgspec.convert(_without_nulls(msgspec.json.decode(bounded)), kind)
    except msgspec.DecodeError as error:
        raise InvalidJson(_safe_reason(str(error))) from None
    except (UnicodeDecodeError, RecursionError):
        raise InvalidJson("it is not UTF-8 text, or nested too deeply") from None


def loads(content: bytes, *, depth: int = MAX_DEPTH, values: int = MAX_VALUES) -> Any:
    """Decode the text as Python does, which accepts the NaN and Infinity that some programs write. Raises InvalidJson.

    Uses only codecs that are always loaded, because it also runs in a jail where no file can be opened.
    """
    bounded = _bounded(content, depth, values)
    try:
        return json.loads(bounded.decode("utf-8"))
    except UnicodeDecodeError:
        raise InvalidJson("it is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        position = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        raise InvalidJson(f"it is not JSON{position}") from None


def require_bounds(content: bytes, *, depth: int = MAX_DEPTH, values: int = MAX_VALUES, containers: int = MAX_VALUES) -> None:
    """Raise InvalidJson for a text that is nested deeper, or may hold more values, or more lists and objects, than allowed.

    It works in chunks, so that other threads can run in between.
    """
    if not _may_exceed(content, min(depth, containers), values):
        return
    commas = opened = level = 0
    for syntax in _without_strings(content):
        opened += syntax.count(b"[") + syntax.count(b"{")
        commas += syntax.count(b",")
        if opened > containers and opened + commas <= values:
            raise InvalidJson(f"it holds more than {containers} lists and objects")
        if opened + commas > values:
            raise InvalidJson(f"it holds more than {values} values")
    for syntax in _without_strings(content) if opened > depth else ():  # level by level takes far longer than counting
        for run in _BRACKETS.findall(syntax):
            level += len(run) if run[0] in b"[{" else -len(run)
            if level > depth:
                raise InvalidJson(f"it is nested more than {depth} levels deep")


def _safe_reason(message: str) -> str:
    """msgspec's message, unless it may quote a value of the content; the types and paths that it quotes are our own."""
    names_types_only = message.startswith(("Expected", "Object"))
    return message if "`" not in message or names_types_only else "a value cannot be read"


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(member) for key, member in value.items() if member is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _bounded(content: bytes, depth: int, values: int) -> bytes:
    content = content.removeprefix(BYTE_ORDER_MARK)
    require_bounds(content, depth=depth, values=values)
    return content


def _may_exceed(content: bytes, brackets: int, values: int) -> bool:
    """Whether the limits could be exceeded if brackets and commas inside strings counted too. For most texts they could not."""
    opened = commas = 0
    for start in range(0, len(content), _CHUNK_SIZE):
        end = start + _CHUNK_SIZE
        opened += content.count(b"[", start, end) + content.count(b"{", start, end)
        commas += content.count(b",", start, end)
        if opened > brackets or opened + commas > values:
            return True
    return False


def _without_strings(content: bytes) -> Iterator[bytes]:
    """The content without its strings, in chunks."""
    offset = 0
    while offset < len(content):
        end = min(offset + _CHUNK_SIZE, len(content))
        match = _WHOLE_STRINGS.match(content, offset, end)
        assert match  # the pattern also matches the empty text
        yield _STRING.sub(b"", match[0])
        offset = match.end()
        if offset < end:  # the string that begins here continues after this chunk, or is never closed
            offset += 1
            while rest := _STRING_REST.match(content, offset, offset + _CHUNK_SIZE):
                offset = rest.end()
                if rest[1] or offset >= len(content):
                    break
                if not rest[0]:
                    return  # the content ends in a backslash
