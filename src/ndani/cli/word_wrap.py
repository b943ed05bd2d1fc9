"""Writing an answer: unchanged into a pipe, wrapped at words on a terminal.

No escape sequences are written to a terminal. Those of the model are removed, because its text is not trusted.
"""

from __future__ import annotations

from typing import TextIO

from ndani.cli.formatting import width
from ndani.control_characters import replace_controls

_JOINER = "\u200d"  # joins two emoji into one
#: Limit of a word's characters per column of the line: a word of combining marks has no width and would be buffered without end.
_MAX_CHARACTERS_PER_COLUMN = 8


class WordWrapper:
    """Writes an answer in chunks. `columns` 0 means no wrapping; `terminal` removes control characters."""

    def __init__(self, out: TextIO, *, columns: int = 0, terminal: bool = False) -> None:
        self._out = out
        self._columns = columns
        self._terminal = terminal
        self._column = 0
        self._word = ""
        self._pending_return = ""  # a carriage return that may be the first half of a line end
        self._has_written = False

    def write(self, chunk: str) -> None:
        """Write the next chunk; with wrapping, a word is written when it is complete."""
        self._has_written = self._has_written or bool(chunk)
        if self._terminal:
            chunk, self._pending_return = self._pending_return + chunk, ""
            if chunk.endswith("\r"):
                chunk, self._pending_return = chunk[:-1], "\r"
            chunk = replace_controls(chunk)
        self._write_text(chunk)

    def close(self) -> bool:
        """Write the last, buffered word; True when anything was written."""
        pending, self._pending_return = self._pending_return, ""
        self._write_text(replace_controls(pending))
        self._end_word()
        self._out.flush()
        return self._has_written

    def _write_text(self, text: str) -> None:
        if not self._columns:
            self._out.write(text)
        else:
            for character in text:
                self._write_character(character)
        self._out.flush()

    def _write_character(self, character: str) -> None:
        if character == "\n":
            self._end_word()
            self._out.write(character)
            self._column = 0
        elif character in " \t":  # other blanks do not break, or are as wide as a character
            self._end_word()
            if self._column < self._columns:  # at the end of a line the break replaces the space
                self._out.write(character)
            self._column += 1
        else:
            # Scripts without spaces, and words longer than a line, break at any character, but not inside a joined emoji.
            if self._breaks_before(character):
                self._end_word()
            self._word += character
            if len(self._word) >= _MAX_CHARACTERS_PER_COLUMN * self._columns or width(self._word) >= self._columns:
                self._end_word()

    def _breaks_before(self, character: str) -> bool:
        if not self._word or (character.isascii() and self._word.isascii()):
            return False
        columns = width(character)
        return columns > 0 and not self._word.endswith(_JOINER) and (columns == 2 or width(self._word[-1]) == 2)

    def _end_word(self) -> None:
        columns = width(self._word)
        if self._column and self._column + columns > self._columns:
            self._out.write("\n")
            self._column = 0
        self._out.write(self._word)
        self._column += columns
        self._word = ""
