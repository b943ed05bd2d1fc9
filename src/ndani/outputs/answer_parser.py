"""One answer's text into pieces: thoughts, text, and calls of tools."""

from __future__ import annotations

from ndani.outputs.spelt_calls import SpeltCallParser
from ndani.outputs.thinking import ThinkingParser
from ndani.outputs.tool_calls import ToolCallParser
from ndani.types import Called, Piece, Text, Thought, TokenLogprob, Tool, ToolCall


class AnswerParser:
    """Takes each chunk of a model's text once, in order, and returns the pieces that are certain. Joined, they are the same for any chunks.

    `thinking` is the tags around thoughts; with `thinking_began`, the prompt ends with the first of them. `tool_tag` is the text
    that calls of `tools` begin with; `call_tags` are the tags around calls that are spelt as in a program. Each is None where it is
    not to be looked for. With `called`, the text is known to be calls from its first character on, without a tag: an object with
    name and arguments, or a list of them.

    The tokens and log-probabilities of a chunk go with the first text or thought that is returned after it; those of calls,
    and of tags, with the next one, or with an empty text at the end.
    """

    __slots__ = ("_calls", "_logprobs", "_thinking", "_tokens")

    def __init__(
        self,
        *,
        thinking: tuple[str, str] | None,
        thinking_began: bool = False,
        tool_tag: str | None,
        tools: tuple[Tool, ...],
        call_tags: tuple[str, str] | None = None,
        called: bool = False,
    ) -> None:
        self._thinking = ThinkingParser(*thinking, began=thinking_began) if thinking and not called else None
        tag = "{" if called else tool_tag
        self._calls: ToolCallParser | SpeltCallParser | None = None
        if tools and call_tags and not called:
            self._calls = SpeltCallParser(*call_tags, tools)
        elif tools and tag:
            self._calls = ToolCallParser(tag, tools)
        self._tokens: list[int] = []  # of chunks, and not yet of a piece
        self._logprobs: list[TokenLogprob] = []

    def take(self, text: str, tokens: tuple[int, ...] = (), logprobs: tuple[TokenLogprob, ...] = ()) -> list[Piece]:
        """Take a chunk; returns the pieces that are certain."""
        if not self._thinking and not self._calls and text and not self._tokens and not self._logprobs:
            return [Text(text, tokens, logprobs)]
        self._tokens += tokens
        self._logprobs += logprobs
        pieces: list[Piece] = []
        if self._thinking:
            thought, text = self._thinking.take(text)
            if self._thinking.finished:
                self._thinking = None
            if thought:
                pieces.append(Thought(thought, *self._attached()))
        if text:
            self._answer(text, pieces)
        return pieces

    def finish(self) -> list[Piece]:
        """The answer has ended: the pieces of what was held back."""
        pieces: list[Piece] = []
        if self._thinking:
            thought, text = self._thinking.finish()
            self._thinking = None
            if thought:
                pieces.append(Thought(thought, *self._attached()))
            if text:
                self._answer(text, pieces)
        if self._calls:
            self._add(self._calls.finish(), pieces)
        if self._tokens or self._logprobs:
            pieces.append(Text("", *self._attached()))
        return pieces

    def _answer(self, text: str, pieces: list[Piece]) -> None:
        """The pieces of a text after the thoughts."""
        self._add(self._calls.take(text) if self._calls else [text], pieces)
        if self._calls and self._calls.finished:
            self._calls = None

    def _add(self, found: list[str | ToolCall], pieces: list[Piece]) -> None:
        for item in found:
            pieces.append(Text(item, *self._attached()) if isinstance(item, str) else Called(item))

    def _attached(self) -> tuple[tuple[int, ...], tuple[TokenLogprob, ...]]:
        """The tokens and log-probabilities that wait for a piece."""
        if not self._tokens and not self._logprobs:
            return (), ()
        attached = tuple(self._tokens), tuple(self._logprobs)
        self._tokens.clear()
        self._logprobs.clear()
        return attached
