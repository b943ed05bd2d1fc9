"""A pull, the same for every source: plan, skip the blobs that are here, resume, write and verify each layer, commit last.

It runs in the fetcher. Two pulls of one blob, even in different processes, transfer it once: one holds the blob's lock, the
other follows its progress on the disk, and takes over if the first one dies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from ndani.background import run_in_thread, run_in_thread_reporting
from ndani.convert.supervisor import Supervisor
from ndani.errors import Failed, NdaniError, NotFound, Offline, SourceFailed, StoreFailed, Unconfined
from ndani.names import Name
from ndani.sources import PlannedLayer, PullPlan, ScannedSource, Source
from ndani.sources.assemble import assemble, convert, restore, source_changed
from ndani.sources.download import Download, received_size
from ndani.sources.http import Interrupted
from ndani.sources.retry import RetryPolicy
from ndani.store import Store
from ndani.store.blobs import DigestMismatch
from ndani.types import Progress, Report


@dataclass(frozen=True, slots=True)
class _Context:
    """What every step of one pull needs."""

    store: Store
    supervisor: Supervisor
    retries: RetryPolicy
    report: Report


async def pull(
    store: Store,
    name: Name,
    sources: Sequence[Source],
    report: Report,
    retries: RetryPolicy | None = None,
    repair: frozenset[str] = frozenset(),
    *,
    require_jail: bool = False,
) -> None:
    """Bring a model into the store and give it its name.

    With `repair` it fetches only these blobs, in place of those that are here, and changes no name. Sources are tried in
    order. `require_jail`: conversions run in a jail or not at all. Raises NotFound, SourceFailed, StoreFailed, Offline,
    Unconfined; received bytes stay for the next pull.
    """
    context = _Context(store, Supervisor(require_jail), retries or RetryPolicy(), report)
    failed: NdaniError | None = None
    report(Progress("pulling manifest"))
    for source in sources:
        try:
            return await _pull_from(context, name, source, repair)
        except (NotFound, Failed) as error:
            if isinstance(error, StoreFailed | Unconfined):  # not the source's fault
                raise
            # A source's failure tells the user more than another source's NotFound.
            failed = error if failed is None or isinstance(failed, NotFound) or not isinstance(error, NotFound) else failed
        except Offline:
            if isinstance(failed, Failed):
                break
            raise
        finally:
            await source.close()
    raise failed or NotFound("pull model manifest: file does not exist")


async def _pull_from(context: _Context, name: Name, source: Source, repair: frozenset[str]) -> None:
    if isinstance(source, ScannedSource):
        await source.scan(context.report)
    plan = await source.plan()
    if repair:
        return await _repair(context, name, source, plan, repair)
    store = context.store
    # Claim the blobs before checking which are here: from now on no other process deletes them.
    conversion_inputs = {file.digest for layer in plan.layers for file in layer.inputs}
    complete = False
    try:
        with store.claim({layer.digest for layer in plan.layers} | conversion_inputs):
            for layer in plan.layers:
                await _fetch_layer(context, source, layer)
            context.report(Progress("verifying sha256 digest"))
            complete = True
            if plan.assembly:
                await assemble(store, context.supervisor, name, plan.assembly, context.report)
            else:
                context.report(Progress("writing manifest"))
                store.commit(name, plan.manifest)
    except SourceFailed:
        if complete and plan.assembly:  # the files are complete and make no model, so the next pull does not need them
            store.remove_unused(set(plan.assembly.files.values()))
        raise
    # Joined shards and converted files are not needed any more.
    store.remove_unused(conversion_inputs | set(plan.assembly.files.values() if plan.assembly else ()))
    context.report(Progress("success"))


async def _repair(context: _Context, name: Name, source: Source, plan: PullPlan, repair: frozenset[str]) -> None:
    """Fetch or convert damaged blobs again. Raises SourceFailed when the source has other files now."""
    store, assembly = context.store, plan.assembly
    layers = [layer for layer in plan.layers if layer.digest in repair]
    others = repair - {layer.digest for layer in layers}
    if others and not assembly:
        raise source_changed(name)
    files = set(assembly.files.values()) if assembly else set()
    files_needed = files | {source_layer.digest for layer in layers for source_layer in layer.inputs}
    weights_needed = await run_in_thread(_lacks_weights, store, name, others) if others else False
    if weights_needed:
        layers = list(plan.layers)
    with store.claim(set(repair) | files_needed):
        for layer in layers:
            await _fetch_layer(context, source, layer, replace=layer.digest in repair)
        failed = None
        try:
            if others and assembly:
                await restore(store, context.supervisor, name, assembly, others, context.report)
        except SourceFailed as error:
            failed = error
    store.remove_unused(files_needed)  # unless another model needs them
    if failed:
        raise failed
    context.report(Progress("success"))


def _lacks_weights(store: Store, name: Name, digests: frozenset[str]) -> bool:
    """Whether the weights of this model are among these digests; True when the model's manifest cannot be read."""
    try:
        return store.find(name).weights.digest in digests
    except (NotFound, StoreFailed):
        return True


async def _fetch_layer(context: _Context, source: Source, layer: PlannedLayer, *, replace: bool = False) -> None:
    """Bring one layer into the store, or wait for another process that does so; with `replace` even when the blob is here."""
    store = context.store
    if layer.content is not None:
        store.blobs.put(layer.content)
        context.report(_progress(layer, layer.size))
        return
    for source_layer in layer.inputs if replace or not store.blobs.is_intact(layer.digest, layer.size) else ():
        await _fetch_layer(context, source, source_layer)
    while not (lock := store.lock_blob(layer.digest)):
        context.report(_progress(layer, received_size(store, layer)))
        await asyncio.sleep(context.retries.poll_interval)
    try:
        if not replace and store.blobs.is_intact(layer.digest, layer.size):
            pass  # another process has brought it, or it was here
        elif layer.converted_from:
            await convert(store, context.supervisor, layer, context.report)
        else:
            await _transfer(context, source, layer)
    finally:
        lock.release()
    if not layer.converted_from:
        context.report(_progress(layer, layer.packed_size))


async def _transfer(context: _Context, source: Source, layer: PlannedLayer) -> None:
    download = Download(context.store, layer)
    failures = 0

    def report_check(checked: int) -> None:
        context.report(
            Progress(f"checking what is here of {_short_digest(layer)}", None, download.resumed_size, min(checked, download.resumed_size))
        )

    try:
        await run_in_thread_reporting(download.resume, report_check)
        while part := download.part:
            received_before = download.received_size
            context.report(_progress(layer, received_before))
            try:
                part_index = download.part_index
                async with aclosing(source.open(part, download.offset)) as chunks:
                    async for chunk in chunks:
                        download.feed(chunk)
                        context.report(_progress(layer, download.received_size))
                if download.part_index == part_index:
                    raise Interrupted(f"{part.file.name} ended too early")
                failures = 0
            except Interrupted as error:
                failures = 0 if download.received_size > received_before else failures + 1
                await asyncio.sleep(context.retries.delay(error, failures))
        download.finish()
    except DigestMismatch as error:
        download.discard()
        mismatch = f"want {error.expected}, got {error.actual}"
        advice = "pull once more, or use another source"
        raise SourceFailed(f"digest mismatch, file must be downloaded again: {mismatch}; {advice}") from None
    finally:
        download.close()


def _progress(layer: PlannedLayer, completed: int) -> Progress:
    total = layer.size if layer.content is not None else layer.packed_size
    return Progress(f"pulling {_short_digest(layer)}", layer.digest, total, completed)


def _short_digest(layer: PlannedLayer) -> str:
    return layer.digest.removeprefix("sha256:")[:12]
