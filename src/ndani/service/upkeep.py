"""The verbs that look after the store: verify (and repair), prune."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from ndani import names
from ndani.errors import NdaniError, NotFound, Offline
from ndani.sources.fetcher import Fetcher
from ndani.store import Entry, Store
from ndani.store.threads import in_thread, stepped
from ndani.store.upkeep import Damage, Pruned, Unused, Verified, prune, restorers, verify
from ndani.types import Progress

Step = Progress | Damage | Verified | Unused | Pruned


class Upkeep:
    """What can be done for the health of a store."""

    def __init__(self, store: Store, fetcher: Fetcher) -> None:
        self.store = store
        self._fetcher = fetcher

    async def verify(
        self, model: str = "", digests: frozenset[str] = frozenset(), repair: bool = False, insecure: bool = False
    ) -> AsyncGenerator[Step]:
        """Hash every blob of a model, or of all; with `repair`, pull again what is bad. The last step is Verified.

        `insecure` is a pull's. What could not be repaired is still in its `damaged`, with the reason. Raises NotFound, StoreFailed.
        """
        damaged: dict[str, str] = {}
        if model:
            entries: tuple[Entry, ...] = (await in_thread(self.store.find, names.parse(model), f"model '{model}' not found"),)
        else:
            entries, damaged = await in_thread(self.store.survey)
        last = Verified(0, 0, ())
        async with aclosing(stepped(verify(self.store, entries, damaged, digests))) as steps:
            async for step in steps:
                if isinstance(step, Verified):
                    last = step
                else:
                    yield step
        if not repair or not last.damaged:
            yield last
            return
        left = []
        for damage in last.damaged:
            if not damage.models:  # a folder that cannot be read: nobody has another
                left.append(damage)
                continue
            try:
                async with aclosing(self._repair(damage, insecure)) as pulling:
                    async for brought in pulling:
                        yield brought
            except NdaniError as error:
                left.append(Damage(f"{damage.problem}; it could not be pulled again: {error}", damage.models, damage.digest))
        yield Verified(last.blobs, last.size, tuple(left))

    async def _repair(self, damage: Damage, insecure: bool) -> AsyncGenerator[Progress]:
        """Bring what is damaged again from where it came. Raises what the last source said."""
        if not damage.digest:  # the manifest itself: with it goes what it stood for
            async with aclosing(self._fetcher.pull(names.parse(damage.models[0]), insecure)) as steps:
                async for step in steps:
                    yield step
            return
        users = await in_thread(restorers, self.store, damage.digest)
        failed: NdaniError = NotFound("there is no source for it")
        for name in users:
            try:
                async with aclosing(self._fetcher.repair(names.parse(name), frozenset({damage.digest}), insecure)) as steps:
                    async for step in steps:
                        if step.status != "success":
                            yield step
                return
            except Offline:
                raise
            except NdaniError as error:
                failed = error
        raise failed

    async def prune(self, rehearse: bool = False) -> AsyncGenerator[Step]:
        """Remove what no model needs, or only say what that is. The last step is Pruned. Raises StoreFailed."""
        async with aclosing(stepped(prune(self.store, rehearse=rehearse))) as steps:
            async for step in steps:
                yield step
