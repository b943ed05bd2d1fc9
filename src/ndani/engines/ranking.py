"""How well documents answer a query: by a model's rank head, or, for a model of embeddings, by the cosine of the vectors.

The engine works through a whole batch even after the client has left, so documents are sent to it in batches, as texts for vectors are.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ndani.engines.client import PromptTooLong, RunnerClient
from ndani.engines.vectors import MAX_BATCH_BYTES, MAX_BATCH_TEXTS, NOT_FINITE, embed
from ndani.errors import BadRequest

#: Tokens that a model puts around a query and a document: a start, an end and two separators, and a few that a cut text can gain.
_AROUND = 12


@dataclass(frozen=True, slots=True)
class Ranked:
    """A score for each document, in their order, the number of tokens processed, and how many tokens of documents were dropped."""

    scores: tuple[float, ...]
    tokens: int
    truncated: int


async def rank_by_head(engine: RunnerClient, query: str, documents: Sequence[str], num_ctx: int, *, truncate: bool) -> Ranked:
    """Scores of a model's rank head, which reads the query together with each document. They are the model's own numbers.

    With `truncate`, a document that does not fit into the context loses its end. Raises BadRequest, EngineFailed.
    """
    room = num_ctx - _AROUND - len(await engine.tokenize(query, special=False))
    if room < 1:
        raise BadRequest(f"the query is longer than the model's context of {num_ctx} tokens; shorten it")
    texts, truncated = [], 0
    for index, document in enumerate(documents):
        text, dropped = await _cut(engine, document, room)
        if dropped and not truncate:
            raise BadRequest(f"documents[{index}] and the query are longer than the model's context of {num_ctx} tokens; send it in parts")
        texts.append(text)
        truncated += dropped
    scores: list[float] = []
    tokens = 0
    for batch in _batches(query, texts):
        try:
            batch_scores, batch_tokens = await engine.rank(query, batch)
        except PromptTooLong:
            raise BadRequest("a document does not fit into the model's context; send it in parts") from None
        if not all(map(math.isfinite, batch_scores)):
            raise BadRequest(NOT_FINITE)
        scores += batch_scores
        tokens += batch_tokens
    return Ranked(tuple(scores), tokens, truncated)


async def rank_by_cosine(engine: RunnerClient, query: str, documents: Sequence[str], num_ctx: int, *, truncate: bool) -> Ranked:
    """The cosines of the vectors of the query and of each document. Raises BadRequest, EngineFailed."""
    embedded = await embed(engine, (query, *documents), num_ctx, truncate=truncate)
    asked, *others = embedded.vectors
    scores = tuple(max(-1.0, min(1.0, sum(map(operator.mul, asked, other)))) for other in others)
    return Ranked(scores, embedded.tokens, embedded.truncated)


async def _cut(engine: RunnerClient, text: str, room: int) -> tuple[str, int]:
    """The text, cut to `room` tokens, and how many were dropped. A token has at least one byte, so a short text is not counted."""
    if len(text.encode()) <= room:
        return text, 0
    head, _, count = await engine.measure(text, room, 0)
    return (text, 0) if count <= room else (await engine.detokenize(head), count - room)


def _batches(query: str, texts: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        added = len(query) + len(text)
        if batch and (len(batch) >= MAX_BATCH_TEXTS or size + added > MAX_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(text)
        size += added
    if batch:
        yield batch
