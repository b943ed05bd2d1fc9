"""Calls of tools that stand between two tags and are spelt as in a program."""

from __future__ import annotations

from ndani.outputs.call_syntax import read_calls
from ndani.outputs.tags import held_length
from ndani.outputs.tool_calls import new_call_id
from ndani.types import Tool, ToolCall


class SpeltCallParser:
    """Divides the chunks of an answer into texts and calls, as ToolCallParser does; what is between tags and no call is text."""

    __slots__ = ("_after", "_body", "_closing", "_held", "_index", "_inside", "_names", "_opening")

    def __init__(self, opening: str, closing: str, tools: tuple[Tool, ...]) -> None:
        self._opening, self._closing = opening, closing
        self._names = {tool.name for tool in tools}
        self._inside = self._after = False  # between the tags; after calls, and nothing but white space since
        self._body: list[str] = []
        self._held = ""
        self._index = 0

    @property
    def finished(self) -> bool:
        """Whether all that follows is text: never, since more calls may come."""
        return False

    def take(self, chunk: str) -> list[str | ToolCall]:
        """Take a chunk; returns what is certainly text, and the calls that are complete."""
        found: list[str | ToolCall] = []
        text, self._held = self._held + chunk, ""
        start = 0
        while start < len(text):
            tag = self._closing if self._inside else self._opening
            position = text.find(tag, start)
            end = position if position >= 0 else len(text) - min(held_length(text, tag), len(text) - start)
            self._between(text[start:end], found)
            if position < 0:
                self._held = text[end:]
                break
            if self._inside:
                found += self._read(self._closing)
            self._inside = not self._inside
            start = position + len(tag)
        return found

    def finish(self) -> list[str | ToolCall]:
        """The answer has ended: what was held back. Calls that lack only the closing tag are calls."""
        found: list[str | ToolCall] = []
        held, self._held = self._held, ""
        self._between(held, found)
        if self._inside:
            found += self._read("")
            self._inside = False
        return found

    def _between(self, text: str, found: list[str | ToolCall]) -> None:
        """A text up to the next tag."""
        if self._inside:
            self._body.append(text)
            return
        if self._after:
            text = text.lstrip()
        if text:
            self._after = False
            found.append(text)

    def _read(self, closing: str) -> list[str | ToolCall]:
        """What was between the tags: calls, or else text with its tags."""
        body = "".join(self._body)
        self._body.clear()
        calls = read_calls(body)
        if not calls or any(name not in self._names for name, _ in calls):
            self._after = False
            return [self._opening + body + closing]
        self._after = True
        start, self._index = self._index, self._index + len(calls)
        return [ToolCall(name, arguments, new_call_id(), start + place) for place, (name, arguments) in enumerate(calls)]
