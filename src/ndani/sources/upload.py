"""One blob on its way to a registry: in parts, as large as it takes them, or in one request where it takes none.

Registries differ in what they take. A part may be too large (413, or 416 as some say it), or too small, of which an
`OCI-Chunk-Min-Length` warns; of a part that is taken less may be kept than was sent, which the answer's `Range` says; and
some take no parts at all. What one lets us know of itself holds for the other blobs of the push (`UploadTuning`). Where it says
something that cannot be, the digest at the end decides, and a blob whose parts went wrong is sent once more in one piece.

How far we are is noted in the store after each part, with the address of the next one. A noted address is only a try:
where it does not answer, the blob is begun again.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
from collections.abc import AsyncIterator, Callable
from threading import Event
from urllib.parse import urlencode

from ndani.errors import Cancelled, SourceFailed, StoreFailed
from ndani.sources.http import HttpResponse, Interrupted
from ndani.sources.registry import Registry, error_clause
from ndani.sources.retry import LONGEST
from ndani.sources.upload_state import UploadState, UploadTuning, forget, md5_of, read, write
from ndani.sources.urls import count_of, origin
from ndani.store import Store
from ndani.store.layout import digest_of
from ndani.store.stored_model import Layer
from ndani.types import Progress, Report

#: What is handed over at once. A slow line must take this much before it counts as standing still.
_PIECE = 1 << 16
#: Seconds that a registry may take to put the parts of a blob together.
COMMIT = 900.0
TAKEN = (200, 201, 202, 204)
#: Answers to a part that speak of the part, and not of who sends it or of what it is a part of.
_OTHERWISE = {400, 404, 405, 409, 411, 413, 415, 416, 501}
#: How often it may be said again how a blob is wanted, without more of it having arrived than ever before.
_MOST_REFUSALS = 16
#: How often a part may break off before a smaller one is tried: many a server closes the door on what is too large.
_MOST_BREAKS = 3
#: How often an address that was given out earlier is tried.
_KNOCKS = 2


class _Refused(Exception):
    """The registry did not take a part: the status, and what it says, as a clause."""

    def __init__(self, status: int, clause: str) -> None:
        self.status, self.clause = status, clause


def mark(registry: Registry, layer: Layer) -> str:
    """What a blob on its way to this place is known by, in the form of a digest."""
    return digest_of(registry.url("blobs", layer.digest).encode())


class Upload:
    """One blob on its way to the registry."""

    def __init__(self, store: Store, registry: Registry, layer: Layer, report: Report, leaving: Event, manner: UploadTuning) -> None:
        self.registry, self._layer, self._report, self._leaving, self._manner = registry, layer, report, leaving, manner
        self._path = store.layout.blob(layer.digest)
        self._note = store.layout.uploads / mark(registry, layer)[7:]
        self._standing = read(self._note)
        #: The most bytes that have ever been there: an upload that is begun again and again comes no further.
        self.furthest = 0
        self._refusals = self._breaks = 0
        #: Whether the registry said of a part that nothing of it was kept, which it may have said wrongly.
        self._doubted = False
        self._there = False
        self._travelling = 0

    async def go(self) -> None:
        """From wherever it stands to the end. Raises Interrupted when it should be tried again."""
        self._tell()
        if await self._is_there():
            self._done()
            return
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size != self._layer.size:
                    raise StoreFailed(f"the file {self._path} is damaged; pull or create the model again")
                await self._bring(file.fileno())
        except FileNotFoundError:
            raise StoreFailed(f"the model store lacks the file {self._path}; pull or create the model again") from None
        except OSError as error:
            raise StoreFailed(f"the file {self._path} cannot be read ({error.strerror}); change its owner or mode") from None

    async def _is_there(self) -> bool:
        """Whether the registry has the blob. Raises SourceFailed when it does not let us ask."""
        url = self.registry.url("blobs", self._layer.digest)
        async with self.registry.first_request("HEAD", url) as answer:
            if answer.status == 200:
                # What has another size is something else, such as a page to log in at.
                return (count_of(answer.headers.get("Content-Length", "")) or self._layer.size) == self._layer.size
            if answer.status in (404, 405, 501):  # not there, or not to be asked for in this way
                return False
            if origin(answer.url) != origin(url) and answer.status < 500:
                return True  # it sent us to its storage, which is for those who fetch
            raise await self._failed(answer)

    async def _bring(self, file: int) -> None:
        """What is missing of the blob, in parts or in one piece."""
        if not (self._standing.location and await self._resumed(file)) and not await self._begin(file):
            return
        while self._standing.sent < self._layer.size and not self._manner.whole:
            try:
                await self._send(file)
            except _Refused as refusal:
                if not await self._otherwise(file, refusal):
                    return
            self._look_at_leaving()
        if self._manner.whole:
            self._look_at_leaving()
        await self._finish(file)

    def _look_at_leaving(self) -> None:
        if self._leaving.is_set():
            raise Cancelled("the push was stopped; push again: it goes on where it stopped")

    # Where an upload stands.

    async def _resumed(self, file: int) -> bool:
        """Whether the registry still knows the upload; then we stand where it does. An address that does not answer is forgotten."""
        for failures in range(_KNOCKS):
            try:
                return await self._looked_up(file)
            except SourceFailed:  # an address that may not be asked any more, or not by us
                return False
            except Interrupted as error:
                pause = self.registry.retries.pause * 2**failures
                await asyncio.sleep(pause if error.retry_after is None else min(error.retry_after, LONGEST))
        return False

    async def _looked_up(self, file: int) -> bool:
        place = self.registry.follow(self.registry.url(), self._standing.location)
        async with self.registry.request("GET", place) as answer:
            there = _reached(answer)
            if answer.status not in (200, 204) or there is None:
                return False
            location = self._next(answer, place)
        if there == self._standing.sent + 1:
            there = self._standing.sent  # some count one too many
        if there == 1 < self._layer.size:
            there = 0  # `0-0` is also said where nothing has come
        if there > self._layer.size:
            return False
        parts = self._standing.parts
        if there != self._standing.sent:
            # A part arrived and the word of it did not, or the other way round: the registry knows best what it has.
            parts = [await asyncio.to_thread(md5_of, file, 0, there)] if there else []
        self._move(location, there, parts)
        return True

    async def _begin(self, file: int) -> bool:
        """A new upload. False when there is no need of one any more: the blob is there."""
        url = self.registry.url("blobs", "uploads", "")
        async with self.registry.request("POST", url, {"Content-Length": "0"}) as answer:
            if answer.status in TAKEN:
                least = count_of(answer.headers.get("OCI-Chunk-Min-Length", "").strip()) or 0
                self._standing = UploadState(self._next(answer, url), least=least)
                write(self._note, self._standing)
                return True
            failed = await self._failed(answer)
            if answer.status not in (400, 405, 411, 415, 501):
                raise failed
        # It may be one of those that take a blob with the first request, or not at all.
        if await self._post(file, url):
            return False
        raise failed

    async def _post(self, file: int, url: str) -> bool:
        """The whole blob with the request that begins an upload elsewhere: whether it was taken."""
        target = _with(url, digest=self._layer.digest)
        headers = {"Content-Length": str(self._layer.size), "Content-Type": "application/octet-stream"}
        try:
            async with self.registry.request(
                "POST", target, headers, lambda: self._read(file, 0, self._layer.size), response_timeout=COMMIT
            ) as answer:
                taken = answer.status == 201
        finally:
            self._travelling = 0
        if taken:
            self._done()
        return taken

    def _next(self, answer: HttpResponse, url: str) -> str:
        """Where the next request of this upload goes."""
        return self.registry.follow(url, answer.headers.get("Docker-Upload-Location") or answer.headers.get("Location") or url)

    def _move(self, location: str, sent: int, parts: list[str]) -> None:
        """From here on we stand there."""
        if sent > self.furthest:
            self.furthest, self._refusals = sent, 0
        self._standing = UploadState(location, sent, parts, self._standing.least)
        self._tell()

    def _tell(self) -> None:
        """Report how far it is."""
        done = self._layer.size if self._there else min(self._standing.sent + self._travelling, self._layer.size)
        short = self._layer.digest.removeprefix("sha256:")[:12]
        self._report(Progress(f"pushing {short}", self._layer.digest, self._layer.size, done))

    # Parts.

    async def _send(self, file: int) -> None:
        """One part. Raises _Refused when it was not taken as a part."""
        first = self._standing.sent
        end = min(first + self._manner.part_of(self._layer.size, self._standing.least), self._layer.size)
        sums = [hashlib.md5(usedforsecurity=False)]

        def body() -> AsyncIterator[bytes]:
            sums[0] = hashlib.md5(usedforsecurity=False)
            return self._read(file, first, end, sums)

        try:
            location, there = await self._patch(first, end, body)
        except Interrupted as error:
            self._breaks += 1
            if self._breaks >= _MOST_BREAKS and error.retry_after is None and end - first > 1:
                self._manner.broke(end - first)
            raise
        finally:
            self._travelling = 0
        self._breaks = 0
        self._manner.took()
        part = sums[0].hexdigest() if there == end else await asyncio.to_thread(md5_of, file, first, there)
        self._move(location, there, [*self._standing.parts, part])
        write(self._note, self._standing)

    async def _patch(self, first: int, end: int, body: Callable[[], AsyncIterator[bytes]]) -> tuple[str, int]:
        """Where the next part goes, and how many bytes of the blob are there."""
        headers = {"Content-Length": str(end - first), "Content-Type": "application/octet-stream"}
        more = {"Content-Range": f"{first}-{end - 1}", "X-Redirect-Uploads": "1"}
        async with self.registry.request("PATCH", self._standing.location, headers | more, body) as answer:
            location = self._next(answer, answer.url)
            if answer.status != 307:
                if answer.status not in TAKEN:
                    raise await self._refused(answer)
                return location, self._kept(answer, first, end)
            elsewhere = self.registry.follow(answer.url, answer.headers.get("Location", ""))
        async with self.registry.request("PUT", elsewhere, headers, body) as answer:
            if answer.status in (401, 403, 404, 410):
                raise Interrupted(f"the address that {self.registry.host} gave out for a part answered {answer.status}")
            if answer.status not in TAKEN:
                raise await self._refused(answer)
        return location, end

    def _kept(self, answer: HttpResponse, first: int, end: int) -> int:
        """How many bytes are there after a part. `Range` says it, where it can be believed.

        Of some registries it lags behind, or is that of the part alone. To go back is to lose parts that are there, and
        not to go back is found out at the next part or by the digest: so only what lies within this part is believed.
        """
        there = _reached(answer)
        if there is None or there >= end:
            return end
        if there > max(first, 1):
            return there
        self._doubted = True
        return end

    async def _otherwise(self, file: int, refusal: _Refused) -> bool:
        """After a refusal: find out what the registry wants. False when the blob is there. Raises SourceFailed when nothing is left."""
        self._refusals += 1
        if refusal.status not in _OTHERWISE or self._refusals > _MOST_REFUSALS:
            raise self._sentence(refusal.status, refusal.clause)
        size = self._manner.part_of(self._layer.size, self._standing.least)
        before = self._standing.sent
        known = await self._resumed(file)
        if known and self._standing.sent != before:
            return True  # it stands elsewhere than we thought
        if refusal.status in (413, 416):
            if size <= self._standing.least:
                self._manner.whole = True
            self._manner.shrink(min(size, self._layer.size - before))
        elif known or not before or refusal.status != 404:
            self._manner.whole = True
        if known and not self._manner.whole:
            return True
        if before and not known:
            raise self._given_up(refusal.clause)
        return await self._begin(file)

    async def _read(self, file: int, first: int, end: int, sums: list[hashlib._Hash] | None = None) -> AsyncIterator[bytes]:
        at = first
        while at < end and (piece := os.pread(file, min(_PIECE, end - at), at)):
            for each in sums or ():
                each.update(piece)
            at += len(piece)
            self._travelling = at - first
            self._tell()
            yield piece

    # The end.

    async def _finish(self, file: int) -> None:
        """The registry puts the parts together; where it takes none, the whole blob comes with this."""
        first, query = self._standing.sent, {"digest": self._layer.digest}
        if not self._manner.whole:
            sums = b"".join(bytes.fromhex(part) for part in self._standing.parts)
            query["etag"] = f"{hashlib.md5(sums, usedforsecurity=False).hexdigest()}-{len(self._standing.parts)}"
        headers = {"Content-Length": str(self._layer.size - first), "Content-Type": "application/octet-stream"}
        body = (lambda: self._read(file, first, self._layer.size)) if first < self._layer.size else None
        try:
            async with self.registry.request(
                "PUT", _with(self._standing.location, **query), headers, body, response_timeout=COMMIT
            ) as answer:
                if answer.status not in TAKEN:
                    raise await self._unfinished(answer)
        except Interrupted as error:
            if error.retry_after is not None or not await self._appears():  # who asks to be left alone is
                raise
        finally:
            self._travelling = 0
        self._done()

    async def _unfinished(self, answer: HttpResponse) -> SourceFailed | Interrupted:
        clause = error_clause(await answer.read(1 << 16))
        status, parts = answer.status, not self._manner.whole
        if status in (404, 416) or (status == 400 and self._doubted and parts):
            self._manner.whole = self._manner.whole or self._doubted
            return self._given_up(clause)
        if status == 400:  # other bytes have arrived than these, or lie here: whatever it was, no next push goes on there
            forget(self._note)
            where = self.registry.host
            return SourceFailed(
                f"{where} did not take the model: it answered {status}{clause}; push again, and see what `ndani verify` says"
            )
        return self._sentence(status, clause)

    def _given_up(self, clause: str) -> Interrupted:
        self._standing = UploadState()
        forget(self._note)
        return Interrupted(f"{self.registry.host} has given up the upload{clause}")

    async def _appears(self) -> bool:
        """Whether the blob is there after all: a registry may go on with it when the connection has not lasted as long."""
        policy = self.registry.retries
        for failures in range(policy.tries):
            if self._leaving.is_set():
                return False
            await asyncio.sleep(policy.pause * 2**failures)
            with contextlib.suppress(Interrupted):
                async with self.registry.request("HEAD", self.registry.url("blobs", self._layer.digest)) as answer:
                    if answer.status == 200:
                        return True
        return False

    async def _refused(self, answer: HttpResponse) -> _Refused:
        return _Refused(answer.status, error_clause(await answer.read(1 << 16)))

    async def _failed(self, answer: HttpResponse) -> SourceFailed:
        return self._sentence(answer.status, error_clause(await answer.read(1 << 16)))

    def _sentence(self, status: int, clause: str) -> SourceFailed:
        advice = "raise its limit on what is uploaded" if status == 413 else "check its name there"
        return SourceFailed(f"{self.registry.host} did not take the model: it answered {status}{clause}; {advice}")

    def _done(self) -> None:
        self._there = True
        self._tell()
        forget(self._note)


def _with(url: str, **query: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}{urlencode(query)}"


def _reached(answer: HttpResponse) -> int | None:
    """How many bytes of a blob are there, as `Range` says it (`0-99`, `bytes=0-99`; `0--1` for none), or None."""
    reached = re.fullmatch(r"(?:bytes[= ])?\s*0-(-1|[0-9]{1,18})", answer.headers.get("Range", "").strip())
    return int(reached[1]) + 1 if reached else None
