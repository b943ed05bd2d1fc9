"""The road of a pull, the same for every source: plan; skip what we hold; per layer resume, write, verify; commit last.

Runs in the fetcher. Two pulls of one blob, in whatever processes, transfer it once: one holds the blob's lock, the
other follows its progress on the disk, and takes over if the first one dies.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from ndani.convert.supervisor import Supervisor
from ndani.errors import Failed, NdaniError, NotFound, Offline, SourceFailed, StoreFailed, Unconfined
from ndani.names import Name
from ndani.sources import Plan, PlannedLayer, Source, Surveyed
from ndani.sources.assemble import assemble, changed, convert, restore
from ndani.sources.download import Download, received
from ndani.sources.http import Interrupted
from ndani.sources.retry import RetryPolicy
from ndani.store import Store
from ndani.store.blobs import Mismatch
from ndani.store.threads import in_thread, stepped
from ndani.types import Progress


@dataclass(frozen=True, slots=True)
class _Tools:
    """What every step of one pull works with."""

    store: Store
    supervisor: Supervisor
    retries: RetryPolicy


async def pull(
    store: Store,
    name: Name,
    sources: Sequence[Source],
    retries: RetryPolicy | None = None,
    repair: frozenset[str] = frozenset(),
    *,
    require_jail: bool = False,
) -> AsyncGenerator[Progress, None]:
    """Bring a model into the store and give it its name. Consume it under aclosing.

    With `repair` only these blobs are brought, in place of those that are here, and no name changes. Sources are tried
    in order. `require_jail`: what has to be made of files is made in a jail or not at all. Raises NotFound, SourceFailed,
    StoreFailed, Offline, Unconfined; what has come stays for the next pull.
    """
    tools = _Tools(store, Supervisor(require_jail), retries or RetryPolicy())
    failed: NdaniError | None = None
    yield Progress("pulling manifest")
    for source in sources:
        try:
            async with aclosing(_pull_from(tools, name, source, repair)) as steps:
                async for step in steps:
                    yield step
            return
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


async def _pull_from(tools: _Tools, name: Name, source: Source, repair: frozenset[str]) -> AsyncGenerator[Progress, None]:
    if isinstance(source, Surveyed):
        async with aclosing(source.survey()) as looks:
            async for look in looks:
                yield look
    plan = await source.plan()
    if repair:
        async with aclosing(_replace(tools, name, source, plan, repair)) as steps:
            async for step in steps:
                yield step
        return
    store = tools.store
    # Claimed before the first look at what we hold: from here on no delete elsewhere takes a blob of ours away.
    ingredients = {one.digest for layer in plan.layers for one in layer.ingredients}
    whole = False
    try:
        with store.claim({layer.digest for layer in plan.layers} | ingredients):
            for layer in plan.layers:
                async with aclosing(_bring(tools, source, layer)) as steps:
                    async for step in steps:
                        yield step
            yield Progress("verifying sha256 digest")
            whole = True
            if plan.assembly:
                async with aclosing(assemble(store, tools.supervisor, name, plan.assembly)) as steps:
                    async for step in steps:
                        yield step
            else:
                yield Progress("writing manifest")
                store.commit(name, plan.manifest)
    except SourceFailed:
        if whole and plan.assembly:  # these are the files, and they make no model: the next pull has no use for them
            store.drop(set(plan.assembly.files.values()))
        raise
    # Shards that were joined, and what was converted, are of no more use.
    store.drop(ingredients | set(plan.assembly.files.values() if plan.assembly else ()))
    yield Progress("success")


async def _replace(tools: _Tools, name: Name, source: Source, plan: Plan, repair: frozenset[str]) -> AsyncGenerator[Progress, None]:
    """Bring blobs again that have gone bad, or make them again of what is brought. Raises SourceFailed when others come now."""
    store, assembly = tools.store, plan.assembly
    layers = [layer for layer in plan.layers if layer.digest in repair]
    rest = repair - {layer.digest for layer in layers}
    if rest and not assembly:
        raise changed(name)
    files = set(assembly.files.values()) if assembly else set()
    used = files | {one.digest for layer in layers for one in layer.ingredients}
    lacking = await in_thread(_lacks_weights, store, name, rest) if rest else False
    if lacking:
        layers = list(plan.layers)
    with store.claim(set(repair) | used):
        for layer in layers:
            async with aclosing(_bring(tools, source, layer, afresh=layer.digest in repair)) as steps:
                async for step in steps:
                    yield step
        failed = None
        try:
            if rest and assembly:
                async with aclosing(restore(store, tools.supervisor, name, assembly, rest)) as steps:
                    async for step in steps:
                        yield step
        except SourceFailed as error:
            failed = error
    store.drop(used)  # of no more use, but where a name needs them
    if failed:
        raise failed
    yield Progress("success")


def _lacks_weights(store: Store, name: Name, digests: frozenset[str]) -> bool:
    """Whether the weights of this model are among these, or may be: where it is not here itself."""
    try:
        return store.find(name).weights.digest in digests
    except (NotFound, StoreFailed):
        return True


async def _bring(tools: _Tools, source: Source, layer: PlannedLayer, *, afresh: bool = False) -> AsyncGenerator[Progress, None]:
    """One layer into the store, by us or by whoever is at it already; `afresh` even when the blob is here."""
    store = tools.store
    if layer.content is not None:
        store.blobs.put(layer.content)
        yield _progress(layer, layer.size)
        return
    here = store.blobs.sound(layer.digest, layer.size) and not afresh
    for ingredient in () if here else layer.ingredients:
        async with aclosing(_bring(tools, source, ingredient)) as steps:
            async for step in steps:
                yield step
    while not (lock := store.lock(layer.digest)):
        yield _progress(layer, received(store, layer))
        await asyncio.sleep(tools.retries.poll)
    try:
        if afresh or not store.blobs.sound(layer.digest, layer.size):
            bringing = convert(store, tools.supervisor, layer) if layer.made else _transfer(store, source, layer, tools.retries)
            async with aclosing(bringing) as steps:
                async for step in steps:
                    yield step
    finally:
        lock.release()
    if not layer.made:
        yield _progress(layer, layer.packed)


async def _transfer(store: Store, source: Source, layer: PlannedLayer, retries: RetryPolicy) -> AsyncGenerator[Progress, None]:
    download = Download(store, layer)
    failures = 0
    try:
        async with aclosing(stepped(download.begin())) as pieces:
            async for seen in pieces:
                yield Progress(f"checking what is here of {_short(layer)}", None, download.here, min(seen, download.here))
        while part := download.part:
            before = download.received
            yield _progress(layer, before)
            try:
                number = download.number
                async with aclosing(source.open(part, download.within)) as chunks:
                    async for chunk in chunks:
                        download.feed(chunk)
                        yield _progress(layer, download.received)
                if download.number == number:
                    raise Interrupted(f"{part.file.name} ended too early")
                failures = 0
            except Interrupted as error:
                failures = 0 if download.received > before else failures + 1
                await asyncio.sleep(retries.delay(error, failures))
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
    total = layer.size if layer.content is not None else layer.packed
    return Progress(f"pulling {_short(layer)}", layer.digest, total, completed)


def _short(layer: PlannedLayer) -> str:
    return layer.digest.removeprefix("sha256:")[:12]
