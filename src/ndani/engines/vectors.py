"""Texts into vectors: texts that are too long are truncated or refused, and all are sent to the engine in batches, in order.

The engine processes a whole batch even after the client has disconnected (tried with 400 texts). So a batch takes it about a
second, and a disconnect ends the work after the current batch.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from ndani.engines.client import PromptTooLong, RunnerClient
from ndani.errors import BadRequest

#: Texts, and bytes of text, that are sent in one batch.
MAX_BATCH_TEXTS = 32
MAX_BATCH_BYTES = 8192
#: The context of a request for a context of 0: the minimum of the engine. No text is truncated to it.
MIN_CTX = 4

TOO_LONG = "the input length exceeds the context length"
NOT_TRUNCATABLE = "input exceeds maximum context length and cannot be truncated further"
NO_ROOM_FOR_TEXT = "input after truncation exceeds maximum context length"
NOT_FINITE = "embedding contains NaN or Inf values"


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors in the order of their texts, the number of tokens processed for them, and the number of tokens truncated."""

    vectors: tuple[tuple[float, ...], ...]
    tokens: int
    truncated: int


async def embed(engine: RunnerClient, texts: tuple[str, ...], num_ctx: int, *, truncate: bool) -> Embedded:
    """A vector of length 1 for each text, from at most `num_ctx` of its tokens; 0: at most MIN_CTX tokens, and never truncated.

    Raises BadRequest, EngineFailed.
    """
    never_truncate, num_ctx = num_ctx == 0, num_ctx or MIN_CTX
    vectors: list[tuple[float, ...]] = []
    prompt_tokens = truncated = 0
    added_tokens: _AddedTokens | None = None
    batch: list[str | list[int]] = []
    batch_bytes = 0

    async def send_batch() -> None:
        nonlocal prompt_tokens
        try:
            encoded_vectors, tokens = await engine.embed(batch)
        except PromptTooLong:  # more tokens than bytes: no known tokenizer does that
            raise BadRequest(TOO_LONG) from None
        vectors.extend(_decode(encoded) for encoded in encoded_vectors)
        prompt_tokens += tokens
        batch.clear()

    for text in texts:
        text_bytes = len(text.encode())
        tokens_or_text: str | list[int] = text
        # A token has at least one byte, and the model adds a few: tokens only need to be counted in a longer text.
        if text_bytes + _AddedTokens.MAX_COUNT > num_ctx:
            added_tokens = added_tokens or await _AddedTokens.of(engine)
            tokens_or_text, dropped = added_tokens.fit(*await engine.measure(text, num_ctx, added_tokens.after), num_ctx, truncate)
            if dropped and never_truncate:
                raise BadRequest(NOT_TRUNCATABLE)
            truncated += dropped
            text_bytes = min(text_bytes, 4 * num_ctx)
        if batch and (len(batch) >= MAX_BATCH_TEXTS or batch_bytes + text_bytes > MAX_BATCH_BYTES):
            await send_batch()
            batch_bytes = 0
        batch.append(tokens_or_text)
        batch_bytes += text_bytes
    if batch:
        await send_batch()
    return Embedded(tuple(vectors), prompt_tokens, truncated)


@dataclass(frozen=True, slots=True)
class _AddedTokens:
    """How many tokens a model adds before and after every text ([CLS] and [SEP])."""

    before: int
    after: int

    MAX_COUNT = 4

    @classmethod
    async def of(cls, engine: RunnerClient) -> _AddedTokens:
        framed, plain = await engine.tokenize("a"), await engine.tokenize("a", special=False)
        before = next((start for start in range(len(framed) - len(plain) + 1) if framed[start : start + len(plain)] == plain), 0)
        return cls(before, len(framed) - before - len(plain))

    def fit(self, head: list[int], tail: list[int], count: int, num_ctx: int, truncate: bool) -> tuple[list[int], int]:
        """The tokens of a text, truncated to `num_ctx`, and how many were dropped. The tokens that the model adds at the end are kept.

        `head` are the first `num_ctx` tokens, `tail` those that the model adds at the end, `count` is the number of all tokens.
        """
        if count <= num_ctx:
            return head, 0
        if num_ctx <= self.before + self.after:
            raise BadRequest(NO_ROOM_FOR_TEXT)
        if not truncate:
            raise BadRequest(TOO_LONG)
        return head[: num_ctx - self.after] + tail, count - num_ctx


def _decode(encoded: bytes) -> tuple[float, ...]:
    vector = struct.unpack(f"<{len(encoded) // 4}f", encoded)
    if not all(map(math.isfinite, vector)):
        raise BadRequest(NOT_FINITE)
    return vector


def shorten(vector: tuple[float, ...], dimensions: int) -> tuple[float, ...]:
    """The first `dimensions` numbers of a vector (0: all), scaled to length 1 again."""
    if not 0 < dimensions < len(vector):
        return vector
    shortened = vector[:dimensions]
    length = max(math.sqrt(sum(number * number for number in shortened)), 1e-12)
    return tuple(number / length for number in shortened)
