"""The operation that scores documents for a query, with a model's rank head or its vectors."""

from __future__ import annotations

import time

from ndani.engines.ranking import rank_by_cosine, rank_by_head
from ndani.engines.sampling import merge
from ndani.errors import BadRequest, Unsupported
from ndani.ledger.counts import Counts
from ndani.runtime.pool import Pool
from ndani.service.embed import context_for_vectors
from ndani.service.lending import lend
from ndani.service.resolver import ModelResolver
from ndani.types import Done, Ranking, RankRequest, Usage


class Rankings:
    """A query and documents in, scores out."""

    def __init__(self, resolver: ModelResolver, pool: Pool, counts: Counts) -> None:
        self._resolver = resolver
        self._pool = pool
        self._counts = counts

    async def rank(self, request: RankRequest) -> Ranking:
        """A score for each document: by the rank head of a reranker, or by the cosine of a model's embeddings.

        Raises NotFound, BadRequest (Unsupported for a model that generates text), Busy, LoadFailed, EngineFailed.
        """
        started = time.monotonic_ns()
        model = await self._resolver.resolve(self._resolver.find(request.model, missing=f"model '{request.model}' not found"))
        if not (model.engine.reranking if model.has_rank_head else model.engine.embeddings and model.spec.embedding):
            raise Unsupported(f'"{request.model}" does not rank documents; use a reranker, or a model of embeddings')
        if request.options_error:
            raise BadRequest(request.options_error)
        sampling = merge(request.sampling, model.options)
        spec = self._resolver.spec(model, sampling)
        async with lend(self._pool, spec, self._resolver.keep_alive(request.keep_alive)) as lease:
            num_ctx = context_for_vectors(model, sampling, lease)
            rank = rank_by_head if model.has_rank_head else rank_by_cosine
            ranked = await rank(lease.engine, request.query, request.documents, num_ctx, truncate=request.truncate)
            total = time.monotonic_ns() - started
            usage = Usage(prompt_tokens=ranked.tokens, load_ns=max(lease.waited_ns, 1), total_ns=total)
        self._counts.count_answer(Done("stop", usage, truncated=ranked.truncated))
        return Ranking(ranked.scores, "rank" if model.has_rank_head else "cosine", usage, ranked.truncated)
