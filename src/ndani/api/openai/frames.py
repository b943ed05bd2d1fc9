"""The chunks of a stream that several choices share: which of them have ended, and what ends the stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from ndani.api.edge.json_response import encode
from ndani.api.openai.choices import STREAM_END
from ndani.api.openai.objects import ChatChunk, TextCompletion, usage_object
from ndani.types import Done

#: A text that is in no answer, to find its place in a chunk.
_MARK = "\x00"

Part = TypeVar("Part")


class Frames(Generic[Part]):
    """Writes chunks. `chunk` makes one of its parts; `choices` is how many choices there are, `per_prompt` how many of one prompt.

    With `include_usage` every chunk has a usage, which is null in all but the last.
    """

    def __init__(
        self, chunk: Callable[[list[Part]], ChatChunk | TextCompletion], choices: int, per_prompt: int, *, include_usage: bool
    ) -> None:
        self._chunk, self._choices, self._per_prompt, self._include_usage = chunk, choices, per_prompt, include_usage
        self._ends: dict[int, Done] = {}

    def frame(self, *parts: Part, usage: bool = False) -> bytes:
        """One event of the stream."""
        chunk = self._chunk(list(parts))
        if self._include_usage:
            chunk.usage = usage_object(self._ends, self._per_prompt) if usage else None
        return b"data: " + encode(chunk) + b"\n\n"

    def around_text(self, part: Callable[[str], Part]) -> tuple[bytes, bytes]:
        """What stands before and after the text of every chunk of one choice; made once, since this is for every token."""
        head, tail = self.frame(part(_MARK)).split(encode(_MARK))
        return head, tail

    def end(self, index: int, done: Done) -> bytes:
        """A choice has ended; the last one also writes the usage, if it is wanted, and what ends the stream."""
        self._ends[index] = done
        if len(self._ends) < self._choices:
            return b""
        return (self.frame(usage=True) if self._include_usage else b"") + STREAM_END
