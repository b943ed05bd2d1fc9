"""What a pull and a repair have in common: they try the sources in order, and bring one layer after the other into the store.

Two fetchers that need one blob, even for different models, transfer it once: one holds the blob's lock, the other follows its
progress on the disk, and takes over if the first one dies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from ndani.background import run_in_thread_reporting
from ndani.convert.supervisor import Supervisor
from ndani.errors import Failed, NdaniError, NotFound, Offline, SourceFailed, StoreFailed, Unconfined
from ndani.sources import PlannedLayer, PullPlan, ScannedSource, Source
from ndani.sources.assemble import convert
from ndani.sources.download import Download, received_packed_size
from ndani.sources.http import Interrupted
from ndani.sources.retry import RetryPolicy
from ndani.store import Store
from ndani.store.blobs import DigestMismatch
from ndani.types import Progress, Report


@dataclass(frozen=True, slots=True)
class PullTools:
    """What every step of one pull or repair needs."""

    store: Store
    supervisor: Supervisor
    retries: RetryPolicy
    report: Report


async def try_sources(sources: Sequence[Source], report: Report, attempt: Callable[[Source, PullPlan], Awaitable[None]]) -> None:
    """Do `attempt` with the first source that can do it, and its plan; closes the sources.

    Raises NotFound, SourceFailed, StoreFailed, Offline, Unconfined, and what `attempt` raises.
    """
    failed: NdaniError | None = None
    report(Progress("pulling manifest"))
    for source in sources:
        try:
            if isinstance(source, ScannedSource):
                await source.scan(report)
            return await attempt(source, await source.plan())
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


async def fetch_layer(tools: PullTools, source: Source, layer: PlannedLayer, *, replace: bool = False) -> None:
    """Bring one layer into the store, or wait for another process that does so; with `replace` even when the blob is here."""
    store = tools.store
    if layer.content is not None:
        store.blobs.put(layer.content)
        tools.report(_progress(layer, layer.size))
        return
    for source_layer in layer.inputs if replace or not store.blobs.is_intact(layer.digest, layer.size) else ():
        await fetch_layer(tools, source, source_layer)
    while not (lock := store.lock_blob(layer.digest)):
        tools.report(_progress(layer, received_packed_size(store, layer)))
        await asyncio.sleep(tools.retries.poll_interval)
    try:
        if not replace and store.blobs.is_intact(layer.digest, layer.size):
            pass  # another process has brought it, or it was here
        elif layer.converted_from:
            await convert(store, tools.supervisor, layer, tools.report)
        else:
            await _transfer(tools, source, layer)
    finally:
        lock.release()
    if not layer.converted_from:
        tools.report(_progress(layer, layer.packed_size))


async def _transfer(tools: PullTools, source: Source, layer: PlannedLayer) -> None:
    download = Download(tools.store, layer)
    failures = 0

    def report_check(checked: int) -> None:
        total = download.resume_read_size
        tools.report(Progress(f"checking what is here of {_short_digest(layer)}", None, total, min(checked, total)))

    try:
        await run_in_thread_reporting(download.resume, report_check)
        while part := download.part:
            received_before = download.received_packed_size
            tools.report(_progress(layer, received_before))
            try:
                part_index = download.part_index
                async with aclosing(source.open(part, download.packed_offset)) as chunks:
                    async for chunk in chunks:
                        download.feed(chunk)
                        tools.report(_progress(layer, download.received_packed_size))
                if download.part_index == part_index:
                    raise Interrupted(f"{part.file.name} ended too early")
                failures = 0
            except Interrupted as error:
                failures = 0 if download.received_packed_size > received_before else failures + 1
                await asyncio.sleep(tools.retries.delay(error, failures))
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
