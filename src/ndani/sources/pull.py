"""The road of a pull, the same for every source: plan; skip what we hold; per layer resume, write, verify; commit last.

Runs in the fetcher. Two pulls of one blob, in whatever processes, transfer it once: one holds the blob's lock, the
other follows its progress on the disk, and takes over if the first one dies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

from ndani.convert.supervisor import Supervisor
from ndani.errors import Failed, NdaniError, NotFound, Offline, SourceFailed, StoreFailed, Unconfined
from ndani.names import Name
from ndani.sources import PlannedLayer, PullPlan, ScannedSource, Source
from ndani.sources.assemble import assemble, changed, convert, restore
from ndani.sources.download import Download, received
from ndani.sources.http import Interrupted
from ndani.sources.retry import RetryPolicy
from ndani.store import Store
from ndani.store.blobs import Mismatch
from ndani.store.threads import in_thread, in_thread_reporting
from ndani.types import Progress, Report


@dataclass(frozen=True, slots=True)
class _Context:
    """What every step of one pull works with."""

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

    With `repair` only these blobs are brought, in place of those that are here, and no name changes. Sources are tried
    in order. `require_jail`: what has to be made of files is made in a jail or not at all. Raises NotFound, SourceFailed,
    StoreFailed, Offline, Unconfined; what has come stays for the next pull.
    """
    context = _Context(store, Supervisor(require_jail), retries or RetryPolicy(), report)
    failed: NdaniError | None = None
    report(Progress("pulling manifest"))
    for source in sources:
        try:
            return await _pull_from(context, name, source, repair)
        except (NotFound, Failed) as error:
            if isinstance(error, StoreFailed | Unconfined):  # no matter of the place
                raise
            # What a place did wrong is worth more to the user than that another does not have it.
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
        return await _replace(context, name, source, plan, repair)
    store = context.store
    # Claimed before the first look at what we hold: from here on no delete elsewhere takes a blob of ours away.
    conversion_inputs = {file.digest for layer in plan.layers for file in layer.inputs}
    complete = False
    try:
        with store.claim({layer.digest for layer in plan.layers} | conversion_inputs):
            for layer in plan.layers:
                await _bring(context, source, layer)
            context.report(Progress("verifying sha256 digest"))
            complete = True
            if plan.assembly:
                await assemble(store, context.supervisor, name, plan.assembly, context.report)
            else:
                context.report(Progress("writing manifest"))
                store.commit(name, plan.manifest)
    except SourceFailed:
        if complete and plan.assembly:  # these are the files, and they make no model: the next pull has no use for them
            store.drop(set(plan.assembly.files.values()))
        raise
    # Shards that were joined, and what was converted, are of no more use.
    store.drop(conversion_inputs | set(plan.assembly.files.values() if plan.assembly else ()))
    context.report(Progress("success"))


async def _replace(context: _Context, name: Name, source: Source, plan: PullPlan, repair: frozenset[str]) -> None:
    """Bring blobs again that have gone bad, or make them again of what is brought. Raises SourceFailed when others come now."""
    store, assembly = context.store, plan.assembly
    layers = [layer for layer in plan.layers if layer.digest in repair]
    rest = repair - {layer.digest for layer in layers}
    if rest and not assembly:
        raise changed(name)
    files = set(assembly.files.values()) if assembly else set()
    used = files | {one.digest for layer in layers for one in layer.inputs}
    lacking = await in_thread(_lacks_weights, store, name, rest) if rest else False
    if lacking:
        layers = list(plan.layers)
    with store.claim(set(repair) | used):
        for layer in layers:
            await _bring(context, source, layer, afresh=layer.digest in repair)
        failed = None
        try:
            if rest and assembly:
                await restore(store, context.supervisor, name, assembly, rest, context.report)
        except SourceFailed as error:
            failed = error
    store.drop(used)  # of no more use, but where a name needs them
    if failed:
        raise failed
    context.report(Progress("success"))


def _lacks_weights(store: Store, name: Name, digests: frozenset[str]) -> bool:
    """Whether the weights of this model are among these, or may be: where it is not here itself."""
    try:
        return store.find(name).weights.digest in digests
    except (NotFound, StoreFailed):
        return True


async def _bring(context: _Context, source: Source, layer: PlannedLayer, *, afresh: bool = False) -> None:
    """One layer into the store, by us or by whoever is at it already; `afresh` even when the blob is here."""
    store = context.store
    if layer.content is not None:
        store.blobs.put(layer.content)
        context.report(_progress(layer, layer.size))
        return
    for ingredient in layer.inputs if afresh or not store.blobs.sound(layer.digest, layer.size) else ():
        await _bring(context, source, ingredient)
    while not (lock := store.lock(layer.digest)):
        context.report(_progress(layer, received(store, layer)))
        await asyncio.sleep(context.retries.poll)
    try:
        if not afresh and store.blobs.sound(layer.digest, layer.size):
            pass  # somebody else has brought it, or it was here
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

    def checking(seen: int) -> None:
        context.report(Progress(f"checking what is here of {_short(layer)}", None, download.here, min(seen, download.here)))

    try:
        await in_thread_reporting(download.begin, checking)
        while part := download.part:
            before = download.received
            context.report(_progress(layer, before))
            try:
                number = download.number
                async with aclosing(source.open(part, download.within)) as chunks:
                    async for chunk in chunks:
                        download.feed(chunk)
                        context.report(_progress(layer, download.received))
                if download.number == number:
                    raise Interrupted(f"{part.file.name} ended too early")
                failures = 0
            except Interrupted as error:
                failures = 0 if download.received > before else failures + 1
                await asyncio.sleep(context.retries.delay(error, failures))
        download.finish()
    except Mismatch as error:
        download.discard()
        sentence = (
            f"digest mismatch, file must be downloaded again: want {error.want}, got {error.got}; pull once more, or use another source"
        )
        raise SourceFailed(sentence) from None
    finally:
        download.close()


def _progress(layer: PlannedLayer, completed: int) -> Progress:
    total = layer.size if layer.content is not None else layer.packed_size
    return Progress(f"pulling {_short(layer)}", layer.digest, total, completed)


def _short(layer: PlannedLayer) -> str:
    return layer.digest.removeprefix("sha256:")[:12]
