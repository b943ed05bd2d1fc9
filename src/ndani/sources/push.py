"""The road of a push: for each blob ask whether it is there, send what is missing, then the manifest, to the letter.

Runs in the fetcher. A blob travels in parts, one after the other; after each it is written down in the store how far we
are and where the registry wants the next one, so that a push that was broken off goes on there, as far as the registry
allows: one that drops an upload with the connection (Debian's does) is asked for a new one. So whoever ends a push ends
it between two parts, where there is time for that: `leaving` is looked at there.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path
from threading import Event
from urllib.parse import urlencode

import msgspec

from ndani.errors import Cancelled, Failed, SourceFailed, StoreFailed
from ndani.foreign import Unreadable, decode
from ndani.names import Name
from ndani.sources.address import count_of
from ndani.sources.http import Answer, Interrupted
from ndani.sources.patience import insist
from ndani.sources.registry import Registry, reason
from ndani.store import Store
from ndani.store.entry import Layer
from ndani.types import Progress

#: A part: small enough to be finished by whoever has to leave, and at most 5,000 of them make a blob.
PART = 16 << 20
MOST_PARTS = 5000
#: What is handed over at once. A slow line must take this much before it counts as standing still.
_PIECE = 1 << 16
#: Seconds that a registry may take to put the parts of a blob together, or to look through what a manifest names.
_COMMIT = 900.0
_LOOK = 0.06
_STALE = 7 * 86400.0


class _Standing(msgspec.Struct):
    """How far an upload is: where the next part goes, bytes sent, and the MD5 of each part (Ollama's registry adds them up)."""

    location: str = ""
    sent: int = 0
    parts: list[str] = []


async def push(
    store: Store, name: Name, registry: Registry, leaving: Event | None = None, part: int = PART
) -> AsyncGenerator[Progress, None]:
    """Send a model of the store to its registry. Consume it under aclosing.

    Raises NotFound, StoreFailed, SourceFailed, Offline, Failed; Cancelled when `leaving` was set in between.
    """
    try:
        yield Progress("retrieving manifest")
        entry = store.find(name, missing=f"model '{name}' not found")
        manifest = entry.path.read_bytes()
        _remove_stale(store)
        await registry.settle()
        for layer in {layer.digest: layer for layer in (*entry.layers, entry.manifest.config)}.values():
            upload = _Upload(store, registry, layer, leaving or Event(), part)
            async with aclosing(_watched(upload)) as steps:
                async for step in steps:
                    yield step
        yield Progress("pushing manifest")
        await insist(registry.patience, lambda: _put_manifest(registry, manifest, entry.manifest.media_type))
        yield Progress("success")
    except (Failed, SourceFailed) as error:
        # Of the tree, but not from the store: those name what they speak of themselves.
        raise type(error)(f"push model: {error}") if type(error) in (Failed, SourceFailed) else error from None
    finally:
        await registry.close()


async def _watched(upload: _Upload) -> AsyncGenerator[Progress, None]:
    """A blob on its way, looked at now and then."""
    task = asyncio.create_task(insist(upload.registry.patience, upload.go, lambda: upload.standing.sent))
    try:
        while not task.done():
            yield upload.progress
            await asyncio.wait({task}, timeout=_LOOK)
        task.result()
        yield upload.progress
    finally:
        task.cancel()
        with contextlib.suppress(Exception, asyncio.CancelledError):
            await task


class _Upload:
    """One blob on its way to the registry."""

    def __init__(self, store: Store, registry: Registry, layer: Layer, leaving: Event, part: int) -> None:
        self.registry, self._layer, self._leaving = registry, layer, leaving
        self._part = max(part, -(-layer.size // MOST_PARTS))
        self._path = store.layout.blob(layer.digest)
        key = hashlib.sha256(registry.url("blobs", layer.digest).encode()).hexdigest()
        self._note = store.layout.uploads / key
        self.standing = _read(self._note)
        self._there = False
        self._travelling = 0

    @property
    def progress(self) -> Progress:
        """How far it is, as users read it."""
        done = self._layer.size if self._there else min(self.standing.sent + self._travelling, self._layer.size)
        return Progress(f"pushing {self._layer.digest.removeprefix('sha256:')[:12]}", self._layer.digest, self._layer.size, done)

    async def go(self) -> None:
        """From wherever it stands to the end. Raises Interrupted when it should be tried again."""
        url = self.registry.url("blobs", self._layer.digest)
        async with self.registry.greeted("HEAD", url) as answer:
            if answer.status == 200:
                self._there = True
                self._forget_note()
                return
            if answer.status != 404:
                raise await self._refused(answer)
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != self._layer.size:
                    raise StoreFailed(f"the file {self._path} is damaged; pull or create the model again")
                if not (self.standing.location and await self._resumed(file.fileno())):
                    await self._begin()
                while self.standing.sent < self._layer.size:
                    await self._send(file.fileno())
                    if self._leaving.is_set():
                        raise Cancelled("the push was stopped; push again: it goes on where it stopped")
        except FileNotFoundError:
            raise StoreFailed(f"the model store lacks the file {self._path}; pull or create the model again") from None
        except OSError as error:
            raise StoreFailed(f"the file {self._path} cannot be read ({error.strerror}); change its owner or mode") from None
        await self._finish()

    async def _resumed(self, file: int) -> bool:
        """Whether the registry still knows the upload; then we stand where it does."""
        async with self.registry.ask("GET", self.standing.location) as answer:
            if answer.status not in (200, 204):
                return False
            last = answer.headers.get("Range", "").rpartition("-")[2]
            there = -1 if (end := count_of(last)) is None else end + 1
            if there == 1 and not self.standing.sent:
                there = 0  # `0-0` is also said where nothing has come
            if not 0 <= there <= self._layer.size:
                return False
            location = self._next(answer, self.standing.location)
        parts = self.standing.parts
        if there != self.standing.sent:
            # A part arrived and the word of it did not, or the other way round: the registry knows best what it has.
            parts = [await asyncio.to_thread(_sum, file, there)] if there else []
        self.standing = _Standing(location, there, parts)
        return True

    async def _begin(self) -> None:
        url = self.registry.url("blobs", "uploads", "")
        async with self.registry.ask("POST", url, {"Content-Length": "0"}) as answer:
            if answer.status != 202:
                raise await self._refused(answer)
            self.standing = _Standing(self._next(answer, url))
        self._write_down()

    def _next(self, answer: Answer, url: str) -> str:
        """Where the next request of this upload goes."""
        return self.registry.follow(url, answer.headers.get("Docker-Upload-Location") or answer.headers.get("Location") or url)

    async def _send(self, file: int) -> None:
        """One part."""
        first = self.standing.sent
        end = min(first + self._part, self._layer.size)
        sums = [hashlib.md5(usedforsecurity=False)]

        def body() -> AsyncIterator[bytes]:
            sums[0] = hashlib.md5(usedforsecurity=False)
            return self._read(file, first, end, sums)

        headers = {"Content-Length": str(end - first), "Content-Type": "application/octet-stream"}
        more = {"Content-Range": f"{first}-{end - 1}", "X-Redirect-Uploads": "1"}
        try:
            async with self.registry.ask("PATCH", self.standing.location, headers | more, body) as answer:
                location, elsewhere = self._next(answer, self.standing.location), ""
                if answer.status == 307:
                    location = self.registry.follow(answer.url, answer.headers.get("Docker-Upload-Location", self.standing.location))
                    elsewhere = self.registry.follow(answer.url, answer.headers.get("Location", ""))
                elif answer.status not in (200, 201, 202, 204):
                    raise await self._refused(answer)
            if elsewhere:
                async with self.registry.ask("PUT", elsewhere, headers, body) as answer:
                    if answer.status not in (200, 201, 202, 204):
                        raise await self._refused(answer)
        finally:
            self._travelling = 0
        self.standing = _Standing(location, end, [*self.standing.parts, sums[0].hexdigest()])
        self._write_down()

    async def _read(self, file: int, first: int, end: int, sums: list[hashlib._Hash]) -> AsyncIterator[bytes]:
        at = first
        while at < end and (piece := os.pread(file, min(_PIECE, end - at), at)):
            sums[0].update(piece)
            at += len(piece)
            self._travelling = at - first
            yield piece

    async def _finish(self) -> None:
        sums = b"".join(bytes.fromhex(part) for part in self.standing.parts)
        etag = f"{hashlib.md5(sums, usedforsecurity=False).hexdigest()}-{len(self.standing.parts)}"
        query = urlencode({"digest": self._layer.digest, "etag": etag})
        place = self.standing.location
        url = f"{place}{'&' if '?' in place else '?'}{query}"
        try:
            async with self.registry.ask("PUT", url, {"Content-Length": "0"}, wait=_COMMIT) as answer:
                if answer.status not in (200, 201, 202, 204):
                    raise await self._refused(answer)
        except Interrupted as error:
            if error.after is not None or not await self._appears():  # who asks to be left alone is
                raise
        self._there = True
        self._forget_note()

    async def _appears(self) -> bool:
        """Whether the blob is there after all: a registry may go on with it when the connection has not lasted as long."""
        patience = self.registry.patience
        for vain in range(patience.tries):
            if self._leaving.is_set():
                return False
            await asyncio.sleep(patience.pause * 2**vain)
            with contextlib.suppress(Interrupted):
                async with self.registry.ask("HEAD", self.registry.url("blobs", self._layer.digest)) as answer:
                    if answer.status == 200:
                        return True
        return False

    async def _refused(self, answer: Answer) -> SourceFailed | Interrupted:
        """The registry said no; an upload that it has forgotten is begun again."""
        said = reason(await answer.read(1 << 16))
        if self.standing.location and answer.status in (404, 416):
            self.standing = _Standing()
            self._forget_note()
            return Interrupted(f"{self.registry.host} has given up the upload{said}")
        return SourceFailed(f"{self.registry.host} did not take the model: it answered {answer.status}{said}; check its name there")

    def _forget_note(self) -> None:
        with contextlib.suppress(OSError):  # a store that may not be written to has none
            self._note.unlink(missing_ok=True)

    def _write_down(self) -> None:
        # Where it cannot be written down, a push that breaks off begins this blob again: no reason not to push.
        with contextlib.suppress(OSError):
            self._note.parent.mkdir(exist_ok=True, mode=0o700)
            fresh = self._note.with_suffix(".new")
            fresh.write_bytes(msgspec.json.encode(self.standing))
            fresh.replace(self._note)


async def _put_manifest(registry: Registry, content: bytes, media_type: str) -> None:
    url = registry.url("manifests", registry.name.tag)
    async with registry.ask("PUT", url, {"Content-Type": media_type}, lambda: content, wait=_COMMIT) as answer:
        if answer.status not in (200, 201, 202, 204):
            said = reason(await answer.read(1 << 16))
            raise SourceFailed(f"{registry.host} did not take the manifest: it answered {answer.status}{said}; check the model's name")


def _sum(file: int, end: int) -> str:
    total, at = hashlib.md5(usedforsecurity=False), 0
    while at < end and (piece := os.pread(file, min(1 << 20, end - at), at)):
        total.update(piece)
        at += len(piece)
    return total.hexdigest()


def _read(note: Path) -> _Standing:
    with contextlib.suppress(OSError, Unreadable):
        return decode(note.read_bytes(), _Standing)
    return _Standing()


def _remove_stale(store: Store) -> None:
    with contextlib.suppress(OSError):
        for note in store.layout.uploads.iterdir():
            if note.stat().st_mtime < time.time() - _STALE:
                note.unlink()
