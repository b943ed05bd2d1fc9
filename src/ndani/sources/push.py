"""A push: check for each blob whether the registry has it, send what is missing, then send the manifest's bytes unchanged.

It runs in the fetcher. A blob is sent in parts (`upload`), one after the other. After each part the state is saved in the
store (`upload_state`), so that an interrupted push resumes there if the registry allows it. A registry that drops an upload
when the connection ends (Debian's does) gets a new one. That is why a push is stopped between two parts where there is time
for it: the `stopping` event is checked there.
"""

from __future__ import annotations

import asyncio
from threading import Event

from ndani.errors import Cancelled, Failed, SourceFailed, StoreFailed
from ndani.names import Name
from ndani.sources.registry import Registry, error_clause
from ndani.sources.retry import retry
from ndani.sources.upload import COMMIT, TAKEN, Upload, upload_key
from ndani.sources.upload_state import PART, UploadTuning, remove_stale
from ndani.store import Store
from ndani.store.layout import digest_of
from ndani.store.locks import Lock
from ndani.types import SUCCESS, Progress, Report

#: How often to check whether another push of the same blob has ended.
_POLL_S = 0.06


async def push(store: Store, name: Name, registry: Registry, report: Report, stopping: Event | None = None, part: int = PART) -> None:
    """Send a model of the store to its registry.

    Raises NotFound, StoreFailed, SourceFailed, Offline, Failed; Cancelled when `stopping` was set between two parts.
    """
    try:
        report(Progress("retrieving manifest"))
        entry = store.find(name, not_found=f"model '{name}' not found")
        manifest = entry.path.read_bytes()
        remove_stale(store)
        registry.request_push_access()
        await registry.detect_scheme()
        tuning = UploadTuning(part)
        for layer in {layer.digest: layer for layer in (*entry.layers, entry.manifest.config)}.values():
            while not (lock := _lock(store, upload_key(registry, layer))):
                report(Progress("waiting for another push of the same model"))
                await asyncio.sleep(_POLL_S)
                if stopping and stopping.is_set():
                    raise Cancelled("the push was stopped; push again")
            try:
                await _send(Upload(store, registry, layer, report, stopping or Event(), tuning))
            finally:
                if isinstance(lock, Lock):
                    lock.release()
        report(Progress("pushing manifest"))
        await retry(registry.retries, lambda: _put_manifest(registry, manifest, entry.manifest.media_type))
        report(SUCCESS)
    except (Failed, SourceFailed) as error:
        # Only these two types: the messages of their subclasses already say what they are about.
        raise type(error)(f"push model: {error}") if type(error) in (Failed, SourceFailed) else error from None
    finally:
        await registry.close()


def _lock(store: Store, key: str) -> Lock | bool:
    """The lock for sending a blob to one registry; False while another process has it, True in a store that is read-only."""
    try:
        return store.lock_blob(key) or False
    except StoreFailed:  # the store is read-only, so two processes cannot disturb each other's saved state
        return True


async def _send(upload: Upload) -> None:
    await retry(upload.registry.retries, upload.run, lambda: upload.furthest, verb="push")


async def _put_manifest(registry: Registry, content: bytes, media_type: str) -> None:
    url = registry.url("manifests", registry.name.tag)
    async with registry.request("PUT", url, {"Content-Type": media_type}, lambda: content, response_timeout=COMMIT) as response:
        if response.status not in TAKEN:
            clause = error_clause(await response.read(1 << 16))
            raise SourceFailed(f"{registry.host} did not take the manifest: it answered {response.status}{clause}; check the model's name")
        stored_digest = response.headers.get("Docker-Content-Digest", "").strip().lower()
    if stored_digest.startswith("sha256:") and stored_digest != digest_of(content):
        raise SourceFailed(f"{registry.host} made another manifest of the one that was pushed ({stored_digest}); tell whoever runs it")
