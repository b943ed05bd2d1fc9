"""The service layer: one method per operation. Each resolves the model, does the work through one package, and counts it.

Dialects call this layer and nothing below it; nothing here knows a dialect. Arguments and results are `types`, failures are
errors of `errors.py`. `answers` generates answers, `embed` makes vectors, `models` has the operations on models (`weights`
prepares what create needs), `maintenance` those on the store itself, and `resolver` what all need to know of a model.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from ndani import names
from ndani.convert.supervisor import Supervisor
from ndani.errors import EngineFailed, Failed
from ndani.ledger.counts import Counts
from ndani.ledger.log import Log
from ndani.runtime.pool import Pool
from ndani.runtime.runner import Runner
from ndani.runtime.spec import RunnerSpec
from ndani.service.answers import Answers
from ndani.service.embed import Embeddings
from ndani.service.maintenance import Maintenance
from ndani.service.models import Models
from ndani.service.resolver import ModelResolver
from ndani.settings import Settings
from ndani.sources.fetcher import Fetcher
from ndani.store import Store
from ndani.types import Details, Sampling

__all__ = ["Service"]


class Service:
    """All operations. The server creates it once, with its store, pool and fetcher; `close` closes all three."""

    def __init__(self, settings: Settings, store: Store, pool: Pool, fetcher: Fetcher, log: Log, counts: Counts) -> None:
        self.settings = settings
        self.store = store
        self.pool = pool
        self.fetcher = fetcher
        self.log = log
        self.counts = counts
        self.resolver = ModelResolver(settings, store, pool.unload)
        self.answers = Answers(self.resolver, pool, counts)
        self.embeddings = Embeddings(self.resolver, pool, counts)
        self.supervisor = Supervisor(settings.require_jail)
        self.models = Models(store, self.resolver, pool, fetcher, self.supervisor, log)
        self.maintenance = Maintenance(store, fetcher)

    async def close(self) -> None:
        """End all work: runners, fetchers and conversion workers stop. Closing again ends only what has begun since."""
        self.store.close()
        await asyncio.gather(self.pool.close(), self.fetcher.close(), self.supervisor.close())

    def health(self) -> dict[str, Any]:
        """What is loaded, and the counters. Raises Failed with the reason when no request could be served."""
        if self.pool.closing:
            raise Failed("the server is stopping")
        self.store.names()
        return {
            "status": "ok",
            "loaded": [r.name for r in self.pool.residents()],
            "waiting": self.pool.waiting,
            "unconfined": [r.name for r in self.pool.residents() if r.confined != "confined"],
            "counts": self.counts.as_dict(),
        }

    async def doctor(self, probe: Callable[[Runner], Any]) -> tuple[str, str | None, Any]:
        """Probe a real runner: the one in memory that stays longest, else the smallest model's, else the echo engine's.

        The model's keep-alive does not change. Returns the engine, the model's name or None, and the result of `probe`.
        """
        spec, name = self.pool.last_to_expire(), None
        models = [] if spec else sorted(self.store.list_models(), key=lambda m: m.size)
        if models:
            spec = self.resolver.spec(await self.resolver.resolve(self.store.find(names.parse(models[0].name))), Sampling())
        if spec is None:
            spec = RunnerSpec("echo", "echo", "", Details(), None, 0, 0, 0, engine="echo")
        else:
            name = spec.name
        async with self.pool.lease(spec, None if name else 0.0):
            runner = self.pool.runner(spec.key)
            if not isinstance(runner, Runner):
                raise EngineFailed("the runner went away; try again")
            return spec.engine, name, await probe(runner)
