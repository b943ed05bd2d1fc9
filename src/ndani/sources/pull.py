"""A pull, the same for every source: plan, skip the blobs that are here, resume, write and verify each layer, commit last.

It runs in the fetcher. `transfer` brings each layer; `repair` fetches damaged blobs again.
"""

from __future__ import annotations

from collections.abc import Sequence

from ndani.convert.supervisor import Supervisor
from ndani.errors import SourceFailed
from ndani.names import Name
from ndani.sources import PullPlan, Source
from ndani.sources.assemble import assemble
from ndani.sources.retry import RetryPolicy
from ndani.sources.transfer import PullTools, fetch_layer, try_sources
from ndani.store import Store
from ndani.types import SUCCESS, WRITING_MANIFEST, Progress, Report


async def pull(
    store: Store,
    name: Name,
    sources: Sequence[Source],
    report: Report,
    retries: RetryPolicy | None = None,
    *,
    require_jail: bool = False,
) -> None:
    """Bring a model into the store and give it its name. Sources are tried in order.

    `require_jail`: conversions run in a jail or not at all. Raises NotFound, SourceFailed, StoreFailed, Offline, Unconfined;
    received bytes stay for the next pull.
    """
    tools = PullTools(store, Supervisor(require_jail), retries or RetryPolicy(), report)
    await try_sources(sources, report, lambda source, plan: _pull_from(tools, name, source, plan))


async def _pull_from(tools: PullTools, name: Name, source: Source, plan: PullPlan) -> None:
    store = tools.store
    # Claim the blobs before checking which are here: from now on no other process deletes them.
    conversion_inputs = {file.digest for layer in plan.layers for file in layer.inputs}
    complete = False
    try:
        with store.claim({layer.digest for layer in plan.layers} | conversion_inputs):
            for layer in plan.layers:
                await fetch_layer(tools, source, layer)
            tools.report(Progress("verifying sha256 digest"))
            complete = True
            if plan.assembly:
                await assemble(store, tools.supervisor, name, plan.assembly, tools.report)
            else:
                tools.report(WRITING_MANIFEST)
                store.commit(name, plan.manifest)
    except SourceFailed:
        if complete and plan.assembly:  # the files are complete and make no model, so the next pull does not need them
            store.remove_unused(set(plan.assembly.files.values()))
        raise
    # Joined shards and converted files are not needed any more.
    store.remove_unused(conversion_inputs | set(plan.assembly.files.values() if plan.assembly else ()))
    tools.report(SUCCESS)
