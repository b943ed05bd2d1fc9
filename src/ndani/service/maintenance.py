"""The operations that maintain the store: verify (and repair), prune. `store/maintenance.py` does the work on files."""

from __future__ import annotations

from collections.abc import Callable

from ndani import names
from ndani.background import run_in_thread, run_in_thread_reporting
from ndani.errors import NdaniError, NotFound, Offline
from ndani.sources.fetcher import Fetcher, without_success
from ndani.store import Store, StoredModel
from ndani.store.maintenance import Damage, PruneResult, UnusedFile, VerifyResult, prune, repair_sources, verify
from ndani.types import Progress, Report

MaintenanceStep = Progress | Damage | VerifyResult | UnusedFile | PruneResult


class Maintenance:
    """Verifies, repairs and prunes a store."""

    def __init__(self, store: Store, fetcher: Fetcher) -> None:
        self.store = store
        self._fetcher = fetcher

    async def verify(
        self, model: str, digests: frozenset[str], repair: bool, insecure: bool, report: Callable[[MaintenanceStep], None]
    ) -> None:
        """Hash every blob of a model, or of all models; with `repair`, pull damaged ones again. The last step is Verified.

        `insecure` is as in a pull. What could not be repaired is listed in `VerifyResult.damaged`, with the reason. Raises NotFound,
        StoreFailed.
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
        unrepaired = []
        for damage in last.damaged:
            if not damage.models:  # an unreadable folder, which no source can replace
                unrepaired.append(damage)
                continue
            try:
                await self._repair(damage, insecure, report)
            except NdaniError as error:
                unrepaired.append(Damage(f"{damage.problem}; it could not be pulled again: {error}", damage.models, damage.digest))
        report(VerifyResult(last.blobs, last.size, tuple(unrepaired)))

    async def _repair(self, damage: Damage, insecure: bool, report: Report) -> None:
        """Pull what is damaged again from its source. Raises the error of the last source that was tried."""
        if not damage.digest:  # the manifest is damaged, so nothing tells which blobs the model has
            await self._fetcher.pull(names.parse(damage.models[0]), insecure, report)
            return
        owners = await run_in_thread(repair_sources, self.store, damage.digest)
        last_error: NdaniError = NotFound("there is no source for it")
        for name in owners:
            try:
                await self._fetcher.repair(names.parse(name), frozenset({damage.digest}), insecure, without_success(report))
                return
            except Offline:
                raise
            except NdaniError as error:
                last_error = error
        raise last_error

    async def prune(self, dry_run: bool, report: Callable[[MaintenanceStep], None]) -> None:
        """Remove what no model needs; with `dry_run` only report it. The last step is Pruned. Raises StoreFailed."""
        report(await run_in_thread_reporting(lambda report: prune(self.store, report, dry_run=dry_run), report))
