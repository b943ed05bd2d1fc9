"""JSON that somebody else wrote, read with bounds: how deep it is nested and how many values it may hold.

Both are counted before anything is decoded, so that no file, manifest or body can exhaust the stack, the memory or the
patience of whoever reads it. A byte-order mark is passed over, as Windows' editors write one. Messages between our own
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

#: Bytes that are looked at at once: a few milliseconds.
_PIECE = 1 << 16

_T = TypeVar("_T")
_TEXTS = re.compile(rb'[^"]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"]*+)*+', re.DOTALL)
_REST = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+("?)', re.DOTALL)
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
_BRACKETS = re.compile(rb"[\[{]+|[\]}]+")


class InvalidJson(ValueError):
    """What is no JSON, or too much of it; its text is a clause without a word of the content."""


def decode(content: bytes, kind: type[_T], *, depth: int = MAX_DEPTH, values: int = MAX_VALUES) -> _T:
    """The text as `kind`, by msgspec. A member that is null and may not be is one that is not there, as in Go. Raises InvalidJson."""
    bounded = _bounded(content, depth, values)
    try:
        try:
            return msgspec.json.decode(bounded, type=kind)
        except msgspec.ValidationError:
            if b"null" not in bounded:
                raise
            return msgspec.convert(_without_nulls(msgspec.json.decode(bounded)), kind)
    except msgspec.DecodeError as error:
        said = str(error)
        raise InvalidJson(said if "`" not in said or said.startswith(("Expected", "Object")) else "a value cannot be read") from None
    except (UnicodeDecodeError, RecursionError):
        raise InvalidJson("it is not UTF-8 text, or nested too deeply") from None


def loads(content: bytes, *, depth: int = MAX_DEPTH, values: int = MAX_VALUES) -> Any:
    """The text as Python reads it, with the NaN and Infinity that some programs write. Raises InvalidJson.

    Needs no codec beyond those that are always loaded: it also runs where no file can be opened any more.
    """
    bounded = _bounded(content, depth, values)
    try:
        return json.loads(bounded.decode("utf-8"))
    except UnicodeDecodeError:
        raise InvalidJson("it is not UTF-8 text") from None
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        raise InvalidJson(f"it is not JSON{where}") from None


def require_bounds(content: bytes, *, depth: int = MAX_DEPTH, values: int = MAX_VALUES, containers: int = MAX_VALUES) -> None:
    """Raises InvalidJson for a text that is nested deeper, or may hold more values, or lists and objects, than is said.

    It looks at a piece at a time, so that in a thread it keeps nobody from working.
    """
    if not _may_exceed(content, min(depth, containers), values):
        return
    seen = begun = level = 0
    for bare in _outside_texts(content):
        begun += bare.count(b"[") + bare.count(b"{")
        seen += bare.count(b",")
        if begun > containers and begun + seen <= values:
            raise InvalidJson(f"it holds more than {containers} lists and objects")
        if begun + seen > values:
            raise InvalidJson(f"it holds more than {values} values")
    for bare in _outside_texts(content) if begun > depth else ():  # level by level takes far longer than counting
        for run in _BRACKETS.findall(bare):
            level += len(run) if run[0] in b"[{" else -len(run)
            if level > depth:
                raise InvalidJson(f"it is nested more than {depth} levels deep")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(member) for key, member in value.items() if member is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def _bounded(content: bytes, depth: int, values: int) -> bytes:
    content = content.removeprefix(BYTE_ORDER_MARK)
    require_bounds(content, depth=depth, values=values)
    return content


def _may_exceed(content: bytes, brackets: int, values: int) -> bool:
    """Whether there are more opening brackets, or more of them and commas, wherever they stand; most texts have fewer."""
    begun = seen = 0
    for at in range(0, len(content), _PIECE):
        end = at + _PIECE
        begun += content.count(b"[", at, end) + content.count(b"{", at, end)
        seen += content.count(b",", at, end)
        if begun > brackets or begun + seen > values:
            return True
    return False


def _outside_texts(content: bytes) -> Iterator[bytes]:
    """What stands outside of texts, piece by piece."""
    at = 0
    while at < len(content):
        end = min(at + _PIECE, len(content))
        whole = _TEXTS.match(content, at, end)
        assert whole  # it matches nothing, too
        yield _TEXT.sub(b"", whole[0])
        at = whole.end()
        if at < end:  # the text that begins here goes on behind this piece, or is the last and has no end
            at += 1
            while found := _REST.match(content, at, at + _PIECE):
                at = found.end()
                if found[1] or at >= len(content):
                    break
                if not found[0]:
                    return  # a backslash as the last byte of all
