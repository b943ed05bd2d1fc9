"""Fetches damaged blobs of a model again, from the sources that a pull would use. No name changes.

It runs in the fetcher. A blob that a source has is transferred as in a pull; one that is made on this machine is made again.
"""

from __future__ import annotations

from collections.abc import Sequence

from ndani.background import run_in_thread
from ndani.convert.supervisor import Supervisor
from ndani.errors import NotFound, SourceFailed, StoreFailed
from ndani.names import Name
from ndani.sources import PullPlan, Source
from ndani.sources.assemble import restore, source_changed
from ndani.sources.retry import RetryPolicy
from ndani.sources.transfer import PullTools, fetch_layer, try_sources
from ndani.store import Store
from ndani.types import SUCCESS, Report


async def repair(
    store: Store,
    name: Name,
    sources: Sequence[Source],
    damaged: frozenset[str],
    report: Report,
    retries: RetryPolicy | None = None,
    *,
    require_jail: bool = False,
) -> None:
    """Bring these blobs of a model into the store again, in place of those that are here. Sources are tried in order.

    `require_jail`: conversions run in a jail or not at all. Raises NotFound, SourceFailed, StoreFailed, Offline, Unconfined.
    """
    tools = PullTools(store, Supervisor(require_jail), retries or RetryPolicy(), report)
    await try_sources(sources, report, lambda source, plan: _repair_from(tools, name, source, plan, damaged))


async def _repair_from(tools: PullTools, name: Name, source: Source, plan: PullPlan, damaged: frozenset[str]) -> None:
    """Fetch or convert damaged blobs again. Raises SourceFailed when the source has other files now."""
    store, assembly = tools.store, plan.assembly
    layers = [layer for layer in plan.layers if layer.digest in damaged]
    others = damaged - {layer.digest for layer in layers}
    if others and not assembly:
        raise source_changed(name)
    files = set(assembly.files.values()) if assembly else set()
    files_needed = files | {source_layer.digest for layer in layers for source_layer in layer.inputs}
    weights_needed = await run_in_thread(_lacks_weights, store, name, others) if others else False
    if weights_needed:
        layers = list(plan.layers)
    with store.claim(set(damaged) | files_needed):
        for layer in layers:
            await fetch_layer(tools, source, layer, replace=layer.digest in damaged)
        failed = None
        try:
            if others and assembly:
                await restore(store, tools.supervisor, name, assembly, others, tools.report)
        except SourceFailed as error:
            failed = error
    store.remove_unused(files_needed)  # unless another model needs them
    if failed:
        raise failed
    tools.report(SUCCESS)


def _lacks_weights(store: Store, name: Name, digests: frozenset[str]) -> bool:
    """Whether the weights of this model are among these digests; True when the model's manifest cannot be read."""
    try:
        return store.find(name).weights.digest in digests
    except (NotFound, StoreFailed):
        return True
