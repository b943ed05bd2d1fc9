"""The service layer: one method per operation. Each resolves the model, does the work through one package, and counts it.

Dialects call this layer for all that reads or writes the store, runs a model or goes outside; nothing here knows a dialect.
From below it they import only values and pure functions: a recipe, the parser of options, the printer of a Modelfile. (A
`StoredModel`, as in `models.ModelDescription`, reads its small blobs when it is asked for them.) Failures are errors of
`errors.py`.

`answers` generates answers, `embed` makes vectors, `rank` scores documents, `tokenizer` asks a model's tokenizer, `loading` only
loads and unloads, `available` has what may be chosen, `models` has the operations on models (`weights` prepares what create needs),
`maintenance` those on the store itself, `doctor` looks for a way out of a runner, and `resolver` has what all need to know of a model
(`model_ids` is the other scheme of names that it takes); `lending` lends them its runner.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ndani.convert.supervisor import Supervisor
from ndani.errors import Failed
from ndani.ledger.counts import Counts
from ndani.ledger.log import Log
from ndani.runtime.pool import Pool
from ndani.service.answers import Answers
from ndani.service.doctor import DoctorReport, examine
from ndani.service.embed import Embeddings
from ndani.service.loading import Loading
from ndani.service.maintenance import Maintenance
from ndani.service.models import Models
from ndani.service.rank import Rankings
from ndani.service.resolver import ModelResolver
from ndani.service.tokenizer import Tokenizer
from ndani.settings import Settings
from ndani.sources.fetcher import Fetcher
from ndani.store import Store

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
        self.ranking = Rankings(self.resolver, pool, counts)
        self.loading = Loading(self.resolver, pool)
        self.tokenizer = Tokenizer(self.resolver, pool)
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

    async def doctor(self) -> DoctorReport:
        """Try every way out of the jail, inside a real runner."""
        return await examine(self.store, self.resolver, self.pool)
