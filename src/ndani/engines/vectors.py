"""Texts into vectors: what is too long is cut or refused, the rest goes to the engine in portions, in order.

The engine reads on to the end of what it was handed, whoever has left (a hang-up is not seen between its batches, tried
with 400 texts). So a portion is what it reads in a second or so, and leaving ends the work with the portion.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from ndani.engines.client import Engine, TooLong
from ndani.errors import BadRequest

#: Texts, and bytes of text, that are handed over at once.
MOST_TEXTS = 32
MOST_BYTES = 8192
#: Tokens of a text where a context of none is asked for: the engine's least, to which no text is cut.
LEAST = 4

TOO_LONG = "the input length exceeds the context length"
NO_MORE = "input exceeds maximum context length and cannot be truncated further"
NO_ROOM = "input after truncation exceeds maximum context length"
DAMAGED = "embedding contains NaN or Inf values"


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors in the order of their texts, the tokens that were read for them, and those that were not."""

    vectors: tuple[tuple[float, ...], ...]
    tokens: int
    truncated: int


async def embed(engine: Engine, texts: tuple[str, ...], num_ctx: int, *, truncate: bool) -> Embedded:
    """A vector of length 1 for each text, of at most `num_ctx` tokens of it; 0: of no more than LEAST, and never cut.

    Raises BadRequest, EngineFailed.
    """
    whole, num_ctx = num_ctx == 0, num_ctx or LEAST
    made: list[tuple[float, ...]] = []
    read = left_out = 0
    frame: _Frame | None = None
    portion: list[str | list[int]] = []
    held = 0

    async def hand_over() -> None:
        nonlocal read
        try:
            vectors, tokens = await engine.embed(portion)
        except TooLong:  # more tokens than bytes: no tokenizer that is known makes them
            raise BadRequest(TOO_LONG) from None
        made.extend(_numbers(one) for one in vectors)
        read += tokens
        portion.clear()

    for text in texts:
        size = len(text.encode())
        given: str | list[int] = text
        # A token has at least one byte, and a few stand around the text: only a longer one has to be counted.
        if size + _Frame.MOST > num_ctx:
            frame = frame or await _Frame.of(engine)
            given, lost = frame.fit(*await engine.measure(text, num_ctx, frame.behind), num_ctx, truncate)
            if lost and whole:
                raise BadRequest(NO_MORE)
            left_out += lost
            size = min(size, 4 * num_ctx)
        if portion and (len(portion) >= MOST_TEXTS or held + size > MOST_BYTES):
            await hand_over()
            held = 0
        portion.append(given)
        held += size
    if portion:
        await hand_over()
    return Embedded(tuple(made), read, left_out)


@dataclass(frozen=True, slots=True)
class _Frame:
    """How many tokens a model puts before and behind every text ([CLS] and [SEP])."""

    before: int
    behind: int

    MOST = 4

    @classmethod
    async def of(cls, engine: Engine) -> _Frame:
        whole, bare = await engine.tokenize("a"), await engine.tokenize("a", special=False)
        before = next((at for at in range(len(whole) - len(bare) + 1) if whole[at : at + len(bare)] == bare), 0)
        return cls(before, len(whole) - before - len(bare))

    def fit(self, first: list[int], last: list[int], count: int, num_ctx: int, truncate: bool) -> tuple[list[int], int]:
        """The tokens of a text without the end that is too much, and how many went. What stands behind every text stays there.

        `first` are its first `num_ctx` ones, `last` those that stand behind every text, `count` is how many there are.
        """
        if count <= num_ctx:
            return first, 0
        if num_ctx <= self.before + self.behind:
            raise BadRequest(NO_ROOM)
        if not truncate:
            raise BadRequest(TOO_LONG)
        return first[: num_ctx - self.behind] + last, count - num_ctx


def _numbers(raw: bytes) -> tuple[float, ...]:
    vector = struct.unpack(f"<{len(raw) // 4}f", raw)
    if not all(map(math.isfinite, vector)):
        raise BadRequest(DAMAGED)
    return vector


def shorten(vector: tuple[float, ...], dimensions: int) -> tuple[float, ...]:
    """The first so many numbers of a vector (0: all), scaled to length 1 again."""
    if not 0 < dimensions < len(vector):
        return vector
    cut = vector[:dimensions]
    length = max(math.sqrt(sum(number * number for number in cut)), 1e-12)
    return tuple(number / length for number in cut)
