"""The operation that counts tokens: those of a conversation, as the model would get it."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace

from ndani.engines.sampling import merge
from ndani.runtime.pool import Pool
from ndani.service.answers import Answers
from ndani.service.resolver import ModelResolver
from ndani.types import ChatRequest, Rendered


class TokenCounts:
    """Counts tokens with a model's own tokenizer, in its runner."""

    def __init__(self, resolver: ModelResolver, answers: Answers, pool: Pool) -> None:
        self._resolver = resolver
        self._answers = answers
        self._pool = pool

    async def count(self, request: ChatRequest) -> int:
        """The tokens of the prompt that a conversation becomes. Raises as `chat`, and BadRequest when it is longer than the context."""
        events, _ = await self._answers.chat(replace(request, render_only=True, truncate=False))
        async with aclosing(events):
            rendered = await anext(events)
        assert isinstance(rendered, Rendered)
        model = await self._resolver.resolve(self._resolver.find(request.model, missing=f"model '{request.model}' not found"))
        spec = self._resolver.spec(model, merge(request.sampling, model.options))
        async with self._pool.lease(spec, self._resolver.keep_alive(request.keep_alive)) as lease:
            return (await lease.engine.measure(rendered.prompt, 0, 0))[2]
