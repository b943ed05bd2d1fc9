"""Calls that are spelt as in a program rather than in JSON: a name, and in brackets after it the arguments with their names.

Olmo 3 writes them as Python does; functiongemma with a colon for the sign and an escape mark for quotation marks.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: Levels of lists and objects in an argument.
_MAX_DEPTH = 100

_BLANKS = re.compile(r"\s*")
_BETWEEN = re.compile(r"[\s,;\[\]]*")  # between two calls, and around a list of them
_NAME = re.compile(r"(?:call:)?([\w.-]+)([({])")
_KEY = re.compile(r"\s*[\"']?([\w.-]+)[\"']?\s*([=:])\s*")
_STRING = re.compile(r'"([^"\\]*+(?:\\.[^"\\]*+)*+)"' + r"|'([^'\\]*+(?:\\.[^'\\]*+)*+)'|<escape>(.*?)<escape>", re.DOTALL)
_BARE = re.compile(r"[^,()\[\]{}\"'<>=]+")
_NUMBER = re.compile(r"-?\d{1,300}(?:\.\d{1,300})?(?:[eE][+-]?\d{1,3})?")
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
_CONSTANTS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}


def read_calls(text: str) -> list[tuple[str, Mapping[str, Any]]] | None:
    """The calls that a text consists of: names and arguments. None if it is anything else."""
    reader, calls = _Reader(text), list[tuple[str, Mapping[str, Any]]]()
    try:
        while reader.skip(_BETWEEN) and reader.at < len(text):
            name, opening = reader.expect(_NAME).groups()
            calls.append((name, reader.members(")" if opening == "(" else "}", 0)))
    except ValueError:
        return None
    return calls


class _Reader:
    """A text, and how far it has been read. Everything raises ValueError where the text is something else."""

    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def expect(self, pattern: re.Pattern[str]) -> re.Match[str]:
        """What matches here; it is passed over."""
        match = pattern.match(self.text, self.at)
        if not match:
            raise ValueError
        self.at = match.end()
        return match

    def skip(self, pattern: re.Pattern[str]) -> bool:
        """Pass over a pattern that may match nothing."""
        self.expect(pattern)
        return True

    def members(self, closing: str, depth: int) -> dict[str, Any]:
        """Names with values, up to the bracket that closes them."""
        found: dict[str, Any] = {}
        while not self._closed(closing):
            key = self.expect(_KEY)[1]
            found[key] = self.value(depth)
            self._separator(closing)
        return found

    def value(self, depth: int) -> Any:
        """One value."""
        if depth > _MAX_DEPTH:
            raise ValueError
        if string := _STRING.match(self.text, self.at):
            self.at = string.end()
            quoted = string[1] if string[1] is not None else string[2]
            return string[3] if quoted is None else _ESCAPE.sub(_unescape, quoted)
        opening = self.text[self.at : self.at + 1]
        if opening == "{":
            self.at += 1
            return self.members("}", depth + 1)
        if opening == "[":
            self.at += 1
            items: list[Any] = []
            while not self._closed("]"):
                self.skip(_BLANKS)
                items.append(self.value(depth + 1))
                self._separator("]")
            return items
        return _scalar(self.expect(_BARE)[0].strip())

    def _closed(self, closing: str) -> bool:
        self.skip(_BLANKS)
        closed = self.text.startswith(closing, self.at)
        self.at += closed
        return closed

    def _separator(self, closing: str) -> None:
        """A comma, or the closing bracket, which is left."""
        self.skip(_BLANKS)
        if self.text.startswith(",", self.at):
            self.at += 1
        elif not self.text.startswith(closing, self.at):
            raise ValueError


def _scalar(word: str) -> Any:
    """A number, a constant, or a text without quotation marks."""
    if word in _CONSTANTS:
        return _CONSTANTS[word]
    if not word:
        raise ValueError
    if not _NUMBER.fullmatch(word):
        return word
    return float(word) if any(mark in word for mark in ".eE") else int(word)


def _unescape(match: re.Match[str]) -> str:
    code = match[1]
    return chr(int(code[1:], 16)) if len(code) > 1 else _ESCAPES.get(code, code)
