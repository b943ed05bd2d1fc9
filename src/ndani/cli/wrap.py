"""Where an answer goes: plain text into a pipe as it arrives, whole words within the width of a terminal.

No terminal escapes are written, neither ours nor (on a terminal) a model's: a model's text is not trusted with a screen.
"""

from __future__ import annotations

from typing import TextIO

from ndani.cli.figures import width

# Control characters that a terminal would obey, newline and tab apart.
_SHOWN = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def clean(text: str) -> str:
    """A text as a terminal may have it: what it would obey is shown as a mark, lines and tabs stay."""
    return text.translate(_SHOWN)


class Writer:
    """Writes pieces of an answer. `columns` 0 means no wrapping; `terminal` keeps control characters off the screen."""

    def __init__(self, out: TextIO, *, columns: int = 0, terminal: bool = False) -> None:
        self._out = out
        self._columns = columns
        self._terminal = terminal
        self._at = 0
        self._word = ""
        self._wrote = False

    def write(self, piece: str) -> None:
        """Take the next piece; on a wrapped terminal a word appears once it is complete."""
        self._wrote = self._wrote or bool(piece)
        if self._terminal:
            piece = clean(piece)
        if not self._columns:
            self._out.write(piece)
        else:
            for letter in piece:
                self._letter(letter)
        self._out.flush()

    def close(self) -> bool:
        """Write the word that was still being collected; True when anything was written at all."""
        self._end_word()
        self._out.flush()
        return self._wrote

    def _letter(self, letter: str) -> None:
        if letter == "\n":
            self._end_word()
            self._out.write(letter)
            self._at = 0
        elif letter.isspace():
            self._end_word()
            if self._at < self._columns:  # at a line's end the space is spent on the break
                self._out.write(letter)
            self._at += 1
        else:
            self._word += letter
            # Scripts without spaces, and words longer than a line, may break anywhere.
            if width(letter) == 2 or width(self._word) >= self._columns:
                self._end_word()

    def _end_word(self) -> None:
        wide = width(self._word)
        if self._at and self._at + wide > self._columns:
            self._out.write("\n")
            self._at = 0
        self._out.write(self._word)
        self._at += wide
        self._word = ""
