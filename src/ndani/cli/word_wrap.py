"""Where an answer goes: plain text into a pipe as it arrives, whole words within the width of a terminal.

No terminal escapes are written, neither ours nor (on a terminal) a model's: a model's text is not trusted with a screen.
"""

from __future__ import annotations

from typing import TextIO

from ndani.cli.formatting import width
from ndani.control_characters import replace_controls

_JOINER = "\u200d"  # makes one picture of two
#: Letters that a word may have for each column of a line: marks without a width would else be collected, and measured, without end.
_MOST_MARKS = 8


class WordWrapper:
    """Writes pieces of an answer. `columns` 0 means no wrapping; `terminal` keeps control characters off the screen."""

    def __init__(self, out: TextIO, *, columns: int = 0, terminal: bool = False) -> None:
        self._out = out
        self._columns = columns
        self._terminal = terminal
        self._at = 0
        self._word = ""
        self._held = ""  # a carriage return that may be half of a line's end
        self._wrote = False

    def write(self, piece: str) -> None:
        """Take the next piece; on a wrapped terminal a word appears once it is complete."""
        self._wrote = self._wrote or bool(piece)
        if self._terminal:
            piece, self._held = self._held + piece, ""
            if piece.endswith("\r"):
                piece, self._held = piece[:-1], "\r"
            piece = replace_controls(piece)
        self._put(piece)

    def close(self) -> bool:
        """Write the word that was still being collected; True when anything was written at all."""
        held, self._held = self._held, ""
        self._put(replace_controls(held))
        self._end_word()
        self._out.flush()
        return self._wrote

    def _put(self, text: str) -> None:
        if not self._columns:
            self._out.write(text)
        else:
            for letter in text:
                self._letter(letter)
        self._out.flush()

    def _letter(self, letter: str) -> None:
        if letter == "\n":
            self._end_word()
            self._out.write(letter)
            self._at = 0
        elif letter in " \t":  # the other blanks hold words together, or are as wide as a letter
            self._end_word()
            if self._at < self._columns:  # at a line's end the space is spent on the break
                self._out.write(letter)
            self._at += 1
        else:
            # Scripts without spaces, and words longer than a line, may break anywhere but within one picture.
            if self._breaks_before(letter):
                self._end_word()
            self._word += letter
            if len(self._word) >= _MOST_MARKS * self._columns or width(self._word) >= self._columns:
                self._end_word()

    def _breaks_before(self, letter: str) -> bool:
        if not self._word or (letter.isascii() and self._word.isascii()):
            return False
        wide = width(letter)
        return wide > 0 and not self._word.endswith(_JOINER) and (wide == 2 or width(self._word[-1]) == 2)

    def _end_word(self) -> None:
        wide = width(self._word)
        if self._at and self._at + wide > self._columns:
            self._out.write("\n")
            self._at = 0
        self._out.write(self._word)
        self._at += wide
        self._word = ""
