"""The road of a push: for each blob ask whether it is there, send what is missing, then the manifest, to the letter.

Runs in the fetcher. A blob travels in parts (`upload`), one after the other; after each it is noted in the store how far
we are (`standing`), so that a push that was broken off goes on there, as far as the registry allows: one that drops an
upload with the connection (Debian's does) is asked for a new one. So whoever ends a push ends it between two parts, where
there is time for that: `leaving` is looked at there.
"""

from __future__ import annotations

import asyncio
from threading import Event

from ndani.errors import Cancelled, Failed, SourceFailed, StoreFailed
from ndani.names import Name
from ndani.sources.registry import Registry, error_clause
from ndani.sources.retry import retry
from ndani.sources.upload import COMMIT, TAKEN, Upload, mark
from ndani.sources.upload_state import PART, UploadTuning, remove_stale
from ndani.store import Store
from ndani.store.layout import digest_of
from ndani.store.locks import Lock
from ndani.types import Progress, Report

#: Seconds between two looks at whether another push of the same blob is over.
_LOOK = 0.06


async def push(store: Store, name: Name, registry: Registry, report: Report, leaving: Event | None = None, part: int = PART) -> None:
    """Send a model of the store to its registry.

    Raises NotFound, StoreFailed, SourceFailed, Offline, Failed; Cancelled when `leaving` was set in between.
    """
    try:
        report(Progress("retrieving manifest"))
        entry = store.find(name, missing=f"model '{name}' not found")
        manifest = entry.path.read_bytes()
        remove_stale(store)
        registry.request_push_access()
        await registry.detect_scheme()
        manner = UploadTuning(part)
        for layer in {layer.digest: layer for layer in (*entry.layers, entry.manifest.config)}.values():
            while not (lock := _lock(store, mark(registry, layer))):
                report(Progress("waiting for another push of the same model"))
                await asyncio.sleep(_LOOK)
                if leaving and leaving.is_set():
                    raise Cancelled("the push was stopped; push again")
            try:
                await _send(Upload(store, registry, layer, report, leaving or Event(), manner))
            finally:
                if isinstance(lock, Lock):
                    lock.release()
        report(Progress("pushing manifest"))
        await retry(registry.retries, lambda: _put_manifest(registry, manifest, entry.manifest.media_type))
        report(Progress("success"))
    except (Failed, SourceFailed) as error:
        # Of the tree, but not from the store: those name what they speak of themselves.
        raise type(error)(f"push model: {error}") if type(error) in (Failed, SourceFailed) else error from None
    finally:
        await registry.close()


def _lock(store: Store, place: str) -> Lock | bool:
    """The right to send a blob to one place: False while another process sends it, True where the store has none to give."""
    try:
        return store.lock(place) or False
    except StoreFailed:  # it may not be written to, and so nothing is noted in it that two could go on with
        return True


async def _send(upload: Upload) -> None:
    await retry(upload.registry.retries, upload.go, lambda: upload.furthest, verb="push")


async def _put_manifest(registry: Registry, content: bytes, media_type: str) -> None:
    url = registry.url("manifests", registry.name.tag)
    async with registry.request("PUT", url, {"Content-Type": media_type}, lambda: content, response_timeout=COMMIT) as answer:
        if answer.status not in TAKEN:
            clause = error_clause(await answer.read(1 << 16))
            raise SourceFailed(f"{registry.host} did not take the manifest: it answered {answer.status}{clause}; check the model's name")
        kept = answer.headers.get("Docker-Content-Digest", "").strip().lower()
    if kept.startswith("sha256:") and kept != digest_of(content):
        raise SourceFailed(f"{registry.host} made another manifest of the one that was pushed ({kept}); tell whoever runs it")
