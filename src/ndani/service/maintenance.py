"""The verbs that look after the store: verify (and repair), prune."""

from __future__ import annotations

from collections.abc import Callable

from ndani import names
from ndani.errors import NdaniError, NotFound, Offline
from ndani.sources.fetcher import Fetcher, without_success
from ndani.store import Store, StoredModel
from ndani.store.maintenance import Damage, PruneResult, UnusedFile, VerifyResult, prune, repair_sources, verify
from ndani.store.threads import run_in_thread, run_in_thread_reporting
from ndani.types import Progress, Report

MaintenanceStep = Progress | Damage | VerifyResult | UnusedFile | PruneResult


class Maintenance:
    """What can be done for the health of a store."""

    def __init__(self, store: Store, fetcher: Fetcher) -> None:
        self.store = store
        self._fetcher = fetcher

    async def verify(
        self, model: str, digests: frozenset[str], repair: bool, insecure: bool, report: Callable[[MaintenanceStep], None]
    ) -> None:
        """Hash every blob of a model, or of all; with `repair`, pull again what is bad. The last step is Verified.

        `insecure` is a pull's. What could not be repaired is still in its `damaged`, with the reason. Raises NotFound, StoreFailed.
        """
        damaged: dict[str, str] = {}
        if model:
            entries: tuple[StoredModel, ...] = (await run_in_thread(self.store.find, names.parse(model), f"model '{model}' not found"),)
        else:
            entries, damaged = await run_in_thread(self.store.survey)
        last = await run_in_thread_reporting(lambda report: verify(self.store, entries, damaged, report, digests), report)
        if not repair or not last.damaged:
            report(last)
            return
        left = []
        for damage in last.damaged:
            if not damage.models:  # a folder that cannot be read: nobody has another
                left.append(damage)
                continue
            try:
                await self._repair(damage, insecure, report)
            except NdaniError as error:
                left.append(Damage(f"{damage.problem}; it could not be pulled again: {error}", damage.models, damage.digest))
        report(VerifyResult(last.blobs, last.size, tuple(left)))

    async def _repair(self, damage: Damage, insecure: bool, report: Report) -> None:
        """Bring what is damaged again from where it came. Raises what the last source said."""
        if not damage.digest:  # the manifest itself: with it goes what it stood for
            await self._fetcher.pull(names.parse(damage.models[0]), insecure, report)
            return
        users = await run_in_thread(repair_sources, self.store, damage.digest)
        failed: NdaniError = NotFound("there is no source for it")
        for name in users:
            try:
                await self._fetcher.repair(names.parse(name), frozenset({damage.digest}), insecure, without_success(report))
                return
            except Offline:
                raise
            except NdaniError as error:
                failed = error
        raise failed

    async def prune(self, rehearse: bool, report: Callable[[MaintenanceStep], None]) -> None:
        """Remove what no model needs, or only say what that is. The last step is Pruned. Raises StoreFailed."""
        report(await run_in_thread_reporting(lambda report: prune(self.store, report, dry_run=rehearse), report))
