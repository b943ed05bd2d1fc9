"""One answer, piece by piece: what of a model's text is told, and when it has been enough."""

from __future__ import annotations

from collections.abc import Sequence

from ndani.types import Text

#: A model that says the same token this often in a row will not stop by itself (reference 5).
MOST_REPEATS = 30

#: Letters of an answer for each token that it may have, beside the longest word it may be stopped at: no token has so many.
_PER_TOKEN, _BESIDE = 512, 1 << 20


class Accumulator:
    """What has come of one answer so far. It is given each piece of a model's text once, in order, and says what is told of it.

    It does not trust who makes the pieces: `over` turns true with the piece that makes them too many, too long together, or
    a repetition without end. That piece is still told, and none after it may be given.

    `most` is how many pieces may come. With `silent` nothing is told. With `keep`, `tokens` has the ids of all that was told,
    and each text has its own.
    """

    __slots__ = ("_keep", "_most", "_piece", "_repeats", "_room", "_silent", "count", "over", "tokens")

    def __init__(self, most: int, *, silent: bool = False, keep: bool = False) -> None:
        self.over = False
        self.count = 0  # pieces that have come
        self.tokens: list[int] = []
        self._most, self._silent, self._keep = most, silent, keep
        self._room = most * _PER_TOKEN + _BESIDE
        self._piece, self._repeats = "", 0

    def take(self, piece: str, tokens: Sequence[int]) -> Text | None:
        """The text of a piece, where there is something to tell."""
        self.count += 1
        bare = piece.strip()
        if bare != self._piece:
            self._piece, self._repeats = bare, 0
        elif self.count > 1:
            self._repeats += 1
        self._room -= len(piece)
        if self._repeats >= MOST_REPEATS or self.count > self._most or self._room < 0:
            self.over = True
        return self.finish(piece, tokens)

    def finish(self, piece: str, tokens: Sequence[int]) -> Text | None:
        """The same for what comes with an answer's end, which is not counted."""
        if self._silent:
            return None
        if not self._keep:
            return Text(piece) if piece else None
        self.tokens += tokens
        return Text(piece, tuple(tokens)) if piece else None
