"""One answer, chunk by chunk: which text the client gets, and when a generation must be stopped."""

from __future__ import annotations

from collections.abc import Sequence

from ndani.types import Text

#: A model that repeats a token this often in a row does not stop by itself. Ollama's limit is the same.
MAX_REPEATS = 30

#: Maximum characters of an answer: for each of its tokens, and in addition for a stop sequence. No real token is that long.
_MAX_CHARS_PER_TOKEN, _EXTRA_CHARS = 512, 1 << 20


class Accumulator:
    """The state of one answer. It takes each chunk of a model's text once, in order, and returns the text for the client.

    It does not trust the runner: `over` becomes True with the chunk that makes the chunks too many, too long in total, or an
    endless repetition. The text of that chunk is still returned; the caller must not pass another one.

    `max_chunks` is how many chunks are allowed. With `keep`, each text has the ids that it was made of, and `tokens` collects those of
    every chunk, also of one without text. With `silent`, no text is returned and no id is collected.
    """

    __slots__ = ("_chars_left", "_keep", "_last_text", "_max_chunks", "_repeats", "_silent", "count", "over", "tokens")

    def __init__(self, max_chunks: int, *, silent: bool = False, keep: bool = False) -> None:
        self.over = False
        self.count = 0  # of chunks so far
        self.tokens: list[int] = []
        self._max_chunks, self._silent, self._keep = max_chunks, silent, keep
        self._chars_left = max_chunks * _MAX_CHARS_PER_TOKEN + _EXTRA_CHARS
        self._last_text, self._repeats = "", 0

    def take(self, text: str, tokens: Sequence[int]) -> Text | None:
        """Take a chunk; returns the text for the client, or None."""
        self.count += 1
        stripped = text.strip()
        if stripped != self._last_text:
            self._last_text, self._repeats = stripped, 0
        elif self.count > 1:
            self._repeats += 1
        self._chars_left -= len(text)
        if self._repeats >= MAX_REPEATS or self.count > self._max_chunks or self._chars_left < 0:
            self.over = True
        return self._text(text, tokens)

    def finish(self, text: str, tokens: Sequence[int]) -> Text | None:
        """Take the chunk with which the engine ends an answer. It is not counted; returns the text for the client, or None."""
        return self._text(text, tokens)

    def _text(self, text: str, tokens: Sequence[int]) -> Text | None:
        if self._silent:
            return None
        if not self._keep:
            return Text(text) if text else None
        self.tokens += tokens
        return Text(text, tuple(tokens)) if text else None
