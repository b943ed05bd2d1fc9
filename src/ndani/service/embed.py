"""The operation that embeds texts. It finds the model, leases a runner for embeddings, runs the engine, and counts it."""

from __future__ import annotations

import time

from ndani.engines.sampling import merge
from ndani.engines.vectors import embed, shorten
from ndani.errors import BadRequest
from ndani.ledger.counts import Counts
from ndani.runtime.pool import Pool
from ndani.runtime.residence import Lease
from ndani.service.lending import lend
from ndani.service.resolver import ModelResolver, ResolvedModel, runner_key
from ndani.types import Done, EmbedRequest, Sampling, Usage, Vectors


class Embeddings:
    """Texts in, vectors out."""

    def __init__(self, resolver: ModelResolver, pool: Pool, counts: Counts) -> None:
        self._resolver = resolver
        self._pool = pool
        self._counts = counts

    async def embed(self, request: EmbedRequest) -> Vectors:
        """A vector for each text. Without texts the model is loaded, or with keep_alive 0 unloaded.

        Raises NotFound, BadRequest for a text that is too long and may not be truncated, Busy, LoadFailed, EngineFailed.
        """
        started = time.monotonic_ns()
        entry = self._resolver.find(request.model, missing=f'model "{request.model}" not found, try pulling it first')
        if not request.texts and request.keep_alive == 0:
            self._pool.unload(runner_key(entry))
            return Vectors(())
        model = await self._resolver.resolve(entry)
        sampling = merge(request.sampling, model.options)
        spec = self._resolver.spec_for_vectors(model, sampling)
        if request.options_error:
            raise BadRequest(request.options_error)
        async with lend(self._pool, spec, self._resolver.keep_alive(request.keep_alive)) as lease:
            num_ctx = context_for_vectors(model, sampling, lease)
            embedded = await embed(lease.engine, request.texts, num_ctx, truncate=request.truncate)
            total = time.monotonic_ns() - started
            usage = Usage(prompt_tokens=embedded.tokens, load_ns=max(lease.waited_ns, 1), total_ns=total)
        if request.texts:
            self._counts.count_answer(Done("stop", usage, truncated=embedded.truncated))
        return Vectors(tuple(shorten(vector, request.dimensions) for vector in embedded.vectors), usage, embedded.truncated)


def context_for_vectors(model: ResolvedModel, sampling: Sampling, lease: Lease) -> int:
    """How many tokens of a text are read: as many as the request asks for, at most those of its slot."""
    num_ctx = lease.num_ctx if sampling.num_ctx is None else min(sampling.num_ctx, lease.num_ctx)
    # A causal model refuses a text that fills its slot completely.
    return num_ctx if "bert" in model.spec.details.family else min(num_ctx, lease.num_ctx - 1)
