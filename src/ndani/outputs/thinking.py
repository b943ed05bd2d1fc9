"""What a model thinks before it answers, told from the answer by the tags around it."""

from __future__ import annotations

from enum import Enum, auto

from ndani.outputs.tags import held_length


class _State(Enum):
    BEFORE = auto()  # nothing but white space so far
    OPENED = auto()  # after the opening tag, nothing but white space
    THINKING = auto()
    CLOSED = auto()  # after the closing tag, nothing but white space
    ANSWERING = auto()


class ThinkingParser:
    """Divides the chunks of an answer into thoughts and text. The tags and the white space around them belong to neither.

    An answer that does not begin with the opening tag is text only, its white space included. With `began`, the prompt already
    ends with the opening tag, and the answer begins in the middle of the thoughts.
    """

    __slots__ = ("_blanks", "_closing", "_held", "_opening", "_state")

    def __init__(self, opening: str, closing: str, *, began: bool = False) -> None:
        self._opening, self._closing = opening, closing
        self._state = _State.OPENED if began else _State.BEFORE
        self._blanks: list[str] = []  # white space before anything else: of the text, unless the opening tag follows
        self._held = ""  # what may be the beginning of a tag

    @property
    def finished(self) -> bool:
        """Whether all that follows is text."""
        return self._state is _State.ANSWERING

    def take(self, chunk: str) -> tuple[str, str]:
        """Take a chunk; returns what is certainly thought, and what is certainly text."""
        if self._state is _State.ANSWERING:
            return "", chunk
        if self._state is _State.BEFORE:
            if (after := self._begin(chunk)) is None:
                return "", ""
            if self.finished:
                return "", after
            chunk = after
        if self._state is _State.OPENED:
            if not (chunk := chunk.lstrip()):
                return "", ""
            self._state = _State.THINKING
        thought = ""
        if self._state is _State.THINKING:
            thought, closed, chunk = self._think(chunk)
            if not closed:
                return thought, ""
            self._state = _State.CLOSED
        if chunk := chunk.lstrip():
            self._state = _State.ANSWERING
        return thought, chunk

    def finish(self) -> tuple[str, str]:
        """The answer has ended: what was held back, as in `take`."""
        rest, self._held = "".join(self._blanks) + self._held, ""
        self._blanks.clear()
        return (rest, "") if self._state is _State.THINKING else ("", rest)

    def _begin(self, chunk: str) -> str | None:
        """What follows the opening tag, or the whole text if there is no such tag; None while it cannot be known."""
        start = self._held + chunk
        if not self._held:
            start = chunk.lstrip()
            self._blanks.append(chunk[: len(chunk) - len(start)])
        if start.startswith(self._opening):
            self._state, self._held = _State.OPENED, ""
            self._blanks.clear()
            return start[len(self._opening) :]
        if self._opening.startswith(start):  # an empty one too
            self._held = start
            return None
        self._state, self._held = _State.ANSWERING, ""
        text = "".join(self._blanks) + start
        self._blanks.clear()
        return text

    def _think(self, chunk: str) -> tuple[str, bool, str]:
        """What is thought, whether the closing tag follows, and what follows it."""
        text = self._held + chunk
        thought, closed, after = text.partition(self._closing)
        if closed:
            self._held = ""
            return thought, True, after
        kept = len(text) - held_length(text, self._closing)
        self._held = text[kept:]
        return text[:kept], False, ""
