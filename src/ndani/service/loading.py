"""The operations that only move models into memory and out of it, whatever they are for: text or vectors."""

from __future__ import annotations

import asyncio
import contextlib

from ndani import names
from ndani.engines.sampling import merge
from ndani.errors import NdaniError
from ndani.names import Name
from ndani.runtime.pool import Pool
from ndani.service.resolver import ModelResolver, runner_key
from ndani.types import Sampling


class Loading:
    """Loads and unloads models without a question to them."""

    def __init__(self, resolver: ModelResolver, pool: Pool) -> None:
        self._resolver = resolver
        self._pool = pool

    async def load(self, model: str, missing: str, keep_alive: float | None = None, sampling: Sampling | None = None) -> bool:
        """Load a model; whether it was in memory before. `keep_alive` is in seconds, negative: for ever.

        Raises NotFound with the sentence `missing`, BadName, Forbidden, Unsupported, Busy, LoadFailed, …
        """
        resolved = await self._resolver.resolve(self._resolver.find(model, missing))
        options = merge(sampling or Sampling(), resolved.options)
        embeds_only = "completion" not in resolved.capabilities
        spec = self._resolver.spec_for_vectors(resolved, options) if embeds_only else self._resolver.spec(resolved, options)
        was_loaded = self._pool.is_ready(spec.key)
        async with self._pool.lease(spec, self._resolver.keep_alive(keep_alive)):
            pass
        return was_loaded

    async def unload(self, model: str, missing: str) -> bool:
        """Unload a model as soon as its answers in progress have ended; whether it was in memory. Raises as `load` does."""
        key = runner_key(self._resolver.find(model, missing))
        was_loaded = self._pool.is_ready(key)
        self._pool.unload(key)
        await self._applied()
        return was_loaded

    async def unload_all(self) -> None:
        """Unload every model, as `unload` does."""
        for resident in self._pool.residents():
            self._pool.unload_by_name(resident.name)
        await self._applied()

    def loaded(self) -> list[Name]:
        """The names of the models in memory, without those that are leaving; a model that has several names has all of them here.

        A client that has loaded a model looks for the name that it gave, while the runner knows the name it was first loaded by.
        """
        residents = [resident for resident in self._pool.residents() if not resident.stopping]
        found = {resident.name: names.parse(resident.name) for resident in residents}
        for name in sorted(self._resolver.store.names(), key=str) if residents else ():
            with contextlib.suppress(NdaniError):  # gone or damaged meanwhile
                if self._pool.is_ready(runner_key(self._resolver.store.find(name))):
                    found.setdefault(str(name), name)
        return list(found.values())

    async def _applied(self) -> None:
        """Wait until the pool has applied what was posted: it does so in the event loop's next turn, before this task's."""
        await asyncio.sleep(0)
