"""A model's thoughts on the screen, before its answer: between the two lines that Ollama's command line writes around them."""

from __future__ import annotations

from ndani.cli.word_wrap import WordWrapper


class ThinkingWriter:
    """Writes thoughts and text in the order in which they come; with `hidden`, no thoughts."""

    def __init__(self, writer: WordWrapper, *, hidden: bool = False) -> None:
        self._writer, self._hidden = writer, hidden
        self._open = False  # thoughts were written, and no text since
        self._at_line_start = True

    def write(self, thought: str, text: str) -> None:
        """Write what one event of a stream holds; either may be empty."""
        if thought and not self._hidden:
            self._writer.write(thought if self._open else "Thinking...\n" + thought)
            self._open, self._at_line_start = True, thought.endswith("\n")
        if text:
            if self._open:
                self._writer.write(("" if self._at_line_start else "\n") + "...done thinking.\n\n")
                self._open = False
            self._writer.write(text)
